#pragma once
// What a guest CPU needs from the machine around it: buses, interrupt controller, timers. core::Vcpu
// implements it, so that nothing in x86/ depends on core/ or irqchip/. Owner: the implementer, which outlives
// the Cpu. Every call comes from the vCPU's own thread, inside Cpu::run().

#include <optional>

#include "base/types.h"

namespace anykvm::x86 {

struct VmcbControl;

// What became of a VMCALL or VMMCALL.
enum class Hypercall : u8 {
  kDone,      // answered, registers are set
  kClient,    // the client answers (Exit::Reason::kHypercall); hypercall_answered() sets the registers
  kUndefined  // #UD
};

// Where a nested guest's CPU looks for the MSR permission map.
enum class MsrMapUse : u8 {
  kMemory,  // in its hypervisor's memory, at each access
  kTake,    // in a copy that VMRUN takes
  kKeep     // in the copy that an earlier VMRUN of the same VMCB took; as kTake where there is none
};

class Platform {
 public:
  virtual ~Platform() = default;

  // Port and memory accesses outside RAM. False: nothing in here answers, the client must (an exit follows).
  // `size` is 1, 2 or 4 for ports and 1 to 8 for memory.
  virtual bool pio_read(u16 port, void* data, unsigned size) = 0;
  virtual bool pio_write(u16 port, const void* data, unsigned size) = 0;
  virtual bool mmio_read(Gpa address, void* data, unsigned size) = 0;
  virtual bool mmio_write(Gpa address, const void* data, unsigned size) = 0;

  // Is there an external interrupt that would be taken if RFLAGS.IF allowed it? (LAPIC: above the PPR; or PIC
  // INTR.)
  virtual bool interrupt_ready() = 0;
  // Interrupt acknowledge cycle: the vector now being serviced, or nothing if the request went away.
  virtual std::optional<u8> acknowledge_interrupt() = 0;
  // Is there room for an interrupt that the client brings? (set_interrupt_window_request())
  virtual bool takes_client_interrupt() { return true; }

  // Is there an INIT that GIF holds back?
  virtual bool init_waits() { return false; }

  // CR8, the task-priority class (0-15).
  virtual u8 cr8() = 0;
  virtual void set_cr8(u8 value) = 0;

  // MSRs that live in the local APIC: IA32_APIC_BASE, IA32_TSC_DEADLINE, x2APIC 800H-8FFH. False: #GP.
  virtual bool apic_msr_read(u32 index, u64* value) = 0;
  virtual bool apic_msr_write(u32 index, u64 value) = 0;

  // Guest CPU number as CPUID and the APIC ID show it.
  virtual u32 apic_id() = 0;
  // Nanoseconds of the VM's kvmclock (KVM_GET_CLOCK) at host TSC value `tsc`.
  virtual u64 kvmclock_ns(u64 tsc) = 0;
  // May the guest access this MSR by itself? (KVM_X86_SET_MSR_FILTER)
  virtual bool msr_filtered(u32 index, bool write) {
    (void)index, (void)write;
    return false;
  }
  // Does the client want to answer accesses that fail for `reason` (KVM_MSR_EXIT_REASON_*)?
  virtual bool msr_exit_wanted(u32 reason) {
    (void)reason;
    return false;
  }
  // A hypercall, with its arguments in the registers. kClient: `client_call` says who is asked
  // (KVM_EXIT_HYPERCALL, KVM_EXIT_HYPERV or KVM_EXIT_XEN), and the same question gets the same answer when
  // the instruction is executed again.
  virtual Hypercall hypercall(u32* client_call) {
    (void)client_call;
    return Hypercall::kUndefined;
  }
  virtual void hypercall_answered(u32 client_call, u64 answer) { (void)client_call, (void)answer; }
  // VMRUN, or RSM, goes on with the nested guest of `control`.
  virtual void nested_guest_enters(const VmcbControl& control) { (void)control; }
  // Asked by VMRUN.
  virtual MsrMapUse msr_map_use(const VmcbControl& control) {
    (void)control;
    return MsrMapUse::kMemory;
  }
  // VMMCALL of a nested guest, with its arguments in the registers. Nothing: its hypervisor's business; never
  // kClient.
  virtual std::optional<Hypercall> nested_hypercall() { return std::nullopt; }
  // Does a guest without a paravirtual feature in CPUID not get it? (KVM_CAP_ENFORCE_PV_FEATURE_CPUID)
  virtual bool enforces_pv_features() { return false; }
  // Is the other vendor's hypercall instruction replaced where the guest uses it? Otherwise it is #UD.
  virtual bool fixes_hypercalls() { return true; }
  // KVM_CAP_MSR_PLATFORM_INFO.
  virtual bool platform_info_readable() { return true; }
  // The client sets the TSC to `value`, which `offset` gives: the offset to use, so that the TSCs of several
  // CPUs agree.
  virtual u64 client_tsc_offset(u64 value, u64 offset) {
    (void)value;
    return offset;
  }
  // MSRs of Hyper-V's interface (40000000H-400001FFH). Nothing, false: #GP, or no such MSR for the client,
  // which calls where guest memory may be used.
  virtual std::optional<u64> hyperv_msr_read(u32 index, bool from_client) {
    (void)index, (void)from_client;
    return std::nullopt;
  }
  virtual bool hyperv_msr_write(u32 index, u64 value, bool from_client) {
    (void)index, (void)value, (void)from_client;
    return false;
  }
  // An MSR whose number the client has chosen (Xen's hypercall page), before all others. Nothing: it is none;
  // false: #GP. Called as hyperv_msr_write() is.
  virtual std::optional<bool> chosen_msr_write(u32 index, u64 value) {
    (void)index, (void)value;
    return std::nullopt;
  }
  // Performance counters: does the client want any (KVM_CAP_PMU_CAPABILITY), and does its filter let these
  // count (KVM_SET_PMU_EVENT_FILTER)? Also called between runs.
  virtual bool has_counters() { return true; }
  virtual bool counts_event(u64 select) {
    (void)select;
    return true;
  }
  virtual bool counts_fixed(unsigned index) {
    (void)index;
    return true;
  }
  // A counter that interrupts has overflowed.
  virtual void performance_interrupt() {}
  // kAttentionPmu is to be requested at host TSC value `tsc`, if the guest still runs then.
  virtual void look_at_counters_at(u64 tsc) { (void)tsc; }
  // CPUID.80000007H:EDX[8] reads 0 whatever the model says.
  virtual bool hides_invariant_tsc() { return false; }
  // MSR_KVM_ASYNC_PF_*. False: #GP, or no such value for the client. Where guest memory may be used.
  virtual bool async_page_fault_msr_write(u32 index, u64 value) {
    (void)index, (void)value;
    return false;
  }
  // The host has to fetch the page at `host`. The token that the guest is told in a page fault, and hears of
  // again when the page is there; or nothing: the CPU itself waits for the page.
  virtual std::optional<u32> await_page(const u8* host) {
    (void)host;
    return std::nullopt;
  }
  // The guest's TSC frequency in kHz.
  virtual u32 tsc_khz() = 0;
};

}  // namespace anykvm::x86
