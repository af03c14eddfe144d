#pragma once
// Names of the local APIC's registers and bits (SDM 3A tables 10-1 and 10-6).
// Owner: nobody; constants. Any thread.

#include "base/types.h"

namespace anykvm::irqchip {

// Offsets in the xAPIC page; x2APIC MSR 800H + (offset >> 4).
enum ApicRegister : u32 {
  kApicId = 0x20,
  kApicVersion = 0x30,
  kApicTpr = 0x80,
  kApicApr = 0x90,
  kApicPpr = 0xa0,
  kApicEoi = 0xb0,
  kApicRrd = 0xc0,
  kApicLdr = 0xd0,
  kApicDfr = 0xe0,
  kApicSvr = 0xf0,
  kApicIsr = 0x100,  // eight of each
  kApicTmr = 0x180,
  kApicIrr = 0x200,
  kApicEsr = 0x280,
  kApicLvtCmci = 0x2f0,
  kApicIcr = 0x300,
  kApicIcr2 = 0x310,
  kApicLvtTimer = 0x320,
  kApicLvtThermal = 0x330,
  kApicLvtPerf = 0x340,
  kApicLvtLint0 = 0x350,
  kApicLvtLint1 = 0x360,
  kApicLvtError = 0x370,
  kApicTimerInitial = 0x380,
  kApicTimerCurrent = 0x390,
  kApicTimerDivide = 0x3e0,
  kApicSelfIpi = 0x3f0,
};

inline constexpr u32 kMsrApicBase = 0x1b;
inline constexpr u32 kMsrTscDeadline = 0x6e0;
inline constexpr u32 kMsrX2ApicFirst = 0x800;
inline constexpr u32 kMsrX2ApicLast = 0x8ff;

inline constexpr u64 kApicBaseBsp = 1u << 8;
inline constexpr u64 kApicBaseX2Apic = 1u << 10;
inline constexpr u64 kApicBaseEnable = 1u << 11;
inline constexpr u64 kApicBaseDefault = 0xfee00000;

inline constexpr u32 kLvtMasked = 1u << 16;
inline constexpr u32 kLvtLevel = 1u << 15;
inline constexpr u32 kLvtRemoteIrr = 1u << 14;
inline constexpr u32 kLvtPending = 1u << 12;
inline constexpr u32 kSvrEnabled = 1u << 8;
inline constexpr u32 kSvrSuppressEoiBroadcast = 1u << 12;
inline constexpr u32 kVersionSuppressEoiBroadcast = 1u << 24;

inline constexpr u32 kEsrSendIllegalVector = 1u << 5;
inline constexpr u32 kEsrReceiveIllegalVector = 1u << 6;
inline constexpr u32 kEsrIllegalRegister = 1u << 7;

}  // namespace anykvm::irqchip
