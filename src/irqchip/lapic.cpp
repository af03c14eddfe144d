#include "irqchip/lapic.h"

#include <cerrno>
#include <cstring>

#include "base/bits.h"

namespace anykvm::irqchip {

namespace {

constexpr u32 kVersion = 0x14;  // integrated APIC of a Pentium 4 or later
constexpr u32 kHighestLvt = 5;  // six entries; CMCI's is a seventh
constexpr u32 kSvrReset = 0xff;
constexpr u32 kDfrReset = 0xffffffff;
constexpr u32 kLvtExtInt = 7u << 8;

constexpr u32 kLvtOffsets[] = {kApicLvtTimer, kApicLvtThermal, kApicLvtPerf,
                               kApicLvtLint0, kApicLvtLint1,   kApicLvtError};

DeliveryMode mode_of(u32 lvt) { return static_cast<DeliveryMode>(bits(lvt, 10, 8)); }

}  // namespace

Lapic::Lapic(ApicBus& bus, Clock& clock, LapicHost& host, u32 id, bool bsp)
    : m_bus(bus),
      m_clock(clock),
      m_host(host),
      m_id(id),
      m_apic_base(kApicBaseDefault | kApicBaseEnable | (bsp ? kApicBaseBsp : 0)),
      m_timer(clock) {
  reset_registers();
}

void Lapic::reset(bool init) {
  if (!init) m_apic_base.store(kApicBaseDefault | kApicBaseEnable | (apic_base() & kApicBaseBsp));
  const u32 id = reg(kApicId);
  reset_registers();
  if (init && !x2apic_mode()) set_xapic_id(id);
  m_host.deadline_changed();
}

// SDM 3A 10.4.7.1; for INIT the caller keeps IA32_APIC_BASE and the ID.
void Lapic::reset_registers() {
  for (Register& r : m_regs) r.store(0);
  m_errors.store(0);
  set_reg(kApicDfr, kDfrReset);
  set_reg(kApicSvr, kSvrReset);
  for (u32 offset : kLvtOffsets) set_reg(offset, kLvtMasked);
  if (m_has_cmci) set_reg(kApicLvtCmci, kLvtMasked);
  // A PC's firmware leaves the boot processor in virtual wire mode. There may be no firmware; KVM does it
  // too.
  if (is_bsp() && m_host.opens_lint0()) set_reg(kApicLvtLint0, kLvtExtInt);
  m_timer.reset();
  update_version();
  update_ids();
}

void Lapic::update_version() {
  u32 suppress = m_features.suppress_eoi_broadcast ? kVersionSuppressEoiBroadcast : 0;
  const u32 highest_lvt = kHighestLvt + (m_has_cmci ? 1 : 0);
  set_reg(kApicVersion, kVersion | highest_lvt << 16 | suppress);
}

// The IDs that a mode begins with. SDM 3A 10.12.5.1 and 10.12.10.2: in x2APIC mode the ID has 32 bits, and
// the logical ID follows from it.
void Lapic::update_ids() {
  set_reg(kApicId, x2apic_mode() ? m_id : m_id << 24);
  if (x2apic_mode()) set_reg(kApicLdr, (m_id >> 4) << 16 | 1u << (m_id & 0xf));
}

void Lapic::set_xapic_id(u32 value) {
  constexpr u32 kIdBits = 0xff000000;
  set_reg(kApicId, value & kIdBits);
  if ((value & kIdBits) != m_id << 24) m_bus.id_written();
}

void Lapic::set_has_cmci(bool has) {
  m_has_cmci = has;
  set_reg(kApicLvtCmci, has ? kLvtMasked : 0);
  update_version();
}

void Lapic::set_features(const Features& features) {
  m_features = features;
  update_version();
}

// --- vectors and priorities ---

int Lapic::highest(u32 first) const {
  for (int i = 7; i >= 0; i--)
    if (u32 word = reg(first + i * 0x10)) return i * 32 + 31 - __builtin_clz(word);
  return -1;
}

bool Lapic::has_quiet_eoi(u8 vector) const {
  if (highest_requested() >= 0 || test_vector(kApicTmr, vector)) return false;
  for (unsigned i = 0; i < 8; i++)
    if (reg(kApicIsr + i * 0x10) != (i == vector / 32u ? 1u << vector % 32 : 0)) return false;
  return true;
}

bool Lapic::test_vector(u32 first, u8 vector) const {
  return has_bit(reg(first + (vector >> 5) * 0x10), vector & 31);
}

bool Lapic::set_vector(u32 first, u8 vector) {
  u32 mask = 1u << (vector & 31);
  return m_regs[slot(first) + (vector >> 5)].fetch_or(mask, std::memory_order_seq_cst) & mask;
}

void Lapic::clear_vector(u32 first, u8 vector) {
  m_regs[slot(first) + (vector >> 5)].fetch_and(~(1u << (vector & 31)), std::memory_order_seq_cst);
}

// SDM 3A 10.8.3.1.
u8 Lapic::ppr() const {
  u8 tpr = static_cast<u8>(reg(kApicTpr));
  int in_service = highest(kApicIsr);
  u8 service_class = in_service < 0 ? 0 : static_cast<u8>(in_service & 0xf0);
  return (tpr & 0xf0) >= service_class ? tpr : service_class;
}

std::optional<u8> Lapic::pending_vector() const {
  if (!hardware_enabled()) return std::nullopt;
  int requested = highest(kApicIrr);
  if (requested < 0 || (requested & 0xf0) <= (ppr() & 0xf0)) return std::nullopt;
  return static_cast<u8>(requested);
}

std::optional<u8> Lapic::acknowledge() {
  std::optional<u8> vector = pending_vector();
  if (!vector) return std::nullopt;
  // In service first: a sender that compares priorities never sees the vector in neither.
  set_vector(kApicIsr, *vector);
  clear_vector(kApicIrr, *vector);
  return vector;
}

void Lapic::announce_if_ready() {
  if (interrupt_ready()) m_host.interrupt_posted();
}

void Lapic::set_cr8(u8 value) {
  set_reg(kApicTpr, u32{value & 0xfu} << 4);
  announce_if_ready();
}

// SDM 3A 10.8.5.
void Lapic::eoi() {
  int in_service = highest(kApicIsr);
  if (in_service < 0) return;
  u8 vector = static_cast<u8>(in_service);
  clear_vector(kApicIsr, vector);
  bool level = test_vector(kApicTmr, vector);
  bool suppressed = level && (reg(kApicSvr) & kSvrSuppressEoiBroadcast);
  EoiListener* listener = m_bus.eoi_listener();
  if (listener && !suppressed) listener->lapic_eoi(*this, vector, level);
  m_host.interrupt_ended(vector);
  announce_if_ready();
}

// --- acceptance: any thread ---

Lapic::Accepted Lapic::accept(DeliveryMode mode, u8 vector, bool level_triggered, bool assert_level) {
  switch (mode) {
    case DeliveryMode::kFixed:
    case DeliveryMode::kLowest:
      return accept_fixed(vector, level_triggered);
    case DeliveryMode::kNmi:
      m_host.nmi();
      return Accepted::kYes;
    case DeliveryMode::kInit:
      if (level_triggered && !assert_level) return Accepted::kNo;
      m_host.init();
      return Accepted::kYes;
    case DeliveryMode::kStartup:
      m_host.sipi(vector);
      return Accepted::kYes;
    case DeliveryMode::kRemoteRead:
      m_host.unhalt();
      return Accepted::kYes;
    case DeliveryMode::kSmi:
      m_host.smi();
      return Accepted::kYes;
    case DeliveryMode::kExtInt:  // the PIC reaches CPUs through LINT0 only
      break;
  }
  return Accepted::kNo;
}

Lapic::Accepted Lapic::accept_fixed(u8 vector, bool level_triggered) {
  if (!software_enabled()) return Accepted::kNo;
  if (vector < 16) {
    report_error(kEsrReceiveIllegalVector);
    return Accepted::kNo;
  }
  // TMR before IRR: whoever sees the request sees its trigger mode.
  if (level_triggered)
    set_vector(kApicTmr, vector);
  else if (test_vector(kApicTmr, vector))
    clear_vector(kApicTmr, vector);
  if (set_vector(kApicIrr, vector)) return Accepted::kMerged;
  m_host.interrupt_posted();
  return Accepted::kYes;
}

// SDM 3A 10.5.3. Only a new error interrupts, which also ends the recursion when LVT error's own vector is
// illegal.
void Lapic::report_error(u32 esr_bits) {
  u32 before = m_errors.fetch_or(esr_bits);
  if (esr_bits & ~before) deliver_lvt(kApicLvtError);
}

void Lapic::deliver_lvt(u32 lvt_offset) {
  u32 lvt = reg(lvt_offset);
  if (lvt & kLvtMasked) return;
  bool always_fixed = lvt_offset == kApicLvtTimer || lvt_offset == kApicLvtError;
  if (!always_fixed && mode_of(lvt) == DeliveryMode::kExtInt) {
    m_host.interrupt_posted();
    return;
  }
  DeliveryMode mode = always_fixed ? DeliveryMode::kFixed : mode_of(lvt);
  bool reserved = mode == DeliveryMode::kLowest || mode == DeliveryMode::kStartup;  // SDM 3A figure 10-8
  if (!reserved) accept(mode, static_cast<u8>(lvt), false, true);
}

void Lapic::raise_performance_interrupt(bool masks_itself) {
  const u32 lvt = reg(kApicLvtPerf);
  deliver_lvt(kApicLvtPerf);
  if (masks_itself) set_reg(kApicLvtPerf, lvt | kLvtMasked);
}

void Lapic::raise_lint(unsigned pin) {
  if (hardware_enabled()) {
    deliver_lvt(pin == 0 ? kApicLvtLint0 : kApicLvtLint1);
  } else if (pin == 0) {
    m_host.interrupt_posted();  // SDM 3A 10.4.3: the pins are INTR and NMI then
  } else {
    m_host.nmi();
  }
}

bool Lapic::accepts_pic() const {
  if (!hardware_enabled()) return true;
  u32 lint0 = reg(kApicLvtLint0);
  return !(lint0 & kLvtMasked) && mode_of(lint0) == DeliveryMode::kExtInt;
}

bool Lapic::offer_client_vector(u8 vector) {
  if (m_client_vector) return false;
  m_client_vector = vector;
  m_host.interrupt_posted();
  return true;
}

// --- timer ---

u64 Lapic::next_deadline_ns() const {
  return (reg(kApicLvtTimer) & kLvtMasked) ? kNever : m_timer.deadline_ns();
}

void Lapic::expire(u64 now_ns) {
  if (m_timer.expire(now_ns)) deliver_lvt(kApicLvtTimer);
}

void Lapic::set_tsc_deadline(u64 tsc) {
  m_timer.arm_tsc_deadline(tsc);
  if (m_timer.deadline_ns() <= m_clock.now_ns()) expire(m_clock.now_ns());
  m_host.deadline_changed();
}

void Lapic::tsc_changed() {
  m_timer.tsc_changed();
  m_host.deadline_changed();
}

}  // namespace anykvm::irqchip
