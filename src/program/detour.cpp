#include "program/detour.h"

#include <Zydis/Zydis.h>

#include <algorithm>
#include <cstring>

namespace anykvm::program {
namespace {

constexpr u8 kCpuidBytes = 2, kJumpBytes = 5, kBreakpoint = 0xcc;

struct Instruction {
  const u8* at;
  ZydisDecodedInstruction decoded;
  const u8* next() const { return at + decoded.length; }
  bool is_relative_branch() const { return decoded.raw.imm[0].is_relative; }
  const u8* target() const { return next() + decoded.raw.imm[0].value.s; }
  bool addresses_by_rip() const {
    return (decoded.attributes & ZYDIS_ATTRIB_HAS_MODRM) && decoded.raw.modrm.mod == 0 &&
           decoded.raw.modrm.rm == 5;
  }
};

// The function's instructions, one after another. Empty if these are not all of them.
std::vector<Instruction> decode_all(Range function) {
  ZydisDecoder decoder;
  ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
  std::vector<Instruction> all;
  for (const u8* at = function.begin; at < function.end; at = all.back().next()) {
    Instruction one{at, {}};
    if (!ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&decoder, nullptr, at,
                                                    static_cast<ZyanUSize>(function.end - at), &one.decoded)))
      return {};
    all.push_back(one);
  }
  return all;
}

bool is_conditional(const ZydisDecodedInstruction& decoded) {
  return decoded.meta.category == ZYDIS_CATEGORY_COND_BR && decoded.mnemonic != ZYDIS_MNEMONIC_JRCXZ &&
         decoded.mnemonic != ZYDIS_MNEMONIC_JECXZ && decoded.mnemonic != ZYDIS_MNEMONIC_LOOP &&
         decoded.mnemonic != ZYDIS_MNEMONIC_LOOPE && decoded.mnemonic != ZYDIS_MNEMONIC_LOOPNE;
}

bool can_move(const Instruction& one) {
  if (one.decoded.meta.category == ZYDIS_CATEGORY_CALL || one.decoded.mnemonic == ZYDIS_MNEMONIC_CPUID)
    return false;
  return !one.is_relative_branch() || is_conditional(one.decoded) ||
         one.decoded.mnemonic == ZYDIS_MNEMONIC_JMP;
}

bool is_left_behind(const Instruction& one) {
  const auto category = one.decoded.meta.category;
  return category == ZYDIS_CATEGORY_RET || category == ZYDIS_CATEGORY_UNCOND_BR;
}

class Writer {
 public:
  explicit Writer(const u8* place) : m_place(place) {}

  void bytes(std::initializer_list<u8> some) { m_code.insert(m_code.end(), some); }
  void bytes(const u8* from, std::size_t count) { m_code.insert(m_code.end(), from, from + count); }
  void value(u32 value) { bytes(reinterpret_cast<const u8*>(&value), sizeof value); }
  // A displacement that ends the instruction but for `behind` bytes.
  void relative(const u8* target, unsigned behind = 0) {
    value(static_cast<u32>(target - (m_place + m_code.size() + 4 + behind)));
  }
  void jump(const u8* target) {
    bytes({0xe9});
    relative(target);
  }
  std::vector<u8> take() { return std::move(m_code); }

 private:
  const u8* m_place;
  std::vector<u8> m_code;
};

// CPUID, and the bit more. All but CPUID's results stays as it was: flags, stack, red zone.
void write_cpuid(Writer& out, ExtraFeature extra) {
  out.bytes({0x48, 0x8d, 0x64, 0x24, 0x80});  // lea -128(%rsp), %rsp: the red zone
  out.bytes({0x9c, 0x50});                    // pushf; push %rax
  out.bytes({0x0f, 0xa2});                    // cpuid
  out.bytes({0x81, 0x3c, 0x24});              // cmpl $leaf, (%rsp)
  out.value(extra.leaf);
  out.bytes({0x75, 0x04});                    // jne over the next
  out.bytes({0x0f, 0xba, 0xe9, extra.bit});   // bts $bit, %ecx
  out.bytes({0x48, 0x8d, 0x64, 0x24, 0x08});  // lea 8(%rsp), %rsp
  out.bytes({0x9d});                          // popf
  out.bytes({0x48, 0x8d, 0xa4, 0x24});        // lea 128(%rsp), %rsp
  out.value(128);
}

void write_moved(Writer& out, const Instruction& one) {
  const auto& raw = one.decoded.raw;
  if (one.is_relative_branch()) {
    if (is_conditional(one.decoded))  // Jcc rel8: 70+cc; rel32: 0F 80+cc
      out.bytes({0x0f, static_cast<u8>(0x80 | (one.decoded.opcode & 0x0f))});
    else
      out.bytes({0xe9});
    return out.relative(one.target());
  }
  if (!one.addresses_by_rip()) return out.bytes(one.at, one.decoded.length);
  const unsigned behind = one.decoded.length - raw.disp.offset - 4u;
  out.bytes(one.at, raw.disp.offset);
  out.relative(one.next() + raw.disp.value, behind);
  out.bytes(one.next() - behind, behind);
}

bool is_jumped_into(const std::vector<Instruction>& all, Range moved) {
  return std::any_of(all.begin(), all.end(), [&](const Instruction& one) {
    return one.is_relative_branch() && moved.has(one.target()) && one.target() != moved.begin;
  });
}

}  // namespace

std::optional<Detour> make_detour(Range function, const u8* cpuid, const u8* place, ExtraFeature extra) {
  const auto all = decode_all(function);
  auto at = std::find_if(all.begin(), all.end(), [&](const Instruction& one) { return one.at == cpuid; });
  if (at == all.end() || at->decoded.mnemonic != ZYDIS_MNEMONIC_CPUID || at->decoded.length != kCpuidBytes)
    return std::nullopt;
  Writer out(place);
  write_cpuid(out, extra);
  const u8* end = at->next();
  bool goes_on = true;
  for (++at; end - cpuid < kJumpBytes; ++at) {
    if (at == all.end() || !goes_on || !can_move(*at)) return std::nullopt;
    write_moved(out, *at);
    goes_on = !is_left_behind(*at);
    end = at->next();
  }
  if (is_jumped_into(all, {cpuid, end})) return std::nullopt;
  if (goes_on) out.jump(end);
  return Detour{cpuid, static_cast<u8>(end - cpuid), out.take()};
}

std::vector<u8> way_into(const Detour& detour, const u8* place) {
  Writer out(detour.from);
  out.jump(place);
  auto bytes = out.take();
  bytes.resize(detour.size, kBreakpoint);
  return bytes;
}

}  // namespace anykvm::program
