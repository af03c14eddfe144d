#include "devices/legacy/i8042.h"

namespace anykvm::devices {
namespace {

constexpr u16 kDataPort = 0, kStatusPort = 4;
constexpr u8 kStatusOutputFull = 0x01, kStatusSystem = 0x04, kStatusUnlocked = 0x10, kStatusMouse = 0x20;
constexpr u8 kReadConfiguration = 0x20, kWriteConfiguration = 0x60, kDisableMouse = 0xa7, kEnableMouse = 0xa8;
constexpr u8 kTestMouse = 0xa9, kSelfTest = 0xaa, kTestKeyboard = 0xab, kDisableKeyboard = 0xad;
constexpr u8 kEnableKeyboard = 0xae, kReadOutputPort = 0xd0, kWriteOutputPort = 0xd1, kLoopKeyboard = 0xd2;
constexpr u8 kLoopMouse = 0xd3, kWriteMouse = 0xd4, kFirstPulse = 0xf0;
constexpr u8 kSelfTestPassed = 0x55, kDeviceMissing = 0xfe;
constexpr u8 kKeyboardOff = 0x10, kMouseOff = 0x20;

}  // namespace

u8 I8042::read_byte(u16 offset) {
  std::lock_guard lock(m_mutex);
  if (offset == kStatusPort) {
    u8 status = kStatusSystem | kStatusUnlocked;
    if (!m_answers.empty()) status |= kStatusOutputFull | (m_answers.front().from_mouse ? kStatusMouse : 0);
    return status;
  }
  if (offset != kDataPort) return 0xff;
  if (m_answers.empty()) return 0;
  u8 value = m_answers.front().value;
  m_answers.pop_front();
  return value;
}

void I8042::write_byte(u16 offset, u8 value) {
  bool reset = false;
  {
    std::lock_guard lock(m_mutex);
    if (offset == kStatusPort) {
      // F0H-FFH pulse the output lines whose bit is 0; bit 0 is the processor's reset.
      reset = value >= kFirstPulse && !(value & 1);
      command(value);
    } else if (offset == kDataPort) {
      reset = m_pending_command == kWriteOutputPort && !(value & 1);
      data(value);
    }
  }
  if (reset) m_reset();
}

void I8042::command(u8 value) {
  m_pending_command = 0;
  switch (value) {
    case kReadConfiguration:
      return answer(m_configuration);
    case kSelfTest:
      m_answers.clear();
      return answer(kSelfTestPassed);
    case kTestKeyboard:
    case kTestMouse:
      return answer(0);
    case kReadOutputPort:
      return answer(m_output_port);
    case kDisableKeyboard:
      m_configuration |= kKeyboardOff;
      return;
    case kEnableKeyboard:
      m_configuration &= static_cast<u8>(~kKeyboardOff);
      return;
    case kDisableMouse:
      m_configuration |= kMouseOff;
      return;
    case kEnableMouse:
      m_configuration &= static_cast<u8>(~kMouseOff);
      return;
    case kWriteConfiguration:
    case kWriteOutputPort:
    case kLoopKeyboard:
    case kLoopMouse:
    case kWriteMouse:
      m_pending_command = value;
      return;
    default:
      return;  // a controller ignores what it does not know
  }
}

// Bytes for a device that is not there: the controller reports the timeout as a "resend".
void I8042::data(u8 value) {
  u8 pending = m_pending_command;
  m_pending_command = 0;
  switch (pending) {
    case kWriteConfiguration:
      m_configuration = value;
      return;
    case kWriteOutputPort:
      m_output_port = value;
      return;
    case kLoopKeyboard:
      return answer(value);
    case kLoopMouse:
      return answer(value, true);
    case kWriteMouse:
      return answer(kDeviceMissing, true);
    default:
      return answer(kDeviceMissing);
  }
}

}  // namespace anykvm::devices
