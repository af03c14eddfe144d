#include "base/client_memory.h"

#include <errno.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

namespace anykvm {
namespace {

TEST(ClientPtr, good_address_reads_and_writes) {
  u64 value = 5;
  ClientPtr<u64> pointer(reinterpret_cast<u64>(&value));
  EXPECT_EQ(pointer.read().value(), 5u);
  ASSERT_TRUE(pointer.write(6).ok());
  EXPECT_EQ(value, 6u);
}

TEST(ClientPtr, unmapped_address_is_efault) {
  EXPECT_EQ(ClientPtr<u64>(8).read().error().code, EFAULT);
  EXPECT_EQ(ClientPtr<u64>(8).write(1).error().code, EFAULT);
  EXPECT_EQ(ClientPtr<u64>(~u64{0} - 2).read().error().code, EFAULT);
}

TEST(ClientPtr, read_only_page_is_readable_and_not_writable) {
  void* page = mmap(nullptr, kPageSize, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(page, MAP_FAILED);
  ClientPtr<u64> pointer(reinterpret_cast<u64>(page));
  EXPECT_TRUE(pointer.read().ok());
  EXPECT_EQ(pointer.write(1).error().code, EFAULT);
  munmap(page, kPageSize);
}

TEST(ClientPtr, object_that_runs_into_unmapped_page_is_efault) {
  auto* pages = static_cast<u8*>(
      mmap(nullptr, 2 * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(pages, MAP_FAILED);
  munmap(pages + kPageSize, kPageSize);
  ClientPtr<u64> pointer(reinterpret_cast<u64>(pages + kPageSize - 4));
  EXPECT_EQ(pointer.read().error().code, EFAULT);
  munmap(pages, kPageSize);
}

}  // namespace
}  // namespace anykvm
