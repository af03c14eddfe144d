#include "core/client_registers.h"

#include <errno.h>
#include <string.h>

#include <algorithm>
#include <bit>

#include "core/vcpu.h"
#include "core/vm.h"
#include "x86/mmu/paging.h"
#include "x86/sys/control_registers.h"

namespace anykvm::core {
namespace {

kvm_segment client_segment(const x86::Segment& segment) {
  kvm_segment to{};
  to.base = segment.base;
  to.limit = segment.limit;
  to.selector = segment.selector;
  to.type = segment.type;
  to.present = segment.present;
  to.dpl = segment.dpl;
  to.db = segment.db;
  to.s = segment.s;
  to.l = segment.l;
  to.g = segment.g;
  to.avl = segment.avl;
  to.unusable = segment.unusable;
  return to;
}

// The one-bit fields are bytes in the ABI: anything but 0 counts as 1, so that no odd value gets into the
// state.
x86::Segment guest_segment(const kvm_segment& segment) {
  x86::Segment to;
  to.base = segment.base;
  to.limit = segment.limit;
  to.selector = segment.selector;
  to.type = segment.type & 0xf;
  to.present = segment.present != 0;
  to.dpl = segment.dpl & 3;
  to.db = segment.db != 0;
  to.s = segment.s != 0;
  to.l = segment.l != 0;
  to.g = segment.g != 0;
  to.avl = segment.avl != 0;
  to.unusable = segment.unusable != 0 || !segment.present;
  return to;
}

// What kvm_sregs and kvm_sregs2 have in common, by the same names.
template <class Sregs>
void fill_common(Vcpu& vcpu, Sregs& to) {
  const x86::CpuState& state = vcpu.state();
  to.cs = client_segment(state.segments[x86::kCs]);
  to.ds = client_segment(state.segments[x86::kDs]);
  to.es = client_segment(state.segments[x86::kEs]);
  to.fs = client_segment(state.segments[x86::kFs]);
  to.gs = client_segment(state.segments[x86::kGs]);
  to.ss = client_segment(state.segments[x86::kSs]);
  to.tr = client_segment(state.tr);
  to.ldt = client_segment(state.ldtr);
  to.gdt.base = state.gdtr.base;
  to.gdt.limit = state.gdtr.limit;
  to.idt.base = state.idtr.base;
  to.idt.limit = state.idtr.limit;
  to.cr0 = state.cr0;
  to.cr2 = state.cr2;
  to.cr3 = state.cr3;
  to.cr4 = state.cr4;
  to.cr8 = vcpu.task_priority();
  to.efer = state.efer;
  to.apic_base = vcpu.apic_base();
}

// CPL is the DPL of SS (SDM 3A 5.5), except in real mode (0) and virtual-8086 mode (3).
u8 implied_cpl(const x86::CpuState& state) {
  if (state.real_mode()) return 0;
  return state.v86_mode() ? 3 : state.segments[x86::kSs].dpl;
}

template <class Sregs>
x86::CpuState proposed_state(Vcpu& vcpu, const Sregs& from) {
  x86::CpuState state = vcpu.state();
  state.segments[x86::kCs] = guest_segment(from.cs);
  state.segments[x86::kDs] = guest_segment(from.ds);
  state.segments[x86::kEs] = guest_segment(from.es);
  state.segments[x86::kFs] = guest_segment(from.fs);
  state.segments[x86::kGs] = guest_segment(from.gs);
  state.segments[x86::kSs] = guest_segment(from.ss);
  state.tr = guest_segment(from.tr);
  state.ldtr = guest_segment(from.ldt);
  state.gdtr = {from.gdt.base, from.gdt.limit};
  state.idtr = {from.idt.base, from.idt.limit};
  state.cr0 = from.cr0 | x86::kCr0Et;
  state.cr2 = from.cr2;
  state.cr3 = from.cr3;
  state.cr4 = from.cr4;
  state.efer = from.efer;
  state.pdptes_valid = false;  // they belong to the CR3 that was
  state.cpl = implied_cpl(state);
  return state;
}

// A reset by the client wakes a halted boot CPU, as in the kernel (old clients do not set the MP state).
bool at_reset_vector(const x86::CpuState& state) {
  return state.rip == 0xfff0 && state.segments[x86::kCs].selector == 0xf000 && state.real_mode();
}

template <class Sregs>
Result<> apply_common(Vcpu& vcpu, const Sregs& from) {
  x86::CpuState proposed = proposed_state(vcpu, from);
  if (!x86::valid_sregs(vcpu.cpu().model(), proposed)) return Error{EINVAL, "no CPU can be in this state"};
  TRY(vcpu.set_apic_base(from.apic_base));
  // A value that CR8 cannot have is not taken over, and is no error here, as in the kernel.
  [[maybe_unused]] const Result<> taken = vcpu.set_task_priority(from.cr8);
  const bool boot = vcpu.apic_base() & (1u << 8);
  if (boot && at_reset_vector(proposed)) proposed.mp_state = x86::MpState::kRunnable;
  if (!(proposed.efer & x86::kEferSvme)) proposed.svm.guest_mode = false, proposed.svm.gif = true;
  vcpu.state() = proposed;
  vcpu.cpu().state_replaced();
  return {};
}

constexpr u32 kKnownEventFlags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR |
                                 KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM;

Result<> check_events(Vm& vm, const kvm_vcpu_events& events) {
  u32 known = kKnownEventFlags;
  if (vm.shows_exception_payloads()) known |= KVM_VCPUEVENT_VALID_PAYLOAD;
  if (vm.shows_triple_faults()) known |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
  if (events.flags & ~known) return Error{EINVAL, "unknown event flags, or a capability not enabled"};
  const bool exception = events.exception.injected || events.exception.pending;
  if (exception && (events.exception.nr > 31 || events.exception.nr == x86::kVectorNmi))
    return Error{EINVAL, "not an exception vector"};
  return {};
}

// In system-management mode INITs are latched, so none can have been received.
Result<> check_smm(Vcpu& vcpu, const kvm_vcpu_events& events) {
  const bool wants_smm = (events.flags & KVM_VCPUEVENT_VALID_SMM) && (events.smi.smm || events.smi.pending);
  if (wants_smm && vcpu.state().mp_state == x86::MpState::kInitReceived)
    return Error{EINVAL, "no system-management mode after INIT"};
  return {};
}

}  // namespace

kvm_regs get_regs(Vcpu& vcpu) {
  const x86::CpuState& state = vcpu.state();
  const auto& r = state.gpr;
  kvm_regs regs{};
  regs.rax = r[x86::kRax];
  regs.rbx = r[x86::kRbx];
  regs.rcx = r[x86::kRcx];
  regs.rdx = r[x86::kRdx];
  regs.rsi = r[x86::kRsi];
  regs.rdi = r[x86::kRdi];
  regs.rsp = r[x86::kRsp];
  regs.rbp = r[x86::kRbp];
  regs.r8 = r[x86::kR8];
  regs.r9 = r[x86::kR9];
  regs.r10 = r[x86::kR10];
  regs.r11 = r[x86::kR11];
  regs.r12 = r[x86::kR12];
  regs.r13 = r[x86::kR13];
  regs.r14 = r[x86::kR14];
  regs.r15 = r[x86::kR15];
  regs.rip = state.rip;
  regs.rflags = state.rflags;
  return regs;
}

void set_regs(Vcpu& vcpu, const kvm_regs& regs) {
  x86::CpuState& state = vcpu.state();
  state.gpr = {regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi,
               regs.r8,  regs.r9,  regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15};
  state.rip = regs.rip;
  state.rflags = regs.rflags | x86::kFlagFixed1;
  state.events.exception.pending = false;
  state.cpl = implied_cpl(state);
  vcpu.cpu().state_replaced();
}

kvm_sregs get_sregs(Vcpu& vcpu) {
  kvm_sregs sregs{};
  fill_common(vcpu, sregs);
  const auto& interrupt = vcpu.state().events.interrupt;
  if (interrupt.injected && !interrupt.soft)
    sregs.interrupt_bitmap[interrupt.vector / 64] |= u64{1} << (interrupt.vector % 64);
  return sregs;
}

kvm_sregs2 get_sregs2(Vcpu& vcpu) {
  kvm_sregs2 sregs{};
  fill_common(vcpu, sregs);
  if (x86::paging_mode(vcpu.state()) != x86::PagingMode::kPae) return sregs;
  const auto pdptes = x86::pdptes_in_use(vcpu.state(), vcpu.vm().machine().memory());
  std::ranges::copy(pdptes, sregs.pdptrs);
  sregs.flags = KVM_SREGS2_FLAGS_PDPTRS_VALID;
  return sregs;
}

Result<> set_sregs(Vcpu& vcpu, const kvm_sregs& sregs) {
  TRY(apply_common(vcpu, sregs));
  for (unsigned word = 0; word < std::size(sregs.interrupt_bitmap); ++word) {
    if (!sregs.interrupt_bitmap[word]) continue;
    auto& interrupt = vcpu.state().events.interrupt;
    interrupt.injected = true;
    interrupt.soft = false;
    interrupt.vector =
        static_cast<u8>(word * 64 + static_cast<unsigned>(std::countr_zero(sregs.interrupt_bitmap[word])));
    break;
  }
  return {};
}

Result<> set_sregs2(Vcpu& vcpu, const kvm_sregs2& sregs) {
  if (sregs.flags & ~u64{KVM_SREGS2_FLAGS_PDPTRS_VALID}) return Error{EINVAL, "unknown sregs2 flags"};
  const bool pae = (sregs.cr0 & x86::kCr0Pg) && (sregs.cr4 & x86::kCr4Pae) && !(sregs.efer & x86::kEferLma);
  const bool has_pdptes = sregs.flags & KVM_SREGS2_FLAGS_PDPTRS_VALID;
  if (has_pdptes && !pae) return Error{EINVAL, "PDPTRs exist in PAE mode only"};
  TRY(apply_common(vcpu, sregs));
  if (!has_pdptes) return {};
  std::ranges::copy(sregs.pdptrs, vcpu.state().pdptes.begin());
  vcpu.state().pdptes_valid = true;
  return {};
}

kvm_vcpu_events get_vcpu_events(Vcpu& vcpu) {
  const x86::Events& from = vcpu.state().events;
  kvm_vcpu_events events{};
  events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM;
  if (vcpu.vm().shows_exception_payloads()) {
    events.exception.injected = from.exception.injected;
    events.exception.pending = from.exception.pending;
    events.exception_has_payload = from.exception.pending && from.exception.has_payload;
    events.exception_payload = from.exception.payload;
    events.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
  } else {
    // Then both kinds are shown as injected (KVM API 4.31).
    events.exception.injected = from.exception.injected || from.exception.pending;
  }
  if (vcpu.vm().shows_triple_faults()) {
    events.triple_fault.pending = from.triple_fault;
    events.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
  }
  events.exception.nr = from.exception.vector;
  events.exception.has_error_code = from.exception.has_error;
  events.exception.error_code = from.exception.error;
  events.interrupt.injected = from.interrupt.injected && !from.interrupt.soft;
  events.interrupt.nr = from.interrupt.vector;
  events.interrupt.shadow = from.shadow;
  events.nmi.injected = from.nmi.injected;
  events.nmi.pending = from.nmi.pending;
  events.nmi.masked = from.nmi.masked;
  const x86::Smm& smm = vcpu.state().smm;
  events.smi.smm = smm.active;
  events.smi.pending = vcpu.cpu().smi_waits();
  events.smi.smm_inside_nmi = smm.active && smm.nmis_were_masked;
  events.smi.latched_init = vcpu.init_latched();
  return events;
}

Result<> set_vcpu_events(Vcpu& vcpu, const kvm_vcpu_events& events) {
  TRY(check_events(vcpu.vm(), events));
  TRY(check_smm(vcpu, events));
  x86::Events& to = vcpu.state().events;
  to.exception = {};
  to.exception.pending = (events.flags & KVM_VCPUEVENT_VALID_PAYLOAD) && events.exception.pending;
  to.exception.injected = events.exception.injected && !to.exception.pending;
  to.exception.has_payload = to.exception.pending && events.exception_has_payload;
  to.exception.payload = to.exception.has_payload ? events.exception_payload : 0;
  to.exception.vector = events.exception.nr;
  to.exception.has_error = events.exception.has_error_code;
  to.exception.error = events.exception.error_code;
  to.interrupt.injected = events.interrupt.injected;
  to.interrupt.vector = events.interrupt.nr;
  to.interrupt.soft = events.interrupt.soft;
  if (events.flags & KVM_VCPUEVENT_VALID_SHADOW)
    to.shadow = events.interrupt.shadow & (x86::kShadowSti | x86::kShadowMovSs);
  to.nmi.injected = events.nmi.injected;
  if (events.flags & KVM_VCPUEVENT_VALID_NMI_PENDING) to.nmi.pending = events.nmi.pending;
  to.nmi.masked = events.nmi.masked;
  if (events.flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT) to.triple_fault = events.triple_fault.pending;
  if (events.flags & KVM_VCPUEVENT_VALID_SMM) {
    x86::Smm& smm = vcpu.state().smm;
    smm.active = events.smi.smm;
    smm.nmis_were_masked = smm.active && events.smi.smm_inside_nmi;
    vcpu.cpu().withdraw_smi();
    smm.pending = events.smi.pending;
    vcpu.set_init_latched(events.smi.latched_init);
  }
  if (events.flags & KVM_VCPUEVENT_VALID_SIPI_VECTOR) vcpu.set_sipi_vector(events.sipi_vector);
  vcpu.cpu().state_replaced();
  return {};
}

Result<> load_synced_registers(Vcpu& vcpu, const kvm_sync_regs& from, u64 fields) {
  if (fields & KVM_SYNC_X86_REGS) set_regs(vcpu, from.regs);
  if (fields & KVM_SYNC_X86_SREGS) TRY(set_sregs(vcpu, from.sregs));
  if (fields & KVM_SYNC_X86_EVENTS) TRY(set_vcpu_events(vcpu, from.events));
  return {};
}

void store_synced_registers(Vcpu& vcpu, kvm_sync_regs& to, u64 fields) {
  if (fields & KVM_SYNC_X86_REGS) to.regs = get_regs(vcpu);
  if (fields & KVM_SYNC_X86_SREGS) to.sregs = get_sregs(vcpu);
  if (fields & KVM_SYNC_X86_EVENTS) to.events = get_vcpu_events(vcpu);
}

}  // namespace anykvm::core
