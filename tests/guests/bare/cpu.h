#pragma once
// Instructions as functions, and the bits of control registers. Any CPU, ring 0 unless it says otherwise.

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "layout.h"

namespace bare {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using std::size_t;

constexpr u64 bit(unsigned n) { return u64{1} << n; }

inline constexpr u64 kCr0Pe = bit(0), kCr0Mp = bit(1), kCr0Em = bit(2), kCr0Ts = bit(3), kCr0Et = bit(4),
                     kCr0Ne = bit(5), kCr0Wp = bit(16), kCr0Am = bit(18), kCr0Nw = bit(29), kCr0Cd = bit(30),
                     kCr0Pg = bit(31);
inline constexpr u64 kCr4Vme = bit(0), kCr4Pvi = bit(1), kCr4Tsd = bit(2), kCr4De = bit(3), kCr4Pse = bit(4),
                     kCr4Pae = bit(5), kCr4Mce = bit(6), kCr4Pge = bit(7), kCr4Pce = bit(8),
                     kCr4Osfxsr = bit(9), kCr4Umip = bit(11), kCr4La57 = bit(12), kCr4Fsgsbase = bit(16),
                     kCr4Pcide = bit(17), kCr4Osxsave = bit(18), kCr4Smep = bit(20), kCr4Smap = bit(21),
                     kCr4Pke = bit(22);
inline constexpr u64 kEferSce = bit(0), kEferLme = bit(8), kEferLma = bit(10), kEferNx = bit(11);
inline constexpr u64 kFlagCf = bit(0), kFlagTf = bit(8), kFlagIf = bit(9), kFlagDf = bit(10),
                     kFlagNt = bit(14), kFlagRf = bit(16), kFlagVm = bit(17), kFlagAc = bit(18),
                     kFlagIopl = bit(12) | bit(13);
inline constexpr u32 kMsrEfer = 0xc0000080, kMsrApicBase = 0x1b, kMsrStar = 0xc0000081,
                     kMsrLstar = 0xc0000082, kMsrSyscallMask = 0xc0000084, kMsrGsBase = 0xc0000101;

#define BARE_REGISTER(name)                                         \
  inline u64 read_##name() {                                        \
    u64 value;                                                      \
    asm volatile("mov %%" #name ", %0" : "=r"(value) : : "memory"); \
    return value;                                                   \
  }                                                                 \
  inline void write_##name(u64 value) { asm volatile("mov %0, %%" #name : : "r"(value) : "memory"); }
BARE_REGISTER(cr0)
BARE_REGISTER(cr2)
BARE_REGISTER(cr3)
BARE_REGISTER(cr4)
BARE_REGISTER(cr8)
BARE_REGISTER(dr0)
BARE_REGISTER(dr1)
BARE_REGISTER(dr2)
BARE_REGISTER(dr3)
BARE_REGISTER(dr6)
BARE_REGISTER(dr7)
#undef BARE_REGISTER

inline u64 rdmsr(u32 index) {
  u32 low, high;
  asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index) : "memory");
  return u64{high} << 32 | low;
}
inline void wrmsr(u32 index, u64 value) {
  asm volatile("wrmsr"
               :
               : "c"(index), "a"(static_cast<u32>(value)), "d"(static_cast<u32>(value >> 32))
               : "memory");
}
inline u64 rdtsc() {
  u32 low, high;
  asm volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
  return u64{high} << 32 | low;
}

struct CpuidResult {
  u32 eax, ebx, ecx, edx;
};
inline CpuidResult cpuid(u32 leaf, u32 subleaf = 0) {
  CpuidResult r;
  asm volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "a"(leaf), "c"(subleaf));
  return r;
}
inline bool has_smep() { return cpuid(7).ebx & bit(7); }
inline bool has_smap() { return cpuid(7).ebx & bit(20); }
inline bool has_umip() { return cpuid(7).ecx & bit(2); }
inline bool has_la57() { return cpuid(7).ecx & bit(16); }
inline bool has_pku() { return cpuid(7).ecx & bit(3); }
inline bool has_pcid() { return cpuid(1).ecx & bit(17); }
inline bool has_tsc_deadline() { return cpuid(1).ecx & bit(24); }
inline bool has_x2apic() { return cpuid(1).ecx & bit(21); }
inline unsigned physical_bits() { return cpuid(0x80000008).eax & 0xff; }

inline void outb(u16 port, u8 value) { asm volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
inline u8 inb(u16 port) {
  u8 value;
  asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}

inline u64 read_flags() {
  u64 flags;
  asm volatile("pushf; pop %0" : "=r"(flags) : : "memory");
  return flags;
}
inline void write_flags(u64 flags) { asm volatile("push %0; popf" : : "r"(flags) : "memory", "cc"); }
inline void sti() { asm volatile("sti" : : : "memory"); }
inline void cli() { asm volatile("cli" : : : "memory"); }
inline void stac() { asm volatile("stac" : : : "memory", "cc"); }
inline void clac() { asm volatile("clac" : : : "memory", "cc"); }
inline void pause() { asm volatile("pause" : : : "memory"); }
inline void invlpg(u64 address) { asm volatile("invlpg (%0)" : : "r"(address) : "memory"); }
inline void flush_tlb() { write_cr3(read_cr3()); }
// One instruction later interrupts are taken; then they are off again.
inline void open_interrupts_once() { asm volatile("sti; nop; cli" : : : "memory"); }
inline void wait_for_interrupt() { asm volatile("sti; hlt; cli" : : : "memory"); }

// 10 bytes, as LGDT and LIDT take them.
struct [[gnu::packed]] TablePointer {
  u16 limit;
  u64 base;
};

}  // namespace bare
