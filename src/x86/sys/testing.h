#pragma once
// A guest CPU with a megabyte of RAM and ready-made descriptor tables, for tests that call instruction
// helpers and event delivery directly, without running translated code. Owner: the test. One thread.

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "x86/cpu.h"
#include "x86/machine.h"
#include "x86/ops/ops.h"
#include "x86/quiet_platform.h"
#include "x86/state/segment_types.h"

namespace anykvm::x86::testing {

// --- Descriptors ---

enum DescriptorFlags : u8 { kAvl = 1, kLong = 2, kBig = 4, kPages = 8 };

// `access`: P, DPL, S and type, as in bits 47:40. `limit` is the raw 20-bit field.
constexpr u64 descriptor(u32 base, u32 limit, u8 access, u8 flags) {
  return bits(limit, 15, 0) | bits(base, 23, 0) << 16 | u64{access} << 40 | bits(limit, 19, 16) << 48 |
         u64{flags} << 52 | bits(base, 31, 24) << 56;
}
constexpr u8 access_byte(u8 type, u8 dpl, bool system = false) {
  return static_cast<u8>(0x80 | dpl << 5 | (system ? 0 : 0x10) | type);
}
constexpr u64 flat(u8 type, u8 dpl, u8 flags) {
  return descriptor(0, 0xfffff, access_byte(type, dpl), static_cast<u8>(flags | kPages));
}
// An 8-byte gate: interrupt, trap, call or task.
constexpr u64 gate(u8 type, u16 selector, u32 offset, u8 dpl, u8 low_field = 0) {
  return bits(offset, 15, 0) | u64{selector} << 16 | u64{low_field} << 32 |
         u64{access_byte(type, dpl, true)} << 40 | bits(offset, 31, 16) << 48;
}
constexpr u64 kNotPresentMask = ~bit(47);

// Types of code and data segments, accessed flag set.
inline constexpr u8 kTypeData = 3, kTypeCode = 11, kTypeConforming = 15, kTypeReadOnly = 1,
                    kTypeExecuteOnly = 9;

// --- The layout of guest memory ---

enum Layout : u32 {
  kGdt = 0x1000,
  kIdt = 0x2000,
  kTss = 0x3000,       // current task; 16-, 32- or 64-bit by mode
  kOtherTss = 0x3800,  // task switches go here
  kLdt = 0x3c00,
  kPageTables = 0x4000,
  kCodeAddress = 0x10000,
  kHandler = 0x11000,
  kStack0 = 0x20000,  // of ring 0: in the TSS
  kIstStack = 0x28000,
  kStack3 = 0x30000,  // of ring 3
  kData = 0x40000,
  kRamSize = 0x100000,
};

// Selectors of the ready-made GDT, with RPL 0.
enum Selectors : u16 {
  kCode0 = 0x08,
  kData0 = 0x10,
  kCode3 = 0x18,
  kData3 = 0x20,
  kTssSelector = 0x28,  // 16 bytes
  kCode64Ring0 = 0x38,
  kCode64Ring3 = 0x40,
  kConforming0 = 0x48,
  kLdtSelector = 0x50,  // 16 bytes
  kCode16 = 0x60,
  kData16 = 0x68,
  kOtherTssSelector = 0x70,
  kCallGate = 0x80,  // 16 bytes
  kAbsentData = 0x90,
  kData16Ring3 = 0x98,
  kTaskGate = 0xa0,
  kSpare = 0xa8,
  kGdtEnd = 0xf8,
};

class SysTest : public ::testing::Test {
 protected:
  SysTest();
  ~SysTest() override { std::free(m_ram); }

  // --- Modes: registers, tables and stack ready ---
  void start_real();
  void start_protected(u8 cpl = 0);
  void start_v86(unsigned iopl = 3);
  void start_long(u8 cpl = 0);
  void start_compatibility(u8 cpl = 3);

  // --- Memory ---
  template <class T>
  T read(u64 address) const {
    T value;
    std::memcpy(&value, m_ram + address, sizeof value);
    return value;
  }
  template <class T>
  void write(u64 address, T value) {
    std::memcpy(m_ram + address, &value, sizeof value);
  }
  // Item `index` from the top of the current stack.
  template <class T>
  u64 stack_item(unsigned index) const {
    u64 top = state.gpr[kRsp];
    if (state.paragraph_segments()) top = (top & 0xffff) + state.segments[kSs].base;
    return read<T>(top + index * sizeof(T));
  }
  // Pushes, so that the first item given is on top.
  template <class T>
  void put_on_stack(std::initializer_list<u64> items) {
    state.gpr[kRsp] -= items.size() * sizeof(T);
    u64 address = state.gpr[kRsp] + (state.paragraph_segments() ? state.segments[kSs].base : 0);
    for (u64 item : items) {
      write<T>(address, static_cast<T>(item));
      address += sizeof(T);
    }
  }

  // --- Tables ---
  void set_gdt(u16 selector, u64 low) { write<u64>(kGdt + (selector & 0xfff8), low); }
  void set_gdt16(u16 selector, u64 low, u64 high) {
    set_gdt(selector, low);
    write<u64>(kGdt + (selector & 0xfff8) + 8, high);
  }
  u64 gdt_entry(u16 selector) const { return read<u64>(kGdt + (selector & 0xfff8)); }
  u8 gdt_access(u16 selector) const { return read<u8>(kGdt + (selector & 0xfff8) + 5); }
  void set_idt(u8 vector, u64 gate8) { write<u64>(kIdt + vector * 8, gate8); }
  void set_idt64(u8 vector, u64 low, u32 offset_high = 0) {
    write<u64>(kIdt + vector * 16, low);
    write<u64>(kIdt + vector * 16 + 8, offset_high);
  }

  // --- Instructions ---
  static Insn insn(u8 operand_size, u64 immediate = 0, u64 immediate2 = 0);
  // With a memory operand at DS:`address`.
  Insn memory_insn(u8 operand_size, u64 address) const;

  static constexpr u64 kNextRip = kCodeAddress + 2;  // state.rip when a helper runs

  std::vector<MemorySlot> slots() const;
  static u8* allocate_ram();

  u8* m_ram = allocate_ram();
  QuietPlatform m_platform;
  std::unique_ptr<Machine> m_machine = std::move(Machine::create()).value();
  Cpu cpu{*m_machine, m_platform};
  CpuState& state = cpu.state();

 private:
  void build_gdt();
  void build_tss32();
  void build_page_tables();
  void set_segment(SegmentIndex index, u16 selector);
};

// The helper stopped with this fault. `error` empty: a fault without an error code.
::testing::AssertionResult faulted(const Guest<void>& result, u8 vector, std::optional<u32> error = {});
::testing::AssertionResult succeeded(const Guest<void>& result);

}  // namespace anykvm::x86::testing
