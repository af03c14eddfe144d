// The fixture of testing.h; the tests that use it are beside the code they test.
#include "x86/sys/testing.h"

#include <cstdlib>

#include "x86/sys/reset.h"
#include "x86/sys/segments.h"

namespace anykvm::x86::testing {

u8* SysTest::allocate_ram() {
  void* ram = std::aligned_alloc(kPageSize, kRamSize);
  std::memset(ram, 0, kRamSize);
  return static_cast<u8*>(ram);
}

std::vector<MemorySlot> SysTest::slots() const {
  return {MemorySlot{.id = 0, .base = Gpa(0), .size = kRamSize, .host = m_ram}};
}

SysTest::SysTest() {
  m_machine->set_slots(slots());
  reset_cpu(state, cpu.model(), false);
  build_gdt();
  build_tss32();
  build_page_tables();
  state.rip = kNextRip;
}

void SysTest::build_gdt() {
  set_gdt(kCode0, flat(kTypeCode, 0, kBig));
  set_gdt(kData0, flat(kTypeData, 0, kBig));
  set_gdt(kCode3, flat(kTypeCode, 3, kBig));
  set_gdt(kData3, flat(kTypeData, 3, kBig));
  set_gdt16(kTssSelector, descriptor(kTss, 0x7ff, access_byte(kTypeTss32Busy, 0, true), 0), 0);
  set_gdt(kCode64Ring0, flat(kTypeCode, 0, kLong));
  set_gdt(kCode64Ring3, flat(kTypeCode, 3, kLong));
  set_gdt(kConforming0, flat(kTypeConforming, 0, kBig));
  set_gdt16(kLdtSelector, descriptor(kLdt, 0x3f, access_byte(kTypeLdt, 0, true), 0), 0);
  set_gdt(kCode16, descriptor(0, 0xffff, access_byte(kTypeCode, 0), 0));
  set_gdt(kData16, descriptor(0x20000, 0xffff, access_byte(kTypeData, 0), 0));
  set_gdt(kOtherTssSelector, descriptor(kOtherTss, 0x67, access_byte(kTypeTss32, 0, true), 0));
  set_gdt(kAbsentData, flat(kTypeData, 0, kBig) & kNotPresentMask);
  set_gdt(kData16Ring3, descriptor(0x30000, 0xffff, access_byte(kTypeData, 3), 0));
  set_gdt(kTaskGate, gate(kTypeTaskGate, kOtherTssSelector, 0, 3));
}

void SysTest::build_tss32() {
  write<u32>(kTss + 4, kStack0);
  write<u32>(kTss + 8, kData0);
  write<u16>(kTss + 0x66, 0x88);  // I/O map base: the redirection bitmap is at 68H
}

// Identity map of the first gigabyte in 2 MiB pages, open to all: PML4, PDPT, page directory.
void SysTest::build_page_tables() {
  constexpr u64 kOpen = 7;
  constexpr u64 kLargePage = bit(7);
  write<u64>(kPageTables, (kPageTables + 0x1000) | kOpen);
  write<u64>(kPageTables + 0x1000, (kPageTables + 0x2000) | kOpen);
  for (u64 i = 0; i < 512; ++i) write<u64>(kPageTables + 0x2000 + i * 8, i << 21 | kLargePage | kOpen);
}

void SysTest::set_segment(SegmentIndex index, u16 selector) {
  state.segments[index] = segment_from_descriptor(selector, gdt_entry(selector));
}

void SysTest::start_real() {
  state.segments[kCs].selector = 0;
  state.segments[kCs].base = 0;
  state.segments[kSs].selector = 0x2000;
  state.segments[kSs].base = 0x20000;
  state.idtr = {kIdt, 0x3ff};
  state.rip = 0x1002;
  state.gpr[kRsp] = 0x8000;
  cpu.mode_changed();
}

void SysTest::start_protected(u8 cpl) {
  state.cr0 |= kCr0Pe;
  state.gdtr = {kGdt, kGdtEnd - 1};
  state.idtr = {kIdt, 0x7ff};
  state.tr = segment_from_descriptor(kTssSelector, gdt_entry(kTssSelector));
  state.ldtr = null_segment(0);
  state.cpl = cpl;
  u16 data = static_cast<u16>(cpl == 3 ? kData3 | 3 : kData0);
  set_segment(kCs, static_cast<u16>(cpl == 3 ? kCode3 | 3 : kCode0));
  for (SegmentIndex index : {kSs, kDs, kEs}) set_segment(index, data);
  for (SegmentIndex index : {kFs, kGs}) state.segments[index] = null_segment(0);
  // Away from the stack in the TSS, so that a switch shows.
  state.gpr[kRsp] = cpl == 3 ? kStack3 : kStack0 - 0x4000;
  cpu.mode_changed();
}

void SysTest::start_v86(unsigned iopl) {
  start_protected(3);
  state.rflags |= kFlagVm | u64{iopl} << 12;
  for (SegmentIndex index : {kCs, kDs, kEs, kFs, kGs}) set_paragraph_segment(state, index, 0x1000);
  set_paragraph_segment(state, kSs, 0x3000);
  state.rip = 2;
  state.gpr[kRsp] = 0x8000;
  cpu.mode_changed();
}

void SysTest::start_long(u8 cpl) {
  start_protected(cpl);
  state.cr3 = kPageTables;
  state.cr4 |= kCr4Pae;
  state.cr0 |= kCr0Pg;
  state.efer |= kEferLme | kEferLma | kEferSce;
  state.idtr = {kIdt, 0xfff};
  set_segment(kCs, static_cast<u16>(cpl == 3 ? kCode64Ring3 | 3 : kCode64Ring0));
  write<u64>(kTss + 4, kStack0);
  write<u64>(kTss + 36, kIstStack);
  cpu.mode_changed();
}

void SysTest::start_compatibility(u8 cpl) {
  start_long(cpl);
  set_segment(kCs, static_cast<u16>(cpl == 3 ? kCode3 | 3 : kCode0));
  cpu.mode_changed();
}

Insn SysTest::insn(u8 operand_size, u64 immediate, u64 immediate2) {
  Insn result;
  result.length = 2;
  result.operand_size = operand_size;
  result.rex_w = operand_size == 8;
  result.immediate = immediate;
  result.immediate2 = immediate2;
  return result;
}

Insn SysTest::memory_insn(u8 operand_size, u64 address) const {
  Insn result = insn(operand_size);
  result.code_bits = static_cast<u8>(state.code_bits());
  result.address_size = state.code64() ? 8 : 4;
  result.has_modrm = result.has_memory = true;
  result.memory.displacement = static_cast<i64>(address);
  return result;
}

::testing::AssertionResult faulted(const Guest<void>& result, u8 vector, std::optional<u32> error) {
  if (result.ok()) return ::testing::AssertionFailure() << "no fault";
  if (result.error().kind != GuestStop::Kind::kFault)
    return ::testing::AssertionFailure() << "a stop for the client";
  const GuestFault& fault = result.error().fault;
  bool same =
      fault.vector == vector && fault.has_error == error.has_value() && fault.error == error.value_or(0);
  if (same) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "vector " << unsigned{fault.vector} << ", error code "
                                       << fault.has_error << " " << std::hex << fault.error;
}

::testing::AssertionResult succeeded(const Guest<void>& result) {
  if (result.ok()) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "vector " << unsigned{result.error().fault.vector} << " error "
                                       << std::hex << result.error().fault.error;
}

}  // namespace anykvm::x86::testing
