#pragma once
// The main thread while the guest runs: typed bytes to the serial port, RTC ticks, signals, the time limit.
// Owner: the machine; lives on the thread that called Machine::run().

#include <chrono>
#include <optional>
#include <vector>

#include "devices/legacy/rtc.h"
#include "devices/legacy/serial.h"
#include "vmm/escape.h"
#include "vmm/stop.h"
#include "vmm/terminal.h"

namespace anykvm::vmm {

class ConsoleLoop {
 public:
  struct Parts {
    devices::Serial& serial;
    devices::Rtc& rtc;
    Stop& stop;
    Wakeup& wakeup;
    const RawTerminal& terminal;
    int input_fd;
    int signal_fd;  // a signalfd of the signals that end the program, and SIGCONT
  };
  ConsoleLoop(Parts parts, std::optional<std::chrono::nanoseconds> time_limit);

  // Returns when a stop was requested, by anybody.
  void run();

 private:
  using Clock = std::chrono::steady_clock;

  std::optional<std::chrono::nanoseconds> time_to_sleep();
  bool wants_input() const;
  void wait();
  void read_input();
  void deliver();
  void read_signal();
  void check_time_limit();

  Parts m_parts;
  std::optional<Clock::time_point> m_deadline;
  std::vector<u8> m_pending;  // read from the input, not yet taken by the serial port
  EscapeFilter m_escape;
  bool m_input_open = true;
};

}  // namespace anykvm::vmm
