// x87, SSE, AVX ... state: KVM_GET/SET_FPU, _XSAVE, _XCRS. CpuState::xsave has XSAVE's standard format (SDM
// 1 13.4) but for PKRU, which is a field of its own.
#include <errno.h>
#include <string.h>

#include "abi/handlers.h"
#include "core/vcpu.h"
#include "x86/state/xsave.h"

namespace anykvm::abi::vcpu {
namespace {

constexpr std::size_t kXsaveSize = 4096;  // struct kvm_xsave without its optional tail
constexpr std::size_t kHeader = 512;      // XSTATE_BV, XCOMP_BV, 48 bytes reserved
constexpr std::size_t kSt0 = 32, kXmm0 = 160;
constexpr u32 kMxcsrDefault = 0x1f80;
constexpr u16 kFcwInit = 0x37f;
constexpr unsigned kPkruComponent = 9;
static_assert(x86::kXsaveAreaSize == kXsaveSize);

using Area = std::array<u8, kXsaveSize>;

template <class T>
T get(const Area& area, std::size_t offset) {
  T value;
  memcpy(&value, area.data() + offset, sizeof value);
  return value;
}

template <class T>
void put(Area& area, std::size_t offset, T value) {
  memcpy(area.data() + offset, &value, sizeof value);
}

// Components whose XSTATE_BV bit is clear are in their initial state, whatever the bytes say: make the bytes
// say it.
Area settled(Area area) {
  const u64 present = get<u64>(area, kHeader);
  if (!(present & x86::kXcr0X87)) {
    memset(area.data(), 0, 24);
    memset(area.data() + kSt0, 0, kXmm0 - kSt0);
    put<u16>(area, 0, kFcwInit);
  }
  if (!(present & x86::kXcr0Sse)) memset(area.data() + kXmm0, 0, 256);
  if (!(present & (x86::kXcr0Sse | x86::kXcr0Avx))) put<u32>(area, 24, kMxcsrDefault);
  return area;
}

u32 host_mxcsr_mask() {
  static const u32 mask = [] {
    alignas(16) u8 image[512]{};
    asm volatile("fxsave %0" : "=m"(image));
    u32 value;
    memcpy(&value, image + 28, sizeof value);
    return value ? value : u32{0xffbf};  // SDM 1 11.6.6
  }();
  return mask;
}

void put_pkru(Area& area, const x86::CpuState& state) {
  const x86::XsaveComponent component = x86::xsave_component(kPkruComponent);
  if (component.size == 0 || component.offset + sizeof(u32) > kXsaveSize) return;
  put<u32>(area, component.offset, state.pkru);
  const u64 present = get<u64>(area, kHeader) & ~u64{x86::kXcr0Pkru};
  put<u64>(area, kHeader, state.pkru ? present | x86::kXcr0Pkru : present);
}

void take_pkru(Area& area, x86::CpuState& state) {
  const x86::XsaveComponent component = x86::xsave_component(kPkruComponent);
  const u64 present = get<u64>(area, kHeader);
  if (component.size == 0 || component.offset + sizeof(u32) > kXsaveSize) return;
  state.pkru = present & x86::kXcr0Pkru ? get<u32>(area, component.offset) : 0;
  put<u64>(area, kHeader, present & ~u64{x86::kXcr0Pkru});
}

Result<> check_image(const Area& area, u64 usable) {
  if (get<u64>(area, kHeader) & ~usable) return Error{EINVAL, "state components that this host lacks"};
  for (std::size_t offset = kHeader + 8; offset < kHeader + 64; offset += 8)
    if (get<u64>(area, offset)) return Error{EINVAL, "not the standard XSAVE format"};
  const bool has_mxcsr = get<u64>(area, kHeader) & (x86::kXcr0Sse | x86::kXcr0Avx);
  if (has_mxcsr && (get<u32>(area, 24) & ~host_mxcsr_mask())) return Error{EINVAL, "reserved MXCSR bits"};
  return {};
}

// SDM 1 13.3: which combinations XSETBV takes.
bool valid_xcr0(u64 value, u64 usable) {
  if (!(value & x86::kXcr0X87) || (value & ~usable)) return false;
  if ((value & x86::kXcr0Avx) && !(value & x86::kXcr0Sse)) return false;
  const u64 avx512 = value & x86::kXcr0Avx512;
  return avx512 == 0 || (avx512 == x86::kXcr0Avx512 && (value & x86::kXcr0Avx));
}

}  // namespace

Result<long> get_fpu(core::Vcpu& vcpu, kvm_fpu& fpu) {
  const Area area = settled(vcpu.state().xsave);
  memcpy(fpu.fpr, area.data() + kSt0, sizeof fpu.fpr);
  memcpy(fpu.xmm, area.data() + kXmm0, sizeof fpu.xmm);
  fpu.fcw = get<u16>(area, 0);
  fpu.fsw = get<u16>(area, 2);
  fpu.ftwx = get<u8>(area, 4);
  fpu.last_opcode = get<u16>(area, 6);
  fpu.last_ip = get<u64>(area, 8);
  fpu.last_dp = get<u64>(area, 16);
  fpu.mxcsr = get<u32>(area, 24);
  return 0;
}

Result<long> set_fpu(core::Vcpu& vcpu, const kvm_fpu& fpu) {
  Area area = settled(vcpu.state().xsave);
  memcpy(area.data() + kSt0, fpu.fpr, sizeof fpu.fpr);
  memcpy(area.data() + kXmm0, fpu.xmm, sizeof fpu.xmm);
  put<u16>(area, 0, fpu.fcw);
  put<u16>(area, 2, fpu.fsw);
  put<u8>(area, 4, fpu.ftwx);
  put<u16>(area, 6, fpu.last_opcode & 0x7ff);
  put<u64>(area, 8, fpu.last_ip);
  put<u64>(area, 16, fpu.last_dp);
  // KVM_SET_FPU has no way to refuse: reserved bits would fault when the guest's state is loaded.
  put<u32>(area, 24, fpu.mxcsr & host_mxcsr_mask());
  put<u64>(area, kHeader, get<u64>(area, kHeader) | x86::kXcr0X87 | x86::kXcr0Sse);
  vcpu.state().xsave = area;
  vcpu.cpu().state_replaced();
  return 0;
}

Result<long> get_xsave(core::Vcpu& vcpu, ClientPtr<kvm_xsave> to) {
  Area area = settled(vcpu.state().xsave);
  put_pkru(area, vcpu.state());
  TRY(ClientPtr<Area>(to.address()).write(area));
  return 0;
}

Result<long> get_xsave2(core::Vcpu& vcpu, ClientPtr<kvm_xsave> to) { return get_xsave(vcpu, to); }

Result<long> set_xsave(core::Vcpu& vcpu, ClientPtr<kvm_xsave> from) {
  Area area = TRY(ClientPtr<Area>(from.address()).read());
  TRY(check_image(area, x86::guest_xcr0_supported()));
  take_pkru(area, vcpu.state());
  // SAFETY: XRSTOR loads MXCSR whatever XSTATE_BV says, so a value that was not checked must not get there.
  vcpu.state().xsave = settled(area);
  vcpu.cpu().state_replaced();
  return 0;
}

Result<long> get_xcrs(core::Vcpu& vcpu, kvm_xcrs& xcrs) {
  xcrs.nr_xcrs = 1;
  xcrs.xcrs[0].value = vcpu.state().xcr0;
  return 0;
}

Result<long> set_xcrs(core::Vcpu& vcpu, const kvm_xcrs& xcrs) {
  if (xcrs.nr_xcrs > KVM_MAX_XCRS || xcrs.flags) return Error{EINVAL, "too many XCRs, or flags"};
  const u64 usable = vcpu.cpu().model().xcr0_supported() | x86::kXcr0X87;
  for (u32 i = 0; i < xcrs.nr_xcrs; ++i) {
    if (xcrs.xcrs[i].xcr != 0) continue;  // only XCR0 is known, others are ignored as in the kernel
    if (!valid_xcr0(xcrs.xcrs[i].value, usable)) return Error{EINVAL, "XCR0 that this CPU cannot have"};
    vcpu.state().xcr0 = xcrs.xcrs[i].value;
    vcpu.cpu().state_replaced();
    break;
  }
  return 0;
}

}  // namespace anykvm::abi::vcpu
