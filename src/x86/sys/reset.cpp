#include "x86/sys/reset.h"

#include "x86/state/segment_types.h"
#include "x86/state/xsave.h"

namespace anykvm::x86 {

namespace {

// EDX after reset where the client set no CPUID: family 6, as KVM answers.
constexpr u32 kDefaultSignature = 0x600;

Segment reset_segment(u8 type, bool system = false) {
  Segment segment;
  segment.type = type;
  segment.s = !system;
  segment.present = 1;
  return segment;
}

void reset_segments(CpuState& state) {
  state.segments.fill(reset_segment(3));
  Segment& cs = state.segments[kCs];
  cs = reset_segment(11);
  cs.selector = 0xf000;
  cs.base = 0xffff0000;
  state.ldtr = reset_segment(kTypeLdt, true);
  state.tr = reset_segment(kTypeTss32Busy, true);
  state.gdtr = {};
  state.idtr = {};
  state.cpl = 0;
}

u64 reset_cr0(u64 old, bool init) {
  u64 cache_bits = kCr0Cd | kCr0Nw;
  return kCr0Et | (init ? old & cache_bits : cache_bits);
}

}  // namespace

void reset_cpu(CpuState& state, const CpuModel& model, bool init) {
  u32 signature = model.entries().empty() ? 0 : model.cpuid(1, 0, state).eax;
  state.gpr.fill(0);
  state.gpr[kRdx] = signature ? signature : kDefaultSignature;
  state.rip = 0xfff0;
  state.rflags = kFlagFixed1;
  reset_segments(state);
  state.cr0 = reset_cr0(state.cr0, init);
  state.cr2 = state.cr3 = state.cr4 = state.efer = 0;
  state.dr.fill(0);
  state.dr6 = kDr6Fixed1;
  state.dr7 = kDr7Fixed1;
  state.events = {};
  const SvmState svm = state.svm;
  state.svm = {};
  if (init) {  // these are MSRs
    state.svm.vm_cr = svm.vm_cr;
    state.svm.hsave_pa = svm.hsave_pa;
    state.svm.tsc_ratio = svm.tsc_ratio;
  }
  state.smm = {.base = init ? state.smm.base : Smm{}.base};
  if (!init) {
    state.xcr0 = kXcr0X87;
    state.pkru = 0;
    state.msrs = {};
    state.pmu = {};
  }
  reset_xsave(state, init);
}

}  // namespace anykvm::x86
