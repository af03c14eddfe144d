#pragma once
// Numbers of Hyper-V's interface to guests, as far as it exists here (Hypervisor Top Level Functional
// Specification, "TLFS"). Owner: nobody; constants. Any thread.

#include "base/bits.h"
#include "base/types.h"

namespace anykvm::core::hyperv {

// --- CPUID (TLFS 2.4) ---
inline constexpr u32 kLeafVendor = 0x40000000;
inline constexpr u32 kLeafInterface = 0x40000001;
inline constexpr u32 kLeafVersion = 0x40000002;
inline constexpr u32 kLeafFeatures = 0x40000003;
inline constexpr u32 kLeafRecommendations = 0x40000004;
inline constexpr u32 kLeafLimits = 0x40000005;
inline constexpr u32 kLeafNested = 0x4000000a;
inline constexpr u32 kLeafDebugVendor = 0x40000080;
inline constexpr u32 kLeafDebugInterface = 0x40000081;
inline constexpr u32 kLeafDebugCapabilities = 0x40000082;

inline constexpr u32 kInterfaceSignature = 0x31237648;  // "Hv#1"

// kLeafFeatures, EAX: the MSRs that the guest may use.
inline constexpr u32 kAccessVpRuntime = 1u << 0;
inline constexpr u32 kAccessReferenceCounter = 1u << 1;
inline constexpr u32 kAccessSynic = 1u << 2;
inline constexpr u32 kAccessSyntheticTimers = 1u << 3;
inline constexpr u32 kAccessApic = 1u << 4;
inline constexpr u32 kAccessHypercalls = 1u << 5;
inline constexpr u32 kAccessVpIndex = 1u << 6;
inline constexpr u32 kAccessReset = 1u << 7;
inline constexpr u32 kAccessReferenceTsc = 1u << 9;
inline constexpr u32 kAccessFrequencies = 1u << 11;
inline constexpr u32 kAccessReenlightenment = 1u << 13;
inline constexpr u32 kAccessInvariantTsc = 1u << 15;
// EBX: the hypercalls.
inline constexpr u32 kPostMessages = 1u << 4;
inline constexpr u32 kSignalEvents = 1u << 5;
inline constexpr u32 kDebugging = 1u << 11;
inline constexpr u32 kExtendedHypercalls = 1u << 20;
// EDX.
inline constexpr u32 kGuestDebugging = 1u << 1;
inline constexpr u32 kXmmInput = 1u << 4;
inline constexpr u32 kFrequencyMsrs = 1u << 8;
inline constexpr u32 kCrashMsrs = 1u << 10;
inline constexpr u32 kDebugMsrs = 1u << 11;
inline constexpr u32 kExtendedFlushRanges = 1u << 14;
inline constexpr u32 kDirectTimers = 1u << 19;

// kLeafRecommendations, EAX.
inline constexpr u32 kRemoteFlush = 1u << 2;
inline constexpr u32 kApicMsrs = 1u << 3;
inline constexpr u32 kRelaxedTiming = 1u << 5;
inline constexpr u32 kNoAutoEoi = 1u << 9;
inline constexpr u32 kClusterIpi = 1u << 10;
inline constexpr u32 kProcessorSets = 1u << 11;
inline constexpr u32 kNoCoreSharing = 1u << 18;

// kLeafNested, EAX.
inline constexpr u32 kNestedDirectFlush = 1u << 17;
inline constexpr u32 kNestedMsrBitmap = 1u << 19;
// kLeafDebugCapabilities, EAX.
inline constexpr u32 kAllowKernelDebugging = 1u << 1;

// --- Model-specific registers ---
enum Msr : u32 {
  kMsrGuestOsId = 0x40000000,
  kMsrHypercall = 0x40000001,
  kMsrVpIndex = 0x40000002,
  kMsrReset = 0x40000003,
  kMsrVpRuntime = 0x40000010,
  kMsrReferenceCounter = 0x40000020,
  kMsrReferenceTsc = 0x40000021,
  kMsrTscFrequency = 0x40000022,
  kMsrApicFrequency = 0x40000023,
  kMsrEoi = 0x40000070,
  kMsrIcr = 0x40000071,
  kMsrTpr = 0x40000072,
  kMsrAssistPage = 0x40000073,
  kMsrSynicControl = 0x40000080,
  kMsrSynicVersion = 0x40000081,
  kMsrEventPage = 0x40000082,
  kMsrMessagePage = 0x40000083,
  kMsrEndOfMessage = 0x40000084,
  kMsrSint0 = 0x40000090,
  kMsrSint15 = 0x4000009f,
  kMsrTimer0Config = 0x400000b0,
  kMsrTimer3Count = 0x400000b7,
  kMsrDebugControl = 0x400000f1,
  kMsrDebugStatus = 0x400000f2,
  kMsrDebugSendPage = 0x400000f3,
  kMsrDebugReceivePage = 0x400000f4,
  kMsrDebugPendingPage = 0x400000f5,
  kMsrDebugOptions = 0x400000ff,
  kMsrCrash0 = 0x40000100,
  kMsrCrash4 = 0x40000104,
  kMsrCrashControl = 0x40000105,
  kMsrReenlightenmentControl = 0x40000106,
  kMsrTscEmulationControl = 0x40000107,
  kMsrTscEmulationStatus = 0x40000108,
  kMsrInvariantTscControl = 0x40000118,
};

// Bit 0 of each MSR that names a page switches it on; the page's address is in bits 63:12.
inline constexpr u64 kPageEnabled = 1;
constexpr Gpa page_of(u64 msr) { return Gpa(msr & ~u64{0xfff}); }

// The reference TSC page (TLFS 12.7, SEEDS X7): time in units of 100 ns = (TSC * scale >> 64) + offset, while
// `sequence` is not 0.
struct ReferenceTscPage {
  u32 sequence;
  u32 reserved;
  u64 scale;
  i64 offset;
};
static_assert(sizeof(ReferenceTscPage) == 24);

// --- Synthetic interrupts (TLFS 11) ---
inline constexpr unsigned kSints = 16;
inline constexpr u64 kSintMasked = u64{1} << 16;
inline constexpr u64 kSintAutoEoi = u64{1} << 17;
inline constexpr unsigned kFirstSintVector = 16;

// One of the 16 slots of the message page.
struct Message {
  u32 type;
  u8 payload_size;
  u8 flags;
  u8 reserved[2];
  u64 sender;
  u8 payload[240];
};
static_assert(sizeof(Message) == 256);
inline constexpr u32 kMessageNone = 0;
inline constexpr u32 kMessageTimerExpired = 0x80000010;
inline constexpr u8 kMessagePending = 1;

struct TimerMessage {
  u32 timer;
  u32 reserved;
  u64 expiration;
  u64 delivery;
};
static_assert(sizeof(TimerMessage) == 24);

// --- Synthetic timers (TLFS 12.5): bits of the configuration ---
inline constexpr unsigned kTimers = 4;
inline constexpr u64 kTimerEnabled = 1u << 0;
inline constexpr u64 kTimerPeriodic = 1u << 1;
inline constexpr u64 kTimerAutoEnable = 1u << 3;
inline constexpr u64 kTimerDirect = 1u << 12;
constexpr u8 timer_vector(u64 config) { return static_cast<u8>(bits(config, 11, 4)); }
constexpr unsigned timer_sint(u64 config) { return static_cast<unsigned>(bits(config, 19, 16)); }

// --- Guests of the guest (TLFS: nested virtualization, enlightenments for SVM) ---
// What the VMCB has where it is software's, from 3E0H on.
struct NestedEnlightenments {
  u32 control;
  u32 vp_id;  // of the nested guest's processor, among those with the same vm_id
  u64 vm_id;
  u64 partition_assist_page;  // a physical address; the page begins with a u32, the lock count
  u64 reserved;
};
static_assert(sizeof(NestedEnlightenments) == 32);
inline constexpr u32 kNestedFlushCalls = 1u << 0;  // bits of `control`
inline constexpr u32 kNestedMsrMap = 1u << 1;
inline constexpr u32 kEnlightenmentsClean = 1u << 31;  // of the VMCB's clean bits

// The VP assist page: a u32 there says which hypercalls of nested guests are not their hypervisor's.
inline constexpr u64 kAssistNestedFeatures = 0x20;
inline constexpr u32 kDirectHypercalls = 1u << 0;

inline constexpr u64 kExitEnlightenment = 0xf0000000, kTrapAfterFlush = 1;  // exit code, EXITINFO1

// --- Hypercalls (TLFS 3) ---
enum Call : u16 {
  kCallFlushSpace = 0x0002,
  kCallFlushList = 0x0003,
  kCallLongSpinWait = 0x0008,
  kCallSendIpi = 0x000b,
  kCallFlushSpaceEx = 0x0013,
  kCallFlushListEx = 0x0014,
  kCallSendIpiEx = 0x0015,
  kCallPostMessage = 0x005c,
  kCallSignalEvent = 0x005d,
  kCallPostDebugData = 0x0069,
  kCallRetrieveDebugData = 0x006a,
  kCallResetDebugSession = 0x006b,
  kCallFirstExtended = 0x8001,
  kCallLastExtended = 0x8041,
};

enum Status : u16 {
  kSuccess = 0,
  kInvalidCode = 2,
  kInvalidInput = 3,
  kInvalidAlignment = 4,
  kInvalidParameter = 5,
  kAccessDenied = 6,
  kOperationDenied = 8,
  kInvalidPortId = 17,
};

}  // namespace anykvm::core::hyperv
