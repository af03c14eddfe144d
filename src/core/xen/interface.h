#pragma once
// Xen's interface to HVM guests, as far as it exists here: numbers and layouts (Xen: public/xen.h, vcpu.h,
// sched.h, event_channel.h) and the parts of KVM's ABI that are newer than the oldest headers we build with.
// Owner: nobody; constants. Any thread.

#include <linux/kvm.h>

#include "base/types.h"

namespace anykvm::core::xen {

// --- KVM's ABI ---
inline constexpr u32 kConfigRunstateUpdateFlag = 1u << 6;
inline constexpr u32 kConfigTscUnstable = 1u << 7;
inline constexpr u32 kConfigSharedInfoHva = 1u << 8;
// What KVM_CAP_XEN_HVM answers.
inline constexpr u32 kSupported = KVM_XEN_HVM_CONFIG_HYPERCALL_MSR | KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL |
                                  KVM_XEN_HVM_CONFIG_SHARED_INFO | KVM_XEN_HVM_CONFIG_RUNSTATE |
                                  KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL | KVM_XEN_HVM_CONFIG_EVTCHN_SEND |
                                  kConfigRunstateUpdateFlag | kConfigTscUnstable | kConfigSharedInfoHva;
inline constexpr u16 kAttrRunstateUpdateFlag = 5;
inline constexpr u16 kAttrSharedInfoHva = 6;
inline constexpr u16 kVcpuAttrInfoHva = 9;
inline constexpr u64 kNowhere = ~u64{0};   // KVM_XEN_INVALID_GPA, KVM_XEN_INVALID_GFN
inline constexpr u32 kTwoLevel = ~u32{0};  // the one priority of two-level event channels

// --- Hypercalls ---
inline constexpr u64 kSetTimerOp = 15, kXenVersion = 17, kVcpuOp = 24, kSchedOp = 29, kEventChannelOp = 32;
inline constexpr u64 kSchedYield = 0, kSchedPoll = 3;
inline constexpr u64 kEventSend = 4;
inline constexpr u64 kSetSingleshotTimer = 8, kStopSingleshotTimer = 9;
inline constexpr i64 kEinval = -22, kEfault = -14;

// --- Event channels (EVTCHNSTAT_*) ---
inline constexpr u32 kInterdomain = 2, kIpi = 5;

// --- struct vcpu_info: the same 64 bytes in both layouts, but for the selector's width ---
inline constexpr u32 kVcpuInfoSize = 64;
inline constexpr u32 kUpcallPending = 0;  // u8
inline constexpr u32 kVcpuTime = 32;      // pvclock

// --- struct shared_info and struct vcpu_runstate_info, which differ for 32-bit and 64-bit guests ---
struct Layout {
  unsigned word_bits;    // of the bitmaps
  u32 pending_selector;  // in vcpu_info
  u32 pending, mask;     // in shared_info
  u32 wall_clock, wall_clock_high;
  u32 runstate_times;  // of the entry time, which the four sums follow
  u32 runstate_size;

  unsigned ports() const { return word_bits * word_bits; }
};
inline constexpr Layout kLayout64{64, 8, 2048, 2560, 3072, 3084, 8, 48};
inline constexpr Layout kLayout32{32, 4, 2048, 2176, 2304, 2340, 4, 44};

// --- Run states ---
enum Runstate : u32 { kRunning, kRunnable, kBlocked, kOffline };
inline constexpr unsigned kRunstates = 4;

}  // namespace anykvm::core::xen
