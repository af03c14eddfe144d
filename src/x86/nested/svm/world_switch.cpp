#include "x86/nested/svm/world_switch.h"

#include "base/trace.h"
#include "x86/cpu_private.h"
#include "x86/machine.h"
#include "x86/mmu/access.h"
#include "x86/nested/svm/segments.h"
#include "x86/sys/control_registers.h"

namespace anykvm::x86::svm {
namespace {

// --- Checks of VMRUN, APM 2 15.5.1 ---

bool valid_event(u64 event) {
  if (!(event & kSvmEventValid)) return true;
  const auto vector = static_cast<u8>(event);
  switch (static_cast<SvmEventType>(bits(event, 10, 8))) {
    case SvmEventType::kInterrupt:
    case SvmEventType::kNmi:
    case SvmEventType::kSoftware:
      return true;
    case SvmEventType::kException:
      return vector < 32 && vector != kVectorNmi;
  }
  return false;
}

bool valid_map(const CpuModel& model, u64 base, u64 size) {
  const u64 end = u64{1} << model.physical_address_bits();
  base &= ~low_bits(12);
  return base < end && end - base >= size;
}

bool valid_long_mode(const VmcbSave& save) {
  if (!(save.efer & kEferLme) || !(save.cr0 & kCr0Pg)) return true;
  if (!(save.cr4 & kCr4Pae) || !(save.cr0 & kCr0Pe)) return false;
  const Segment cs = loaded(save.cs);
  return !(cs.l && cs.db);
}

bool valid_cr3(const CpuModel& model, const VmcbSave& save) {
  const u64 cr3 = save.cr4 & kCr4Pcide ? save.cr3 & ~bit(63) : save.cr3;
  return !(cr3 & ~low_bits(model.physical_address_bits()));
}

bool valid_registers(const CpuModel& model, const VmcbSave& save) {
  if (!(save.efer & kEferSvme)) return false;
  if (!(save.cr0 & kCr0Cd) && (save.cr0 & kCr0Nw)) return false;
  if (save.cr0 >> 32 || save.dr6 >> 32 || save.dr7 >> 32) return false;
  if (save.cr4 & ~model.cr4_supported()) return false;
  if (save.efer & ~(model.efer_supported() | kEferLma)) return false;
  return valid_cr3(model, save) && valid_long_mode(save);
}

// --- Registers ---

// CPL is 0 in real mode and 3 in virtual-8086 mode, whatever the VMCB says.
u8 loaded_cpl(const CpuState& state, u8 cpl) {
  if (state.real_mode()) return 0;
  return state.v86_mode() ? 3 : cpl & 3;
}

// LMA follows LME and PG.
u64 with_lma(u64 efer, u64 cr0) {
  efer &= ~kEferLma;
  return (efer & kEferLme) && (cr0 & kCr0Pg) ? efer | kEferLma : efer;
}

TlbTags tags_of(const CpuState& state) {
  const VmcbControl& control = state.svm.control;
  constexpr u64 kCr0 = kCr0Pe | kCr0Wp | kCr0Pg;
  constexpr u64 kNotCr4 = kCr4PossiblyGuestOwned | kCr4Osxsave;
  return {control.asid, state.cr0 & kCr0,   state.cr3,         state.cr4 & ~kNotCr4,
          state.efer,   control.nested_cr3, control.nested_ctl};
}

void load_guest(Cpu& cpu, const VmcbSave& save) {
  CpuState& state = cpu.state();
  SvmState& svm = state.svm;
  load_registers(state, save);
  state.cr2 = save.cr2;
  state.dr6 = save.dr6 | kDr6Fixed1;
  state.dr7 = save.dr7 | kDr7Fixed1;
  if (svm.nested_paging()) {
    svm.host.g_pat = state.msrs.pat;
    state.msrs.pat = save.g_pat;
  }
  state.events.shadow = svm.control.int_state & 1 ? kShadowSti : 0;
  svm.tsc_offset = svm.control.tsc_offset;
  svm.gif = true;
}

// PAE paging without nested paging has them in registers. False: one has reserved bits set.
bool load_guest_pdptes(Cpu& cpu) {
  CpuState& state = cpu.state();
  if (state.svm.nested_paging() || paging_mode(state) != PagingMode::kPae) return true;
  return load_pdptes(state, cpu.machine().memory(), state.cr3, cpu.model().physical_address_bits()).ok();
}

// --- EVENTINJ, APM 2 15.20 ---

void inject(Cpu& cpu, u64 event) {
  Events& events = cpu.state().events;
  if (!(event & kSvmEventValid)) return;
  const auto type = static_cast<SvmEventType>(bits(event, 10, 8));
  const auto vector = static_cast<u8>(event);
  switch (type) {
    case SvmEventType::kInterrupt:
    case SvmEventType::kSoftware:
      events.interrupt = {true, type == SvmEventType::kSoftware, vector};
      break;
    case SvmEventType::kNmi:
      events.nmi.injected = true;
      break;
    case SvmEventType::kException:
      events.exception.injected = true;
      events.exception.vector = vector;
      events.exception.has_error = event & kSvmEventHasError;
      events.exception.error = static_cast<u32>(event >> 32);
      break;
  }
}

// --- #VMEXIT ---

// False: the VMCB is not in RAM any more.
bool write_save_area(Cpu& cpu, Gpa vmcb) {
  const CpuState& state = cpu.state();
  VmcbSave area{};
  if (!read_physical(cpu, vmcb + kVmcbSaveOffset, &area, sizeof area)) return false;
  store_registers(state, area);
  area.cr2 = state.cr2;
  area.dr6 = state.dr6;
  area.dr7 = state.dr7;
  if (state.svm.nested_paging()) area.g_pat = state.msrs.pat;
  return write_physical(cpu, vmcb + kVmcbSaveOffset, &area, sizeof area);
}

// The fields from int_ctl to next_rip that an exit writes; the others stay as they are in memory.
bool write_control_area(Cpu& cpu, Gpa vmcb, const PendingExit& exit, u64 event) {
  const CpuState& state = cpu.state();
  VmcbControl control;
  constexpr std::size_t kFirst = offsetof(VmcbControl, int_ctl),
                        kEnd = offsetof(VmcbControl, instruction_length);
  auto* bytes = reinterpret_cast<u8*>(&control) + kFirst;
  if (!read_physical(cpu, vmcb + kFirst, bytes, kEnd - kFirst)) return false;
  constexpr u32 kKept = kVTprMask | kVIrq;
  control.int_ctl = (control.int_ctl & ~kKept) | (state.svm.control.int_ctl & kKept);
  control.int_state = state.events.shadow ? 1 : 0;
  control.exit_code = exit.code;
  control.exit_info_1 = exit.info_1;
  control.exit_info_2 = exit.info_2;
  control.exit_int_info = event;
  control.event_inj &= ~kSvmEventValid;
  control.next_rip = cpu.model().has(Feature::kNrips) ? exit.next_rip : 0;
  return write_physical(cpu, vmcb + kFirst, bytes, kEnd - kFirst);
}

// Events of the guest's that are not delivered yet are its hypervisor's to inject again.
u64 undelivered(const CpuState& state) {
  const Events& events = state.events;
  if (events.exception.injected)
    return describe_event(SvmEventType::kException, events.exception.vector, events.exception.has_error,
                          events.exception.error);
  if (events.nmi.injected) return describe_event(SvmEventType::kNmi, kVectorNmi, false, 0);
  if (!events.interrupt.injected) return 0;
  const SvmEventType type = events.interrupt.soft ? SvmEventType::kSoftware : SvmEventType::kInterrupt;
  return describe_event(type, events.interrupt.vector, false, 0);
}

void forget_events(Events& events) {
  events.exception = {};
  events.interrupt = {};
  events.nmi.injected = false;
  events.shadow = 0;
  events.triple_fault = false;
}

void load_host(Cpu& cpu) {
  CpuState& state = cpu.state();
  SvmState& svm = state.svm;
  if (svm.nested_paging()) state.msrs.pat = svm.host.g_pat;
  load_registers(state, svm.host);
  state.cpl = 0;
  state.dr7 = kDr7Fixed1;
  state.rflags &= ~u64{kFlagVm};
  forget_events(state.events);
  svm.guest_mode = svm.gif = false;
  svm.tsc_offset = 0;
  state.mp_state = MpState::kRunnable;
}

}  // namespace

u64 describe_event(SvmEventType type, u8 vector, bool has_error, u32 error) {
  u64 event = kSvmEventValid | u64{static_cast<u8>(type)} << kSvmEventTypeShift | vector;
  if (has_error) event |= kSvmEventHasError | u64{error} << 32;
  return event;
}

bool valid_control(const CpuModel& model, const VmcbControl& control) {
  constexpr u64 kIopmSize = 3 * kPageSize, kMsrpmSize = 2 * kPageSize;
  const bool runs = control.intercepts[1] & 1;  // VMRUN
  if (!runs || control.asid == 0 || !valid_event(control.event_inj)) return false;
  const bool nested_paging = control.nested_ctl & 1;
  if (nested_paging && !model.has(Feature::kNpt)) return false;
  if (nested_paging && (control.nested_cr3 & ~low_bits(model.physical_address_bits()))) return false;
  return valid_map(model, control.iopm_base, kIopmSize) && valid_map(model, control.msrpm_base, kMsrpmSize);
}

bool valid_guest(const CpuModel& model, const VmcbControl& control, const VmcbSave& save) {
  return valid_control(model, control) && valid_registers(model, save);
}

void store_registers(const CpuState& state, VmcbSave& area) {
  area.es = stored(state.segments[kEs]);
  area.cs = stored(state.segments[kCs]);
  area.ss = stored(state.segments[kSs]);
  area.ds = stored(state.segments[kDs]);
  area.gdtr = stored(state.gdtr);
  area.idtr = stored(state.idtr);
  area.cpl = state.cpl;
  area.efer = state.efer;
  area.cr4 = state.cr4;
  area.cr3 = state.cr3;
  area.cr0 = state.cr0;
  area.rflags = state.rflags;
  area.rip = state.rip;
  area.rsp = state.gpr[kRsp];
  area.rax = state.gpr[kRax];
}

void load_registers(CpuState& state, const VmcbSave& area) {
  state.segments[kEs] = loaded(area.es);
  state.segments[kCs] = loaded(area.cs);
  state.segments[kSs] = loaded(area.ss);
  state.segments[kDs] = loaded(area.ds);
  state.gdtr = loaded_table(area.gdtr);
  state.idtr = loaded_table(area.idtr);
  state.efer = with_lma(area.efer, area.cr0);
  state.cr4 = area.cr4;
  state.cr3 = area.cr4 & kCr4Pcide ? area.cr3 & ~bit(63) : area.cr3;
  state.cr0 = effective_cr0(area.cr0);
  state.pdptes_valid = false;
  state.rflags = area.rflags | kFlagFixed1;
  state.rip = area.rip;
  state.gpr[kRsp] = area.rsp;
  state.gpr[kRax] = area.rax;
  state.cpl = loaded_cpl(state, area.cpl);
}

// A processor would take whatever is on the bus there.
GuestStop no_vmcb(Cpu& cpu) {
  Exit exit;
  exit.reason = Exit::Reason::kInternalError;
  exit.code = 1;  // KVM_INTERNAL_ERROR_EMULATION
  return cpu.stop_for_client(exit);
}

Guest<void> enter_guest(Cpu& cpu, Gpa vmcb) {
  CpuState& state = cpu.state();
  SvmState& svm = state.svm;
  VmcbSave save{};
  VmcbControl control;
  const bool read = read_physical(cpu, vmcb, &control, sizeof control) &&
                    read_physical(cpu, vmcb + kVmcbSaveOffset, &save, sizeof save);
  if (!read) return no_vmcb(cpu);
  ANYKVM_TRACE(fault, "{}: VMRUN of {:#x}: rip {:#x} cr3 {:#x} asid {} event {:#x}", cpu.number(), vmcb.value,
               save.rip, save.cr3, control.asid, control.event_inj);
  if (!valid_guest(cpu.model(), control, save)) {
    svm.gif = false;
    write_control_area(cpu, vmcb, {.code = kExitInvalid}, 0);
    return {};
  }
  store_registers(state, svm.host);
  svm.vmcb_pa = vmcb.value;
  svm.control = control;
  svm.guest_mode = true;
  cpu.platform().nested_guest_enters(control);
  const MsrMapUse map_use = cpu.platform().msr_map_use(control);
  cpu.msr_map_copy().enter(cpu, vmcb, Gpa(control.msrpm_base & ~low_bits(12)), map_use);
  load_guest(cpu, save);
  cpu.entering_nested(tags_of(state), control.tlb_control != kTlbKeep);
  if (!load_guest_pdptes(cpu)) {
    leave_guest(cpu, {.code = kExitInvalid}, 0);
    return {};
  }
  inject(cpu, control.event_inj);
  cpu.mode_changed();
  cpu.request(kAttentionEvent);
  return {};
}

void leave_guest(Cpu& cpu, const PendingExit& exit, u64 delivering) {
  CpuState& state = cpu.state();
  const Gpa vmcb(state.svm.vmcb_pa);
  const u64 event = delivering ? delivering : undelivered(state);
  ANYKVM_TRACE(fault, "{}: #VMEXIT {:#x} info {:#x} {:#x} event {:#x} at {:#x}", cpu.number(), exit.code,
               exit.info_1, exit.info_2, event, state.rip);
  const bool written = write_save_area(cpu, vmcb) && write_control_area(cpu, vmcb, exit, event);
  cpu.leaving_nested(tags_of(state));
  load_host(cpu);
  state.events.triple_fault = !written;
  cpu.mode_changed();
  cpu.request(kAttentionEvent);
}

void suspend_guest(Cpu& cpu) {
  SvmState& svm = cpu.state().svm;
  constexpr u64 kExitForSoftware = 0xf0000000;  // no exit of the CPU's has this code
  write_control_area(cpu, Gpa(svm.vmcb_pa), {.code = kExitForSoftware}, 0);
  write_physical(cpu, Gpa(svm.hsave_pa) + kVmcbSaveOffset, &svm.host, sizeof svm.host);
  svm.guest_mode = false;
  svm.tsc_offset = 0;
}

bool resume_guest(Cpu& cpu, CpuState& next, Gpa vmcb) {
  SvmState& svm = next.svm;
  const bool read = read_physical(cpu, vmcb, &svm.control, sizeof svm.control) &&
                    read_physical(cpu, Gpa(svm.hsave_pa) + kVmcbSaveOffset, &svm.host, sizeof svm.host);
  if (!read || !valid_control(cpu.model(), svm.control)) return false;
  svm.vmcb_pa = vmcb.value;
  svm.guest_mode = true;
  svm.tsc_offset = svm.control.tsc_offset;
  cpu.platform().nested_guest_enters(svm.control);
  return true;
}

u8 virtual_cr8(const CpuState& state) { return state.svm.control.int_ctl & 0xf; }

void set_virtual_cr8(CpuState& state, u8 value) {
  u32& int_ctl = state.svm.control.int_ctl;
  int_ctl = (int_ctl & ~u32{kVTprMask}) | value;
}

}  // namespace anykvm::x86::svm
