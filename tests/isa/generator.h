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
// The above, of one of these Zydis categories.
Filter of_categories(std::vector<u16> categories);
Filter of_mnemonics(std::vector<u16> mnemonics);

class Generator {
 public:
  Generator(unsigned code_bits, Filter filter);

  // A case of 1 to `most` instructions at `rip`.
  Case next(u64 seed, u64 rip, unsigned most);
  std::size_t opcodes() const { return m_opcodes.size(); }

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
    u8 displacement_at = 0, displacement_size = 0;
  };

  void find_opcodes();
  void random_bytes(Random& random, const Opcode& opcode, u8* bytes) const;
  bool try_one(Random& random, const Opcode& opcode, u64 rip, Candidate* out) const;
  void aim(Random& random, Candidate& c, u64 rip, Case* test);
  void aim_vector_index(Random& random, const Candidate& c, Case* test);
  void note(const x86::Decoded& decoded);

  unsigned m_code_bits;
  Filter m_filter;
  std::vector<Opcode> m_opcodes;
  Seen m_seen;
  u32 m_aimed = 0;  // registers of the case in hand that address memory
};

// Runs `count` random cases; stops at the first that differs. Prints the seed of the run.
// `prepare` may change the start state, for instructions with operands that their encoding does not show.
using Prepare = std::function<void(Random&, UserState*)>;
void run_random(const Filter& filter, u64 usual_seed, u64 count, unsigned code_bits = 64, unsigned most = 4,
                const Prepare& prepare = {});

}  // namespace anykvm::isa
