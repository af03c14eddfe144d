#include "x86/translate/reencode.h"

#include <Zydis/Zydis.h>

#include <cstring>

namespace anykvm::x86 {
namespace {

class Bytes {
 public:
  explicit Bytes(u8* out) : m_out(out) {}
  void put(unsigned byte) { m_out[m_size++] = static_cast<u8>(byte); }
  void put(const u8* bytes, unsigned count) {
    std::memcpy(m_out + m_size, bytes, count);
    m_size += count;
  }
  unsigned size() const { return m_size; }

 private:
  u8* m_out;
  unsigned m_size = 0;
};

// The register numbers that end up in the encoding, extension bit included.
struct Numbers {
  u8 reg, rm, vvvv, index;
};

Numbers choose(const Decoded& d, const HostFields& f) {
  Numbers n{d.insn.reg, d.insn.rm, d.vvvv, 0};
  if (d.reg_is_gpr) n.reg = f.reg;
  if (d.vvvv_is_gpr) n.vvvv = f.vvvv;
  if (d.insn.has_memory) {
    n.rm = f.memory_base;
    if (f.indexed()) n.index = f.memory_index;
  } else if (d.rm_is_gpr || d.opcode_is_gpr) {
    n.rm = f.rm;
  }
  return n;
}

void put_modrm(const Decoded& d, const HostFields& f, const Numbers& n, Bytes* out) {
  const unsigned reg = (n.reg & 7u) << 3;
  if (!d.insn.has_memory) {
    out->put((d.insn.bytes[d.modrm_at] & 0xc0u) | reg | (n.rm & 7));
  } else if (!f.indexed()) {
    out->put(reg | (n.rm & 7));
  } else {
    constexpr unsigned kSibAndDisplacement8 = 0x44, kSibAndDisplacement32 = 0x84;
    // An EVEX instruction's displacement of one byte counts in operands (SDM 2A 2.7.5).
    const bool counts_bytes = d.encoding != Encoding::kEvex || f.displacement == 0;
    const bool one_byte = counts_bytes && f.displacement == static_cast<i8>(f.displacement);
    out->put((one_byte ? kSibAndDisplacement8 : kSibAndDisplacement32) | reg);
    out->put((n.index & 7u) << 3 | (n.rm & 7));
    u8 displacement[4];
    std::memcpy(displacement, &f.displacement, 4);
    out->put(displacement, one_byte ? 1 : 4);
  }
}

void put_immediates(const Decoded& d, Bytes* out) {
  if (d.immediate_at) out->put(d.insn.bytes + d.immediate_at, d.insn.length - d.immediate_at);
}

// Does the host's form need 66? In 64- and 32-bit code it means what it means in the guest; in 16-bit code
// the default is the other size.
bool wants_66(const Decoded& d) {
  bool reversed = d.insn.code_bits == 16 && d.operand_size_matters;
  if (!reversed) return d.insn.operand_size_prefix;
  return d.insn.operand_size == 2;
}

void put_legacy_prefixes(const Decoded& d, Bytes* out) {
  if (d.insn.lock) out->put(0xf0);
  if (wants_66(d)) out->put(0x66);
  for (unsigned i = 0; i < d.opcode_at; ++i) {
    u8 byte = d.insn.bytes[i];
    if (byte == 0x0f) break;
    if (byte == 0xf2 || byte == 0xf3) out->put(byte);
  }
}

unsigned put_legacy(const Decoded& d, const HostFields& f, Bytes* out) {
  Numbers n = choose(d, f);
  put_legacy_prefixes(d, out);
  unsigned rex = (d.insn.rex_w ? 8 : 0) | (d.reg_is_gpr || d.insn.rex ? (n.reg >> 3) << 2 : 0) |
                 (n.index >> 3) << 1 | n.rm >> 3;
  // The low opcode bits of one-byte INC and DEC are REX prefixes for the host.
  bool one_byte_inc_dec = d.insn.code_bits != 64 && d.insn.opcode_map == 0 && (d.insn.opcode & 0xf0) == 0x40;
  if (rex || d.insn.rex) out->put(0x40 | rex);
  if (one_byte_inc_dec) {
    out->put(0xff);
    out->put(0xc0 | (d.insn.opcode & 8) | (n.rm & 7));
    return out->size();
  }
  if (d.insn.opcode_map >= 1) out->put(0x0f);
  if (d.insn.opcode_map == 2) out->put(0x38);
  if (d.insn.opcode_map == 3) out->put(0x3a);
  if (d.opcode_is_gpr) {
    out->put((d.insn.bytes[d.opcode_at] & 0xf8) | (n.rm & 7));
  } else if (d.insn.opcode_map == 0 && d.insn.opcode == 0x82) {
    out->put(0x80);  // what 82 is outside 64-bit mode
  } else {
    out->put(d.insn.bytes[d.opcode_at]);
  }
  if (d.insn.has_modrm) put_modrm(d, f, n, out);
  put_immediates(d, out);
  return out->size();
}

// Outside 64-bit mode W does not make general operands 64 bits wide (SDM 2A 2.3.5.1, 2.7.9), for the host it
// does.
bool ignores_w(const Decoded& d) {
  if (d.insn.code_bits == 64) return false;
  switch (d.insn.mnemonic) {
    case ZYDIS_MNEMONIC_VMOVD:
    case ZYDIS_MNEMONIC_VPEXTRD:
    case ZYDIS_MNEMONIC_VPINSRD:
    case ZYDIS_MNEMONIC_VCVTSI2SD:
    case ZYDIS_MNEMONIC_VCVTSI2SS:
    case ZYDIS_MNEMONIC_VCVTSI2SH:
    case ZYDIS_MNEMONIC_VCVTUSI2SD:
    case ZYDIS_MNEMONIC_VCVTUSI2SS:
    case ZYDIS_MNEMONIC_VCVTUSI2SH:
      return true;
    default:
      return d.reg_is_gpr || d.rm_is_gpr || d.vvvv_is_gpr;
  }
}

// The fourth register of VBLENDVPS, VBLENDVPD and VPBLENDVB is bits 7:4 of the immediate, 6:4 outside 64-bit
// mode.
bool names_register_in_immediate(const Decoded& d) {
  return d.insn.opcode_map == 3 && d.insn.opcode >= 0x4a && d.insn.opcode <= 0x4c;
}

//  VEX: C4 | ~R ~X ~B mmmmm | W ~vvvv L pp      (C5 | ~R ~vvvv L pp means mmmmm = 1, W = 0, ~X = ~B = 1)
unsigned put_vex(const Decoded& d, const HostFields& f, Bytes* out) {
  Numbers n = choose(d, f);
  const u8* prefix = d.insn.bytes + d.prefix_at;
  bool two_bytes = prefix[0] == 0xc5;
  unsigned map = two_bytes ? 1 : prefix[1] & 0x1f;
  unsigned last = two_bytes ? prefix[1] & 0x7f : prefix[2];
  if (ignores_w(d)) last &= 0x7f;
  if (d.insn.code_bits != 64) last |= 0x40;  // vvvv names eight registers there
  if (d.vvvv_is_gpr) last = (last & 0x87) | (~n.vvvv & 0xf) << 3;
  out->put(0xc4);
  out->put((n.reg & 8 ? 0 : 0x80) | (n.index & 8 ? 0 : 0x40) | (n.rm & 8 ? 0 : 0x20) | map);
  out->put(last);
  out->put(d.insn.bytes[d.opcode_at]);
  if (d.insn.has_modrm) put_modrm(d, f, n, out);
  if (d.insn.code_bits != 64 && names_register_in_immediate(d)) {
    out->put(d.insn.bytes[d.immediate_at] & 0x7fu);
  } else {
    put_immediates(d, out);
  }
  return out->size();
}

//  EVEX: 62 | ~R ~X ~B ~R' 0 mmm | W ~vvvv 1 pp | z L'L b ~V' aaa
unsigned put_evex(const Decoded& d, const HostFields& f, Bytes* out) {
  Numbers n = choose(d, f);
  const u8* prefix = d.insn.bytes + d.prefix_at;
  unsigned p0 = prefix[1], p1 = prefix[2], p2 = prefix[3];
  if (d.insn.code_bits != 64) {  // there are eight registers, and bits that would name more are ignored
    p0 |= 0x30;
    p1 |= 0x40;
    p2 |= 0x08;
  }
  if (d.reg_is_gpr) p0 = (p0 & ~0x90u) | 0x10 | (n.reg & 8 ? 0 : 0x80);
  if (d.insn.has_memory || d.rm_is_gpr) p0 = (p0 & ~0x60u) | (n.index & 8 ? 0 : 0x40) | (n.rm & 8 ? 0 : 0x20);
  out->put(0x62);
  out->put(p0);
  out->put(ignores_w(d) ? p1 & 0x7fu : p1);
  out->put(p2);
  out->put(d.insn.bytes[d.opcode_at]);
  put_modrm(d, f, n, out);
  put_immediates(d, out);
  return out->size();
}

}  // namespace

unsigned reencode(const Decoded& decoded, const HostFields& fields, u8* out) {
  Bytes bytes(out);
  switch (decoded.encoding) {
    case Encoding::kVex:
      return put_vex(decoded, fields, &bytes);
    case Encoding::kEvex:
      return put_evex(decoded, fields, &bytes);
    default:
      return put_legacy(decoded, fields, &bytes);
  }
}

}  // namespace anykvm::x86
