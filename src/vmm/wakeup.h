#pragma once
// An eventfd that makes a polling thread look again at what it waits for.
// Owner: the machine. Thread-safe.

namespace anykvm::vmm {

class Wakeup {
 public:
  Wakeup();
  ~Wakeup();
  Wakeup(const Wakeup&) = delete;
  Wakeup& operator=(const Wakeup&) = delete;

  bool valid() const { return m_fd >= 0; }
  int fd() const { return m_fd; }
  void signal();
  void clear();

 private:
  int m_fd;
};

}  // namespace anykvm::vmm
