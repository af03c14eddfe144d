#include "legacy.h"

#include "traps.h"

namespace bare {

extern "C" {
u64 legacy_idt[256];
extern const u8 legacy_entries[], legacy_stack_top[];
void enter_legacy(LegacyRun* run);
}

namespace {

constexpr unsigned kEntrySize = 16;
Tss32 s_tss;
bool s_ready = false;
alignas(4096) u8 s_ring0_stack[4096];

void prepare() {
  if (s_ready) return;
  s_ready = true;
  for (unsigned v = 0; v < 256; ++v) {
    u32 entry = static_cast<u32>(reinterpret_cast<u64>(legacy_entries)) + v * kEntrySize;
    legacy_idt[v] = make_gate32(entry, SEL_CODE32, kInterruptGate, v == kDone ? 3 : 0);
  }
  s_tss.ss0 = SEL_DATA;
  s_tss.esp0 = static_cast<u32>(reinterpret_cast<u64>(s_ring0_stack + sizeof s_ring0_stack));
  s_tss.io_map = sizeof s_tss;
}

}  // namespace

Tss32& tss32() {
  prepare();
  return s_tss;
}

u64& gate32(unsigned vector) {
  prepare();
  return legacy_idt[vector];
}

u64 make_gate32(u32 offset, u16 selector, u8 type, u8 dpl) {
  return (offset & 0xffff) | u64{selector} << 16 | u64{type} << 40 | u64{dpl} << 45 | bit(47) |
         u64{offset >> 16} << 48;
}

u64 tss32_descriptor(const Tss32& tss) {
  const u64 base = reinterpret_cast<u64>(&tss);
  return (sizeof tss - 1) | (base & 0xffffff) << 16 | u64{0x89} << 40 | (base >> 24 & 0xff) << 56;
}

void run_legacy(LegacyRun& run) {
  prepare();
  descriptor(SEL_TSS32) = tss32_descriptor(s_tss);
  describe_tss(0);  // for the way back
  enter_legacy(&run);
}

}  // namespace bare
