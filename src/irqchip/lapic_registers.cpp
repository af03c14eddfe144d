// The local APIC's register file as the guest sees it: xAPIC page, x2APIC MSRs, IA32_APIC_BASE.
#include <cstring>

#include "base/bits.h"
#include "irqchip/lapic.h"

namespace anykvm::irqchip {

namespace {

constexpr u32 kSvrBits = 0x3ff;
constexpr u32 kIcrBusy = 1u << 12;  // delivery status reads 0: sending is immediate
constexpr u32 kIcrX2apicReserved = 0xfff32000;
constexpr u32 kIcrLevelAssert = 1u << 14;
constexpr u32 kIcrTriggerLevel = 1u << 15;
constexpr u32 kDivideBits = 0xb;
constexpr u64 kModeBits = kApicBaseEnable | kApicBaseX2Apic;

bool is_vector_table(u32 offset) { return offset >= kApicIsr && offset < kApicIrr + 0x80; }

bool is_read_only(u32 offset) {
  return is_vector_table(offset) || offset == kApicVersion || offset == kApicApr || offset == kApicPpr ||
         offset == kApicRrd || offset == kApicTimerCurrent;
}

}  // namespace

bool Lapic::is_lvt(u32 offset) const {
  return (offset >= kApicLvtTimer && offset <= kApicLvtError) || (m_has_cmci && offset == kApicLvtCmci);
}

// What a read gives, in either mode; nothing: no such register.
std::optional<u32> Lapic::read_register(u32 offset) {
  switch (offset) {
    case kApicId:
    case kApicVersion:
    case kApicTpr:
    case kApicLdr:
    case kApicDfr:
    case kApicSvr:
    case kApicEsr:
    case kApicIcr:
    case kApicIcr2:
    case kApicTimerDivide:
      return reg(offset);
    case kApicTimerInitial:
      return m_timer.initial_count();
    case kApicTimerCurrent:
      return m_timer.current_count();
    case kApicPpr:
      return ppr();
    case kApicApr:  // arbitration ended with the APIC bus: no cost, no meaning
    case kApicRrd:
      return 0;
  }
  if (is_vector_table(offset) || is_lvt(offset)) return reg(offset);
  return std::nullopt;
}

void Lapic::mmio_read(u32 offset, void* data, unsigned size) {
  std::memset(data, 0, size);
  if ((offset & 0xf) + size > 4) return;
  u32 register_offset = offset & ~0xfu;
  if (register_offset == kApicEoi) return;  // write only
  std::optional<u32> value = read_register(register_offset);
  if (!value) return report_error(kEsrIllegalRegister);
  std::memcpy(data, reinterpret_cast<const u8*>(&*value) + (offset & 0xf), size);
}

void Lapic::mmio_write(u32 offset, const void* data, unsigned size) {
  if (size != 4 || (offset & 0xf)) return;
  u32 value;
  std::memcpy(&value, data, sizeof value);
  write_xapic(offset, value);
}

void Lapic::write_xapic(u32 offset, u32 value) {
  switch (offset) {
    case kApicId:  // "model-specific" whether it can be written (SDM 3A 10.4.6); in KVM it can
      return set_xapic_id(value);
    case kApicLdr:
      return set_reg(kApicLdr, value & 0xff000000);
    case kApicDfr:
      return set_reg(kApicDfr, value | 0x0fffffff);
    case kApicIcr2:
      return set_reg(kApicIcr2, value & 0xff000000);
    case kApicIcr:
      set_reg(kApicIcr, value & ~kIcrBusy);  // reserved bits are kept, as in KVM
      return send_ipi(value, reg(kApicIcr2) >> 24);
    case kApicTpr:
      return write_register(offset, value & 0xff);
    case kApicSvr:
      return write_register(offset, value & svr_writable_bits());
    case kApicEoi:
    case kApicEsr:
    case kApicTimerInitial:
      return write_register(offset, value);
    case kApicTimerDivide:
      return write_register(offset, value & kDivideBits);
  }
  if (is_lvt(offset)) return write_register(offset, value & lvt_writable_bits(offset));
  if (!is_read_only(offset)) report_error(kEsrIllegalRegister);
}

u32 Lapic::svr_writable_bits() const {
  return kSvrBits | (m_features.suppress_eoi_broadcast ? kSvrSuppressEoiBroadcast : 0);
}

u32 Lapic::lvt_writable_bits(u32 offset) const {
  constexpr u32 kVector = 0xff, kMode = 0x700, kPolarity = 1u << 13;
  switch (offset) {
    case kApicLvtTimer:
      return kVector | kLvtMasked | 1u << 17 | (m_features.tsc_deadline ? 1u << 18 : 0);
    case kApicLvtError:
      return kVector | kLvtMasked;
    case kApicLvtLint0:
    case kApicLvtLint1:
      return kVector | kMode | kPolarity | kLvtLevel | kLvtMasked;
    default:
      return kVector | kMode | kLvtMasked;
  }
}

// `value` has no bits that the register lacks.
void Lapic::write_register(u32 offset, u32 value) {
  switch (offset) {
    case kApicTpr:
      set_reg(kApicTpr, value);
      return announce_if_ready();
    case kApicEoi:
      return eoi();
    case kApicSvr:
      return write_svr(value);
    case kApicEsr:  // SDM 3A 10.5.3: a write shows what was collected since the last one
      return set_reg(kApicEsr, m_errors.exchange(0));
    case kApicTimerInitial:
      m_timer.start(value);
      return m_host.deadline_changed();
    case kApicTimerDivide:
      set_reg(kApicTimerDivide, value);
      m_timer.set_divide(value);
      return m_host.deadline_changed();
    default:
      return write_lvt(offset, value);
  }
}

void Lapic::write_svr(u32 value) {
  set_reg(kApicSvr, value);
  if (value & kSvrEnabled) return announce_if_ready();
  // SDM 3A 10.4.7.2: while the APIC is disabled by software, all LVT entries are masked.
  for (u32 offset = kApicLvtTimer; offset <= kApicLvtError; offset += 0x10)
    set_reg(offset, reg(offset) | kLvtMasked);
  if (m_has_cmci) set_reg(kApicLvtCmci, reg(kApicLvtCmci) | kLvtMasked);
  m_host.deadline_changed();
}

void Lapic::write_lvt(u32 offset, u32 value) {
  if (!(reg(kApicSvr) & kSvrEnabled)) value |= kLvtMasked;
  if (offset == kApicLvtTimer) return write_timer_lvt(value);
  set_reg(offset, value);
  // The PIC may have been waiting for LINT0 to open.
  if (offset == kApicLvtLint0 && accepts_pic()) m_host.interrupt_posted();
}

void Lapic::write_timer_lvt(u32 value) {
  expire(m_clock.now_ns());  // what became due so far, did so under the old setting
  set_reg(kApicLvtTimer, value);
  m_timer.set_mode(static_cast<LapicTimer::Mode>(bits(value, 18, 17)));
  m_host.deadline_changed();
}

// --- interprocessor interrupts (SDM 3A 10.6.1) ---

void Lapic::send_ipi(u32 icr_low, u32 destination) {
  Message message;
  message.destination = destination;
  message.logical = has_bit(icr_low, 11);
  message.mode = static_cast<DeliveryMode>(bits(icr_low, 10, 8));
  message.vector = static_cast<u8>(icr_low);
  message.shorthand = static_cast<Shorthand>(bits(icr_low, 19, 18));
  if (message.mode == DeliveryMode::kInit) {  // the only mode for which trigger and level count
    message.level_triggered = icr_low & kIcrTriggerLevel;
    message.assert_level = icr_low & kIcrLevelAssert;
  }
  bool has_vector = message.mode == DeliveryMode::kFixed || message.mode == DeliveryMode::kLowest;
  if (has_vector && message.vector < 16) return report_error(kEsrSendIllegalVector);
  m_bus.deliver(message, this);
}

void Lapic::send_self_ipi(u8 vector) {
  if (vector < 16) return report_error(kEsrSendIllegalVector);
  accept_fixed(vector, false);
}

// --- MSRs ---

bool Lapic::msr_read(u32 index, u64* value) {
  if (index == kMsrApicBase) {
    *value = apic_base();
    return true;
  }
  if (index == kMsrTscDeadline) {
    *value = m_timer.tsc_deadline();
    return true;
  }
  return read_x2apic(index, value);
}

bool Lapic::read_x2apic(u32 index, u64* value) {
  if (!x2apic_mode() || index < kMsrX2ApicFirst || index > kMsrX2ApicFirst + 0x3f) return false;
  u32 offset = (index - kMsrX2ApicFirst) << 4;
  // SDM 3A table 10-6: these the MSR interface lacks.
  if (offset == kApicDfr || offset == kApicIcr2 || offset == kApicApr || offset == kApicRrd) return false;
  std::optional<u32> low = read_register(offset);
  if (!low) return false;
  *value = *low;
  if (offset == kApicIcr) *value |= u64{reg(kApicIcr2)} << 32;
  return true;
}

bool Lapic::msr_write(u32 index, u64 value) {
  if (index == kMsrApicBase) return set_apic_base(value, false);
  if (index == kMsrTscDeadline) {
    // Without the feature it is no error, and nothing.
    if (m_features.tsc_deadline) set_tsc_deadline(value);
    return true;
  }
  if (!x2apic_mode() || index < kMsrX2ApicFirst || index > kMsrX2ApicFirst + 0x3f) return false;
  return write_x2apic((index - kMsrX2ApicFirst) << 4, value);
}

// Bits 31:0 that a WRMSR may set, SDM 3A 10.12.1.2; the others make it #GP. Nothing: not writable at all.
std::optional<u32> Lapic::x2apic_allowed_bits(u32 offset) const {
  switch (offset) {
    case kApicTpr:
    case kApicSelfIpi:
      return 0xff;
    case kApicEoi:
    case kApicEsr:
      return 0;
    case kApicSvr:
      return svr_writable_bits();
    case kApicIcr:
      return ~kIcrX2apicReserved;
    case kApicTimerInitial:
      return ~0u;
    case kApicTimerDivide:
      return kDivideBits;
  }
  if (is_lvt(offset))
    return lvt_writable_bits(offset) | kLvtPending | kLvtRemoteIrr;  // read-only, not reserved
  return std::nullopt;
}

bool Lapic::write_x2apic(u32 offset, u64 value) {
  std::optional<u32> allowed = x2apic_allowed_bits(offset);
  u32 low = static_cast<u32>(value), high = static_cast<u32>(value >> 32);
  if (!allowed || (low & ~*allowed) || (high && offset != kApicIcr)) return false;
  if (offset == kApicIcr) {
    set_reg(kApicIcr, low & ~kIcrBusy);
    set_reg(kApicIcr2, high);
    send_ipi(low, high);
  } else if (offset == kApicSelfIpi) {
    send_self_ipi(static_cast<u8>(low));
  } else {
    write_register(offset, is_lvt(offset) ? low & lvt_writable_bits(offset) : low);
  }
  return true;
}

std::optional<u64> Lapic::read_by_msr(u32 offset) {
  if (offset == kApicIcr) return u64{reg(kApicIcr2)} << 32 | reg(kApicIcr);
  return offset == kApicTpr ? std::optional<u64>(reg(kApicTpr)) : std::nullopt;
}

bool Lapic::write_by_msr(u32 offset, u64 value) {
  if (offset == kApicIcr && x2apic_mode()) return write_x2apic(offset, value);
  if (value >> 32 && offset != kApicIcr) return false;
  if (offset == kApicIcr) write_xapic(kApicIcr2, static_cast<u32>(value >> 32));
  write_xapic(offset, static_cast<u32>(value));
  return true;
}

// SDM 3A 10.12.5 and figure 10-27.
bool Lapic::can_change_apic_base(u64 old, u64 value, const Features& features, bool from_client) {
  u64 reserved = 0x2ff | ~low_bits(features.physical_bits) | (features.x2apic ? 0 : kApicBaseX2Apic);
  u64 old_mode = old & kModeBits, new_mode = value & kModeBits;
  if ((value & reserved) || new_mode == kApicBaseX2Apic) return false;
  if (from_client) return true;
  return !(old_mode == kModeBits && new_mode == kApicBaseEnable) && !(old_mode == 0 && new_mode == kModeBits);
}

bool Lapic::set_apic_base(u64 value, bool from_client) {
  u64 old_mode = apic_base() & kModeBits, new_mode = value & kModeBits;
  if (!can_change_apic_base(apic_base(), value, m_features, from_client)) return false;
  m_apic_base.store(value);
  // Whoever disables it loses its state (SDM 3A 10.4.3); a client that restores a VM has set its registers or
  // will.
  if (!from_client && old_mode == 0 && new_mode != 0) reset_registers();
  if (old_mode != new_mode) update_ids();
  m_host.deadline_changed();
  m_host.interrupt_posted();  // the PIC's or our own requests may be visible now
  return true;
}

}  // namespace anykvm::irqchip
