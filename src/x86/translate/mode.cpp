#include "x86/translate/mode.h"

#include "base/optimizations.h"

namespace anykvm::x86 {
namespace {

bool flat_data(const Segment& s) {
  bool expand_down = (s.type & 0xc) == 0x4;
  bool writable = !(s.type & 8) && (s.type & 2);
  return !s.unusable && s.present && s.base == 0 && s.limit == 0xffffffff && writable && !expand_down;
}

bool flat_segments(const CpuState& state) {
  const Segment& cs = state.segments[kCs];
  bool readable_code = cs.base == 0 && cs.limit == 0xffffffff && (cs.type & 2);
  return state.protected_mode() && !state.v86_mode() && readable_code && flat_data(state.segments[kDs]) &&
         flat_data(state.segments[kEs]) && flat_data(state.segments[kSs]);
}

}  // namespace

MmuIndex mmu_index(const CpuState& state) {
  const bool lifted = (state.cr4 & kCr4Smap) && (state.rflags & kFlagAc);
  const unsigned of_world = state.cpl == 3 ? kMmuUser : lifted ? kMmuSupervisorAc : kMmuSupervisor;
  return static_cast<MmuIndex>(of_world + (state.svm.guest_mode ? kMmuNested : 0));
}

Mode compute_mode(const CpuState& state) {
  Mode mode;
  mode.code_bits = static_cast<u8>(state.code_bits());
  mode.stack_bytes = mode.code64() ? 8 : state.segments[kSs].db ? 4 : 2;
  mode.mmu = mmu_index(state);
  mode.cpl = state.cpl;
  mode.flat = mode.code64() || flat_segments(state);
  mode.protected_ = state.protected_mode() && !state.v86_mode();
  mode.long_mode = state.long_mode();
  mode.x87 = !(state.cr0 & (kCr0Em | kCr0Ts));
  mode.wait = (state.cr0 & (kCr0Mp | kCr0Ts)) != (kCr0Mp | kCr0Ts);
  mode.sse = mode.x87 && (state.cr4 & kCr4Osfxsr);
  bool xsave_on = !(state.cr0 & kCr0Ts) && (state.cr4 & kCr4Osxsave) && mode.protected_;
  mode.avx = xsave_on && (state.xcr0 & (kXcr0Sse | kXcr0Avx)) == (kXcr0Sse | kXcr0Avx);
  mode.avx512 = mode.avx && (state.xcr0 & kXcr0Avx512) == kXcr0Avx512;
  mode.step = state.rflags & kFlagTf;
  // Alignment checks look at every access (SDM 3A 6.15, #AC).
  mode.slow = (state.cr0 & kCr0Am) && (state.rflags & kFlagAc) && state.cpl == 3;
  mode.traps_inline = state.svm.guest_mode &&
                      (state.svm.intercepts(Intercept::kPushf) || state.svm.intercepts(Intercept::kPause));
  mode.cs_base = mode.code64() ? 0 : state.segments[kCs].base;
  return mode;
}

bool Mode::may_roam() const { return code64() && cpl == 3 && !step && !slow && optimizations().roaming; }

std::size_t ModeHash::operator()(const Mode& m) const {
  const auto [flags, cs_base] = m.words();
  return (flags ^ flags >> 29 ^ cs_base * 0x9e3779b97f4a7c15) * 0x9e3779b97f4a7c15;
}

}  // namespace anykvm::x86
