#include "x86/translate/jump_entries.h"

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

  std::unique_ptr<JumpEntries> m_entries = std::make_unique<JumpEntries>();
};

TEST_F(JumpEntriesTest, local_entries_are_taken_once_and_global_ones_stay) {
  m_entries->add(5, 0x1000, false, false);
  m_entries->add(70, 0xffffffff81000000, true, false);
  EXPECT_THAT(local(), ElementsAre(5));
  EXPECT_THAT(local(), IsEmpty());
  EXPECT_THAT(all(), ElementsAre(70));
}

TEST_F(JumpEntriesTest, entry_that_became_global_is_no_longer_local) {
  m_entries->add(5, 0x1000, false, false);
  m_entries->add(5, 0x2000, true, false);
  EXPECT_THAT(local(), IsEmpty());
}

TEST_F(JumpEntriesTest, page_takes_the_blocks_that_lie_in_it) {
  m_entries->add(1, 0x1010, false, false);
  m_entries->add(2, 0x2010, false, false);
  EXPECT_THAT(page(0x1000), ElementsAre(1));
  EXPECT_THAT(page(0x3000), IsEmpty());
}

TEST_F(JumpEntriesTest, block_on_two_pages_goes_with_either_and_is_never_global) {
  m_entries->add(1, 0x1ffe, true, true);
  EXPECT_THAT(page(0x2000), ElementsAre(1));
  m_entries->add(1, 0x1ffe, true, true);
  EXPECT_THAT(page(0x1000), ElementsAre(1));
  m_entries->add(1, 0x1ffe, true, true);
  EXPECT_THAT(local(), ElementsAre(1));
}

TEST_F(JumpEntriesTest, global_page_is_still_known_after_a_local_one_of_the_same_number_went) {
  constexpr u64 kKernel = 0xffffffff81001000, kUser = 0x0000000001001000;  // page numbers equal modulo 4096
  m_entries->add(1, kKernel, true, false);
  m_entries->add(2, kUser, false, false);
  EXPECT_THAT(local(), ElementsAre(2));
  EXPECT_THAT(page(kKernel), testing::Contains(1));
}

}  // namespace
}  // namespace anykvm::x86
