#include "base/guarded_memory.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <array>
#include <cstring>

namespace anykvm {
namespace {

void land(int, siginfo_t*, void* raw) {
  auto& rip = static_cast<ucontext_t*>(raw)->uc_mcontext.gregs[REG_RIP];
  const u8* landing = guarded_landing(reinterpret_cast<const u8*>(rip));
  if (!landing) abort();
  rip = reinterpret_cast<greg_t>(landing);
}

// Two pages, of which the second is not there.
class GuardedMemory : public testing::Test {
 protected:
  GuardedMemory() {
    struct sigaction action {};
    action.sa_sigaction = land;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGSEGV, &action, &m_before);
    m_base = static_cast<u8*>(
        mmap(nullptr, 2 * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    munmap(m_base + kPageSize, kPageSize);
  }
  ~GuardedMemory() override {
    munmap(m_base, kPageSize);
    sigaction(SIGSEGV, &m_before, nullptr);
  }
  u8* end() const { return m_base + kPageSize; }

  struct sigaction m_before {};
  u8* m_base;
};

TEST_F(GuardedMemory, copies_of_any_size_arrive) {
  std::array<u8, 64> from;
  for (unsigned i = 0; i < from.size(); ++i) from[i] = static_cast<u8>(i + 1);
  for (std::size_t size = 0; size <= from.size(); ++size) {
    std::memset(m_base, 0, 80);
    EXPECT_TRUE(guarded_copy(m_base, from.data(), size));
    EXPECT_EQ(std::memcmp(m_base, from.data(), size), 0) << size;
    EXPECT_EQ(m_base[size], 0) << size;
  }
}

TEST_F(GuardedMemory, copies_from_and_to_nowhere_fail) {
  std::array<u8, 64> ours{};
  for (std::size_t size = 1; size <= ours.size(); ++size) {
    EXPECT_FALSE(guarded_copy(ours.data(), end() - size + 1, size)) << size;
    EXPECT_FALSE(guarded_copy(end() - size + 1, ours.data(), size)) << size;
    EXPECT_TRUE(guarded_copy(ours.data(), end() - size, size)) << size;
  }
}

TEST_F(GuardedMemory, comparison) {
  std::array<u8, 64> ours{};
  EXPECT_EQ(guarded_equal(m_base, ours.data(), 64), Guarded::kYes);
  ours[63] = 1;
  EXPECT_EQ(guarded_equal(m_base, ours.data(), 64), Guarded::kNo);
  EXPECT_EQ(guarded_equal(m_base, ours.data(), 0), Guarded::kYes);
  EXPECT_EQ(guarded_equal(end() - 8, ours.data(), 64), Guarded::kFault);
}

TEST_F(GuardedMemory, compare_exchange_of_each_size) {
  for (unsigned size : {1u, 2u, 4u, 8u}) {
    const u64 ones = size == 8 ? ~u64{0} : (u64{1} << size * 8) - 1;
    std::memset(m_base, 0xff, 16);
    u64 expected = 1;
    EXPECT_EQ(guarded_compare_exchange(m_base, &expected, 2, size), Guarded::kNo);
    EXPECT_EQ(expected, ones);
    EXPECT_EQ(guarded_compare_exchange(m_base, &expected, 2, size), Guarded::kYes);
    EXPECT_EQ(m_base[0], 2);
    EXPECT_EQ(m_base[size], 0xff);
    EXPECT_EQ(guarded_compare_exchange(end(), &expected, 2, size), Guarded::kFault);
    EXPECT_EQ(guarded_update(m_base, size, [](u64 value) { return value + 1; }), 2u);
    EXPECT_EQ(guarded_update(end(), size, [](u64 value) { return value; }), std::nullopt);
  }
}

TEST_F(GuardedMemory, string_operations_of_each_size) {
  for (unsigned size : {1u, 2u, 4u, 8u}) {
    EXPECT_TRUE(anykvm_guarded_stos(m_base, 0x0807060504030201, 3, size));
    EXPECT_EQ(m_base[3 * size - 1], size);
    EXPECT_TRUE(anykvm_guarded_movs(m_base + 64, m_base, 3, size));
    EXPECT_EQ(std::memcmp(m_base + 64, m_base, 3 * size), 0);
    EXPECT_FALSE(anykvm_guarded_stos(end() - size, 0, 2, size));
    EXPECT_FALSE(anykvm_guarded_movs(end() - size, m_base, 2, size));
    EXPECT_FALSE(anykvm_guarded_movs(m_base, end() - size, 2, size));
  }
}

}  // namespace
}  // namespace anykvm
