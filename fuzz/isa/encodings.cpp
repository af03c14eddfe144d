#include "encodings.h"

#include <Zydis/Zydis.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace anykvm::isa {
namespace {

using x86::Decoded;
using x86::DecodeStatus;

constexpr u8 kUndefined = 6;

DecodeStatus decoded(const Encoded& bytes, unsigned code_bits, Decoded* out) {
  return x86::decode(bytes.data(), sizeof bytes, code_bits, code_bits / 8, kCodeBase, out);
}

// Registers, [rSI], and [rSI + rCX] for what needs an index; each with the first values of ModRM.reg.
template <class Visit>
void each_operand(const std::vector<u8>& opening, Visit visit, unsigned regs = 8) {
  static constexpr u8 kForms[][2] = {{0xc3, 0}, {0x06, 0}, {0x04, 0x0e}};
  for (unsigned reg = 0; reg < regs; ++reg) {
    for (const auto& form : kForms) {
      Encoded bytes{};
      std::copy(opening.begin(), opening.end(), bytes.begin());
      bytes[opening.size()] = static_cast<u8>(form[0] | reg << 3);
      bytes[opening.size() + 1] = form[1];
      visit(bytes);
    }
  }
}

template <class Visit>
void each_legacy(bool wide, Visit visit) {
  static constexpr u8 kEscapes[][2] = {{0, 0}, {0x0f, 0}, {0x0f, 0x38}, {0x0f, 0x3a}};
  for (unsigned prefixes = 0; prefixes < (wide ? 32u : 16u); ++prefixes) {
    for (const auto& escape : kEscapes) {
      for (unsigned opcode = 0; opcode < 256; ++opcode) {
        std::vector<u8> opening;
        if (prefixes & 1) opening.push_back(0x66);
        if ((prefixes & 6) == 6) opening.push_back(0xf0);
        if ((prefixes & 6) == 2) opening.push_back(0xf2);
        if ((prefixes & 6) == 4) opening.push_back(0xf3);
        if (prefixes & 8) opening.push_back(0x67);
        if (prefixes & 16) opening.push_back(0x48);
        for (u8 byte : escape)
          if (byte) opening.push_back(byte);
        opening.push_back(static_cast<u8>(opcode));
        // x87 instructions of registers have ModRM for an opcode.
        if (!escape[0] && (opcode & 0xf8) == 0xd8) {
          for (unsigned modrm = 0xc0; modrm < 256; ++modrm) {
            Encoded bytes{};
            std::copy(opening.begin(), opening.end(), bytes.begin());
            bytes[opening.size()] = static_cast<u8>(modrm);
            visit(bytes);
          }
        }
        each_operand(opening, visit);
      }
    }
  }
}

template <class Visit>
void each_vex(Visit visit) {
  for (unsigned map = 1; map <= 3; ++map) {
    for (unsigned opcode = 0; opcode < 256; ++opcode) {
      for (unsigned last = 0; last < 16; ++last) {  // W, L, pp
        for (unsigned vvvv : {0x78u, 0x68u}) {
          const auto p2 = static_cast<u8>((last & 8) << 4 | vvvv | (last & 7));
          each_operand({0xc4, static_cast<u8>(0xe0 | map), p2, static_cast<u8>(opcode)}, visit);
        }
      }
    }
  }
}

template <class Visit>
void each_evex(Visit visit) {
  static constexpr u8 kMasks[] = {0, 0x01, 0x81};
  for (unsigned map : {1u, 2u, 3u, 5u, 6u}) {
    for (unsigned opcode = 0; opcode < 256; ++opcode) {
      const bool group = (map == 1 && opcode >= 0x71 && opcode <= 0x73) || (map == 2 && opcode >= 0xc6);
      for (unsigned last = 0; last < 64; ++last) {  // L'L, b, W, pp
        for (u8 mask : kMasks) {
          const auto p1 = static_cast<u8>((last & 4) << 5 | 0x7c | (last & 3));
          const auto p2 = static_cast<u8>((last >> 4) << 5 | (last & 8) << 1 | 8 | mask);
          each_operand({0x62, static_cast<u8>(0xf0 | map), p1, p2, static_cast<u8>(opcode)}, visit,
                       group ? 8 : 1);
        }
      }
    }
  }
}

template <class Visit>
void each_encoding(unsigned code_bits, Visit visit) {
  each_legacy(code_bits == 64, visit);
  each_vex(visit);
  each_evex(visit);
}

// Runs instructions natively, many at a time, and tells which of them are not #UD.
class HostRuns {
 public:
  HostRuns(NativeBatch& host, unsigned code_bits) : m_host(host), m_code_bits(code_bits) {}

  template <class Then>
  void add(const Encoded& bytes, Then then) {
    m_bytes.push_back(bytes);
    if (m_bytes.size() == NativeBatch::kJobs) flush(then);
  }
  template <class Then>
  void flush(Then then) {
    for (unsigned i = 0; i < m_bytes.size(); ++i) fill(m_host.job(i), m_bytes[i]);
    m_host.run(static_cast<unsigned>(m_bytes.size()));
    for (unsigned i = 0; i < m_bytes.size(); ++i) {
      const Outcome& end = m_host.job(i).outcome;
      if (end.vector != kUndefined || end.state.rip != kCodeBase) then(m_bytes[i]);
    }
    m_bytes.clear();
  }

 private:
  void fill(Job& job, const Encoded& bytes) const {
    constexpr unsigned kRcx = 1;
    job.code_bits = m_code_bits;
    job.code = {};
    std::copy(bytes.begin(), bytes.end(), job.code.begin());
    job.start = {};
    job.start.gpr.fill(kDataBase + 0x800);
    job.start.gpr[kRcx] = 1;
    if (m_code_bits == 32) std::fill(job.start.gpr.begin() + 8, job.start.gpr.end(), 0);
    job.start.rip = kCodeBase;
  }

  NativeBatch& m_host;
  unsigned m_code_bits;
  std::vector<Encoded> m_bytes;
};

std::string hex(const Encoded& bytes, unsigned size) {
  std::string text;
  for (unsigned i = 0; i < size; ++i) text += fmt::format("{:02x} ", bytes[i]);
  return text;
}

u64 legacy_prefixes(const Decoded& d) {
  u64 prefixes = 0;
  for (unsigned i = 0; i < d.opcode_at; ++i) {
    const u8 byte = d.insn.bytes[i];
    if (byte == 0x0f) break;
    if (byte == 0x66) prefixes |= 1;
    if (byte == 0xf2) prefixes |= 2;
    if (byte == 0xf3) prefixes |= 4;
    if (byte == 0xf0) prefixes |= 8;
    if (byte == 0x67) prefixes |= 16;
  }
  return prefixes | (d.insn.rex_w ? 32 : 0);
}

u64 vector_prefix(const Decoded& d) {
  const u8* at = &d.insn.bytes[d.prefix_at];
  if (d.encoding == x86::Encoding::kEvex)
    return (at[2] & 0x83u) | (at[3] & 0xf0u) << 8 | (at[3] & 7 ? 0x100u : 0);
  return at[0] == 0xc5 ? at[1] & 7u : at[2] & 0x87u;
}

// Masks, ModRM.reg behind VEX and EVEX, and LOCK and address sizes change nothing about what is defined.
bool tells_nothing_new(const Encoded& bytes) {
  if (bytes[0] == 0x62) return (bytes[3] & 0x87) || (bytes[5] & 0x38);
  if (bytes[0] == 0xc4) return bytes[4] & 0x38;
  auto has = [&](u8 prefix) {
    return std::find(bytes.begin(), bytes.begin() + 3, prefix) != bytes.begin() + 3;
  };
  return has(0xf0) || has(0x67);
}

// What is the same for all forms of one opcode.
std::string opcode_name(const Encoded& bytes, unsigned code_bits) {
  const bool vex = bytes[0] == 0xc4, evex = bytes[0] == 0x62;
  if (vex) return fmt::format("VEX map {} pp {} opcode {:02x}", bytes[1] & 31, bytes[2] & 3, bytes[3]);
  if (evex) return fmt::format("EVEX map {} pp {} opcode {:02x}", bytes[1] & 7, bytes[2] & 3, bytes[4]);
  unsigned at = 0;
  static constexpr u8 kPrefixes[] = {0x66, 0xf0, 0xf2, 0xf3, 0x67};
  while (std::find(std::begin(kPrefixes), std::end(kPrefixes), bytes[at]) != std::end(kPrefixes)) ++at;
  if (code_bits == 64 && bytes[at] == 0x48) ++at;
  std::string name = "legacy";
  if (bytes[at] == 0x0f) name += " 0f", ++at;
  if (at && bytes[at - 1] == 0x0f && (bytes[at] == 0x38 || bytes[at] == 0x3a))
    name += fmt::format(" {:02x}", bytes[at++]);
  return name + fmt::format(" {:02x}", bytes[at]);
}

}  // namespace

EncodingForm form_of(const Decoded& d) {
  const bool legacy = d.encoding == x86::Encoding::kLegacy;
  u64 form = legacy ? legacy_prefixes(d) : vector_prefix(d);
  form = form << 1 | (d.insn.has_memory ? 1 : 0);
  form = form << 4 | static_cast<u64>(d.encoding);
  form = form << 8 | d.insn.opcode_map;
  form = form << 8 | d.insn.opcode;
  return {d.insn.mnemonic, d.insn.code_bits, form};
}

void Coverage::carried_out(const Stream& stream, std::size_t instructions) {
  for (std::size_t i = 0; i < instructions && i < stream.instructions.size(); ++i) {
    const unsigned at = stream.instructions[i];
    Encoded bytes{};
    if (at >= stream.bytes.size()) break;
    std::copy_n(&stream.bytes[at], std::min(bytes.size(), stream.bytes.size() - at), bytes.begin());
    Decoded d;
    if (decoded(bytes, stream.code_bits, &d) == DecodeStatus::kOk) m_forms.insert(form_of(d));
  }
}

std::string Coverage::report(NativeBatch& host) const {
  struct Seen {
    std::size_t forms = 0, covered = 0;
    bool compared = false;
    std::string missing;
  };
  std::map<u16, Seen> mnemonics;
  for (unsigned code_bits : {64u, 32u}) {
    std::set<EncodingForm> known;
    HostRuns runs(host, code_bits);
    auto runs_there = [&](const Encoded& bytes) {
      Decoded d;
      decoded(bytes, code_bits, &d);
      Seen& seen = mnemonics[d.insn.mnemonic];
      ++seen.forms;
      seen.compared |= comparable(d);
      const bool covered = m_forms.contains(form_of(d));
      seen.covered += covered;
      if (!covered) seen.missing += fmt::format("    {} bit: {}\n", code_bits, hex(bytes, d.insn.length));
    };
    each_encoding(code_bits, [&](const Encoded& bytes) {
      Decoded d;
      if (decoded(bytes, code_bits, &d) != DecodeStatus::kOk) return;
      if (known.insert(form_of(d)).second) runs.add(bytes, runs_there);
    });
    runs.flush(runs_there);
  }
  std::size_t forms = 0, covered = 0, covered_mnemonics = 0;
  std::string never, partly;
  for (const auto& [mnemonic, seen] : mnemonics) {
    forms += seen.forms, covered += seen.covered;
    covered_mnemonics += seen.covered != 0;
    const char* name = ZydisMnemonicGetString(static_cast<ZydisMnemonic>(mnemonic));
    if (!seen.covered) never += fmt::format("  {}{}\n", name, seen.compared ? "" : " (left out)");
    if (seen.covered && seen.covered < seen.forms)
      partly += fmt::format("  {}: {} of {}\n{}", name, seen.covered, seen.forms, seen.missing);
  }
  return fmt::format("{} of {} mnemonics and {} of {} forms that the host runs\nnever:\n{}partly:\n{}",
                     covered_mnemonics, mnemonics.size(), covered, forms, never, partly);
}

std::string defined_by_the_host(NativeBatch& host) {
  struct Found {
    std::size_t count = 0;
    std::string example;
  };
  std::map<std::string, Found> opcodes;
  for (unsigned code_bits : {64u, 32u}) {
    HostRuns runs(host, code_bits);
    auto note = [&](const Encoded& bytes) {
      Found& found = opcodes[fmt::format("{} bit, {}", code_bits, opcode_name(bytes, code_bits))];
      ++found.count;
      found.example = hex(bytes, 8);
    };
    each_encoding(code_bits, [&](const Encoded& bytes) {
      Decoded d;
      if (tells_nothing_new(bytes)) return;
      if (decoded(bytes, code_bits, &d) == DecodeStatus::kInvalid) runs.add(bytes, note);
    });
    runs.flush(note);
  }
  std::string text;
  for (const auto& [name, found] : opcodes)
    text += fmt::format("{}: {} encodings, as {}\n", name, found.count, found.example);
  return text;
}

}  // namespace anykvm::isa
