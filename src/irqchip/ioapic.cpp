#include "irqchip/ioapic.h"

#include <cstring>

#include "base/bits.h"

namespace anykvm::irqchip {

namespace {

constexpr u32 kVersion = 0x11;
constexpr u32 kSelect = 0x00, kWindow = 0x10;  // the two registers in memory
constexpr u32 kIndexId = 0, kIndexVersion = 1, kIndexArbitration = 2, kIndexTable = 0x10;
constexpr u64 kMasked = bit(16);
constexpr u64 kReadOnlyBits = bit(12) | bit(14);  // delivery status, Remote IRR
constexpr u64 kWritableBits = 0xff0000000001afff;

}  // namespace

Ioapic::Ioapic(ApicBus& bus) : m_bus(bus) { reset(); }

void Ioapic::reset() {
  m_state = {};
  m_state.base_address = kIoapicDefaultAddress;
  for (auto& entry : m_state.redirtbl) entry.bits = kMasked;
}

// --- registers ---

u32 Ioapic::read_indirect() const {
  u32 index = m_state.ioregsel;
  if (index == kIndexVersion) return kVersion | (KVM_IOAPIC_NUM_PINS - 1) << 16;
  if (index == kIndexId || index == kIndexArbitration) return (m_state.id & 0xf) << 24;
  u32 pin = (index - kIndexTable) >> 1;
  if (index < kIndexTable || pin >= KVM_IOAPIC_NUM_PINS) return index < kIndexTable ? 0 : ~0u;
  u64 entry = m_state.redirtbl[pin].bits;
  return static_cast<u32>(index & 1 ? entry >> 32 : entry);
}

void Ioapic::mmio_read(u32 offset, void* data, unsigned size) {
  u32 value = 0;
  if ((offset & ~3u) == kSelect) value = m_state.ioregsel;
  if ((offset & ~3u) == kWindow) value = read_indirect();
  value >>= (offset & 3) * 8;
  std::memset(data, 0, size);
  std::memcpy(data, &value, size < 4 ? size : 4);
}

void Ioapic::mmio_write(u32 offset, const void* data, unsigned size) {
  u32 value = 0;
  std::memcpy(&value, data, size < 4 ? size : 4);
  if (offset == kSelect) m_state.ioregsel = value & 0xff;
  // The window takes whole registers only (82093AA 3.0).
  if (offset == kWindow && size >= 4) write_indirect(value);
}

void Ioapic::write_indirect(u32 value) {
  u32 index = m_state.ioregsel;
  if (index == kIndexId) m_state.id = (value >> 24) & 0xf;
  u32 pin = (index - kIndexTable) >> 1;
  if (index >= kIndexTable && pin < KVM_IOAPIC_NUM_PINS) write_redirection(pin, index & 1, value);
}

void Ioapic::write_redirection(unsigned pin, bool high, u32 value) {
  auto& entry = m_state.redirtbl[pin];
  u64 old = entry.bits;
  u64 wanted = high ? (old & 0xffffffff) | u64{value} << 32 : (old & ~u64{0xffffffff}) | value;
  entry.bits = (wanted & kWritableBits) | (old & kReadOnlyBits);
  // An edge-triggered entry has no Remote IRR; guests clear a stuck one by going to edge and back.
  if (!entry.fields.trig_mode) entry.fields.remote_irr = 0;
  if (entry.fields.trig_mode && has_bit(m_state.irr, pin)) send(pin);
}

std::array<u32, 8> Ioapic::vectors() const {
  std::array<u32, 8> result{};
  for (const auto& entry : m_state.redirtbl)
    result[entry.fields.vector >> 5] |= 1u << (entry.fields.vector & 31);
  return result;
}

// --- lines ---

int Ioapic::set_line(unsigned pin, bool level) {
  bool was_high = has_bit(m_state.irr, pin);
  if (!level) {
    m_state.irr &= ~(1u << pin);
    return 1;
  }
  m_state.irr |= 1u << pin;
  const auto& entry = m_state.redirtbl[pin];
  if (entry.fields.trig_mode ? entry.fields.remote_irr : was_high) return 0;
  return send(pin);
}

int Ioapic::send(unsigned pin) {
  auto& entry = m_state.redirtbl[pin];
  bool level = entry.fields.trig_mode;
  if (entry.fields.mask || (level && entry.fields.remote_irr)) return -1;
  Message message;
  message.destination = entry.fields.dest_id;
  message.logical = entry.fields.dest_mode;
  message.mode = static_cast<DeliveryMode>(entry.fields.delivery_mode);
  message.vector = entry.fields.vector;
  message.level_triggered = level;
  int delivered = m_bus.deliver(message, nullptr);
  // Remote IRR: a local APIC has the request and owes an EOI for it (82093AA 3.2.4).
  if (level && delivered >= 0) entry.fields.remote_irr = 1;
  return delivered;
}

u32 Ioapic::eoi(u8 vector, bool level) {
  u32 pins = 0;
  for (unsigned pin = 0; pin < KVM_IOAPIC_NUM_PINS; pin++) {
    auto& entry = m_state.redirtbl[pin];
    if (entry.fields.vector != vector) continue;
    pins |= 1u << pin;
    if (level && entry.fields.trig_mode) entry.fields.remote_irr = 0;
  }
  return pins;
}

void Ioapic::resend(u32 pins) {
  for (unsigned pin = 0; pin < KVM_IOAPIC_NUM_PINS; pin++) {
    bool high = has_bit(pins & m_state.irr, pin);
    if (high && m_state.redirtbl[pin].fields.trig_mode) send(pin);
  }
}

u32 Ioapic::unmasked_pins() const {
  u32 pins = 0;
  for (unsigned pin = 0; pin < KVM_IOAPIC_NUM_PINS; pin++)
    if (!m_state.redirtbl[pin].fields.mask) pins |= 1u << pin;
  return pins;
}

// In the client's copy `irr` holds requests: an edge that was sent is none any more, though its line be high.
kvm_ioapic_state Ioapic::state() const {
  kvm_ioapic_state copy = m_state;
  for (unsigned pin = 0; pin < KVM_IOAPIC_NUM_PINS; pin++)
    if (!copy.redirtbl[pin].fields.trig_mode) copy.irr &= ~(1u << pin);
  return copy;
}

void Ioapic::set_state(const kvm_ioapic_state& state) {
  m_state = state;
  m_state.pad = 0;
  m_state.irr &= static_cast<u32>(low_bits(KVM_IOAPIC_NUM_PINS));
  for (unsigned pin = 0; pin < KVM_IOAPIC_NUM_PINS; pin++)
    if (has_bit(m_state.irr, pin)) send(pin);
}

}  // namespace anykvm::irqchip
