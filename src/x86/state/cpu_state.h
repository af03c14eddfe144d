#pragma once
// The architectural state of one guest CPU, in the form in which it is exact between instructions.
// Owner: x86::Cpu. Only the vCPU's thread touches it, except while the vCPU is not inside KVM_RUN.
//
// Translated code reaches this structure through GS at fixed offsets. While translated code runs, most
// general registers, the arithmetic flags and (if `Context::vector_live`) the vector state are in the host's
// registers instead; whatever is called from translated code finds them here again.

#include <array>

#include "base/types.h"
#include "x86/state/bits.h"
#include "x86/state/msr_state.h"
#include "x86/state/pmu_state.h"
#include "x86/state/vmcb.h"

namespace anykvm::x86 {

// Register numbers as instructions encode them.
enum Gpr : u8 {
  kRax,
  kRcx,
  kRdx,
  kRbx,
  kRsp,
  kRbp,
  kRsi,
  kRdi,
  kR8,
  kR9,
  kR10,
  kR11,
  kR12,
  kR13,
  kR14,
  kR15
};
enum SegmentIndex : u8 { kEs, kCs, kSs, kDs, kFs, kGs, kSegmentCount };

// A segment register with its hidden part (SDM 3A 3.4.3); the fields are those of struct kvm_segment.
// `limit` is in bytes, already scaled by G.
struct Segment {
  u64 base = 0;
  u32 limit = 0xffff;
  u16 selector = 0;
  u8 type = 0, present = 0, dpl = 0, db = 0, s = 0, l = 0, g = 0, avl = 0;
  u8 unusable = 0;  // loaded with a null selector
};

struct DescriptorTable {
  u64 base = 0;
  u16 limit = 0xffff;
};

// Events on their way into the guest; the meaning of each field is that of struct kvm_vcpu_events
// (KVM API 4.31). `injected` events are delivered before the next instruction of the guest.
struct Events {
  struct {
    bool pending = false, injected = false, has_error = false, has_payload = false;
    u8 vector = 0;
    u32 error = 0;
    u64 payload = 0;
  } exception;
  struct {
    bool injected = false, soft = false;
    u8 vector = 0;
  } interrupt;
  struct {
    bool injected = false, masked = false;
    u8 pending = 0;
  } nmi;
  // After STI or MOV SS: no interrupt is taken before the following instruction is done (SDM 3A 6.8.3).
  u8 shadow = 0;
  bool triple_fault = false;
};
// System-management mode (sys/smm.h).
struct Smm {
  bool active = false;
  bool pending = false;           // an SMI waits
  bool nmis_were_masked = false;  // when the mode was entered
  bool from_halt = false;         // the SMI that waits ends a halt
  u32 base = 0x30000;
  u64 count = 0;  // MSR_SMI_COUNT
};

class NestedTlb;

enum InterruptShadow : u8 { kShadowSti = 1, kShadowMovSs = 2 };  // as KVM_X86_SHADOW_INT_*, names by cause

// What KVM_GET_MP_STATE reports; values are those of KVM_MP_STATE_*.
enum class MpState : u32 {
  kRunnable = 0,
  kUninitialized = 1,
  kInitReceived = 2,
  kHalted = 3,
  kSipiReceived = 4
};

// Room for the widest XSAVE image offered to guests (x87, SSE, AVX, AVX-512, PKRU), standard format.
inline constexpr std::size_t kXsaveAreaSize = 4096;

// CpuState::tsc_ratio when guest and host run alike.
inline constexpr u64 kTscUnscaled = u64{1} << 32;

struct CpuState {
  std::array<u64, 16> gpr{};  // by Gpr number
  u64 rip = 0xfff0;
  u64 rflags = kFlagFixed1;

  std::array<Segment, kSegmentCount> segments{};  // by SegmentIndex
  Segment ldtr{};
  Segment tr{};
  DescriptorTable gdtr{};
  DescriptorTable idtr{};
  u8 cpl = 0;

  u64 cr0 = 0x60000010;
  u64 cr2 = 0, cr3 = 0, cr4 = 0;
  u64 efer = 0;
  u64 xcr0 = 1;
  // PAE paging's four PDPTE registers (SDM 3A 4.4.1), loaded by load_pdptes(). Not valid (the client set CR3
  // without them): the walk reads them from memory.
  std::array<u64, 4> pdptes{};
  bool pdptes_valid = false;
  u32 pkru = 0;
  std::array<u64, 4> dr{};
  u64 dr6 = kDr6Fixed1, dr7 = kDr7Fixed1;

  // Guest TSC = ((host TSC * tsc_ratio) >> 32) + tsc_offset; the ratio is 1 << 32 when guest and host run
  // alike.
  u64 tsc_ratio = kTscUnscaled;
  u64 tsc_offset = 0;

  MsrState msrs{};
  PmuState pmu{};
  Events events{};
  Smm smm{};
  SvmState svm{};
  NestedTlb* nested_tlb = nullptr;  // Cpu's; mmu/nested_paging.h
  MpState mp_state = MpState::kRunnable;

  // x87, SSE, AVX ... state as XSAVE's standard format lays it out (SDM 1 13.4). PKRU lives above, not here.
  alignas(64) std::array<u8, kXsaveAreaSize> xsave{};

  bool protected_mode() const { return cr0 & kCr0Pe; }
  bool v86_mode() const { return (cr0 & kCr0Pe) && (rflags & kFlagVm); }
  bool real_mode() const { return !(cr0 & kCr0Pe); }
  // Real-address or virtual-8086 mode: selectors are paragraph numbers.
  bool paragraph_segments() const { return real_mode() || v86_mode(); }
  bool long_mode() const { return efer & kEferLma; }  // IA-32e mode: 64-bit or compatibility
  bool code64() const { return long_mode() && segments[kCs].l; }
  unsigned code_bits() const { return code64() ? 64 : segments[kCs].db ? 32 : 16; }
  unsigned iopl() const { return static_cast<unsigned>(bits(rflags, 13, 12)); }
  // Bits of a linear address that must repeat the sign bit start here: 48, or 57 with CR4.LA57.
  unsigned linear_address_bits() const { return cr4 & kCr4La57 ? 57 : 48; }
  bool canonical(u64 address) const { return sign_extend(address, linear_address_bits()) == address; }
};

}  // namespace anykvm::x86
