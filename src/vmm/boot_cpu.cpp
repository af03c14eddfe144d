#include "vmm/boot_cpu.h"

#include <array>

#include "vmm/layout.h"

namespace anykvm::vmm {
namespace {

// Selectors that the boot protocol fixes, and a task register for Intel's VM-entry checks.
constexpr u16 kCodeSelector = 0x10, kDataSelector = 0x18, kTaskSelector = 0x20;
constexpr u8 kCodeType = 0xb, kDataType = 0x3, kTaskType = 0xb;  // accessed code, accessed data, busy TSS

constexpr u64 kPresentWritable = 0x3, kLargePage = 0x80;
constexpr u64 kLargePageSize = u64{2} << 20;
constexpr u64 kCr0ProtectedPaging = 0x80000031;  // PG, NE, ET, PE
constexpr u64 kCr4Pae = 0x20;
constexpr u64 kEferLong = 0x500;  // LMA, LME

kvm_segment segment(u16 selector, u8 type) {
  kvm_segment s{};
  s.limit = 0xffffffff;
  s.selector = selector;
  s.type = type;
  s.present = 1;
  s.s = 1;
  s.g = 1;
  return s;
}

// A descriptor as the CPU reads it (SDM 3A 3.4.5).
u64 descriptor(const kvm_segment& s) {
  u64 limit = s.g ? s.limit >> 12 : s.limit;
  u64 access = s.type | u64{s.s} << 4 | u64{s.dpl} << 5 | u64{s.present} << 7;
  u64 flags = u64{s.l} << 1 | u64{s.db} << 2 | u64{s.g} << 3;
  return (limit & 0xffff) | (s.base & 0xffffff) << 16 | access << 40 | (limit >> 16) << 48 | flags << 52 |
         (s.base >> 24) << 56;
}

kvm_segment code_segment() {
  kvm_segment s = segment(kCodeSelector, kCodeType);
  s.l = 1;
  return s;
}

kvm_segment data_segment() {
  kvm_segment s = segment(kDataSelector, kDataType);
  s.db = 1;
  return s;
}

kvm_segment task_segment() {
  kvm_segment s = segment(kTaskSelector, kTaskType);
  s.s = 0;
  s.g = 0;
  s.limit = 0x67;
  return s;
}

using Page = std::array<u64, 512>;

}  // namespace

void write_boot_tables(const GuestMemory& memory) {
  std::array<u64, 6> gdt{
      0, 0, descriptor(code_segment()), descriptor(data_segment()), descriptor(task_segment()), 0};
  memory.write_object(kGdtAddress, gdt);

  constexpr u64 kDirectories = 4;
  Gpa pdpt_address = kPageTablesAddress + kPageSize, first_directory = pdpt_address + kPageSize;
  Page pml4{}, pdpt{};
  pml4[0] = pdpt_address.value | kPresentWritable;
  for (u64 i = 0; i < kDirectories; ++i) {
    Page directory{};
    for (u64 j = 0; j < directory.size(); ++j) {
      directory[j] = (i * directory.size() + j) * kLargePageSize | kPresentWritable | kLargePage;
    }
    pdpt[i] = (first_directory + i * kPageSize).value | kPresentWritable;
    memory.write_object(first_directory + i * kPageSize, directory);
  }
  memory.write_object(kPageTablesAddress, pml4);
  memory.write_object(pdpt_address, pdpt);
}

void set_boot_sregs(kvm_sregs& sregs) {
  sregs.cs = code_segment();
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data_segment();
  sregs.tr = task_segment();
  sregs.gdt.base = kGdtAddress.value;
  sregs.gdt.limit = 6 * 8 - 1;
  sregs.idt.base = 0;
  sregs.idt.limit = 0;
  sregs.cr0 = kCr0ProtectedPaging;
  sregs.cr3 = kPageTablesAddress.value;
  sregs.cr4 = kCr4Pae;
  sregs.efer = kEferLong;
}

kvm_regs boot_regs(Gpa entry) {
  kvm_regs regs{};
  regs.rip = entry.value;
  regs.rsi = kBootParamsAddress.value;
  regs.rsp = regs.rbp = kBootStackTop;
  regs.rflags = 2;
  return regs;
}

}  // namespace anykvm::vmm
