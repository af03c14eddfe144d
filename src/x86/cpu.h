#pragma once
// One guest CPU: runs guest code from its state until something happens that the caller must handle (DESIGN
// D15). Owner: core::Vcpu. Everything except request() and queue_nmi() only from the vCPU's thread.

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "base/counters.h"
#include "x86/exit.h"
#include "x86/fault.h"
#include "x86/mmu/paging.h"
#include "x86/platform.h"
#include "x86/state/cpu_state.h"
#include "x86/sys/breakpoints.h"
#include "x86/sys/cpu_model.h"

namespace anykvm::x86 {

class Machine;
class Pmu;
struct Context;
namespace svm {
struct PendingExit;
class MsrMapCopy;
struct TlbTags;
}  // namespace svm

// What a debugger in the client wants (KVM_SET_GUEST_DEBUG, KVM API 4.87).
struct GuestDebug {
  bool single_step = false;           // exit after each instruction
  bool software_breakpoints = false;  // INT3 exits instead of raising #BP
  bool block_interrupts = false;      // none is delivered while single-stepping
  bool hardware_breakpoints = false;  // `breakpoints` stand in for the guest's
  Breakpoints breakpoints{};
};

// For tests and for chasing faults of the translator: forces it into forms that it otherwise takes only where
// it must.
struct TranslationLimits {
  bool one_instruction_blocks = false;
  bool slow_memory = false;  // every memory access by the C++ path
  bool operator==(const TranslationLimits&) const = default;
};

// Reasons to leave translated code; bits of one byte that it polls. Bit 0 stays clear: with an even sum, no
// address plus attention has the jump-cache index of the address itself (see LinkStamp).
enum Attention : u8 {
  kAttentionKick = 2,   // the owner wants run() to return (Reason::kInterrupted)
  kAttentionEvent = 4,  // an interrupt, NMI or other event may have become deliverable
  kAttentionWorld = 8,  // the machine changes (Machine::stop_the_world): get out of guest code, then flush
  kAttentionPmu = 64,   // performance counters are to be looked at (sys/pmu.h)
  kAttentionCode = 32,  // this CPU overwrote code: what follows in its block may be out of date
};

class Cpu {
 public:
  Cpu(Machine& machine, Platform& platform);
  ~Cpu();
  Cpu(const Cpu&) = delete;
  Cpu& operator=(const Cpu&) = delete;

  // Runs until something happens. State is exact on return.
  Exit run();

  // After kMmio or kPio: the data that a read returned (`size` bytes; `count` items for ports). For writes
  // and after the client consumed them, call it with null. The next run() finishes the instruction.
  // `refused`: the client says that there is no such MSR.
  void complete_io(const void* data, bool refused = false);
  // An instruction waits for complete_io(); its answers so far are kept.
  bool io_pending() const;

  // Any thread. Makes translated code stop at its next poll (bits of Attention).
  void request(u8 attention_bits);
  // Any thread. Queues an NMI; at most two are kept (KVM API 4.64).
  void queue_nmi();
  // Any thread. One of those is not delivered yet.
  bool nmi_queued() const;
  // Any thread. Queues an SMI; one is kept.
  void queue_smi();
  void withdraw_smi();
  // Any thread but for what the vCPU's own has taken from the queue.
  bool smi_waits() const;
  // The client wants Reason::kInterruptWindow as soon as an external interrupt could be taken.
  void set_interrupt_window_request(bool wanted);
  // External interrupt `vector` from a client that has the interrupt controller (KVM_INTERRUPT).
  void inject_interrupt(u8 vector);
  // Could an external interrupt be taken now? (IF set, no shadow, nothing injected.) Where an instruction
  // waits for the client: after it.
  bool interrupts_open() const;

  CpuState& state() { return *m_state; }
  const CpuState& state() const { return *m_state; }
  Platform& platform() { return m_platform; }
  Machine& machine() { return m_machine; }
  CpuModel& model() { return m_model; }
  const CpuModel& model() const { return m_model; }
  Context& context() { return *m_context; }
  counters::CpuCounts& counts() { return *m_counts; }
  Pmu& pmu();

  // Only between calls of run().
  void set_translation_limits(TranslationLimits limits);

  // INIT or power-up state (SDM 3A 10.1). INIT keeps what table 10-1 says it keeps. Does not touch mp_state.
  void reset(bool init);

  // The client's debugger. With all fields off, the guest has its own debug facilities back.
  void set_guest_debug(const GuestDebug& debug);
  const GuestDebug& guest_debug() const;

  // --- For instruction helpers, event delivery and whoever sets state from outside ---

  // Call after any change of CR0, CR3, CR4, EFER, CPL, CS, SS, other segments' base or limit, RFLAGS.AC or
  // .TF, XCR0, DR7, guest debug: recomputes what translated code was specialised for. Cheap if nothing
  // changed.
  void mode_changed();
  // State was replaced wholesale by the client: as mode_changed(), and nothing cached is trusted.
  void state_replaced();
  void flush_tlb();                  // every entry
  void flush_tlb_non_global();       // MOV to CR3 with CR4.PGE
  void flush_tlb_page(Gva address);  // INVLPG
  // RFLAGS.IF, TPR or the like went up: look for interrupts before the next instruction.
  void interrupts_may_have_opened();
  // Ends run() after the current instruction completes, with `exit` (HLT, hypercalls ...).
  void exit_after_instruction(const Exit& exit);
  // The stop to return when the client must answer before the instruction can go on.
  GuestStop stop_for_client(const Exit& exit);

  // For GuestStop::vmexit(); see nested/svm/exits.h.
  void set_pending_vmexit(const svm::PendingExit& exit);
  // The event that is on its way into the nested guest, as EXITINTINFO shows it; 0: none.
  void set_delivering(u64 event);
  // A nested guest is about to run: what the TLB has of others goes, or all of it. It was left: what it has
  // made of its registers, it has flushed for itself.
  void entering_nested(const svm::TlbTags& tags, bool flush);
  void leaving_nested(const svm::TlbTags& tags);
  svm::MsrMapCopy& msr_map_copy();
  // Would an interrupt of the machine be taken between two instructions, no matter by whom? (RFLAGS.IF, or
  // the hypervisor's where its guest's is virtual; GIF.)
  bool interrupts_enabled() const;
  // Is there a virtual interrupt that the nested guest can take?
  bool virtual_interrupt_ready() const;

  // One access to the outside of RAM by the current instruction. Answered from the log of this instruction's
  // earlier attempts, by the platform, or by a stop for the client. `size` 1-8 (memory) or 1, 2, 4 (ports).
  Guest<void> mmio_read(Gpa address, void* data, unsigned size);
  Guest<void> mmio_write(Gpa address, const void* data, unsigned size);
  Guest<void> pio_read(u16 port, void* data, unsigned size);
  Guest<void> pio_write(u16 port, const void* data, unsigned size);
  // As pio_read, for a repeated instruction that will read `count` items, if the client has to be asked.
  Guest<void> pio_read_ahead(u16 port, void* data, unsigned size, unsigned count);
  // RDMSR or WRMSR by the client (KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR). False: it refused.
  Guest<bool> client_msr(u32 index, bool write, u32 reason, u64* value);
  bool client_msr_answered(u32 index, bool write) const;
  // The client's answer to a hypercall of kind `code` (KVM_EXIT_*).
  Guest<u64> client_hypercall(u32 code);
  std::optional<u32> answered_hypercall() const;
  // The current instruction is complete: forget its answers.
  void io_done();
  // One element of a repeated instruction is complete: forget its answers, but not what was read ahead.
  void io_element_done();
  // RIP of the instruction whose access the platform answers.
  u64 io_rip() const;
  // A new attempt at the current instruction begins: its accesses come again from the first.
  void io_begin(u64 rip);

  // The current instruction accesses memory or ports: matching breakpoints become a #DB trap after it.
  void watch_data(Gva address, unsigned size, bool write);
  void watch_port(u16 port, unsigned size);
  bool watching() const { return m_watching; }
  // Is there a data breakpoint in the page? Such a page is in no TLB, so that every access comes by
  // watch_data().
  bool watches_data_near(Gva address) const;
  // Has the current instruction met a breakpoint?
  bool met_breakpoint() const;
  // SYSCALL and SYSRET look at TF when they end, other instructions when they begin (SDM 3B 18.3.1.4).
  void step_trap_after_instruction();
  // INT1 raises #DB by itself: what MOV SS held back until now becomes part of it. Returns its breakpoints.
  u64 take_held_back_breakpoints();

  // This CPU in PageMeta::writer, 1 to 254.
  u8 number() const { return m_number; }
  // A page larger than 4 KiB went into the TLB (SDM 3A 4.10.2.3: INVLPG of any part drops all of it).
  void note_large_page(Gva address, u64 size);
  // Machine::stop_the_world() from this CPU's own thread, between blocks.
  void stop_the_world(const std::function<void()>& change);

  // Machine::stop_others() from this CPU's own thread, inside a block.
  bool with_others_stopped(const std::function<void()>& change);

  // From the vCPU's thread outside run(): `work` may use guest memory, whose layout does not change
  // meanwhile. It must not stop the world.
  void visit_memory(const std::function<void()>& work);

  // The guest wants to be told of pages that the host has to fetch (Platform::await_page()), `at_cpl0` also
  // in kernel code; or not. Where guest memory may be used.
  void tell_absent_pages(bool wanted, bool at_cpl0);
  // Now and then while it does: memory may have gone to where it has to be fetched from.
  void look_for_absent_pages();

  // Guest TSC now, from the host TSC (scaled, offset).
  u64 read_tsc() const;

 private:
  friend class Machine;
  friend class Dispatcher;
  friend class CodeFinder;
  friend class HelperCall;
  bool in_guest() const { return m_visits.load() % 2; }
  void stop_the_world_aside();   // lets another thread have its way
  void machine_discards_code();  // no room for more translations
  // Sees all code as it is now: what others have written to it, too (ClientWrites::begin_moment()).
  void see_code_as_it_is();
  // Others have begun moments since. After serializing instructions their writes must be seen as well.
  bool is_behind() const;
  void catch_up();
  void watch_pages();

  struct Private;

  Machine& m_machine;
  Platform& m_platform;
  CpuModel m_model;
  Context* m_context;
  u8 m_number = 0;
  bool m_watching = false;  // some breakpoint is enabled
  bool m_tells_absent_pages = false;
  std::atomic<u64> m_visits{0};  // goes up with each entry to the guest and each exit; see Machine
  CpuState* m_state;             // inside *m_context
  counters::CpuCounts* m_counts;
  std::unique_ptr<Private> m_private;
};

}  // namespace anykvm::x86
