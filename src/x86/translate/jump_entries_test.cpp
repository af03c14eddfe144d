#include "x86/translate/context.h"

#include <gmock/gmock.h>

#include <memory>
#include <vector>

namespace anykvm::x86 {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

class JumpEntriesTest : public testing::Test {
 protected:
  std::vector<unsigned> page(u64 address) {
    std::vector<unsigned> taken;
    m_entries->take_page(Gva(address), [&](unsigned i) { taken.push_back(i); });
    return taken;
  }
  std::vector<unsigned> local() {
    std::vector<unsigned> taken;
    m_entries->take_local([&](unsigned i) { taken.push_back(i); });
    return taken;
  }
  std::vector<unsigned> all() {
    std::vector<unsigned> taken;
    m_entries->take_all([&](unsigned i) { taken.push_back(i); });
    return taken;
  }

  std::vector<unsigned> compared() {
    std::vector<unsigned> taken;
    m_entries->take_compared([&](unsigned i) { taken.push_back(i); });
    return taken;
  }

  std::unique_ptr<JumpEntries> m_entries = std::make_unique<JumpEntries>();
};

TEST_F(JumpEntriesTest, local_entries_are_taken_once_and_global_ones_stay) {
  m_entries->add(5, {0x1000, false});
  m_entries->add(70, {0xffffffff81000000, true});
  EXPECT_THAT(local(), ElementsAre(5));
  EXPECT_THAT(local(), IsEmpty());
  EXPECT_THAT(all(), ElementsAre(70));
}

TEST_F(JumpEntriesTest, entry_that_became_global_is_no_longer_local) {
  m_entries->add(5, {0x1000, false});
  m_entries->add(5, {0x2000, true});
  EXPECT_THAT(local(), IsEmpty());
}

TEST_F(JumpEntriesTest, page_takes_the_blocks_that_lie_in_it) {
  m_entries->add(1, {0x1010, false});
  m_entries->add(2, {0x2010, false});
  EXPECT_THAT(page(0x1000), ElementsAre(1));
  EXPECT_THAT(page(0x3000), IsEmpty());
}

TEST_F(JumpEntriesTest, block_on_two_pages_goes_with_either_and_is_never_global) {
  m_entries->add(1, {0x1ffe, true, true});
  EXPECT_THAT(page(0x2000), ElementsAre(1));
  m_entries->add(1, {0x1ffe, true, true});
  EXPECT_THAT(page(0x1000), ElementsAre(1));
  m_entries->add(1, {0x1ffe, true, true});
  EXPECT_THAT(local(), ElementsAre(1));
}

TEST_F(JumpEntriesTest, global_page_is_still_known_after_a_local_one_of_the_same_number_went) {
  constexpr u64 kKernel = 0xffffffff81001000,
                kUser = 0x0000000081001000;  // page numbers equal modulo 65536
  m_entries->add(1, {kKernel, true});
  m_entries->add(2, {kUser, false});
  EXPECT_THAT(local(), ElementsAre(2));
  EXPECT_THAT(page(kKernel), testing::Contains(1));
}

TEST_F(JumpEntriesTest, entries_of_compared_pages_are_taken_alone) {
  m_entries->add(1, {.start = 0x1000, .global = false, .compared = true});
  m_entries->add(2, {.start = 0x2000, .global = true, .compared = true});
  m_entries->add(3, {.start = 0x3000, .global = true});
  EXPECT_THAT(compared(), ElementsAre(1, 2));
  EXPECT_THAT(compared(), IsEmpty());
  m_entries->add(1, {.start = 0x1000, .global = false, .compared = true});
  m_entries->add(1, {.start = 0x3010, .global = false});
  EXPECT_THAT(compared(), IsEmpty());
}

// --- Two places a target ---

class JumpPlaces : public testing::Test {
 protected:
  static constexpr u64 kStamp = u64{3} << 57;
  static constexpr u64 kFirst = 0x401000, kSecond = kFirst + (u64{kFirstJumps} << 13);
  static_assert(jump_cache_index(kFirst, false) == jump_cache_index(kSecond, false));
  static_assert(second_jump_index(kFirst, false) != second_jump_index(kSecond, false));

  void add(u64 rip, bool global = false) { m_context->add_jump(rip, false, kStamp, rip + 7, {rip, global}); }
  bool at(unsigned index, u64 rip) const {
    const JumpEntry& entry = m_context->jumps[index];
    return static_cast<u64>(entry.tag) + rip + kStamp == 0;
  }
  bool found(u64 rip) const {
    return at(jump_cache_index(rip, false), rip) || at(second_jump_index(rip, false), rip);
  }

  std::unique_ptr<Context> m_context = std::make_unique<Context>();
};

TEST_F(JumpPlaces, are_nobodys_at_first) {
  for (u64 rip = 0; rip < u64{1} << 16; rip += 2) ASSERT_FALSE(found(rip)) << rip;
  // The index of what a forgotten entry names is another.
  for (u64 mode = 1; mode < 128; ++mode) ASSERT_FALSE(found(-(mode << 57)));
}

TEST_F(JumpPlaces, two_of_one_index_are_both_found) {
  add(kFirst);
  add(kSecond);
  EXPECT_TRUE(at(jump_cache_index(kSecond, false), kSecond));
  EXPECT_TRUE(at(second_jump_index(kFirst, false), kFirst));
  EXPECT_EQ(m_context->jumps[second_jump_index(kFirst, false)].target, kFirst + 7);
}

TEST_F(JumpPlaces, flushes_reach_both) {
  add(kFirst);
  add(kSecond);
  m_context->flush_jumps_to_page(Gva(kFirst));
  EXPECT_FALSE(found(kFirst));
  add(kFirst);
  add(kSecond);
  m_context->flush_non_global();
  EXPECT_FALSE(found(kFirst));
  EXPECT_FALSE(found(kSecond));
}

TEST_F(JumpPlaces, global_ones_stay_global_at_the_second) {
  add(kFirst, true);
  add(kSecond);
  m_context->flush_non_global();
  EXPECT_TRUE(found(kFirst));
  m_context->flush_jump_cache();
  EXPECT_FALSE(found(kFirst));
}

TEST_F(JumpPlaces, compared_ones_stay_such_at_the_second) {
  m_context->add_jump(kFirst, false, kStamp, kFirst + 7, {.start = kFirst, .global = true, .compared = true});
  add(kSecond, true);
  m_context->flush_jumps_to_compared_pages();
  EXPECT_FALSE(found(kFirst));
  EXPECT_TRUE(found(kSecond));
}

TEST_F(JumpPlaces, what_is_forgotten_goes_to_no_second) {
  add(kFirst);
  m_context->forget_jump_to(kFirst);
  add(kSecond);
  EXPECT_FALSE(found(kFirst));
}

}  // namespace
}  // namespace anykvm::x86
