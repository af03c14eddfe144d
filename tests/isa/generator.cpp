#include "generator.h"

#include <Zydis/Zydis.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "x86/translate/policy.h"

namespace anykvm::isa {

using namespace x86;

bool runs_as_itself(const Decoded& decoded) {
  switch (decoded.insn.mnemonic) {
    case ZYDIS_MNEMONIC_RDRAND:
    case ZYDIS_MNEMONIC_RDSEED:
      return false;
    default:
      return policy_of(decoded).kind == Policy::Kind::kAsIs;
  }
}

bool differs_among_vendors(const Decoded& d) {
  bool w = d.prefix_at != 0 || d.encoding != Encoding::kLegacy;
  w = w && (d.insn.bytes[d.prefix_at + 2] & 0x80) && d.insn.bytes[d.prefix_at] != 0xc5;
  switch (d.insn.mnemonic) {
    case ZYDIS_MNEMONIC_VMOVD:
    case ZYDIS_MNEMONIC_VPEXTRD:
    case ZYDIS_MNEMONIC_VPINSRD:
      return w;
    default:
      return w && d.category == ZYDIS_CATEGORY_CONVERT;
  }
}

Filter of_categories(std::vector<u16> categories) {
  return [categories](const Decoded& d) {
    return runs_as_itself(d) &&
           std::find(categories.begin(), categories.end(), d.category) != categories.end();
  };
}

Filter of_mnemonics(std::vector<u16> mnemonics) {
  return [mnemonics](const Decoded& d) {
    return std::find(mnemonics.begin(), mnemonics.end(), d.insn.mnemonic) != mnemonics.end();
  };
}

namespace {

struct ZydisParts {
  ZydisDecodedInstruction insn;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
};

const ZydisDecoder& decoder_for(unsigned code_bits) {
  static const auto decoders = [] {
    std::array<ZydisDecoder, 2> both;
    ZydisDecoderInit(&both[0], ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
    ZydisDecoderInit(&both[1], ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    return both;
  }();
  return decoders[code_bits == 64];
}

bool zydis_decode(const u8* bytes, unsigned size, unsigned code_bits, ZydisParts* out) {
  return ZYAN_SUCCESS(
      ZydisDecoderDecodeFull(&decoder_for(code_bits), bytes, size, &out->insn, out->operands));
}

// The cheap question first: most random bytes are no instruction.
bool may_decode(const u8* bytes, unsigned code_bits) {
  ZydisDecodedInstruction z;
  return ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&decoder_for(code_bits), nullptr, bytes, 15, &z));
}

u32 register_bit(ZydisRegister reg) {
  ZydisRegister whole = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg);
  bool general = whole >= ZYDIS_REGISTER_RAX && whole <= ZYDIS_REGISTER_R15;
  return general ? 1u << (whole - ZYDIS_REGISTER_RAX) : 0;
}

u32 written_registers(const ZydisParts& z) {
  u32 written = 0;
  for (unsigned i = 0; i < z.insn.operand_count; ++i) {
    const ZydisDecodedOperand& o = z.operands[i];
    if (o.type == ZYDIS_OPERAND_TYPE_REGISTER && (o.actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
      written |= register_bit(o.reg.value);
  }
  bool pops_all = z.insn.mnemonic == ZYDIS_MNEMONIC_POPA || z.insn.mnemonic == ZYDIS_MNEMONIC_POPAD;
  return pops_all ? 0xff : written;
}

constexpr unsigned kRcxNumber = 1, kRbxNumber = 3, kRspNumber = 4, kRbpNumber = 5, kRsiNumber = 6,
                   kRdiNumber = 7;

}  // namespace

u32 written_registers(const u8* bytes, unsigned size, unsigned code_bits) {
  ZydisParts z;
  return zydis_decode(bytes, size, code_bits, &z) ? written_registers(z) : 0;
}

Generator::Generator(unsigned code_bits, Filter filter)
    : m_code_bits(code_bits), m_filter(std::move(filter)) {
  find_opcodes();
}

void Generator::find_opcodes() {
  struct Space {
    Encoding encoding;
    std::vector<u8> maps;
  };
  static const Space kSpaces[] = {
      {Encoding::kLegacy, {0, 1, 2, 3}}, {Encoding::kVex, {1, 2, 3}}, {Encoding::kEvex, {1, 2, 3, 5, 6}}};
  Random random(1);
  for (const Space& space : kSpaces) {
    for (u8 map : space.maps) {
      for (unsigned opcode = 0; opcode < 256; ++opcode) {
        Opcode candidate{space.encoding, map, static_cast<u8>(opcode)};
        Candidate found;
        bool usable = false;
        // 0FH holds what needs a prefix, a register and a certain ModRM.reg, like RDFSBASE.
        unsigned patience = space.encoding == Encoding::kLegacy && map == 1 ? 800 : 96;
        for (unsigned tries = 0; tries < patience && !usable; ++tries)
          usable = try_one(random, candidate, kCodeBase, &found);
        if (usable) m_opcodes.push_back(candidate);
      }
      if (space.encoding == Encoding::kLegacy && map == 1) m_common = m_opcodes.size();
    }
  }
}

// Opcode, ModRM and whatever may follow are random; what is not part of the instruction is cut off later.
void Generator::random_bytes(Random& random, const Opcode& o, u8* out) const {
  u8* at = out;
  bool wide = m_code_bits == 64;
  if (random.one_in(24)) *at++ = 0x67;
  if (wide && random.one_in(16)) *at++ = random.one_in(2) ? 0x64 : 0x65;
  if (random.one_in(64)) *at++ = static_cast<u8>(0x26 | random.below(4) << 3);
  switch (o.encoding) {
    case Encoding::kVex: {
      u8 extensions = wide ? static_cast<u8>(random.next() & 0xe0) : 0xe0;
      u8 vvvv = random.one_in(2) ? 0x78 : static_cast<u8>(random.next() & 0x78);
      if (!wide) vvvv |= 0x40;
      u8 last = static_cast<u8>(vvvv | (random.next() & 0x07));
      if (o.map == 1 && random.one_in(2)) {
        *at++ = 0xc5;
        *at++ = static_cast<u8>((extensions & 0x80) | last);
      } else {
        *at++ = 0xc4;
        *at++ = extensions | o.map;
        *at++ = static_cast<u8>(last | (random.one_in(2) ? 0x80 : 0));
      }
      break;
    }
    case Encoding::kEvex: {
      *at++ = 0x62;
      u8 extensions = wide ? static_cast<u8>(random.next() & 0xf0) : 0xf0;
      *at++ = extensions | o.map;
      bool no_vvvv = random.one_in(2);
      u8 vvvv = no_vvvv ? 0x78 : static_cast<u8>(random.next() & 0x78);
      if (!wide) vvvv |= 0x40;
      *at++ = static_cast<u8>((random.next() & 0x83) | vvvv | 4);
      u8 p2 = static_cast<u8>(random.next() & 0x60);
      if (random.one_in(4)) p2 |= 0x10;
      if (!random.one_in(3)) p2 |= static_cast<u8>(random.below(8));
      if (random.one_in(3)) p2 |= 0x80;
      if (no_vvvv || !wide || random.one_in(2)) p2 |= 0x08;
      *at++ = p2;
      break;
    }
    default:
      if (random.one_in(4)) *at++ = 0x66;
      if (random.one_in(5)) *at++ = random.one_in(2) ? 0xf2 : 0xf3;
      if (random.one_in(24)) *at++ = 0xf0;
      if (wide && !random.one_in(3)) *at++ = static_cast<u8>(0x40 | random.below(16));
      if (o.map >= 1) *at++ = 0x0f;
      if (o.map == 2) *at++ = 0x38;
      if (o.map == 3) *at++ = 0x3a;
      break;
  }
  *at++ = o.opcode;
  u64 tail[2] = {random.next(), random.next()};
  std::memcpy(at, tail, sizeof tail);
  if (random.one_in(3)) *at |= 0xc0;
}

bool Generator::try_one(Random& random, const Opcode& opcode, u64 rip, Candidate* out) const {
  random_bytes(random, opcode, out->bytes);
  if (!may_decode(out->bytes, m_code_bits)) return false;
  if (decode(out->bytes, 15, m_code_bits, m_code_bits / 8, rip, &out->decoded) != DecodeStatus::kOk)
    return false;
  const Decoded& d = out->decoded;
  bool as_meant = d.encoding == opcode.encoding && d.insn.bytes[d.opcode_at] == opcode.opcode;
  return as_meant && m_filter(d);
}

void Generator::aim_register(Random& random, unsigned number, bool calm, Case* test) {
  if ((m_aimed | m_written) >> number & 1) return;
  test->start.gpr[number] = calm ? harmless_pointer(random) : random_pointer(random);
  m_aimed |= 1u << number;
}

void Generator::limit_register(Random& random, unsigned number, u64 limit, Case* test) {
  if ((m_aimed | m_written) >> number & 1) return;
  test->start.gpr[number] = random.below(limit);
  m_aimed |= 1u << number;
}

// Sets registers, or the displacement, so that the memory operand is a random pointer. A register that an
// earlier instruction of the case addresses memory with stays as it is; one that an earlier instruction
// overwrites gives whatever it gives: faults are compared too.
void Generator::aim(Random& random, Candidate& c, u64 rip, bool calm, Case* test) {
  const MemoryOperand& m = c.decoded.insn.memory;
  ZydisParts z;
  zydis_decode(c.bytes, 15, m_code_bits, &z);
  const auto& raw = z.insn.raw;

  u64 target = calm ? harmless_pointer(random) : random_pointer(random);
  if (!calm && random.one_in(2)) target &= ~u64{63};
  if (m.segment == kFs) target -= test->start.fs_base;
  if (m.segment == kGs) target -= test->start.gs_base;
  bool bit_string = c.decoded.category == ZYDIS_CATEGORY_BITBYTE && c.decoded.reg_is_gpr;
  if (bit_string && calm) limit_register(random, c.decoded.insn.reg, 2048, test);
  if (m.index != kNoRegister) limit_register(random, m.index, 48, test);
  u64 index = m.index == kNoRegister ? 0 : test->start.gpr[m.index] * m.scale;
  if (raw.disp.size == 64) {  // MOV between rAX and an absolute address
    std::memcpy(c.bytes + raw.disp.offset, &target, sizeof target);
    return;
  }
  bool patchable = raw.disp.size == 32;
  if (m.base == kNoRegister && patchable) {
    // decode() has folded RIP in, if it is relative to that.
    bool rip_relative = m_code_bits == 64 && (raw.modrm.rm & 7) == 5 && raw.modrm.mod == 0;
    u64 value = target - index - (rip_relative ? rip + c.decoded.insn.length : 0);
    i32 displacement = static_cast<i32>(value);
    std::memcpy(c.bytes + raw.disp.offset, &displacement, sizeof displacement);
    return;
  }
  if (m.base == kNoRegister || m.base == m.index || (m_aimed >> m.base & 1)) return;
  u64& base = test->start.gpr[m.base];
  base = target - index - static_cast<u64>(m.displacement);
  if (c.decoded.insn.address_size == 4 && m_code_bits == 64)
    base = (base & 0xffffffff) | (random.next() & ~u64{0xffffffff});
  if (m_code_bits == 32) base &= 0xffffffff;
  m_aimed |= 1u << m.base;
}

// Memory that the encoding does not show.
void Generator::aim_hidden(Random& random, const Candidate& c, bool calm, Case* test) {
  switch (c.decoded.insn.mnemonic) {
    case ZYDIS_MNEMONIC_XLAT:
      aim_register(random, kRbxNumber, calm, test);
      return;
    case ZYDIS_MNEMONIC_MASKMOVQ:
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVDQU:
      aim_register(random, kRdiNumber, calm, test);
      return;
    case ZYDIS_MNEMONIC_LEAVE:
      aim_register(random, kRbpNumber, calm, test);
      return;
    default:
      break;
  }
  if (c.decoded.category != ZYDIS_CATEGORY_STRINGOP) return;
  aim_register(random, kRsiNumber, calm, test);
  aim_register(random, kRdiNumber, calm, test);
  if (c.decoded.insn.rep || c.decoded.insn.repne)
    limit_register(random, kRcxNumber, random.one_in(4) ? 3000 : 40, test);
}

void Generator::aim_segments(Random& random, const Candidate& c, Case* test) {
  const Decoded& d = c.decoded;
  // String instructions and XLAT have segment overrides too.
  auto overridden = [&](u8 prefix, SegmentIndex segment) {
    bool seen = std::find(c.bytes, c.bytes + d.opcode_at, prefix) != c.bytes + d.opcode_at;
    return seen || (d.insn.has_memory && d.insn.memory.segment == segment);
  };
  if (overridden(0x64, kFs) && !test->start.fs_base) test->start.fs_base = kDataBase + random.below(0x1000);
  if (overridden(0x65, kGs) && !test->start.gs_base) test->start.gs_base = kDataBase + random.below(0x1000);
}

void Generator::aim_vector_index(Random& random, const Candidate& c, Case* test) {
  ZydisParts z;
  zydis_decode(c.bytes, 15, m_code_bits, &z);
  for (unsigned i = 0; i < z.insn.operand_count; ++i) {
    if (z.operands[i].type != ZYDIS_OPERAND_TYPE_MEMORY) continue;
    auto number = static_cast<unsigned>(ZydisRegisterGetId(z.operands[i].mem.index));
    auto& index = test->start.zmm[number];
    m_aimed_vectors |= 1u << number;
    unsigned element = z.insn.opcode & 1 ? 8 : 4;
    for (unsigned at = 0; at < 64; at += element) {
      i64 value = static_cast<i64>(random.below(0x400)) - 0x100;
      std::memcpy(index.data() + at, &value, element);
    }
  }
}

void Generator::note(const Decoded& d) {
  if (d.reg_is_gpr && !d.reg_high) m_seen.reg |= 1u << d.insn.reg;
  if (d.rm_is_gpr && !d.rm_high) m_seen.rm |= 1u << d.insn.rm;
  if (d.vvvv_is_gpr) m_seen.vvvv |= 1u << d.vvvv;
  if (d.insn.has_memory && d.insn.memory.base < 16) m_seen.base |= 1u << d.insn.memory.base;
  if (d.insn.has_memory && d.insn.memory.index < 16) m_seen.index |= 1u << d.insn.memory.index;
}

const Generator::Opcode& Generator::pick(Random& random, const Wish& wish) const {
  return m_opcodes[random.below(wish.common && m_common ? m_common : m_opcodes.size())];
}

// What a case can do without: an instruction that uses a register as an address that is none any more, or
// overwrites one that is.
bool Generator::unwelcome(const Candidate& c, const Wish& wish) const {
  if (c.written & wish.keep) return true;
  if (!wish.calm) return false;
  const Decoded& d = c.decoded;
  // Stack and string instructions leave their pointers near where they were.
  u32 moved = 0;
  if (d.category == ZYDIS_CATEGORY_PUSH || d.category == ZYDIS_CATEGORY_POP) moved = 1u << kRspNumber;
  if (d.category == ZYDIS_CATEGORY_STRINGOP) moved = 1u << kRsiNumber | 1u << kRdiNumber;
  if (c.written & ~moved & (m_aimed | 1u << kRspNumber)) return true;
  if (!d.insn.has_memory) return false;
  const MemoryOperand& m = d.insn.memory;
  u32 used = (m.base < 16 ? 1u << m.base : 0) | (m.index < 16 ? 1u << m.index : 0);
  bool bit_string = d.category == ZYDIS_CATEGORY_BITBYTE && d.reg_is_gpr;
  if (bit_string) used |= 1u << d.insn.reg;
  return used & m_written;
}

void Generator::begin(Random& random, Case* test, u64 rip) {
  test->code_bits = m_code_bits;
  test->start = random_state(random, m_code_bits);
  test->start.rip = rip;
  random_memory(random, &test->memory);
  m_aimed = m_aimed_vectors = m_written = 0;
}

void Generator::append(Random& random, const Wish& wish, Case* test) {
  constexpr unsigned kPatience = 20;
  u64 rip = test->start.rip + test->bytes.size();
  Candidate c;
  for (unsigned tries = 0;;) {
    if (!try_one(random, pick(random, wish), rip, &c)) continue;
    c.written = written_registers(c.bytes, c.decoded.insn.length, m_code_bits);
    bool must_not = c.written & wish.keep;
    if (!must_not && (++tries > kPatience || !unwelcome(c, wish))) break;
  }
  const Decoded& d = c.decoded;
  aim_segments(random, c, test);
  if (d.insn.has_memory) aim(random, c, rip, wish.calm, test);
  if (d.vsib) aim_vector_index(random, c, test);
  aim_hidden(random, c, wish.calm, test);
  m_written |= c.written;
  note(d);
  test->bytes.insert(test->bytes.end(), c.bytes, c.bytes + d.insn.length);
}

Case Generator::next(u64 seed, u64 rip, unsigned most) {
  Random random(seed);
  Case test;
  test.seed = seed;
  begin(random, &test, rip);
  for (u64 left = 1 + random.below(most); left > 0; --left) append(random, {}, &test);
  return test;
}

}  // namespace anykvm::isa
