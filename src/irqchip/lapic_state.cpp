// KVM_GET_LAPIC and KVM_SET_LAPIC: the register page (KVM API 4.57, 4.58).
#include <cerrno>
#include <cstring>

#include "base/bits.h"
#include "irqchip/lapic.h"

namespace anykvm::irqchip {

namespace {

u32 page_read(const kvm_lapic_state& page, u32 offset) {
  u32 value;
  std::memcpy(&value, page.regs + offset, sizeof value);
  return value;
}

void page_write(kvm_lapic_state* page, u32 offset, u32 value) {
  std::memcpy(page->regs + offset, &value, sizeof value);
}

}  // namespace

// A timer that has passed is in the state as its interrupt: the count is 0 by now.
void Lapic::get_state(kvm_lapic_state* state, bool ids_32bit) {
  expire(m_clock.now_ns());
  std::memset(state, 0, sizeof *state);
  for (u32 offset = 0; offset < sizeof state->regs; offset += 0x10)
    page_write(state, offset, read_register(offset).value_or(0));
  // Without the 32-bit format the page has the xAPIC's form whatever the mode.
  if (x2apic_mode() && !ids_32bit) page_write(state, kApicId, m_id << 24);
}

Result<> Lapic::set_state(const kvm_lapic_state& state, bool ids_32bit) {
  if (x2apic_mode() && ids_32bit && page_read(state, kApicId) != m_id)
    return Error{EINVAL, "APIC ID is not the vCPU's"};
  set_reg(kApicTpr, page_read(state, kApicTpr) & 0xff);
  set_reg(kApicLdr, page_read(state, kApicLdr) & 0xff000000);
  set_reg(kApicDfr, page_read(state, kApicDfr) | 0x0fffffff);
  set_reg(kApicSvr, page_read(state, kApicSvr) & svr_writable_bits());
  set_reg(kApicEsr, page_read(state, kApicEsr));
  set_reg(kApicIcr, page_read(state, kApicIcr));
  set_reg(kApicIcr2, page_read(state, kApicIcr2));
  m_errors.store(0);
  for (u32 offset = kApicIsr; offset < kApicIrr + 0x80; offset += 0x10)
    set_reg(offset, page_read(state, offset));
  for (u32 offset = kApicLvtTimer; offset <= kApicLvtError; offset += 0x10)
    set_reg(offset, page_read(state, offset) & lvt_writable_bits(offset));
  if (m_has_cmci) set_reg(kApicLvtCmci, page_read(state, kApicLvtCmci) & lvt_writable_bits(kApicLvtCmci));
  update_ids();
  if (!x2apic_mode()) set_xapic_id(page_read(state, kApicId));
  restore_timer(state);
  m_host.interrupt_posted();
  m_host.deadline_changed();
  return {};
}

// An armed TSC deadline stays when the mode does: it is an MSR, which the client sets before or after.
void Lapic::restore_timer(const kvm_lapic_state& state) {
  set_reg(kApicTimerDivide, page_read(state, kApicTimerDivide) & 0xb);
  m_timer.set_divide(reg(kApicTimerDivide));
  m_timer.set_mode(static_cast<LapicTimer::Mode>(bits(reg(kApicLvtTimer), 18, 17)));
  m_timer.restore(page_read(state, kApicTimerInitial), page_read(state, kApicTimerCurrent));
}

}  // namespace anykvm::irqchip
