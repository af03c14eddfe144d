#pragma once
// An excursion from 64-bit mode to 32-bit protected mode, with or without paging, at any privilege level or
// in virtual-8086 mode: runs code until a trap ends it. CPU 0.

#include "cpu.h"

namespace bare {

// What to start with, and what it came to. legacy.S knows the offsets.
struct LegacyRun {
  u32 cr0 = kCr0Pe | kCr0Et | kCr0Ne | kCr0Wp, cr3 = 0, cr4 = 0, nx = 0;
  u32 eip = 0, cs = SEL_CODE32, eflags = 2, esp = 0, ss = SEL_DATA;
  u32 ds = SEL_USER_DATA;      // and ES, at ring 3
  u32 es = 0, fs = 0, gs = 0;  // of virtual-8086 mode
  u32 eax = 0, ecx = 0, edx = 0, ebx = 0;

  // --- results ---
  u32 vector = 0, error = 0, cr2 = 0;
  u32 out_eip = 0, out_cs = 0, out_eflags = 0, out_esp = 0, out_ss = 0;
  u32 out_eax = 0, out_ecx = 0, out_edx = 0, out_ebx = 0;
  u32 out_cr0 = 0;
};

// Interrupts stay off. Code, stack, GDT and IDT must be where the run's page tables map them one to one.
void run_legacy(LegacyRun& run);

// The 32-bit TSS and IDT of these runs, to be changed by tests.
struct Tss32 {
  u32 link, esp0, ss0, esp1, ss1, esp2, ss2, cr3, eip, eflags, eax, ecx, edx, ebx, esp, ebp, esi, edi, es, cs,
      ss, ds, fs, gs, ldt;
  u16 trap, io_map;
};
Tss32& tss32();
u64& gate32(unsigned vector);
u64 make_gate32(u32 offset, u16 selector, u8 type, u8 dpl);
u64 tss32_descriptor(const Tss32& tss);

}  // namespace bare
