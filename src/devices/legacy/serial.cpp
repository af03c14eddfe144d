#include "devices/legacy/serial.h"

#include <algorithm>

namespace anykvm::devices {
namespace {

// Register offsets and bits as the PC16550D data sheet names them.
enum Register : u16 { kData = 0, kIer = 1, kIirFcr = 2, kLcr = 3, kMcr = 4, kLsr = 5, kMsr = 6, kScr = 7 };

constexpr u8 kIerReceive = 0x01, kIerTransmit = 0x02, kIerLine = 0x04, kIerModem = 0x08;
constexpr u8 kIirNone = 0x01, kIirModem = 0x00, kIirTransmit = 0x02, kIirReceive = 0x04, kIirLine = 0x06;
constexpr u8 kIirTimeout = 0x0c, kIirFifosEnabled = 0xc0;
constexpr u8 kFcrEnable = 0x01, kFcrClearReceive = 0x02;
constexpr u8 kLcrDivisor = 0x80;
constexpr u8 kMcrDtr = 0x01, kMcrRts = 0x02, kMcrOut1 = 0x04, kMcrOut2 = 0x08, kMcrLoop = 0x10;
constexpr u8 kLsrReady = 0x01, kLsrOverrun = 0x02, kLsrTransmitEmpty = 0x60;
constexpr u8 kMsrCts = 0x10, kMsrDsr = 0x20, kMsrRing = 0x40, kMsrCarrier = 0x80;

}  // namespace

Serial::Serial(IrqLine irq, Transmit transmit, std::function<void()> ready)
    : m_irq(std::move(irq)), m_transmit(std::move(transmit)), m_ready(std::move(ready)) {
  m_last_modem = kMsrCts | kMsrDsr | kMsrCarrier;
}

// A driver that asks for receive interrupts has opened the port. One that asks for none waits for input by
// reading the line status over and over; output alone takes one such read a byte.
bool Serial::listening() const {
  constexpr unsigned kPollsOfAWaitingGuest = 8;
  return (m_interrupt_enable & kIerReceive) || m_status_polls >= kPollsOfAWaitingGuest;
}

size_t Serial::capacity() const { return m_fifo_control & kFcrEnable ? kFifoSize : 1; }

size_t Serial::trigger_level() const {
  static constexpr size_t kLevels[] = {1, 4, 8, 14};
  return m_fifo_control & kFcrEnable ? kLevels[m_fifo_control >> 6] : 1;
}

// Priorities: line status, received data, transmitter empty, modem status. Bytes below the trigger level
// count as timed out at once: the guest need not wait four character times for them.
u8 Serial::interrupt_id() const {
  if ((m_interrupt_enable & kIerLine) && m_overrun) return kIirLine;
  if ((m_interrupt_enable & kIerReceive) && !m_received.empty()) {
    return m_received.size() >= trigger_level() ? kIirReceive : kIirTimeout;
  }
  if ((m_interrupt_enable & kIerTransmit) && m_transmit_empty_pending) return kIirTransmit;
  if ((m_interrupt_enable & kIerModem) && m_modem_delta) return kIirModem;
  return kIirNone;
}

// OUT2 gates the interrupt line on a PC; in loopback mode the pin is inactive.
void Serial::update_irq() {
  bool gate = (m_modem_control & kMcrOut2) && !(m_modem_control & kMcrLoop);
  bool level = gate && interrupt_id() != kIirNone;
  if (level == m_line) return;
  m_line = level;
  m_irq(level);
}

u8 Serial::line_status() {
  u8 status = kLsrTransmitEmpty;
  if (!m_received.empty()) status |= kLsrReady;
  if (m_overrun) status |= kLsrOverrun;
  m_overrun = false;
  return status;
}

// In loopback mode the modem outputs come back as inputs: RTS as CTS, DTR as DSR, OUT1 as RI, OUT2 as DCD.
u8 Serial::modem_status() {
  u8 status = kMsrCts | kMsrDsr | kMsrCarrier;
  if (m_modem_control & kMcrLoop) {
    status = 0;
    if (m_modem_control & kMcrRts) status |= kMsrCts;
    if (m_modem_control & kMcrDtr) status |= kMsrDsr;
    if (m_modem_control & kMcrOut1) status |= kMsrRing;
    if (m_modem_control & kMcrOut2) status |= kMsrCarrier;
  }
  return status;
}

u8 Serial::read_receiver() {
  if (m_received.empty()) return 0;
  u8 value = m_received.front();
  m_received.pop_front();
  return value;
}

// A sender that was turned away is called once, when the FIFO is empty again and the guest listens.
bool Serial::take_ready_call() {
  if (!m_sender_waits || !listening() || !m_received.empty()) return false;
  m_sender_waits = false;
  return true;
}

u8 Serial::read_byte(u16 offset) {
  u8 value = 0;
  bool ready = false;
  {
    std::lock_guard lock(m_mutex);
    m_status_polls = offset == kLsr ? m_status_polls + 1 : 0;
    bool divisor = m_line_control & kLcrDivisor;
    switch (offset) {
      case kData:
        value = divisor ? static_cast<u8>(m_divisor) : read_receiver();
        break;
      case kIer:
        value = divisor ? static_cast<u8>(m_divisor >> 8) : m_interrupt_enable;
        break;
      case kIirFcr:
        value = interrupt_id();
        if (value == kIirTransmit) m_transmit_empty_pending = false;  // reading it acknowledges this source
        if (m_fifo_control & kFcrEnable) value |= kIirFifosEnabled;
        break;
      case kLcr:
        value = m_line_control;
        break;
      case kMcr:
        value = m_modem_control;
        break;
      case kLsr:
        value = line_status();
        break;
      case kMsr:
        value = modem_status() | m_modem_delta;
        m_modem_delta = 0;
        break;
      case kScr:
        value = m_scratch;
        break;
      default:
        value = 0xff;
    }
    update_irq();
    ready = take_ready_call();
  }
  if (ready) m_ready();
  return value;
}

// Enabling the transmit interrupt while the holding register is empty raises it at once.
void Serial::write_interrupt_enable(u8 value) {
  if ((value & kIerTransmit) && !(m_interrupt_enable & kIerTransmit)) m_transmit_empty_pending = true;
  m_interrupt_enable = value & 0x0f;
}

// Switching the FIFO on or off empties it on the chip. Here it keeps its bytes: Linux asks for receive
// interrupts first and switches the FIFO on after, which would cost the first byte of piped input.
void Serial::write_fifo_control(u8 value) {
  if (value & kFcrClearReceive) m_received.clear();
  m_fifo_control = value & kFcrEnable ? value & 0xc9 : 0;
}

// True: the byte stays inside the chip.
bool Serial::loop_back(u8 value) {
  if (!(m_modem_control & kMcrLoop)) return false;
  if (m_received.size() < capacity()) {
    m_received.push_back(value);
  } else {
    m_overrun = true;
  }
  return true;
}

void Serial::write_byte(u16 offset, u8 value) {
  bool send = false, ready = false;
  {
    std::lock_guard lock(m_mutex);
    m_status_polls = 0;
    bool divisor = m_line_control & kLcrDivisor;
    switch (offset) {
      case kData:
        if (divisor) {
          m_divisor = static_cast<u16>((m_divisor & 0xff00) | value);
        } else {
          m_transmit_empty_pending = true;  // the byte leaves at once
          send = !loop_back(value);
        }
        break;
      case kIer:
        if (divisor) {
          m_divisor = static_cast<u16>((m_divisor & 0x00ff) | value << 8);
        } else {
          write_interrupt_enable(value);
        }
        break;
      case kIirFcr:
        write_fifo_control(value);
        break;
      case kLcr:
        m_line_control = value;
        break;
      case kMcr: {
        m_modem_control = value & 0x1f;
        u8 now = modem_status();
        u8 changed = (now ^ m_last_modem) & 0xf0;
        // The delta bit for RI is its trailing edge: set only when it goes away.
        if (now & kMsrRing) changed &= static_cast<u8>(~kMsrRing);
        m_modem_delta |= changed >> 4;
        m_last_modem = now;
        break;
      }
      case kScr:
        m_scratch = value;
        break;
      default:
        break;  // LSR and MSR are read-only
    }
    update_irq();
    ready = take_ready_call();
  }
  if (send) m_transmit(value);
  if (ready) m_ready();
}

size_t Serial::receive(std::span<const u8> bytes) {
  std::lock_guard lock(m_mutex);
  size_t room = 0;
  if (listening() && !(m_modem_control & kMcrLoop))
    room = capacity() - std::min(capacity(), m_received.size());
  size_t taken = std::min(room, bytes.size());
  m_received.insert(m_received.end(), bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(taken));
  m_sender_waits = taken < bytes.size();
  update_irq();
  return taken;
}

}  // namespace anykvm::devices
