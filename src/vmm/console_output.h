#pragma once
// What the guest's serial port sends, on its way to standard output.
// Owner: the machine. Thread-safe; put() blocks while nobody reads, until the machine stops.

#include <mutex>

#include "base/types.h"
#include "vmm/stop.h"

namespace anykvm::vmm {

class ConsoleOutput {
 public:
  ConsoleOutput(int fd, Stop& stop) : m_fd(fd), m_stop(stop) {}
  void put(u8 byte);

 private:
  int m_fd;
  Stop& m_stop;
  std::mutex m_mutex;  // keeps bytes in order
};

}  // namespace anykvm::vmm
