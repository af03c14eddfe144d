#pragma once
// Hyper-V's interface as one vCPU has it (TLFS): its MSRs, hypercalls, synthetic interrupts and timers.
// Nothing of it is there for a guest whose CPUID does not show the interface; the client's
// KVM_GET/SET_MSRS always reach it. Owner: Vcpu, one each. The vCPU's thread inside Cpu::run(), or whoever
// holds the vCPU's mutex while it does not run; functions marked so from any thread.

#include <linux/kvm.h>

#include <atomic>
#include <optional>
#include <vector>

#include "core/hyperv/features.h"
#include "core/hyperv/partition.h"
#include "core/hyperv/synic.h"
#include "core/hyperv/timers.h"
#include "x86/cpu.h"

namespace anykvm::core {
class Vcpu;
}

namespace anykvm::core::hyperv {

class HypercallInput;
class ProcessorSet;

class VirtualProcessor final : private Timers::Host {
 public:
  VirtualProcessor(Vcpu& vcpu, Partition& partition);

  // Enters the partition's list, when the vCPU is complete.
  void join() { m_vp_index = m_partition.add(*this); }
  u32 vp_index() const { return m_vp_index.load(std::memory_order_relaxed); }  // any thread

  void set_cpuid(const std::vector<x86::CpuidEntry>& entries) { m_features = Features::of(entries); }
  void enforce_cpuid(bool enforce) { m_enforces_cpuid = enforce; }
  // EINVAL: there is no local APIC.
  Result<> activate_synic(bool keep_pages);

  std::optional<u64> read_msr(u32 index, bool from_client);
  // False: #GP.
  bool write_msr(u32 index, u64 value, bool from_client);
  // CPUID.80000007H:EDX[8] is to be 0 (TLFS: HV_X64_MSR_TSC_INVARIANT_CONTROL).
  bool hides_invariant_tsc() const;

  // --- Hypercalls (hypercalls.cpp) ---
  bool takes_hypercalls() const { return m_features.present && m_partition.hypercalls_enabled(); }
  // kClient: the client answers, see describe_call() and set_result().
  x86::Hypercall hypercall();
  // VMMCALL of a nested guest. Nothing: its hypervisor's business.
  std::optional<x86::Hypercall> nested_hypercall();
  void describe_call(kvm_hyperv_exit& exit) const;
  void set_result(u64 result);

  // --- Guests of the guest (nested.cpp) ---
  // The vCPU goes on with the nested guest of `control`.
  void nested_guest_enters(const x86::VmcbControl& control);
  x86::MsrMapUse msr_map_use(const x86::VmcbControl& control) const;

  // --- What the last instruction left to be done outside Cpu::run() (Exit::Reason::kPlatform) ---
  // True: it is an exit to the client, which `run` describes now.
  bool finish_instruction(kvm_run& run);
  // The client goes on after such an exit.
  void resume(const kvm_run& run);

  // --- Interrupts ---
  bool ends_by_itself(u8 vector) const { return m_synic.ends_by_itself(vector); }
  void end_of_interrupt(u8 vector);
  // Does somebody wait for the end of this interrupt?
  bool awaits_end(u8 vector) const { return m_synic.active() && m_synic.sints_of(vector); }
  // Any thread. As IrqChip::set_irq_line().
  int raise(unsigned sint);

  // --- Timers ---
  u64 deadline_ns() const { return m_timers.deadline_ns(); }  // any thread
  // Where guest memory may be used.
  void run_timers() { m_timers.run(); }

 private:
  u64 reference_time() override;
  Timers::Host::Told tell_expiry(unsigned timer, u64 config, u64 expiration) override;
  bool send(u8 vector);

  bool permitted(u32 index) const;
  std::optional<u64> read_own_msr(u32 index, bool from_client);
  bool write_own_msr(u32 index, u64 value, bool from_client);
  bool write_assist_page(u64 value);
  void note_partition_write(u32 index, u64 value);
  void message_read(unsigned sint);
  void exit_to_client(u32 reason, u32 type);

  x86::Hypercall answer(HypercallInput& input);
  u16 carry_out(HypercallInput& input, bool* ask_client);
  u16 flush(HypercallInput& input);
  bool is_meant(const VirtualProcessor& other, const HypercallInput& input, const ProcessorSet& set) const;
  void finish_flush();
  u16 send_ipi(HypercallInput& input);
  u16 signal_event(HypercallInput& input);
  u16 debug_call(HypercallInput& input, bool* ask_client);
  bool long_mode() const;
  bool takes_nested_flushes() const;
  std::optional<u32> flush_lock_count() const;

  Vcpu& m_vcpu;
  Partition& m_partition;
  std::atomic<u32> m_vp_index{0};
  Features m_features;
  bool m_enforces_cpuid = false;
  u64 m_assist_page = 0;
  u64 m_runtime_offset = 0;
  // Whose translations the vCPU may have, beside its own. Any thread.
  std::atomic<u64> m_nested_vm_id{0};
  std::atomic<u32> m_nested_vp_id{0};
  Synic m_synic;
  Timers m_timers{*this};

  // For finish_instruction().
  u32 m_exit_reason = 0;  // KVM_EXIT_HYPERV or KVM_EXIT_SYSTEM_EVENT; 0: no exit, but finish_flush()
  u32 m_exit_type = 0;    // of the event
  u32 m_exit_msr = 0;
  std::vector<x86::Cpu*> m_to_flush;
  bool m_trap_after_flush = false;
};

}  // namespace anykvm::core::hyperv
