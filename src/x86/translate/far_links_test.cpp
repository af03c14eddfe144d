// Direct jumps to other pages: where they lead, with which flags, and when they are looked up again.
#include "x86/translate/far_links.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <thread>

#include "base/optimizations.h"
#include "x86/translate/code_cache.h"
#include "x86/translate/code_memory.h"
#include "x86/translate/context.h"
#include "x86/translate/guest_fixture.h"

namespace anykvm::x86 {
namespace {

constexpr u64 kNextPage = Guest64::kCode + 0x1000;
constexpr u64 kThere = 0x600000, kElsewhere = 0x800000;
constexpr u64 kEntryOfThere = Guest64::kTables + 0x2000 + 8 * (kThere >> 21);
constexpr unsigned kRounds = 200;

struct FarLinksTest : ::testing::Test {
  void SetUp() override {
    guest.state().gpr[kRcx] = kRounds;
    guest.state().gpr[kRbx] = guest.state().gpr[kRdx] = 0;
  }
  u64 gpr(Gpr gpr) { return guest.state().gpr[gpr]; }
  // Does a jump lead by a place?
  bool opened() {
    constexpr u8 kJumpByGs[] = {0x65, 0xff, 0x24, 0x25};
    const CodeMemory& memory = guest.machine->code().memory();
    const auto* end = memory.next();
    return std::search(memory.begin(), end, kJumpByGs, std::end(kJumpByGs)) != end;
  }
  bool followed() { return guest.cpu->context().far_links.filled() || !optimizations().far_links; }

  Guest64 guest;
};

TEST_F(FarLinksTest, calls_go_on_without_the_dispatcher) {
  guest.code({0xe8, 0xfb, 0x0f, 0x00, 0x00, 0xff, 0xc9, 0x75, 0xf7, 0xf4});  // call; dec ecx; jnz; hlt
  guest.code({0xff, 0xc3, 0xc3}, kNextPage);                                 // inc ebx; ret
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(gpr(kRbx), kRounds);
  const bool may = optimizations().jumps && optimizations().links && optimizations().blocks;
  EXPECT_TRUE((followed() && opened()) || !may);
  EXPECT_TRUE(guest.cpu->counts().lookups < 20 || !may);
}

TEST_F(FarLinksTest, flags_are_handed_over_on_every_round) {
  guest.code({0xb8, 0x03, 0x00, 0x00, 0x00, 0x83, 0xf8, 0x05,  // again: mov eax, 3; cmp eax, 5
              0xe9, 0xf3, 0x0f, 0x00, 0x00});                  // jmp 1000H
  guest.code({0x9c, 0x5e, 0x48, 0x09, 0xf3, 0x48, 0x21, 0xf2,  // pushfq; pop rsi; or rbx, rsi; and rdx, rsi
              0xff, 0xc9, 0x0f, 0x85, 0xf0, 0xef, 0xff, 0xff,  // dec ecx; jnz again
              0xf4},
             kNextPage);
  guest.state().gpr[kRdx] = ~u64{0};
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  constexpr u64 kBelow = kFlagCf | kFlagAf | kFlagSf;
  EXPECT_EQ(gpr(kRbx) & kFlagsArithmetic, kBelow);
  EXPECT_EQ(gpr(kRdx) & kFlagsArithmetic, kBelow);
}

TEST_F(FarLinksTest, flags_in_the_image_are_handed_over_on_every_round) {
  guest.code({0xb8, 0x03, 0x00, 0x00, 0x00, 0x83, 0xf8, 0x05,  // again: mov eax, 3; cmp eax, 5
              0x8b, 0x07, 0xe9, 0xf1, 0x0f, 0x00, 0x00});      // mov eax, [rdi]; jmp 1000H
  guest.code({0x9c, 0x5e, 0x48, 0x09, 0xf3, 0x48, 0x21, 0xf2,  // pushfq; pop rsi; or rbx, rsi; and rdx, rsi
              0xff, 0xc9, 0x0f, 0x85, 0xf0, 0xef, 0xff, 0xff,  // dec ecx; jnz again
              0xf4},
             kNextPage);
  guest.state().gpr[kRdx] = ~u64{0};
  guest.state().gpr[kRdi] = Guest64::kData;
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  constexpr u64 kBelow = kFlagCf | kFlagAf | kFlagSf;
  EXPECT_EQ(gpr(kRbx) & kFlagsArithmetic, kBelow);
  EXPECT_EQ(gpr(kRdx) & kFlagsArithmetic, kBelow);
}

TEST_F(FarLinksTest, rewritten_code_is_seen) {
  guest.code({0x88, 0x0c, 0x25, 0x01, 0x10, 0x01, 0x00,  // again: mov [1001H + code], cl
              0xe8, 0xf4, 0x0f, 0x00, 0x00,              // call 1000H
              0x48, 0x01, 0xc2,                          // add rdx, rax
              0xff, 0xc9, 0x75, 0xed, 0xf4});            // dec ecx; jnz again; hlt
  guest.code({0xb8, 0, 0, 0, 0, 0xc3}, kNextPage);       // mov eax, ...; ret
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(gpr(kRdx), kRounds * (kRounds + 1) / 2);
}

TEST_F(FarLinksTest, another_address_space_has_another_page_there) {
  constexpr u64 kOtherTables = 0x5000;
  for (u64 at = 0; at < 0x3000; at += 8)
    guest.write<u64>(kOtherTables + at, guest.read<u64>(Guest64::kTables + at));
  guest.write<u64>(kOtherTables, (kOtherTables + 0x1000) | 7);
  guest.write<u64>(kOtherTables + 0x1000, (kOtherTables + 0x2000) | 7);
  guest.write<u64>(kEntryOfThere - Guest64::kTables + kOtherTables, kElsewhere | 0x87);
  guest.code({0xe8, 0xfb, 0xff, 0x5e, 0x00,                      // again: call there
              0x0f, 0x20, 0xd8, 0x4c, 0x31, 0xc0,                // mov rax, cr3; xor rax, r8
              0x0f, 0x22, 0xd8, 0xff, 0xc9, 0x75, 0xee, 0xf4});  // mov cr3, rax; dec ecx; jnz again; hlt
  guest.code({0xff, 0xc3, 0xc3}, kThere);                        // inc ebx; ret
  guest.code({0xff, 0xc2, 0xc3}, kElsewhere);                    // inc edx; ret
  guest.state().gpr[kR8] = Guest64::kTables ^ kOtherTables;
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(gpr(kRbx), kRounds / 2);
  EXPECT_EQ(gpr(kRdx), kRounds / 2);
}

TEST_F(FarLinksTest, a_page_mapped_anew_is_another_target) {
  guest.code({0xe8, 0xfb, 0xff, 0x5e, 0x00,                    // again: call there
              0x4c, 0x31, 0x04, 0x25, 0x18, 0x30, 0x00, 0x00,  // xor [entry of there], r8
              0x0f, 0x01, 0x3c, 0x25, 0x00, 0x00, 0x60, 0x00,  // invlpg [there]
              0xff, 0xc9, 0x75, 0xe7, 0xf4});                  // dec ecx; jnz again; hlt
  static_assert(kEntryOfThere == 0x3018);
  guest.code({0xff, 0xc3, 0xc3}, kThere);      // inc ebx; ret
  guest.code({0xff, 0xc2, 0xc3}, kElsewhere);  // inc edx; ret
  guest.state().gpr[kR8] = kThere ^ kElsewhere;
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(gpr(kRbx), kRounds / 2);
  EXPECT_EQ(gpr(kRdx), kRounds / 2);
}

TEST_F(FarLinksTest, a_loop_over_two_pages_is_interrupted) {
  guest.code({0xe9, 0xfb, 0x0f, 0x00, 0x00});             // jmp 1000H
  guest.code({0xe9, 0xfb, 0xef, 0xff, 0xff}, kNextPage);  // jmp back
  std::thread kicks([&] {
    usleep(20000);
    guest.cpu->request(kAttentionKick);
  });
  EXPECT_EQ(guest.run().reason, Exit::Reason::kInterrupted);
  kicks.join();
}

// Places are each vCPU's own: the second one's is empty when it comes to the jump that the first one opened.
TEST_F(FarLinksTest, another_vcpu_follows_what_the_first_has_opened) {
  guest.code({0xe8, 0xfb, 0x0f, 0x00, 0x00, 0xff, 0xc9, 0x75, 0xf7, 0xf4});  // call; dec ecx; jnz; hlt
  guest.code({0xff, 0xc3, 0xc3}, kNextPage);                                 // inc ebx; ret
  const CpuState before = guest.state();
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  Cpu other(*guest.machine, guest.platform);
  other.model().set_entries(supported_cpuid());
  other.state() = before;
  other.state().rip = Guest64::kCode;
  other.state_replaced();
  EXPECT_EQ(other.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(other.state().gpr[kRbx], kRounds);
  EXPECT_EQ(other.context().far_links.filled(), guest.cpu->context().far_links.filled());
}

// Code that runs seldom is not worth a place: it goes by the jump cache.
TEST_F(FarLinksTest, few_jumps_fill_no_place) {
  guest.state().gpr[kRcx] = kFarMissesAside / 4;
  guest.code({0xe8, 0xfb, 0x0f, 0x00, 0x00, 0xff, 0xc9, 0x75, 0xf7, 0xf4});  // call; dec ecx; jnz; hlt
  guest.code({0xff, 0xc3, 0xc3}, kNextPage);                                 // inc ebx; ret
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(gpr(kRbx), kFarMissesAside / 4);
  EXPECT_EQ(guest.cpu->context().far_links.filled(), 0u);
}

// --- The places themselves ---

struct FarLinkPlaces : ::testing::Test {
  FarLinkPlaces() {
    links->begin({&bytes[0], &bytes[1]});
    links->prepare(0, 16);
  }
  u64 empty(u32 number) const { return reinterpret_cast<u64>(&bytes[number & 1]); }

  static constexpr u8 bytes[2] = {};
  std::unique_ptr<FarLinks> links = std::make_unique<FarLinks>();
};

TEST_F(FarLinkPlaces, global_ones_stay_where_local_ones_are_forgotten) {
  links->fill({.pair = 2, .code_page = 7}, 0x1000, false);
  links->fill({.flags_in_image = true, .pair = 2}, 0x2000, true);
  EXPECT_TRUE(links->leads_from(7));
  links->forget_local();
  EXPECT_FALSE(links->leads_from(7));
  EXPECT_EQ(links->target[4], empty(4));
  EXPECT_EQ(links->target[5], 0x2000u);
  links->forget_all();
  EXPECT_EQ(links->target[5], empty(5));
  EXPECT_EQ(links->filled(), 0u);
}

TEST_F(FarLinkPlaces, those_of_a_dead_block_can_be_filled_again) {
  u8 code[32];
  Block block;
  block.code = code;
  block.host_entry = 16;
  const auto image = reinterpret_cast<u64>(code);
  links->fill({.pair = 1}, image + 16, false);
  links->fill({.flags_in_image = true, .pair = 1}, image, false);
  links->fill({.flags_in_image = true, .pair = 4}, 0x3000, false);
  links->forget_to(block);
  EXPECT_EQ(links->target[2], empty(2));
  EXPECT_EQ(links->target[3], empty(3));
  EXPECT_EQ(links->target[9], 0x3000u);
  EXPECT_EQ(links->filled(), 1u);
}

// A number is of a place that leads somewhere, in what was there before it was handed out and in what came
// later.
TEST_F(FarLinkPlaces, are_empty_when_their_numbers_are_handed_out) {
  FarLinkNumbers numbers;
  auto later = std::make_unique<FarLinks>();
  later->begin({&bytes[0], &bytes[1]});
  numbers.add(*links);
  u32 number = 0;
  for (u32 i = 0; i < 3000; ++i) {
    EXPECT_EQ(links->target[number = numbers.next(false)], empty(1));
  }
  EXPECT_EQ(later->target[number], 0u);
  numbers.add(*later);
  EXPECT_EQ(later->target[number], empty(1));
  EXPECT_EQ(later->target[numbers.next(true)], empty(0));
  numbers.remove(*links);
  while (number + 2 < kFarLinks) number = numbers.next(false);
  EXPECT_EQ(later->target[number], empty(1));
  EXPECT_EQ(links->target[number], 0u);
}

// The entry with flags in the host's register comes first.
TEST_F(FarLinkPlaces, both_entries_of_a_dead_block_are_forgotten) {
  u8 code[32];
  Block block;
  block.code = code;
  block.host_entry = -24;
  const auto host = reinterpret_cast<u64>(code);
  links->fill({.pair = 1}, host, true);
  links->fill({.flags_in_image = true, .pair = 1}, host + 24, false);
  links->forget_to(block);
  EXPECT_EQ(links->target[2], empty(2));
  EXPECT_EQ(links->target[3], empty(3));
}

TEST(FarLinkNumbers, of_both_kinds_come_to_an_end_and_begin_again) {
  FarLinkNumbers numbers;
  EXPECT_EQ(numbers.next(true) % 2, 0u);
  EXPECT_EQ(numbers.next(false) % 2, 1u);
  for (u32 i = 1; i < kFarLinks / 2; ++i) EXPECT_LT(numbers.next(true), kFarLinks);
  EXPECT_EQ(numbers.next(true), kNoFarLink);
  EXPECT_LT(numbers.next(false), kFarLinks);
  numbers.take_back();
  EXPECT_EQ(numbers.next(true), 0u);
}

}  // namespace
}  // namespace anykvm::x86
