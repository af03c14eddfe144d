#include "x86/state/xsave_image.h"
#include "x86/state/x87_environment.h"

#include <immintrin.h>

#include <algorithm>
#include <cstring>

namespace anykvm::x86 {
namespace {

constexpr unsigned kFirstExtended = 2, kPkruIndex = 9, kLastIndex = 9;
constexpr u32 kMxcsrOffset = 24, kRegistersOffset = 32, kRegistersSize = 128, kXmmOffset = 160;
constexpr u32 kInitialMxcsr = 0x1f80;
constexpr u16 kInitialFcw = 0x37f;

template <class T>
T get(const u8* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
template <class T>
void put(u8* to, T value) {
  std::memcpy(to, &value, sizeof value);
}

u64 header_bits(const CpuState& state) { return get<u64>(&state.xsave[kXsaveHeaderOffset]); }
void set_header_bits(CpuState& state, u64 value) { put(&state.xsave[kXsaveHeaderOffset], value); }

u32 component_offset(unsigned index) {
  return index == 0 ? 0 : index == 1 ? kXmmOffset : xsave_component(index).offset;
}

// The initial configuration of every component: zeros, but for FCW (SDM 1 13.6).
const u8* initial_bytes() {
  static const auto bytes = [] {
    std::array<u8, 2048> initial{};
    put(initial.data(), kInitialFcw);
    return initial;
  }();
  return bytes.data();
}
const u8* initial_bytes_of(unsigned index) { return initial_bytes() + (index == 0 ? 0 : kRegistersOffset); }

// FCW, FSW, FTW; the opcode and the pointers stay 0 (docs/quirks.md): the host's would be addresses of
// translated code.
void copy_x87_control(const u8* x87, std::array<u8, 24>* out) { std::memcpy(out->data(), x87, 5); }

void add_x87(const CpuState& state, XsaveWrites* writes) {
  const u8* x87 = xsave_component_bytes(state, 0);
  copy_x87_control(x87, &writes->x87_control);
  writes->add(0, 24, writes->x87_control.data());
  writes->add(kRegistersOffset, kRegistersSize, x87 + kRegistersOffset);
}

void add_mxcsr(const CpuState& state, XsaveWrites* writes) {
  writes->mxcsr = {get<u32>(&state.xsave[kMxcsrOffset]), mxcsr_mask()};
  writes->add(kMxcsrOffset, 8, writes->mxcsr.data());
}

void add_component(const CpuState& state, unsigned index, u32 offset, bool code64, XsaveWrites* writes) {
  u32 size = xsave_visible_size(index, code64);
  if (size == 0) return;
  if (index == kPkruIndex) {
    put(writes->pkru.data(), state.pkru);
    writes->add(offset, size, writes->pkru.data());
    return;
  }
  writes->add(offset, size, xsave_component_bytes(state, index));
}

// Offsets of the components of a compacted image, asked for in ascending order (SDM 1 13.4.3).
class CompactedLayout {
 public:
  u32 place(unsigned index) {
    XsaveComponent component = xsave_component(index);
    if (component.aligned64) m_end = align_up(m_end, 64);
    u64 offset = m_end;
    m_end += component.size;
    return static_cast<u32>(offset);
  }
  u32 end() const { return static_cast<u32>(m_end); }

 private:
  u64 m_end = kXsaveHeaderOffset + sizeof(XsaveHeader);
};

void load_component(CpuState& state, unsigned index, const u8* from, bool code64) {
  if (index == kPkruIndex) {
    state.pkru = get<u32>(from);
    return;
  }
  u32 size = xsave_visible_size(index, code64);
  if (size) std::memcpy(xsave_component_for_change(state, index), from, size);
}

// Outside 64-bit mode registers 8 and up keep their contents.
void initialize_component(CpuState& state, unsigned index, bool code64) {
  if (index == kPkruIndex) {
    state.pkru = 0;
  } else if (code64 || index == 0 || xsave_visible_size(index, true) == xsave_visible_size(index, false)) {
    set_header_bits(state, header_bits(state) & ~bit(index));
  } else if (has_bit(header_bits(state), index)) {
    std::memset(&state.xsave[component_offset(index)], 0, xsave_visible_size(index, false));
  }
}

void load_x87(CpuState& state, const u8* image) {
  u8* x87 = xsave_component_for_change(state, 0);
  std::memset(x87, 0, 24);
  std::memcpy(x87, image, 5);
  u16 words[2];
  std::memcpy(words, image, sizeof words);
  words[0] = x87_control_word(words[0]);
  words[1] = x87_status_word(words[1], words[0]);
  std::memcpy(x87, words, sizeof words);
  // The bytes above each 80-bit register are reserved, and saved as zeros.
  constexpr u32 kRegister = 10, kSlot = 16;
  std::memset(x87 + kRegistersOffset, 0, kRegistersSize);
  for (u32 at = kRegistersOffset; at < kRegistersOffset + kRegistersSize; at += kSlot)
    std::memcpy(x87 + at, image + at, kRegister);
}

}  // namespace

u64 xstate_in_use(const CpuState& state) {
  return (header_bits(state) & ~u64{kXcr0Pkru}) | (state.pkru ? u64{kXcr0Pkru} : 0);
}

u32 xsave_visible_size(unsigned index, bool code64) {
  switch (index) {
    case 1:
      return code64 ? 256 : 128;  // XMM
    case 2:
      return code64 ? 256 : 128;  // upper halves of YMM
    case 6:
      return code64 ? 512 : 256;  // upper halves of ZMM0-15
    case 7:
      return code64 ? 1024 : 0;  // ZMM16-31
    default:
      return xsave_component(index).size;
  }
}

u32 mxcsr_mask() {
  static const u32 mask = [] {
    alignas(16) u8 image[512] = {};
    _fxsave(image);
    u32 value = get<u32>(image + 28);
    return value ? value : 0xffbf;  // SDM 1 11.6.6
  }();
  return mask;
}

u8* xsave_component_for_change(CpuState& state, unsigned index) {
  u8* bytes = &state.xsave[component_offset(index)];
  u64 in_use = header_bits(state);
  if (has_bit(in_use, index)) return bytes;
  if (index == 0) {
    // MXCSR and its mask sit in the middle and belong to no component.
    std::memcpy(bytes, initial_bytes(), 24);
    std::memset(bytes + kRegistersOffset, 0, kRegistersSize);
  } else {
    std::memset(bytes, 0, xsave_component(index).size);
  }
  set_header_bits(state, in_use | bit(index));
  return bytes;
}

const u8* xsave_component_bytes(const CpuState& state, unsigned index) {
  if (has_bit(header_bits(state), index)) return &state.xsave[component_offset(index)];
  return initial_bytes_of(index);
}

void plan_xsave(const CpuState& state, XsaveForm form, u64 requested, u64 old_xstate_bv, bool code64,
                XsaveWrites* writes) {
  bool compacted = form == XsaveForm::kCompacted;
  u64 in_use = xstate_in_use(state);
  bool mxcsr_initial = get<u32>(&state.xsave[kMxcsrOffset]) == kInitialMxcsr;
  // SDM 1 13.10: XSAVEC counts SSE as in use where MXCSR is not in its initial state.
  if (compacted && !mxcsr_initial) in_use |= kXcr0Sse;
  u64 written = form == XsaveForm::kStandard ? requested : requested & in_use;

  if (written & kXcr0X87) add_x87(state, writes);
  bool mxcsr = compacted ? written & kXcr0Sse : requested & (kXcr0Sse | kXcr0Avx);
  if (mxcsr) add_mxcsr(state, writes);
  if (written & kXcr0Sse) add_component(state, 1, kXmmOffset, code64, writes);
  CompactedLayout layout;
  for (unsigned index = kFirstExtended; index <= kLastIndex; ++index) {
    if (!has_bit(requested, index)) continue;
    u32 offset = compacted ? layout.place(index) : xsave_component(index).offset;
    if (has_bit(written, index)) add_component(state, index, offset, code64, writes);
  }
  if (compacted) {
    writes->header = {in_use & requested, kXcompCompacted | requested};
  } else {
    writes->header = {(old_xstate_bv & ~requested) | (in_use & requested), 0};
  }
  writes->add(kXsaveHeaderOffset, compacted ? 16 : 8, writes->header.data());
}

void plan_fxsave(const CpuState& state, bool code64, bool with_xmm, XsaveWrites* writes) {
  add_x87(state, writes);
  add_mxcsr(state, writes);
  if (with_xmm) add_component(state, 1, kXmmOffset, code64, writes);
}

bool valid_xrstor(const XsaveHeader& header, u32 mxcsr, u64 xcr0, u64 requested, bool compacted_allowed) {
  bool compacted = header.xcomp_bv & kXcompCompacted;
  // The standard form looks at bytes 23:8 of the header only (SDM 1 13.8.1, 13.8.2).
  const auto reserved_end = compacted ? header.tail.end() : header.tail.begin() + 1;
  if (std::any_of(header.tail.begin(), reserved_end, [](u64 word) { return word != 0; })) return false;
  bool loads_mxcsr = requested & (kXcr0Sse | kXcr0Avx);
  if (compacted) {
    u64 layout = header.xcomp_bv & ~kXcompCompacted;
    if (!compacted_allowed || (layout & ~xcr0) || (header.xstate_bv & ~layout)) return false;
    loads_mxcsr = requested & header.xstate_bv & kXcr0Sse;
  } else if (header.xcomp_bv != 0 || (header.xstate_bv & ~xcr0)) {
    return false;
  }
  return !loads_mxcsr || !(mxcsr & ~mxcsr_mask());
}

u32 xrstor_size(const XsaveHeader& header, u64 requested) {
  u64 present = header.xstate_bv & requested;
  if (!(header.xcomp_bv & kXcompCompacted)) return xsave_standard_size(present);
  u32 size = kXsaveHeaderOffset + sizeof(XsaveHeader);
  CompactedLayout layout;
  for (unsigned index = kFirstExtended; index <= kLastIndex; ++index) {
    if (!has_bit(header.xcomp_bv, index)) continue;
    layout.place(index);
    if (has_bit(present, index)) size = layout.end();
  }
  return size;
}

void apply_xrstor(CpuState& state, const u8* image, u64 requested, bool code64) {
  auto header = get<XsaveHeader>(image + kXsaveHeaderOffset);
  bool compacted = header.xcomp_bv & kXcompCompacted;
  u64 loaded = header.xstate_bv & requested;
  if (loaded & kXcr0X87) load_x87(state, image);
  bool loads_mxcsr = compacted ? loaded & kXcr0Sse : requested & (kXcr0Sse | kXcr0Avx);
  if (loads_mxcsr) {
    std::memcpy(&state.xsave[kMxcsrOffset], image + kMxcsrOffset, 4);
  } else if (requested & kXcr0Sse) {
    put(&state.xsave[kMxcsrOffset], kInitialMxcsr);
  }
  if (loaded & kXcr0Sse) load_component(state, 1, image + kXmmOffset, code64);
  CompactedLayout layout;
  for (unsigned index = kFirstExtended; index <= kLastIndex; ++index) {
    u32 offset = xsave_component(index).offset;
    if (compacted && has_bit(header.xcomp_bv, index)) offset = layout.place(index);
    if (has_bit(loaded, index)) load_component(state, index, image + offset, code64);
  }
  for (unsigned index = 0; index <= kLastIndex; ++index) {
    if (has_bit(requested & ~loaded, index)) initialize_component(state, index, code64);
  }
}

void apply_fxrstor(CpuState& state, const u8* image, bool code64, bool with_xmm) {
  load_x87(state, image);
  std::memcpy(&state.xsave[kMxcsrOffset], image + kMxcsrOffset, 4);
  if (with_xmm) load_component(state, 1, image + kXmmOffset, code64);
}

}  // namespace anykvm::x86
