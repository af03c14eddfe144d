#include "generator.h"

#include <Zydis/Zydis.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
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
        for (unsigned tries = 0; tries < 96 && !usable; ++tries)
          usable = try_one(random, candidate, kCodeBase, &found);
        if (usable) m_opcodes.push_back(candidate);
      }
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
  if (decode(out->bytes, 15, m_code_bits, m_code_bits / 8, rip, &out->decoded) != DecodeStatus::kOk)
    return false;
  const Decoded& d = out->decoded;
  bool as_meant = d.encoding == opcode.encoding && d.insn.bytes[d.opcode_at] == opcode.opcode;
  return as_meant && m_filter(d);
}

// Sets registers, or the displacement, so that the memory operand is a random pointer. A register that an
// earlier instruction of the case addresses memory with stays as it is; one that an earlier instruction
// overwrites gives whatever it gives: faults are compared too.
void Generator::aim(Random& random, Candidate& c, u64 rip, Case* test) {
  const MemoryOperand& m = c.decoded.insn.memory;
  ZydisDecoder decoder;
  ZydisDecodedInstruction z;
  ZydisDecoderInit(&decoder, m_code_bits == 64 ? ZYDIS_MACHINE_MODE_LONG_64 : ZYDIS_MACHINE_MODE_LEGACY_32,
                   m_code_bits == 64 ? ZYDIS_STACK_WIDTH_64 : ZYDIS_STACK_WIDTH_32);
  ZydisDecoderDecodeInstruction(&decoder, nullptr, c.bytes, 15, &z);

  u64 target = random_pointer(random);
  if (random.one_in(2)) target &= ~u64{63};
  if (m.segment == kFs) target -= test->start.fs_base;
  if (m.segment == kGs) target -= test->start.gs_base;
  if (m.index != kNoRegister && !(m_aimed >> m.index & 1)) {
    test->start.gpr[m.index] = random.below(48);
    m_aimed |= 1u << m.index;
  }
  u64 index = m.index == kNoRegister ? 0 : test->start.gpr[m.index] * m.scale;
  if (z.raw.disp.size == 64) {  // MOV between rAX and an absolute address
    std::memcpy(c.bytes + z.raw.disp.offset, &target, sizeof target);
    return;
  }
  bool patchable = z.raw.disp.size == 32;
  if (m.base == kNoRegister && patchable) {
    // decode() has folded RIP in, if it is relative to that.
    bool rip_relative = m_code_bits == 64 && (z.raw.modrm.rm & 7) == 5 && z.raw.modrm.mod == 0;
    u64 value = target - index - (rip_relative ? rip + c.decoded.insn.length : 0);
    i32 displacement = static_cast<i32>(value);
    std::memcpy(c.bytes + z.raw.disp.offset, &displacement, sizeof displacement);
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

void Generator::aim_vector_index(Random& random, const Candidate& c, Case* test) {
  ZydisDecoder decoder;
  ZydisDecodedInstruction z;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
  ZydisDecoderInit(&decoder, m_code_bits == 64 ? ZYDIS_MACHINE_MODE_LONG_64 : ZYDIS_MACHINE_MODE_LEGACY_32,
                   m_code_bits == 64 ? ZYDIS_STACK_WIDTH_64 : ZYDIS_STACK_WIDTH_32);
  ZydisDecoderDecodeFull(&decoder, c.bytes, 15, &z, operands);
  for (unsigned i = 0; i < z.operand_count; ++i) {
    if (operands[i].type != ZYDIS_OPERAND_TYPE_MEMORY) continue;
    auto& index = test->start.zmm[static_cast<unsigned>(ZydisRegisterGetId(operands[i].mem.index))];
    unsigned element = z.opcode & 1 ? 8 : 4;
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

Case Generator::next(u64 seed, u64 rip, unsigned most) {
  Random random(seed);
  Case test;
  test.seed = seed;
  test.code_bits = m_code_bits;
  test.start = random_state(random, m_code_bits);
  test.start.rip = rip;
  random_memory(random, &test.memory);
  m_aimed = 0;
  for (u64 left = 1 + random.below(most); left > 0; --left) {
    Candidate c;
    while (!try_one(random, m_opcodes[random.below(m_opcodes.size())], rip, &c)) {
    }
    const Decoded& d = c.decoded;
    bool fs = d.insn.has_memory && d.insn.memory.segment == kFs;
    bool gs = d.insn.has_memory && d.insn.memory.segment == kGs;
    // String instructions and XLAT have segment overrides too.
    fs |= std::find(c.bytes, c.bytes + d.opcode_at, 0x64) != c.bytes + d.opcode_at;
    gs |= std::find(c.bytes, c.bytes + d.opcode_at, 0x65) != c.bytes + d.opcode_at;
    if (fs && !test.start.fs_base) test.start.fs_base = kDataBase + random.below(0x1000);
    if (gs && !test.start.gs_base) test.start.gs_base = kDataBase + random.below(0x1000);
    if (d.insn.has_memory) aim(random, c, rip, &test);
    if (d.vsib) aim_vector_index(random, c, &test);
    note(d);
    test.bytes.insert(test.bytes.end(), c.bytes, c.bytes + d.insn.length);
    rip += d.insn.length;
  }
  return test;
}

void run_random(const Filter& filter, u64 usual_seed, u64 count, unsigned code_bits, unsigned most,
                const Prepare& prepare) {
  Generator generator(code_bits, filter);
  Differential differential;
  u64 seed = seed_or(usual_seed);
  count = scaled(count);
  ASSERT_GT(generator.opcodes(), 0u);
  for (u64 i = 0; i < count; ++i) {
    Case test = generator.next(seed + i, differential.place(), most);
    Random random(~test.seed);
    if (prepare) prepare(random, &test.start);
    std::string report = differential.check(test);
    ASSERT_TRUE(report.empty()) << "rerun with ANYKVM_ISA_SEED=" << test.seed << "\n" << report;
  }
  std::printf("           %zu opcodes, seeds from %llu, %llu cases, %llu ended by a fault\n",
              generator.opcodes(), static_cast<unsigned long long>(seed),
              static_cast<unsigned long long>(differential.cases()),
              static_cast<unsigned long long>(differential.faults()));
}

}  // namespace anykvm::isa
