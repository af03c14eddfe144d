#include "differential.h"

#include <Zydis/Zydis.h>
#include <fmt/format.h>

#include <cstdlib>
#include <cstring>

namespace anykvm::isa {

namespace {

constexpr u8 kHlt = 0xf4;

u64 from_environment(const char* name, u64 usual) {
  const char* text = std::getenv(name);
  return text ? std::strtoull(text, nullptr, 0) : usual;
}

const ZydisDecoder& decoder_of(unsigned code_bits) {
  struct Decoders {
    ZydisDecoder d32, d64;
    Decoders() {
      ZydisDecoderInit(&d32, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
      ZydisDecoderInit(&d64, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    }
  };
  static const Decoders decoders;
  return code_bits == 64 ? decoders.d64 : decoders.d32;
}

// The helpers for decimal adjustment leave undefined flags alone; everything else is the host's own doing.
u64 undefined_flags(const Case& test) {
  ZydisDecodedInstruction z;
  bool known = ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&decoder_of(test.code_bits), nullptr,
                                                          test.bytes.data(), test.bytes.size(), &z));
  return known && z.meta.category == ZYDIS_CATEGORY_DECIMAL && z.cpu_flags ? z.cpu_flags->undefined : 0;
}

// What is left behind by an instruction that faults half-way differs among CPUs: the stack below RSP after
// ENTER, the parts of a gather's registers that are not elements done (docs/quirks.md).
void loosen_for_fault(const Case& test, u64 rip, Comparison* comparison) {
  u64 at = rip - test.start.rip;
  if (at >= test.bytes.size()) return;
  ZydisDecodedInstruction z;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
  if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder_of(test.code_bits), test.bytes.data() + at,
                                           test.bytes.size() - at, &z, operands)))
    return;
  switch (z.mnemonic) {
    case ZYDIS_MNEMONIC_ENTER:
    case ZYDIS_MNEMONIC_PUSHA:
    case ZYDIS_MNEMONIC_PUSHAD:
    case ZYDIS_MNEMONIC_POPA:
    case ZYDIS_MNEMONIC_POPAD:
      comparison->only_rip = true;
      break;
    default:
      break;
  }
  for (unsigned i = 0; i < z.operand_count; ++i) {
    bool vsib =
        operands[i].type == ZYDIS_OPERAND_TYPE_MEMORY && operands[i].mem.type == ZYDIS_MEMOP_TYPE_VSIB;
    comparison->vectors = comparison->vectors && !vsib;
  }
}

}  // namespace

u64 seed_or(u64 usual) { return from_environment("ANYKVM_ISA_SEED", usual); }
u64 scaled(u64 count) { return count * from_environment("ANYKVM_ISA_FACTOR", 1); }

std::string disassemble(const std::vector<u8>& bytes, u64 rip, unsigned code_bits) {
  std::string text;
  auto mode = code_bits == 64 ? ZYDIS_MACHINE_MODE_LONG_64 : ZYDIS_MACHINE_MODE_LEGACY_32;
  for (std::size_t at = 0; at < bytes.size();) {
    ZydisDisassembledInstruction z;
    bool valid =
        ZYAN_SUCCESS(ZydisDisassembleIntel(mode, rip + at, bytes.data() + at, bytes.size() - at, &z));
    unsigned length = valid ? z.info.length : 1;
    text += fmt::format("  {:x}: ", rip + at);
    for (unsigned i = 0; i < length; ++i) text += fmt::format("{:02x} ", bytes[at + i]);
    text += fmt::format("  {}\n", valid ? z.text : "?");
    at += length;
  }
  return text;
}

// A case may read the code of earlier ones, so what earlier tests left has to go: the guest is a new one.
Differential::Differential() { std::memset(m_native.code(kCodeBase), 0, kCodeSize); }

u64 Differential::place() {
  if (m_next + kMaxCaseBytes > kCodeBase + kCodeSize) {
    m_next = kCodeBase;
    m_guest.discard_code();
  }
  return m_next;
}

void Differential::put_code(const Case& test) {
  std::vector<u8> bytes = test.bytes;
  bytes.push_back(kHlt);
  std::memcpy(m_native.code(test.start.rip), bytes.data(), bytes.size());
  m_guest.put_code(test.start.rip, bytes.data(), bytes.size());
  m_next = test.start.rip + bytes.size();
}

std::string Differential::check(const Case& test) {
  put_code(test);
  ++m_cases;
  Outcome native = m_native.run(test.start, test.memory, test.code_bits);
  if (native.state.rip != test.start.rip + test.bytes.size()) ++m_faults;
  if (m_cases % 16 == 0) m_guest.flush_tlb();
  if (m_cases % 16 == 0) m_guest.place_data(m_cases % 32 == 0);
  static constexpr Translation kForms[] = {Translation::kBlocks, Translation::kBlocks, Translation::kSteps,
                                           Translation::kSlowMemory};
  for (Translation form : kForms) {
    std::string report = compare(test, native, form);
    if (!report.empty()) return report;
  }
  return {};
}

std::string unexpected_differences(const Case& test, const Outcome& native, const Outcome& guest) {
  Comparison comparison;
  comparison.code_bits = test.code_bits;
  comparison.flags &= ~test.ignored_flags;
  comparison.flags &= ~undefined_flags(test);
  bool in_the_middle = native.state.rip != test.start.rip + test.bytes.size();
  if (in_the_middle) loosen_for_fault(test, native.state.rip, &comparison);
  return differences(native, guest, comparison);
}

std::string Differential::compare(const Case& test, const Outcome& native, Translation translation) {
  Outcome guest = m_guest.run(test.start, test.memory, test.code_bits, translation);
  std::string lines = unexpected_differences(test, native, guest);
  if (lines.empty()) return {};
  return fmt::format("seed {}, {}\n{}start:\n{}ended natively by vector {} at {:x}\n{}{}", test.seed,
                     name_of(translation), disassemble(test.bytes, test.start.rip, test.code_bits),
                     describe(test.start), native.vector, native.state.rip, lines,
                     m_guest.host_code(test.start.rip, test.code_bits, translation));
}

}  // namespace anykvm::isa
