#include "x86/sys/task_switch.h"

#include <array>
#include <cstring>

#include "x86/mmu/access.h"
#include "x86/ops/ops.h"
#include "x86/sys/control_registers.h"
#include "x86/sys/events.h"
#include "x86/sys/far_transfer.h"

namespace anykvm::x86 {

namespace {

// SDM 3A figures 7-2 and 7-10: byte offsets in the two forms of TSS.
struct TssLayout {
  u32 size;       // the smallest valid limit plus one
  unsigned item;  // bytes of EIP, EFLAGS and general registers
  u32 eip, eflags, registers, selectors;
  unsigned selector_stride, selector_count;
  u32 ldt;
  u32 dynamic_start, dynamic_end;  // what a switch saves
};
constexpr TssLayout kTss32Layout = {104, 4, 0x20, 0x24, 0x28, 0x48, 4, 6, 0x60, 0x20, 0x60};
constexpr TssLayout kTss16Layout = {44, 2, 0x0e, 0x10, 0x12, 0x22, 2, 4, 0x2a, 0x0e, 0x2a};
constexpr u32 kTss32Cr3 = 0x1c;
constexpr u32 kTss32TrapFlag = 0x64;

const TssLayout& layout_of(const Segment& tss) { return is_tss32(tss) ? kTss32Layout : kTss16Layout; }

struct TssImage {
  std::array<u8, 104> bytes{};

  u64 get(u32 offset, unsigned size) const {
    u64 value = 0;
    std::memcpy(&value, bytes.data() + offset, size);
    return value;
  }
  void set(u32 offset, unsigned size, u64 value) { std::memcpy(bytes.data() + offset, &value, size); }
};

Gva tss_address(const Segment& tss, u32 offset) { return Gva((tss.base + offset) & 0xffffffff); }

// Everything about the task to switch to that can be found out beforehand.
struct NewTask {
  Descriptor descriptor{};
  Segment tss{};
  TssImage image{};
};

Guest<NewTask> read_new_task(Cpu& cpu, u16 selector, TaskSwitch kind) {
  const u32 error = selector_error(selector);
  const bool iret = kind == TaskSwitch::kIret;
  GuestStop invalid = iret ? GuestStop::ts(error) : GuestStop::gp(error);
  if (is_null_selector(selector) || selector_in_ldt(selector)) return invalid;
  NewTask task;
  task.descriptor = TRY(read_descriptor(cpu, selector, iret ? kVectorTs : kVectorGp));
  task.tss = segment_from_descriptor(selector, task.descriptor.low);
  const bool busy = task.tss.type & 2;
  if (!is_tss(task.tss) || busy != iret) return invalid;
  if (!task.tss.present) return GuestStop::np(error);
  const TssLayout& layout = layout_of(task.tss);
  if (task.tss.limit < layout.size - 1) return GuestStop::ts(error);
  TRY(read_linear(cpu, tss_address(task.tss, 0), task.image.bytes.data(), layout.size, Privilege::kSystem));
  return task;
}

// --- The old task ---

void save_registers(const CpuState& state, const TssLayout& layout, u64 flags, TssImage& image) {
  image.set(layout.eip, layout.item, state.rip);
  image.set(layout.eflags, layout.item, flags);
  for (unsigned i = 0; i < 8; ++i) image.set(layout.registers + i * layout.item, layout.item, state.gpr[i]);
  for (unsigned i = 0; i < layout.selector_count; ++i)
    image.set(layout.selectors + i * layout.selector_stride, 2, state.segments[i].selector);
}

Guest<void> save_old_task(Cpu& cpu, TaskSwitch kind) {
  const CpuState& state = cpu.state();
  const TssLayout& layout = layout_of(state.tr);
  if (state.tr.limit < layout.size - 1) return GuestStop::ts(selector_error(state.tr.selector));
  const u32 start = layout.dynamic_start;
  const u32 size = layout.dynamic_end - start;
  TssImage image;
  TRY(read_linear(cpu, tss_address(state.tr, start), image.bytes.data() + start, size, Privilege::kSystem));
  u64 flags = kind == TaskSwitch::kIret ? state.rflags & ~u64{kFlagNt} : state.rflags;
  save_registers(state, layout, flags, image);
  return write_linear(cpu, tss_address(state.tr, start), image.bytes.data() + start, size,
                      Privilege::kSystem);
}

// Busy flags (SDM 3A table 7-2) and the link to the old task. The old task's registers are saved last: the
// memory that the earlier steps write was probed, so that they cannot fail half-way.
Guest<void> update_memory(Cpu& cpu, const NewTask& task, TaskSwitch kind) {
  const CpuState& state = cpu.state();
  const bool nests = kind == TaskSwitch::kCall || kind == TaskSwitch::kGate;
  auto old_descriptor = TRY(find_descriptor(cpu, state.tr.selector));
  if (nests) TRY(probe_write(cpu, tss_address(task.tss, 0), 2, Privilege::kSystem));
  if (!nests && old_descriptor) TRY(probe_write(cpu, old_descriptor->address, 8, Privilege::kSystem));
  if (kind != TaskSwitch::kIret) TRY(probe_write(cpu, task.descriptor.address, 8, Privilege::kSystem));
  TRY(save_old_task(cpu, kind));
  if (!nests && old_descriptor) TRY(set_busy(cpu, *old_descriptor, false));
  if (kind != TaskSwitch::kIret) TRY(set_busy(cpu, task.descriptor, true));
  if (nests) TRY(store<u16>(cpu, tss_address(task.tss, 0), state.tr.selector, Privilege::kSystem));
  return {};
}

// --- The new task ---

u16 tss_selector_field(const NewTask& task, unsigned index) {
  const TssLayout& layout = layout_of(task.tss);
  if (index >= layout.selector_count) return 0;  // FS and GS are not in a 16-bit TSS
  return static_cast<u16>(task.image.get(layout.selectors + index * layout.selector_stride, 2));
}

void load_registers(CpuState& state, const NewTask& task, TaskSwitch kind) {
  const TssLayout& layout = layout_of(task.tss);
  const bool nests = kind == TaskSwitch::kCall || kind == TaskSwitch::kGate;
  constexpr u64 kLoadable = kFlagsArithmetic | kFlagTf | kFlagIf | kFlagDf | kFlagIopl | kFlagNt | kFlagRf |
                            kFlagVm | kFlagAc | kFlagVif | kFlagVip | kFlagId;
  state.rip = task.image.get(layout.eip, layout.item);
  state.rflags = (task.image.get(layout.eflags, layout.item) & kLoadable) | kFlagFixed1;
  if (nests) state.rflags |= kFlagNt;
  for (unsigned i = 0; i < 8; ++i) {
    state.gpr[i] = task.image.get(layout.registers + i * layout.item, layout.item);
  }
  // Until they are loaded one by one, the segments hold their selectors only.
  for (unsigned i = 0; i < kSegmentCount; ++i) state.segments[i] = null_segment(tss_selector_field(task, i));
  state.ldtr = null_segment(static_cast<u16>(task.image.get(layout.ldt, 2)));
  state.tr = task.tss;
  state.tr.type |= 2;
  state.cr0 |= kCr0Ts;
  constexpr u64 kDr7LocalEnables = 0x155;
  state.dr7 &= ~kDr7LocalEnables;
}

Guest<void> load_ldt(Cpu& cpu) {
  CpuState& state = cpu.state();
  u16 selector = state.ldtr.selector;
  if (is_null_selector(selector)) return {};
  GuestStop invalid = GuestStop::ts(selector_error(selector));
  if (selector_in_ldt(selector)) return invalid;
  Descriptor descriptor = TRY(read_descriptor(cpu, selector, kVectorTs));
  Segment ldt = segment_from_descriptor(selector, descriptor.low);
  if (ldt.s || ldt.type != kTypeLdt || !ldt.present) return invalid;
  state.ldtr = ldt;
  return {};
}

enum class Role : u8 { kCode, kStack, kData };

bool suits(const Segment& segment, Role role, u8 cpl) {
  const u8 rpl = selector_rpl(segment.selector);
  switch (role) {
    case Role::kCode:
      return is_code(segment) && (is_conforming(segment) ? segment.dpl <= rpl : segment.dpl == rpl);
    case Role::kStack:
      return is_writable_data(segment) && rpl == cpl && segment.dpl == cpl;
    default:
      return is_readable(segment) && (is_conforming(segment) || (segment.dpl >= cpl && segment.dpl >= rpl));
  }
}

// SDM 3A table 7-1: faults are #TS with the selector, or #NP / #SS if the segment is absent.
Guest<void> load_task_segment(Cpu& cpu, SegmentIndex index, Role role) {
  CpuState& state = cpu.state();
  u16 selector = state.segments[index].selector;
  u32 error = selector_error(selector);
  if (is_null_selector(selector)) return role == Role::kData ? Guest<void>{} : GuestStop::ts(error);
  Descriptor descriptor = TRY(read_descriptor(cpu, selector, kVectorTs));
  Segment segment = segment_from_descriptor(selector, descriptor.low);
  if (!suits(segment, role, state.cpl)) return GuestStop::ts(error);
  if (!segment.present) return role == Role::kStack ? GuestStop::ss(error) : GuestStop::np(error);
  TRY(set_accessed(cpu, descriptor));
  segment.type |= 1;
  state.segments[index] = segment;
  return {};
}

void load_v86_segments(CpuState& state) {
  state.cpl = 3;
  for (SegmentIndex index : {kCs, kSs, kEs, kDs, kFs, kGs})
    set_paragraph_segment(state, index, state.segments[index].selector);
}

Guest<void> load_segments(Cpu& cpu) {
  CpuState& state = cpu.state();
  TRY(load_ldt(cpu));
  if (state.v86_mode()) {
    load_v86_segments(state);
  } else {
    state.cpl = selector_rpl(state.segments[kCs].selector);
    cpu.mode_changed();
    TRY(load_task_segment(cpu, kCs, Role::kCode));
    TRY(load_task_segment(cpu, kSs, Role::kStack));
    for (SegmentIndex index : {kEs, kDs, kFs, kGs}) TRY(load_task_segment(cpu, index, Role::kData));
  }
  cpu.mode_changed();
  return check_rip(state, state.segments[kCs], state.rip);
}

Guest<void> push_error_code(Cpu& cpu, u32 error_code) {
  CpuState& state = cpu.state();
  StackFrame frame(layout_of(state.tr).item);
  frame.push(error_code);
  state.gpr[kRsp] = TRY(frame.write(cpu, StackTarget::current(state)));
  return {};
}

Guest<void> enter_new_task(Cpu& cpu, const NewTask& task, std::optional<u32> error_code) {
  CpuState& state = cpu.state();
  bool wide = is_tss32(task.tss);
  if (wide && (state.cr0 & kCr0Pg)) TRY(write_cr3(cpu, task.image.get(kTss32Cr3, 4)));
  TRY(load_segments(cpu));
  if (error_code) TRY(push_error_code(cpu, *error_code));
  if (wide && (task.image.get(kTss32TrapFlag, 1) & 1)) return GuestStop::db(kDr6Bt);
  return {};
}

}  // namespace

Guest<std::optional<GuestFault>> switch_task(Cpu& cpu, u16 tss_selector, TaskSwitch kind,
                                             std::optional<u32> error_code) {
  NewTask task = TRY(read_new_task(cpu, tss_selector, kind));
  TRY(update_memory(cpu, task, kind));
  load_registers(cpu.state(), task, kind);
  Guest<void> entered = enter_new_task(cpu, task, error_code);
  cpu.mode_changed();
  std::optional<GuestFault> fault;
  if (entered.ok()) return fault;
  // The old task is gone, so the switch cannot be repeated after the client answered: descriptor tables
  // outside RAM end it as a fault while loading the new task (docs/quirks.md).
  bool by_guest = entered.error().kind == GuestStop::Kind::kFault;
  fault = by_guest ? entered.error().fault : GuestStop::ts(selector_error(tss_selector)).fault;
  return fault;
}

Guest<void> switch_task_and_deliver(Cpu& cpu, u16 tss_selector, TaskSwitch kind) {
  auto fault = TRY(switch_task(cpu, tss_selector, kind));
  return fault ? deliver_fault(cpu, *fault) : Guest<void>{};
}

Guest<u16> previous_task(Cpu& cpu) {
  const Segment& tr = cpu.state().tr;
  return load<u16>(cpu, tss_address(tr, 0), Privilege::kSystem);
}

}  // namespace anykvm::x86
