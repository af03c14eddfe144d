#include "x86/sys/events.h"

#include <optional>

#include "x86/mmu/access.h"
#include "x86/nested/svm/world_switch.h"
#include "x86/ops/ops.h"
#include "x86/sys/far_transfer.h"
#include "x86/sys/task_switch.h"

namespace anykvm::x86 {

namespace {

// Bits of error codes, SDM 3A 6.13.
constexpr u32 kErrorExt = 1;
constexpr u32 kErrorIdt = 2;

struct Event {
  u8 vector = 0;
  bool has_error = false;
  u32 error = 0;
  bool check_dpl = false;  // INT n, INT3, INTO
  bool external = true;    // error codes of faults during delivery carry EXT
  bool sets_rf = false;    // the image of RFLAGS gets RF
  SvmEventType type = SvmEventType::kException;
  std::optional<u64> return_rip{};  // where the handler returns to, if not to RIP
  // Faults raised in a new task's context, when delivery went through a task gate.
  using Aftermath = std::optional<GuestFault>;
};

struct RawGate64 {
  u64 low, high;
};

u32 idt_error(const Event& event) { return event.vector * 8u | kErrorIdt; }

bool is_interrupt_gate(u8 type) { return (type & 7) == kTypeInterruptGate16; }

u64 flags_image(const CpuState& state, const Event& event) {
  return event.sets_rf ? state.rflags | kFlagRf : state.rflags;
}

void enter_handler_flags(CpuState& state, bool interrupt_gate) {
  u64 cleared = kFlagTf | kFlagNt | kFlagRf | kFlagVm;
  state.rflags &= ~(interrupt_gate ? cleared | kFlagIf : cleared);
}

// --- Real mode, SDM 3A 21.1.4 ---

Guest<void> enter_ivt(Cpu& cpu, Gva entry_address, u64 image) {
  CpuState& state = cpu.state();
  u32 entry = TRY(load<u32>(cpu, entry_address, Privilege::kSystem));
  u16 offset = static_cast<u16>(entry);
  if (!state.v86_mode() && offset > state.segments[kCs].limit) return GuestStop::gp(0);
  StackFrame frame(2);
  frame.push(image);
  frame.push(state.segments[kCs].selector);
  frame.push(state.rip);
  state.gpr[kRsp] = TRY(frame.write(cpu, StackTarget::current(state)));
  set_paragraph_segment(state, kCs, static_cast<u16>(entry >> 16));
  state.rip = offset;
  return {};
}

Guest<void> deliver_real(Cpu& cpu, const Event& event) {
  CpuState& state = cpu.state();
  if (event.vector * 4u + 3 > state.idtr.limit) return GuestStop::gp(idt_error(event));
  TRY(enter_ivt(cpu, Gva((state.idtr.base + event.vector * 4u) & 0xffffffff), state.rflags));
  state.rflags &= ~u64{kFlagIf | kFlagTf | kFlagAc | kFlagRf};
  return {};
}

// --- Gates ---

Guest<void> check_gate(const CpuState& state, const Event& event, u64 low) {
  if (event.check_dpl && bits(low, 46, 45) < state.cpl) return GuestStop::gp(idt_error(event));
  if (!has_bit(low, 47)) return GuestStop::np(idt_error(event));
  return {};
}

Guest<StackTarget> handler_stack64(Cpu& cpu, const CodeTarget& code, unsigned ist) {
  CpuState& state = cpu.state();
  StackTarget stack;
  if (ist || code.cpl < state.cpl) {
    stack = TRY(inner_stack(cpu, code.cpl, ist));
  } else {
    stack.pointer = state.gpr[kRsp];
    stack.flat64 = true;
  }
  if (code.cpl == state.cpl) stack.ss = state.segments[kSs];
  stack.pointer &= ~u64{15};  // SDM 3A 6.14.2
  return stack;
}

Guest<void> deliver_long(Cpu& cpu, const Event& event) {
  CpuState& state = cpu.state();
  if (event.vector * 16u + 15 > state.idtr.limit) return GuestStop::gp(idt_error(event));
  auto raw = TRY(load<RawGate64>(cpu, Gva(state.idtr.base + event.vector * 16u), Privilege::kSystem));
  Descriptor gate{raw.low, raw.high, Gva()};
  u64 type = bits(gate.low, 44, 40);  // with S
  if (type != kTypeInterruptGate32 && type != kTypeTrapGate32) return GuestStop::gp(idt_error(event));
  TRY(check_gate(state, event, gate.low));
  CodeTarget code = TRY(code_for_gate(cpu, gate_selector(gate), gate_offset(gate), true));
  StackTarget stack = TRY(handler_stack64(cpu, code, static_cast<unsigned>(bits(gate.low, 34, 32))));

  StackFrame frame(8);
  frame.push(state.segments[kSs].selector);
  frame.push(state.gpr[kRsp]);
  frame.push(flags_image(state, event));
  frame.push(state.segments[kCs].selector);
  frame.push(state.rip);
  if (event.has_error) frame.push(event.error);
  state.gpr[kRsp] = TRY(frame.write(cpu, stack));
  state.segments[kSs] = stack.ss;
  commit_code(state, code);
  enter_handler_flags(state, is_interrupt_gate(static_cast<u8>(type)));
  return {};
}

void push_v86_segments(const CpuState& state, StackFrame& frame) {
  for (SegmentIndex index : {kGs, kFs, kDs, kEs}) frame.push(state.segments[index].selector);
}

void drop_v86_segments(CpuState& state) {
  for (SegmentIndex index : {kGs, kFs, kDs, kEs}) state.segments[index] = null_segment(0);
}

Guest<void> deliver_through_gate(Cpu& cpu, const Event& event, const Descriptor& gate, u8 type) {
  CpuState& state = cpu.state();
  bool wide = type & 8;
  u64 offset = wide ? gate_offset(gate) : bits(gate.low, 15, 0);
  CodeTarget code = TRY(code_for_gate(cpu, gate_selector(gate), offset, true));
  const bool from_v86 = state.v86_mode();
  const bool switches = code.cpl < state.cpl;
  StackTarget stack = switches ? TRY(inner_stack(cpu, code.cpl)) : StackTarget::current(state);

  StackFrame frame(wide ? 4 : 2);
  if (from_v86) push_v86_segments(state, frame);
  if (switches) {
    frame.push(state.segments[kSs].selector);
    frame.push(state.gpr[kRsp]);
  }
  frame.push(flags_image(state, event));
  frame.push(state.segments[kCs].selector);
  frame.push(state.rip);
  if (event.has_error) frame.push(event.error);
  state.gpr[kRsp] = TRY(frame.write(cpu, stack));
  state.segments[kSs] = stack.ss;
  if (from_v86) drop_v86_segments(state);
  commit_code(state, code);
  enter_handler_flags(state, is_interrupt_gate(type));
  return {};
}

Guest<Event::Aftermath> deliver_protected(Cpu& cpu, const Event& event) {
  CpuState& state = cpu.state();
  if (event.vector * 8u + 7 > state.idtr.limit) return GuestStop::gp(idt_error(event));
  Gva address((state.idtr.base + event.vector * 8u) & 0xffffffff);
  Descriptor gate{TRY(load<u64>(cpu, address, Privilege::kSystem)), 0, address};
  u8 type = static_cast<u8>(bits(gate.low, 44, 40));  // with S
  bool task_gate = type == kTypeTaskGate;
  bool other_gate = type < 16 && (type & 6) == 6;  // 6, 7, 14, 15
  if (!task_gate && !other_gate) return GuestStop::gp(idt_error(event));
  TRY(check_gate(state, event, gate.low));
  if (!task_gate) {
    TRY(deliver_through_gate(cpu, event, gate, type));
    return Event::Aftermath{};
  }
  std::optional<u32> error = event.has_error ? std::optional(event.error) : std::nullopt;
  // The old task resumes with RF as the image says.
  u64 old_flags = state.rflags;
  state.rflags = flags_image(state, event);
  auto result = switch_task(cpu, gate_selector(gate), TaskSwitch::kGate, error);
  if (!result.ok()) state.rflags = old_flags;
  return result;
}

GuestStop with_ext(GuestStop stop, bool external) {
  u8 vector = stop.fault.vector;
  bool selector_code = vector >= kVectorTs && vector <= kVectorGp;
  if (external && stop.kind == GuestStop::Kind::kFault && selector_code) stop.fault.error |= kErrorExt;
  return stop;
}

Guest<Event::Aftermath> deliver_by_mode(Cpu& cpu, const Event& event) {
  const CpuState& state = cpu.state();
  if (!state.real_mode() && !state.long_mode()) return deliver_protected(cpu, event);
  TRY(state.real_mode() ? deliver_real(cpu, event) : deliver_long(cpu, event));
  return Event::Aftermath{};
}

// One attempt. A stop: nothing has changed.
Guest<Event::Aftermath> deliver_once(Cpu& cpu, const Event& event) {
  CpuState& state = cpu.state();
  const bool nested = state.svm.guest_mode;
  if (nested) cpu.set_delivering(svm::describe_event(event.type, event.vector, event.has_error, event.error));
  const u64 rip = state.rip;
  state.rip = event.return_rip.value_or(rip);
  auto result = deliver_by_mode(cpu, event);
  if (!result.ok()) {
    state.rip = rip;
    return with_ext(result.error(), event.external);
  }
  if (nested) cpu.set_delivering(0);
  state.events.shadow = 0;
  cpu.mode_changed();
  return result;
}

// --- Double and triple faults, SDM 3A table 6-4 and 6-5 ---

enum class Severity : u8 { kBenign, kContributory, kPageFault, kDoubleFault };

Severity severity(u8 vector) {
  if (vector == kVectorDf) return Severity::kDoubleFault;
  if (vector == kVectorPf) return Severity::kPageFault;
  bool contributory =
      vector == kVectorDe || (vector >= kVectorTs && vector <= kVectorGp) || vector == kVectorCp;
  return contributory ? Severity::kContributory : Severity::kBenign;
}

Severity combine(Severity first, Severity second) {
  if (first == Severity::kBenign || second == Severity::kBenign) return second;
  if (first == Severity::kContributory && second == Severity::kPageFault) return second;
  return Severity::kDoubleFault;
}

// Debug exceptions set RF in the image only for the general-detect fault: software sets it for instruction
// breakpoints, and the others are traps (SDM 3B 18.3.1.1).
bool sets_rf(const GuestFault& fault) {
  switch (fault.vector) {
    case kVectorDb:
      return fault.payload & kDr6Bd;
    case kVectorNmi:
    case kVectorBp:
    case kVectorOf:
    case kVectorDf:
    case kVectorMc:
      return false;
    default:
      return true;
  }
}

// Are an exception's own faults external to the program? Intel's CPUs say so, AMD's keep that for interrupts
// (SDM 3A 6.13, APM 2 8.4.1).
bool exceptions_are_external(const CpuModel& model) { return model.intel() || model.entries().empty(); }

Event event_of_fault(const CpuModel& model, const GuestFault& fault) {
  Event event;
  event.external = exceptions_are_external(model);
  event.vector = fault.vector;
  event.has_error = fault.has_error;
  event.error = fault.error;
  event.sets_rf = sets_rf(fault);
  return event;
}

SvmEventType type_of(u8 vector, EventKind kind) {
  switch (kind) {
    case EventKind::kSoftware:
      return SvmEventType::kSoftware;
    case EventKind::kExternal:
      return vector == kVectorNmi ? SvmEventType::kNmi : SvmEventType::kInterrupt;
    default:
      return SvmEventType::kException;
  }
}

Event event_of_interrupt(u8 vector, EventKind kind) {
  Event event;
  event.vector = vector;
  bool instruction = kind == EventKind::kSoftware || (kind == EventKind::kTrap && vector != kVectorDb);
  event.check_dpl = instruction;
  event.external = !instruction;
  event.type = type_of(vector, kind);
  return event;
}

// An exception that a nested guest's hypervisor intercepts is not delivered. CR2 stays as it was, DR6 does
// not (APM 2 15.12).
Guest<void> check_exception_intercept(Cpu& cpu, const GuestFault& fault, u64 next_rip = 0) {
  CpuState& state = cpu.state();
  if (!state.svm.intercepts_exception(fault.vector)) return {};
  if (fault.vector == kVectorDb) apply_payload(state, fault);
  const u64 address = fault.vector == kVectorPf ? fault.payload : 0;
  cpu.set_pending_vmexit({u64{kExitException0} + fault.vector, fault.error, address, next_rip});
  return GuestStop::vmexit();
}

// Delivers `event`, and instead of it whatever its delivery raises, until something is delivered or the CPU
// gives up. A hypervisor sees the second exception before it becomes part of a double fault.
Guest<void> deliver_combined(Cpu& cpu, Event event, Severity severity_now) {
  CpuState& state = cpu.state();
  for (;;) {
    auto result = deliver_once(cpu, event);
    if (!result.ok() && result.error().kind != GuestStop::Kind::kFault) return result.error();
    if (result.ok() && !result.value()) return {};
    GuestFault next = result.ok() ? *result.value() : result.error().fault;
    TRY(check_exception_intercept(cpu, next));
    apply_payload(state, next);
    Severity combined = combine(severity_now, severity(next.vector));
    if (combined == Severity::kDoubleFault) {
      if (severity_now == Severity::kDoubleFault) {
        state.events.triple_fault = true;
        return {};
      }
      next = {.vector = kVectorDf, .has_error = true, .error = 0, .payload = 0};
      TRY(check_exception_intercept(cpu, next));
    }
    event = event_of_fault(cpu.model(), next);
    severity_now = combined;
  }
}

bool injected_by_hypervisor(const CpuState& state) {
  return state.svm.guest_mode && (state.svm.control.event_inj & kSvmEventValid);
}

// A hypervisor injects software interrupts, INT3 and INTO with the address behind the instruction (APM
// 2 15.20).
std::optional<u64> injected_return_rip(Cpu& cpu) {
  const SvmState& svm = cpu.state().svm;
  const u64 event = svm.control.event_inj;
  if (!injected_by_hypervisor(cpu.state()) || !cpu.model().has(Feature::kNrips)) return {};
  const auto type = static_cast<SvmEventType>(bits(event, 10, 8));
  const auto vector = static_cast<u8>(event);
  const bool trap = type == SvmEventType::kException && (vector == kVectorBp || vector == kVectorOf);
  return type == SvmEventType::kSoftware || trap ? std::optional(svm.control.next_rip) : std::nullopt;
}

void injected(CpuState& state) { state.svm.control.event_inj &= ~u64{kSvmEventValid}; }

Guest<void> deliver_injected_exception(Cpu& cpu) {
  auto& exception = cpu.state().events.exception;
  GuestFault fault{.vector = exception.vector,
                   .has_error = exception.has_error,
                   .error = exception.error,
                   .payload = exception.has_payload ? exception.payload : 0};
  if (!exception.injected) TRY(check_exception_intercept(cpu, fault));
  if (exception.has_payload) apply_payload(cpu.state(), fault);
  exception.has_payload = false;
  Event event = event_of_fault(cpu.model(), fault);
  event.return_rip = injected_return_rip(cpu);
  TRY(deliver_combined(cpu, event, severity(fault.vector)));
  exception = {};
  injected(cpu.state());
  return {};
}

}  // namespace

void apply_payload(CpuState& state, const GuestFault& fault) {
  if (fault.vector == kVectorPf) state.cr2 = fault.payload;
  if (fault.vector != kVectorDb) return;
  constexpr u64 kBreakpointBits = 0xf;
  constexpr u64 kDebugctlLbrBtf = 3;
  state.dr6 = (state.dr6 & ~kBreakpointBits) | kDr6Fixed1 | fault.payload;
  state.dr7 &= ~u64{kDr7Gd};
  state.msrs.debugctl &= ~kDebugctlLbrBtf;
}

Guest<void> deliver_fault(Cpu& cpu, const GuestFault& fault) {
  if (cpu.state().svm.guest_mode) {
    cpu.set_delivering(0);
    TRY(check_exception_intercept(cpu, fault));
  }
  apply_payload(cpu.state(), fault);
  return deliver_combined(cpu, event_of_fault(cpu.model(), fault), severity(fault.vector));
}

Guest<void> deliver_interrupt(Cpu& cpu, u8 vector, EventKind kind) {
  return deliver_combined(cpu, event_of_interrupt(vector, kind), Severity::kBenign);
}

Guest<void> raise_interrupt(Cpu& cpu, u8 vector, EventKind kind) {
  if (kind == EventKind::kTrap) TRY(check_exception_intercept(cpu, {.vector = vector}, cpu.state().rip));
  auto result = deliver_once(cpu, event_of_interrupt(vector, kind));
  if (cpu.state().svm.guest_mode) cpu.set_delivering(0);  // the instruction is executed again
  if (!result.ok()) return result.error();
  return result.value() ? deliver_fault(cpu, *result.value()) : Guest<void>{};
}

Guest<void> deliver_to_ivt(Cpu& cpu, u8 vector, u16 image) {
  TRY(enter_ivt(cpu, Gva(vector * 4u), image));
  cpu.state().rflags &= ~u64{kFlagTf | kFlagNt | kFlagRf};
  return {};
}

Guest<void> deliver_injected(Cpu& cpu) {
  Events& events = cpu.state().events;
  if (events.exception.injected || events.exception.pending) return deliver_injected_exception(cpu);
  if (events.nmi.injected) {
    TRY(deliver_interrupt(cpu, kVectorNmi, EventKind::kExternal));
    events.nmi.injected = false;
    events.nmi.masked = !injected_by_hypervisor(cpu.state());  // EVENTINJ masks none
    injected(cpu.state());
  } else if (events.interrupt.injected) {
    EventKind kind = events.interrupt.soft ? EventKind::kSoftware : EventKind::kExternal;
    Event event = event_of_interrupt(events.interrupt.vector, kind);
    event.return_rip = injected_return_rip(cpu);
    TRY(deliver_combined(cpu, event, Severity::kBenign));
    events.interrupt = {};
    injected(cpu.state());
  }
  return {};
}

}  // namespace anykvm::x86
