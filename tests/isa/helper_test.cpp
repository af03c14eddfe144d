// Instructions with rules and helpers of their own: stack, strings, bit strings, decimal adjustment, segment
// bases.
#include <Zydis/Zydis.h>
#include <gtest/gtest.h>

#include "run_random.h"

namespace anykvm::isa {
namespace {

constexpr unsigned kRcxNumber = 1, kRbxNumber = 3, kRspNumber = 4, kRbpNumber = 5, kRsiNumber = 6,
                   kRdiNumber = 7;

bool strings(const x86::Decoded& d) { return d.category == ZYDIS_CATEGORY_STRINGOP; }

void prepare_strings(Random& random, UserState* s) {
  s->gpr[kRsiNumber] = random_pointer(random);
  s->gpr[kRdiNumber] = random_pointer(random);
  s->gpr[kRcxNumber] = random.below(40);
}

TEST(Helpers, string_instructions) { run_random(strings, 7'000'000, 6000, 64, 3, prepare_strings); }
TEST(Helpers, string_instructions_in_compatibility_mode) {
  run_random(strings, 7'100'000, 3000, 32, 3, prepare_strings);
}

// Not PUSH and POP of segment registers, whose selectors are the host's.
bool stack(const x86::Decoded& d) {
  bool general = d.opcode_is_gpr || d.rm_is_gpr || d.insn.has_memory || d.immediate_bytes;
  switch (d.insn.mnemonic) {
    case ZYDIS_MNEMONIC_PUSH:
    case ZYDIS_MNEMONIC_POP:
      return general;
    case ZYDIS_MNEMONIC_ENTER:
    case ZYDIS_MNEMONIC_LEAVE:
    case ZYDIS_MNEMONIC_PUSHA:
    case ZYDIS_MNEMONIC_PUSHAD:
    case ZYDIS_MNEMONIC_POPA:
    case ZYDIS_MNEMONIC_POPAD:
      return true;
    default:
      return false;
  }
}

void prepare_stack(Random& random, UserState* s) {
  s->gpr[kRspNumber] = random_pointer(random);
  s->gpr[kRbpNumber] = random_pointer(random);
  // ENTER copies frame pointers from one part of the stack to another; the parts must not overlap.
  u64 distance = s->gpr[kRbpNumber] - s->gpr[kRspNumber] + 0x400;
  if (distance < 0x800) s->gpr[kRbpNumber] = s->gpr[kRspNumber] + 0x400;
}

TEST(Helpers, stack_instructions) { run_random(stack, 7'200'000, 6000, 64, 4, prepare_stack); }
TEST(Helpers, stack_instructions_in_compatibility_mode) {
  run_random(stack, 7'300'000, 4000, 32, 4, prepare_stack);
}

bool bit_strings(const x86::Decoded& d) {
  return d.category == ZYDIS_CATEGORY_BITBYTE && d.insn.has_memory && d.reg_is_gpr;
}

// Bit offsets that stay within the data area, most of the time.
void prepare_bit_strings(Random& random, UserState* s) {
  for (u64& gpr : s->gpr) {
    if (gpr < kDataBase || gpr >= kDataEnd) gpr = random.one_in(2) ? random.below(4096) : ~random.below(4096);
  }
}

TEST(Helpers, bit_strings) { run_random(bit_strings, 7'400'000, 5000, 64, 2); }
TEST(Helpers, bit_strings_near_the_operand) {
  run_random(bit_strings, 7'500'000, 5000, 64, 2, prepare_bit_strings);
}

TEST(Helpers, table_lookup_and_addresses) {
  auto filter = of_mnemonics({ZYDIS_MNEMONIC_XLAT, ZYDIS_MNEMONIC_LEA});
  auto prepare = [](Random& random, UserState* s) { s->gpr[kRbxNumber] = random_pointer(random); };
  run_random(filter, 7'600'000, 4000, 64, 4, prepare);
  run_random(filter, 7'650'000, 2000, 32, 4, prepare);
}

// MOV between rAX and an absolute address, and everything else that MOV does but for segment and control
// registers.
bool general_moves(const x86::Decoded& d) {
  bool special = d.insn.opcode_map == 1 || d.insn.opcode == 0x8c || d.insn.opcode == 0x8e;
  return d.insn.mnemonic == ZYDIS_MNEMONIC_MOV && !special;
}

TEST(Helpers, moves_with_absolute_addresses) {
  run_random(general_moves, 7'700'000, 3000);
  run_random(general_moves, 7'750'000, 2000, 32);
}

TEST(Helpers, segment_bases) {
  run_random(of_mnemonics({ZYDIS_MNEMONIC_RDFSBASE, ZYDIS_MNEMONIC_RDGSBASE}), 7'800'000, 300, 64, 2,
             [](Random& random, UserState* s) {
               s->fs_base = kDataBase + random.below(4096);
               s->gs_base = kDataBase + random.below(4096);
             });
}

bool decimal(const x86::Decoded& d) {
  return d.category == ZYDIS_CATEGORY_DECIMAL || d.insn.mnemonic == ZYDIS_MNEMONIC_SALC;
}

TEST(Helpers, decimal_adjustment) { run_random(decimal, 7'900'000, 5000, 32, 1); }

TEST(Helpers, flag_images) {
  auto filter =
      of_mnemonics({ZYDIS_MNEMONIC_PUSHF, ZYDIS_MNEMONIC_PUSHFQ, ZYDIS_MNEMONIC_PUSHFD, ZYDIS_MNEMONIC_CLD,
                    ZYDIS_MNEMONIC_STD, ZYDIS_MNEMONIC_LAHF, ZYDIS_MNEMONIC_SAHF, ZYDIS_MNEMONIC_CMC});
  run_random(filter, 8'000'000, 2000, 64, 6);
  run_random(filter, 8'050'000, 1000, 32, 6);
}

}  // namespace
}  // namespace anykvm::isa
