#include "x86/mmu/client_writes.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "x86/translate/code_cache.h"

namespace anykvm::x86 {
namespace {

using Level = ClientWrites::Level;

Level level_with(const char* setting) {
  setenv("ANYKVM_CLIENT_WRITES", setting, 1);
  auto code = CodeCache::create();
  const Level level = ClientWrites::create(*code.value())->level();
  unsetenv("ANYKVM_CLIENT_WRITES");
  return level;
}

bool host_has(int flags, u64 feature) {
  Fd fd(static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | flags)));
  uffdio_api api{};
  api.api = UFFD_API;
  return fd.valid() && ioctl(fd.get(), UFFDIO_API, &api) == 0 && (api.features & feature);
}

TEST(ClientWritesLevel, verify_is_always_to_be_had) { EXPECT_EQ(level_with("verify"), Level::kVerify); }

TEST(ClientWritesLevel, watching_is_the_default) {
  if (!host_has(0, UFFD_FEATURE_WP_HUGETLBFS_SHMEM)) GTEST_SKIP() << "userfaultfd(2) is not allowed here";
  EXPECT_EQ(level_with(""), Level::kWatch);
  EXPECT_EQ(level_with("watch"), Level::kWatch);
}

}  // namespace
}  // namespace anykvm::x86
