// Segment registers, descriptor-table registers and descriptor inspection (SDM 2A, 2B by instruction).

#include <cstring>

#include "x86/mmu/access.h"
#include "x86/nested/svm/exits.h"
#include "x86/ops/ops.h"
#include "x86/sys/segments.h"

namespace anykvm::x86 {

namespace {

// SDM 3A 2.5, UMIP.
Guest<void> check_umip(const CpuState& state) {
  bool blocked = (state.cr4 & kCr4Umip) && state.cpl > 0;
  return blocked ? GuestStop::gp(0) : Guest<void>{};
}

// A 16-bit result: memory gets two bytes, a register the operand size.
Guest<void> write_selector(Cpu& cpu, const Insn& insn, u64 value) {
  return write_rm(cpu, insn, insn.has_memory ? 2 : insn.operand_size, value);
}

// --- LGDT and its like ---

struct TableImage {
  u8 bytes[10] = {};  // limit, then base
};

unsigned table_image_size(const CpuState& state) { return state.code64() ? 10 : 6; }

Guest<DescriptorTable> load_table(Cpu& cpu, const Insn& insn) {
  const CpuState& state = cpu.state();
  if (!insn.has_memory) return GuestStop::ud();
  unsigned size = table_image_size(state);
  Gva address = TRY(memory_operand(cpu, insn, size, Access::kRead));
  TableImage image;
  TRY(read_linear(cpu, address, image.bytes, size));
  DescriptorTable table;
  std::memcpy(&table.limit, image.bytes, 2);
  std::memcpy(&table.base, image.bytes + 2, size - 2);
  if (!state.code64() && insn.operand_size == 2) table.base &= 0xffffff;
  if (state.code64() && !cpu.model().canonical_register(table.base)) return GuestStop::gp(0);
  return table;
}

Guest<void> store_table(Cpu& cpu, const Insn& insn, const DescriptorTable& table, Intercept intercept) {
  const CpuState& state = cpu.state();
  if (!insn.has_memory) return GuestStop::ud();
  TRY(check_umip(state));
  TRY(svm::check(cpu, intercept));
  unsigned size = table_image_size(state);
  TableImage image;
  std::memcpy(image.bytes, &table.limit, 2);
  std::memcpy(image.bytes + 2, &table.base, size - 2);
  Gva address = TRY(memory_operand(cpu, insn, size, Access::kWrite));
  return write_linear(cpu, address, image.bytes, size);
}

// --- LLDT and LTR ---

Guest<Descriptor> read_gdt_system(Cpu& cpu, u16 selector) {
  u32 error = selector_error(selector);
  if (selector_in_ldt(selector)) return GuestStop::gp(error);
  Descriptor descriptor = TRY(read_descriptor(cpu, selector, kVectorGp));
  if (cpu.state().long_mode() && bits(descriptor.high, 44, 40) != 0) return GuestStop::gp(error);
  return descriptor;
}

Guest<void> check_loadable(const Cpu& cpu, const Segment& segment, bool right_type) {
  u32 error = selector_error(segment.selector);
  if (segment.s || !right_type) return GuestStop::gp(error);
  if (!segment.present) return GuestStop::np(error);
  if (cpu.state().long_mode() && !cpu.model().canonical_register(segment.base)) return GuestStop::gp(error);
  return {};
}

// --- LAR, LSL, VERR, VERW ---

enum class Inspect : u8 { kAccessRights, kLimit };

bool inspectable_system_type(const CpuState& state, u8 type, Inspect what) {
  switch (type) {
    case kTypeLdt:
    case kTypeTss32:
    case kTypeTss32Busy:
      return true;
    case kTypeTss16:
    case kTypeTss16Busy:
      return !state.long_mode();
    case kTypeCallGate32:
      return what == Inspect::kAccessRights;
    case kTypeCallGate16:
    case kTypeTaskGate:
      return what == Inspect::kAccessRights && !state.long_mode();
    default:
      return false;
  }
}

bool visible(const CpuState& state, const Segment& segment) {
  if (is_conforming(segment)) return true;
  return segment.dpl >= state.cpl && segment.dpl >= selector_rpl(segment.selector);
}

void set_zf(CpuState& state, bool value) {
  state.rflags = value ? state.rflags | kFlagZf : state.rflags & ~u64{kFlagZf};
}

struct Inspected {
  Segment segment{};
  u64 low = 0;
  bool found = false;
};

Guest<Inspected> inspect(Cpu& cpu, const Insn& insn) {
  Inspected result;
  u16 selector = static_cast<u16>(TRY(read_rm(cpu, insn, 2)));
  auto descriptor = TRY(find_descriptor(cpu, selector));
  if (!descriptor) return result;
  result.found = true;
  result.low = descriptor->low;
  result.segment = segment_from_descriptor(selector, descriptor->low);
  return result;
}

Guest<void> inspect_to_register(Cpu& cpu, const Insn& insn, Inspect what) {
  CpuState& state = cpu.state();
  Inspected found = TRY(inspect(cpu, insn));
  const Segment& segment = found.segment;
  bool valid = found.found && (segment.s || inspectable_system_type(state, segment.type, what)) &&
               visible(state, segment);
  if (valid) {
    u64 rights = found.low >> 32 & 0x00ffff00;
    u64 value = what == Inspect::kLimit ? segment.limit : rights;
    write_gpr(state, insn, insn.reg, insn.operand_size, value);
  }
  set_zf(state, valid);
  return {};
}

Guest<void> verify(Cpu& cpu, const Insn& insn, bool (*permits)(const Segment&)) {
  CpuState& state = cpu.state();
  Inspected found = TRY(inspect(cpu, insn));
  set_zf(state, found.found && found.segment.s && permits(found.segment) && visible(state, found.segment));
  return {};
}

bool readable(const Segment& segment) { return is_readable(segment); }
bool writable(const Segment& segment) { return is_writable_data(segment); }

// --- FS and GS base ---

// LES C4, LDS C5, LSS 0F B2, LFS 0F B4, LGS 0F B5.
SegmentIndex far_pointer_segment(const Insn& insn) {
  switch (insn.opcode) {
    case 0xc4:
      return kEs;
    case 0xc5:
      return kDs;
    case 0xb2:
      return kSs;
    case 0xb4:
      return kFs;
    default:
      return kGs;
  }
}

}  // namespace

Guest<void> op_load_far_pointer(Cpu& cpu, const Insn& insn) {
  if (!insn.has_memory) return GuestStop::ud();
  u8 bytes[10] = {};
  unsigned size = insn.operand_size;
  Gva address = TRY(far_pointer_operand(cpu, insn));
  TRY(read_linear(cpu, address, bytes, size + 2));
  u64 offset = 0;
  u16 selector = 0;
  std::memcpy(&offset, bytes, size);
  std::memcpy(&selector, bytes + size, 2);
  TRY(load_segment(cpu, far_pointer_segment(insn), selector));
  write_gpr(cpu.state(), insn, insn.reg, size, offset);
  return {};
}

Guest<void> op_lgdt(Cpu& cpu, const Insn& insn) {
  TRY(svm::check(cpu, Intercept::kGdtrWrite));
  cpu.state().gdtr = TRY(load_table(cpu, insn));
  return {};
}

Guest<void> op_lidt(Cpu& cpu, const Insn& insn) {
  TRY(svm::check(cpu, Intercept::kIdtrWrite));
  cpu.state().idtr = TRY(load_table(cpu, insn));
  return {};
}

Guest<void> op_sgdt(Cpu& cpu, const Insn& insn) {
  return store_table(cpu, insn, cpu.state().gdtr, Intercept::kGdtrRead);
}

Guest<void> op_sidt(Cpu& cpu, const Insn& insn) {
  return store_table(cpu, insn, cpu.state().idtr, Intercept::kIdtrRead);
}

Guest<void> op_lldt(Cpu& cpu, const Insn& insn) {
  TRY(svm::check(cpu, Intercept::kLdtrWrite));
  CpuState& state = cpu.state();
  u16 selector = static_cast<u16>(TRY(read_rm(cpu, insn, 2)));
  if (is_null_selector(selector)) {
    state.ldtr = null_segment(selector);
    return {};
  }
  Descriptor descriptor = TRY(read_gdt_system(cpu, selector));
  Segment ldt = segment_from_descriptor(selector, descriptor.low, descriptor.high);
  TRY(check_loadable(cpu, ldt, ldt.type == kTypeLdt));
  state.ldtr = ldt;
  return {};
}

Guest<void> op_ltr(Cpu& cpu, const Insn& insn) {
  TRY(svm::check(cpu, Intercept::kTrWrite));
  CpuState& state = cpu.state();
  u16 selector = static_cast<u16>(TRY(read_rm(cpu, insn, 2)));
  if (is_null_selector(selector)) return GuestStop::gp(0);
  Descriptor descriptor = TRY(read_gdt_system(cpu, selector));
  Segment tss = segment_from_descriptor(selector, descriptor.low, descriptor.high);
  bool available = tss.type == kTypeTss32 || (tss.type == kTypeTss16 && !state.long_mode());
  TRY(check_loadable(cpu, tss, available));
  TRY(set_busy(cpu, descriptor, true));
  tss.type |= 2;
  state.tr = tss;
  return {};
}

Guest<void> op_sldt(Cpu& cpu, const Insn& insn) {
  TRY(check_umip(cpu.state()));
  TRY(svm::check(cpu, Intercept::kLdtrRead));
  return write_selector(cpu, insn, cpu.state().ldtr.selector);
}

Guest<void> op_str(Cpu& cpu, const Insn& insn) {
  TRY(check_umip(cpu.state()));
  TRY(svm::check(cpu, Intercept::kTrRead));
  return write_selector(cpu, insn, cpu.state().tr.selector);
}

Guest<void> op_smsw(Cpu& cpu, const Insn& insn) {
  TRY(check_umip(cpu.state()));
  TRY(svm::check_cr_read(cpu, 0));
  return write_selector(cpu, insn, cpu.state().cr0);
}

Guest<void> op_lar(Cpu& cpu, const Insn& insn) {
  return inspect_to_register(cpu, insn, Inspect::kAccessRights);
}

Guest<void> op_lsl(Cpu& cpu, const Insn& insn) { return inspect_to_register(cpu, insn, Inspect::kLimit); }

Guest<void> op_verr(Cpu& cpu, const Insn& insn) { return verify(cpu, insn, readable); }

Guest<void> op_verw(Cpu& cpu, const Insn& insn) { return verify(cpu, insn, writable); }

Guest<void> op_arpl(Cpu& cpu, const Insn& insn) {
  CpuState& state = cpu.state();
  u64 destination = TRY(read_rm(cpu, insn, 2));
  u64 wanted = read_gpr(state, insn, insn.reg, 2) & 3;
  bool raised = (destination & 3) < wanted;
  if (raised) TRY(write_rm(cpu, insn, 2, (destination & ~u64{3}) | wanted));
  set_zf(state, raised);
  return {};
}

}  // namespace anykvm::x86
