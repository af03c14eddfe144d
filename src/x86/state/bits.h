#pragma once
// Bits of RFLAGS, control registers, EFER, debug registers and page-fault error codes, by the manuals' names.
// Owner: nobody; constants. Any thread. Sources: SDM 3A 2.3, 2.5, 4.7, SDM 3B 18.2, APM 2 3.1.

#include "base/bits.h"

namespace anykvm::x86 {

enum Rflags : u64 {
  kFlagCf = bit(0),
  kFlagFixed1 = bit(1),
  kFlagPf = bit(2),
  kFlagAf = bit(4),
  kFlagZf = bit(6),
  kFlagSf = bit(7),
  kFlagTf = bit(8),
  kFlagIf = bit(9),
  kFlagDf = bit(10),
  kFlagOf = bit(11),
  kFlagIopl = bit(12) | bit(13),
  kFlagNt = bit(14),
  kFlagRf = bit(16),
  kFlagVm = bit(17),
  kFlagAc = bit(18),
  kFlagVif = bit(19),
  kFlagVip = bit(20),
  kFlagId = bit(21),
};
inline constexpr u64 kFlagsArithmetic = kFlagCf | kFlagPf | kFlagAf | kFlagZf | kFlagSf | kFlagOf;

enum Cr0 : u64 {
  kCr0Pe = bit(0),
  kCr0Mp = bit(1),
  kCr0Em = bit(2),
  kCr0Ts = bit(3),
  kCr0Et = bit(4),
  kCr0Ne = bit(5),
  kCr0Wp = bit(16),
  kCr0Am = bit(18),
  kCr0Nw = bit(29),
  kCr0Cd = bit(30),
  kCr0Pg = bit(31),
};

enum Cr4 : u64 {
  kCr4Vme = bit(0),
  kCr4Pvi = bit(1),
  kCr4Tsd = bit(2),
  kCr4De = bit(3),
  kCr4Pse = bit(4),
  kCr4Pae = bit(5),
  kCr4Mce = bit(6),
  kCr4Pge = bit(7),
  kCr4Pce = bit(8),
  kCr4Osfxsr = bit(9),
  kCr4Osxmmexcpt = bit(10),
  kCr4Umip = bit(11),
  kCr4La57 = bit(12),
  kCr4Vmxe = bit(13),
  kCr4Smxe = bit(14),
  kCr4Fsgsbase = bit(16),
  kCr4Pcide = bit(17),
  kCr4Osxsave = bit(18),
  kCr4Smep = bit(20),
  kCr4Smap = bit(21),
  kCr4Pke = bit(22),
  kCr4Cet = bit(23),
  kCr4Pks = bit(24),
};

enum Efer : u64 {
  kEferSce = bit(0),
  kEferLme = bit(8),
  kEferLma = bit(10),
  kEferNx = bit(11),
  kEferSvme = bit(12),
  kEferFfxsr = bit(14),
};

// APM 2 15.30.1.
enum VmCr : u64 { kVmCrSvmLock = bit(3), kVmCrSvmDisabled = bit(4) };

enum Vector : u8 {
  kVectorDe = 0,
  kVectorDb = 1,
  kVectorNmi = 2,
  kVectorBp = 3,
  kVectorOf = 4,
  kVectorBr = 5,
  kVectorUd = 6,
  kVectorNm = 7,
  kVectorDf = 8,
  kVectorTs = 10,
  kVectorNp = 11,
  kVectorSs = 12,
  kVectorGp = 13,
  kVectorPf = 14,
  kVectorMf = 16,
  kVectorAc = 17,
  kVectorMc = 18,
  kVectorXm = 19,
  kVectorCp = 21,
};

// Page-fault error code, SDM 3A 4.7.
enum PageFaultCode : u32 {
  kPfPresent = 1u << 0,
  kPfWrite = 1u << 1,
  kPfUser = 1u << 2,
  kPfReserved = 1u << 3,
  kPfFetch = 1u << 4,
  kPfProtectionKey = 1u << 5,
};

// DR6 and DR7, SDM 3B 18.2.
enum DebugBits : u64 {
  kDr6Fixed1 = 0xffff0ff0,
  kDr6B0 = bit(0),
  kDr6Bd = bit(13),
  kDr6Bs = bit(14),
  kDr6Bt = bit(15),
  kDr7Fixed1 = 0x400,
  kDr7Gd = bit(13),
};

// State components of XCR0, SDM 1 13.1.
enum Xcr0 : u64 {
  kXcr0X87 = bit(0),
  kXcr0Sse = bit(1),
  kXcr0Avx = bit(2),
  kXcr0Opmask = bit(5),
  kXcr0ZmmHi256 = bit(6),
  kXcr0Hi16Zmm = bit(7),
  kXcr0Pkru = bit(9),
};
inline constexpr u64 kXcr0Avx512 = kXcr0Opmask | kXcr0ZmmHi256 | kXcr0Hi16Zmm;

}  // namespace anykvm::x86
