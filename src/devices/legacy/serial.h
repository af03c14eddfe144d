#pragma once
// A 16550A serial port: eight registers, 16-byte receive FIFO, interrupt line, loopback.
// Owner: the machine. Thread-safe: vCPUs come through the registers, the console through receive().

#include <deque>
#include <functional>
#include <mutex>

#include "devices/port_device.h"

namespace anykvm::devices {

class Serial final : public BytePortDevice {
 public:
  using Transmit = std::function<void(u8)>;

  // `transmit` gets each byte the guest sends, without the lock held, so it may block.
  // `ready` tells that receive() will take bytes again after it took fewer than it was offered.
  Serial(IrqLine irq, Transmit transmit, std::function<void()> ready);

  u8 read_byte(u16 offset) override;
  void write_byte(u16 offset, u8 value) override;

  // Puts bytes in the receive FIFO and tells how many found room. None do while the guest has neither
  // asserted RTS nor enabled the receive interrupt: its driver would throw away what arrives before it opens
  // the port.
  size_t receive(std::span<const u8> bytes);

 private:
  static constexpr size_t kFifoSize = 16;

  bool listening() const;
  size_t capacity() const;
  size_t trigger_level() const;
  u8 interrupt_id() const;
  u8 line_status();
  u8 modem_status();
  u8 read_receiver();
  void write_interrupt_enable(u8 value);
  void write_fifo_control(u8 value);
  bool loop_back(u8 value);
  void update_irq();
  bool take_ready_call();

  IrqLine m_irq;
  Transmit m_transmit;
  std::function<void()> m_ready;

  std::mutex m_mutex;  // guards everything below
  std::deque<u8> m_received;
  bool m_sender_waits = false;
  bool m_transmit_empty_pending = false;  // THRE interrupt not yet seen by the guest
  bool m_overrun = false;
  bool m_line = false;
  u8 m_interrupt_enable = 0;
  u8 m_fifo_control = 0;
  u8 m_line_control = 0;
  u8 m_modem_control = 0;
  u8 m_modem_delta = 0;
  u8 m_last_modem = 0;
  u8 m_scratch = 0;
  unsigned m_status_polls = 0;  // reads of the line status since the last access to another register
  u16 m_divisor = 12;           // 9600 baud; kept only so that it reads back
};

}  // namespace anykvm::devices
