#pragma once
// Random instructions: every encoding of the opcode maps that Zydis accepts and a filter lets through, with
// memory operands that mostly hit the data area. Owner: one test. One thread.

#include <functional>
#include <vector>

#include "differential.h"
#include "x86/translate/decode.h"

namespace anykvm::isa {

using Filter = std::function<bool(const x86::Decoded&)>;

// Instructions that the translator emits as themselves and whose results depend on nothing but the state.
bool runs_as_itself(const x86::Decoded& decoded);
// In compatibility mode AMD's CPUs raise #UD where W asks for a 64-bit general operand of these, Intel's
// ignore W.
bool differs_among_vendors(const x86::Decoded& decoded);
// runs_as_itself() and of one of these Zydis categories.
Filter of_categories(std::vector<u16> categories);
Filter of_mnemonics(std::vector<u16> mnemonics);

// What a case asks of its next instruction.
struct Wish {
  bool calm = false;    // memory operands that may be accessed, most of the time
  u32 keep = 0;         // general registers that it must not write, one bit each
  bool common = false;  // one of the first two opcode maps
};

class Generator {
 public:
  Generator(unsigned code_bits, Filter filter);

  // A case of 1 to `most` instructions at `rip`.
  Case next(u64 seed, u64 rip, unsigned most);
  std::size_t opcodes() const { return m_opcodes.size(); }

  // Makes a case piece by piece: begin() fills its start state, append() adds one instruction at its end.
  void begin(Random& random, Case* test, u64 rip);
  void append(Random& random, const Wish& wish, Case* test);
  // Start registers that instructions address memory with, and vector registers that index it: one bit each.
  u32 aimed() const { return m_aimed; }
  u32 aimed_vectors() const { return m_aimed_vectors; }
  // Makes a start register a pointer, or a number below `limit`, if nothing says otherwise already.
  void aim_register(Random& random, unsigned number, bool calm, Case* test);
  void limit_register(Random& random, unsigned number, u64 limit, Case* test);

  // Instructions from elsewhere have written these registers.
  void wrote(u32 registers) { m_written |= registers; }

  // Registers seen in each place, one bit each: for tests that want them all.
  struct Seen {
    u32 reg = 0, rm = 0, base = 0, index = 0, vvvv = 0;
  };
  const Seen& seen() const { return m_seen; }

 private:
  struct Opcode {
    x86::Encoding encoding;
    u8 map, opcode;
  };
  struct Candidate {
    u8 bytes[32] = {};
    x86::Decoded decoded;
    u32 written = 0;  // general registers
  };

  void find_opcodes();
  const Opcode& pick(Random& random, const Wish& wish) const;
  void random_bytes(Random& random, const Opcode& opcode, u8* bytes) const;
  bool try_one(Random& random, const Opcode& opcode, u64 rip, Candidate* out) const;
  bool unwelcome(const Candidate& c, const Wish& wish) const;
  void aim(Random& random, Candidate& c, u64 rip, bool calm, Case* test);
  void aim_hidden(Random& random, const Candidate& c, bool calm, Case* test);
  void aim_segments(Random& random, const Candidate& c, Case* test);
  void aim_vector_index(Random& random, const Candidate& c, Case* test);
  void note(const x86::Decoded& decoded);

  unsigned m_code_bits;
  Filter m_filter;
  std::vector<Opcode> m_opcodes;
  std::size_t m_common = 0;  // how many of them, at the front, belong to the first two maps
  Seen m_seen;
  // Of the case in hand.
  u32 m_aimed = 0, m_aimed_vectors = 0;
  u32 m_written = 0;  // general registers that its instructions have changed
};

// General registers that an instruction writes, one bit each.
u32 written_registers(const u8* bytes, unsigned size, unsigned code_bits);

}  // namespace anykvm::isa
