#include "x86/translate/perf_map.h"

#include <gmock/gmock.h>

namespace anykvm::x86 {
namespace {

GuestSymbols symbols() {
  return GuestSymbols::parse(
      "ffffffff81000000 T _text\n"
      "ffffffff81000040 t early_idt_handler\n"
      "no symbol at all\n"
      "ffffffff81000080 D jiffies\t[module]\n");
}

std::string name_at(u64 rip, u8 cpl, const GuestSymbols& symbols, u8 code_bits = 64) {
  Block block;
  block.mode.cpl = cpl;
  block.mode.code_bits = code_bits;
  return block_name(block, rip, symbols);
}

TEST(PerfMap, symbol_covers_what_follows_it) {
  EXPECT_EQ(symbols().name_of(0xffffffff81000000), "_text+0x0");
  EXPECT_EQ(symbols().name_of(0xffffffff8100003f), "_text+0x3f");
  EXPECT_EQ(symbols().name_of(0xffffffff81000040), "early_idt_handler+0x0");
  EXPECT_EQ(symbols().name_of(0xffffffff81000081), "jiffies+0x1");
}

TEST(PerfMap, nothing_is_before_the_first_symbol) { EXPECT_EQ(symbols().name_of(0x401000), ""); }

TEST(PerfMap, kernel_blocks_have_the_kernels_names) {
  EXPECT_EQ(name_at(0xffffffff81000044, 0, symbols()), "guest kernel early_idt_handler+0x4");
}

TEST(PerfMap, kernel_blocks_without_symbols_have_addresses) {
  EXPECT_EQ(name_at(0xffffffff81000044, 0, {}), "guest kernel 0xffffffff81000044");
}

TEST(PerfMap, user_blocks_have_addresses_although_a_symbol_lies_before) {
  EXPECT_EQ(name_at(0xffffffffff600000, 3, symbols()), "guest user 0xffffffffff600000");
}

TEST(PerfMap, narrow_code_says_so) { EXPECT_EQ(name_at(0xfff0, 0, {}, 16), "guest kernel 0xfff0 (16-bit)"); }

}  // namespace
}  // namespace anykvm::x86
