#pragma once
// One local APIC: xAPIC page, x2APIC MSRs, priorities, local vector table, timer (SDM 3A chapter 10).
// Owner: core::Vcpu, registered with IrqChip::add_lapic(). "vCPU" functions only from the vCPU's thread (or
// while it does not run); the others from any thread. Registers are atomics; there is no lock but the
// timer's.

#include <linux/kvm.h>

#include <array>
#include <atomic>
#include <optional>
#include <utility>

#include "base/expected.h"
#include "base/types.h"
#include "irqchip/apic_bus.h"
#include "irqchip/apic_registers.h"
#include "irqchip/clock.h"
#include "irqchip/lapic_host.h"
#include "irqchip/lapic_timer.h"

namespace anykvm::irqchip {

class Lapic {
 public:
  // What CPUID shows to the guest.
  struct Features {
    bool x2apic = true;
    bool tsc_deadline = true;
    bool suppress_eoi_broadcast = false;  // KVM: only with an IOAPIC outside (split irqchip)
    u8 physical_bits = 52;                // APIC base bits above are reserved
  };

  Lapic(ApicBus& bus, Clock& clock, LapicHost& host, u32 id, bool bsp);
  Lapic(const Lapic&) = delete;
  Lapic& operator=(const Lapic&) = delete;

  // --- any thread ---

  u32 id() const { return m_id; }                                      // the x2APIC ID: the vCPU's number
  u8 xapic_id() const { return static_cast<u8>(reg(kApicId) >> 24); }  // in xAPIC mode
  bool is_bsp() const { return apic_base() & kApicBaseBsp; }
  u64 apic_base() const { return m_apic_base.load(std::memory_order_acquire); }
  bool hardware_enabled() const { return apic_base() & kApicBaseEnable; }
  bool x2apic_mode() const {
    return (apic_base() & (kApicBaseEnable | kApicBaseX2Apic)) == (kApicBaseEnable | kApicBaseX2Apic);
  }
  bool software_enabled() const { return hardware_enabled() && (reg(kApicSvr) & kSvrEnabled); }
  u32 ldr() const { return reg(kApicLdr); }
  u32 dfr() const { return reg(kApicDfr); }
  u8 ppr() const;

  // What a delivered message came to.
  enum class Accepted : u8 { kNo, kMerged, kYes };
  Accepted accept(DeliveryMode mode, u8 vector, bool level_triggered, bool assert_level);

  // The INTR line of the PIC is wired to LINT0, NMI to LINT1. Announce a rising edge.
  void raise_lint(unsigned pin);
  // Does this LAPIC pass the PIC's requests on? (LVT LINT0 unmasked as ExtINT, or hardware-disabled.)
  bool accepts_pic() const;
  // Makes the vCPU look again (a request of the PIC is still there).
  void announce() { m_host.interrupt_posted(); }

  u64 next_deadline_ns() const;  // kNever: none (also when masked)
  void expire(u64 now_ns);       // call when the clock has reached next_deadline_ns(); too early is harmless

  // A corrected machine-check error. Nothing happens without KVM_X86_SETUP_MCE's permission.
  void raise_cmci() {
    if (m_has_cmci) deliver_lvt(kApicLvtCmci);
  }

  // A performance counter has overflowed. Intel's CPUs mask the entry then (SDM 3A 11.5.1).
  void raise_performance_interrupt(bool masks_itself);

  // --- vCPU ---

  void reset(bool init);
  // The seventh entry of the LVT (SDM 3A 10.5.1), before the guest runs.
  void set_has_cmci(bool has);
  void set_features(const Features& features);

  // With the PIC in the client (split irqchip), it supplies the vector instead of an INTR line:
  // KVM_INTERRUPT. False: one waits already.
  bool offer_client_vector(u8 vector);
  bool has_client_vector() const { return m_client_vector.has_value(); }
  std::optional<u8> take_client_vector() { return std::exchange(m_client_vector, std::nullopt); }
  void tell_client_eoi(u8 vector) { m_host.client_ioapic_eoi(vector); }

  // An interrupt above the processor priority is requested. (Of this LAPIC alone; see
  // IrqChip::interrupt_ready().)
  bool interrupt_ready() const { return pending_vector().has_value(); }
  std::optional<u8> pending_vector() const;
  // Moves the highest request from IRR to ISR.
  std::optional<u8> acknowledge();

  u8 cr8() const { return static_cast<u8>(reg(kApicTpr) >> 4) & 0xf; }
  void set_cr8(u8 value);
  u8 tpr() const { return static_cast<u8>(reg(kApicTpr)); }
  void set_tpr(u8 value) { set_reg(kApicTpr, value); }  // the caller looks at interrupt_ready()
  // A vector, or -1.
  int highest_requested() const { return highest(kApicIrr); }
  int highest_in_service() const { return highest(kApicIsr); }
  // Would the EOI of this vector, which is in service, change nothing else? No other is in service or
  // requested, and it is edge-triggered.
  bool has_quiet_eoi(u8 vector) const;
  void eoi();

  // The page at `apic_base`. Registers are 32 bits, 16 bytes apart: reads that leave them give 0, writes
  // other than of a whole register do nothing.
  bool owns_address(Gpa address) const {
    return (address.value & ~u64{0xfff}) == (apic_base() & ~u64{0xfff});
  }
  void mmio_read(u32 offset, void* data, unsigned size);
  void mmio_write(u32 offset, const void* data, unsigned size);

  // IA32_APIC_BASE, IA32_TSC_DEADLINE (as it was at the last expire()), 800H-8FFH. False: #GP.
  bool msr_read(u32 index, u64* value);
  bool msr_write(u32 index, u64 value);
  // ICR and TPR, in either mode, and EOI (write only) as Hyper-V's MSRs have them. Nothing, false: #GP.
  std::optional<u64> read_by_msr(u32 offset);
  bool write_by_msr(u32 offset, u64 value);
  // `from_client`: KVM_SET_SREGS and KVM_SET_MSRS may make transitions that SDM 3A figure 10-27 forbids to
  // the guest.
  bool set_apic_base(u64 value, bool from_client);
  // May IA32_APIC_BASE become `value`? (Where the local APICs are the client's, this is all there is to it.)
  static bool can_change_apic_base(u64 old, u64 value, const Features& features, bool from_client);
  u64 tsc_deadline() { return m_timer.tsc_deadline(); }
  // KVM_CAP_X86_APIC_BUS_CYCLES_NS. Before the vCPU runs.
  void set_bus_cycle(u64 ns) {
    m_timer.set_bus_cycle(ns);
    m_timer.reset();
  }
  void set_tsc_deadline(u64 tsc);
  void tsc_changed();

  // KVM_GET_LAPIC, KVM_SET_LAPIC. `ids_32bit`: KVM_X2APIC_API_USE_32BIT_IDS.
  void get_state(kvm_lapic_state* state, bool ids_32bit = true);
  Result<> set_state(const kvm_lapic_state& state, bool ids_32bit = true);

 private:
  using Register = std::atomic<u32>;

  static constexpr unsigned slot(u32 offset) { return offset >> 4; }
  u32 reg(u32 offset) const { return m_regs[slot(offset)].load(std::memory_order_seq_cst); }
  void set_reg(u32 offset, u32 value) { m_regs[slot(offset)].store(value, std::memory_order_seq_cst); }
  // The eight 32-bit parts of ISR, TMR and IRR.
  int highest(u32 first) const;
  bool test_vector(u32 first, u8 vector) const;
  bool set_vector(u32 first, u8 vector);  // was it set before?
  void clear_vector(u32 first, u8 vector);

  Accepted accept_fixed(u8 vector, bool level_triggered);
  void announce_if_ready();
  void report_error(u32 esr_bits);
  void deliver_lvt(u32 lvt_offset);

  std::optional<u32> read_register(u32 offset);
  void write_xapic(u32 offset, u32 value);
  bool read_x2apic(u32 index, u64* value);
  std::optional<u32> x2apic_allowed_bits(u32 offset) const;
  bool write_x2apic(u32 offset, u64 value);
  // The part that both modes share, reserved bits already dealt with.
  void write_register(u32 offset, u32 value);
  bool is_lvt(u32 offset) const;
  u32 svr_writable_bits() const;
  u32 lvt_writable_bits(u32 offset) const;
  void write_lvt(u32 offset, u32 value);
  void write_timer_lvt(u32 value);
  void write_svr(u32 value);
  void send_ipi(u32 icr_low, u32 destination);
  void send_self_ipi(u8 vector);
  void update_version();
  void update_ids();
  void set_xapic_id(u32 value);
  void reset_registers();
  void restore_timer(const kvm_lapic_state& state);

  ApicBus& m_bus;
  Clock& m_clock;
  LapicHost& m_host;
  const u32 m_id;
  Features m_features;
  bool m_has_cmci = false;
  std::atomic<u64> m_apic_base;
  // Register at offset 10H * i. The x2APIC's 64-bit ICR lies in ICR (low) and ICR2 (high).
  std::array<Register, 64> m_regs{};
  std::atomic<u32> m_errors{0};       // collected since the last write to ESR
  std::optional<u8> m_client_vector;  // vCPU
  LapicTimer m_timer;
};

}  // namespace anykvm::irqchip
