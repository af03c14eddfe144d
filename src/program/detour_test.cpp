#include "program/detour.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>

namespace anykvm::program {
namespace {

using testing::ElementsAre;

constexpr ExtraFeature kExtra{7, 30};

std::optional<Detour> detour_of(std::initializer_list<u8> code, unsigned cpuid_at) {
  const std::vector<u8> bytes(code);
  return make_detour({bytes.data(), bytes.data() + bytes.size()}, bytes.data() + cpuid_at,
                     bytes.data() + 0x1000, kExtra);
}

TEST(Detour, TakesAlongWhatIsBehindIt) {
  const auto detour = detour_of({0x0f, 0xa2, 0x89, 0x06, 0x89, 0x1f, 0xc3}, 0);  // cpuid; mov; mov; ret
  ASSERT_TRUE(detour);
  EXPECT_EQ(detour->size, 6);
  EXPECT_LE(detour->code.size(), kMaxDetourBytes);
  const std::vector<u8> jump = way_into(*detour, detour->from + 0x1234);
  EXPECT_THAT(jump, ElementsAre(0xe9, 0x2f, 0x12, 0, 0, 0xcc));
}

TEST(Detour, LeavesBytesAloneThatAreNoCpuid) {
  EXPECT_FALSE(detour_of({0xb8, 0x0f, 0xa2, 0x00, 0x00, 0x90, 0x90, 0xc3}, 1));  // in mov $imm32, %eax
  EXPECT_FALSE(detour_of({0x0f, 0xa2, 0x06, 0x90, 0x90, 0x90}, 0));              // behind it: no code
  EXPECT_FALSE(detour_of({0xf3, 0x0f, 0xa2, 0x90, 0x90, 0x90}, 0));              // with a prefix
}

TEST(Detour, LeavesAloneWhatCannotMove) {
  EXPECT_FALSE(detour_of({0x0f, 0xa2, 0xe8, 0, 0, 0, 0, 0xc3}, 0)) << "call";
  EXPECT_FALSE(detour_of({0x0f, 0xa2, 0xc3, 0x90, 0x90, 0x90}, 0)) << "what is behind a RET is not ours";
  EXPECT_FALSE(detour_of({0x0f, 0xa2, 0xe2, 0xfc, 0x90, 0xc3}, 0)) << "loop";
  EXPECT_FALSE(detour_of({0x0f, 0xa2, 0x90, 0x90}, 0)) << "end of the function";
  EXPECT_FALSE(detour_of({0x0f, 0xa2, 0x90, 0x90, 0x90, 0xeb, 0xfc}, 0)) << "a jump goes into it";
  EXPECT_TRUE(detour_of({0x0f, 0xa2, 0x90, 0x90, 0x90, 0xeb, 0xf9}, 0)) << "a jump to the CPUID";
}

// Machine code in a page of its own, with a page for detours beside it.
class Running : public testing::Test {
 protected:
  Running()
      : m_page(static_cast<u8*>(
            mmap(nullptr, 8192, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {}
  ~Running() override { munmap(m_page, 8192); }

  // Runs `code` with `argument` in RDI and RSI, before and after its CPUID was led away.
  struct Results {
    u64 before, after;
  };
  Results run(const std::vector<u8>& code, unsigned cpuid_at, ExtraFeature extra, u64 argument) {
    memcpy(m_page, code.data(), code.size());
    const auto function = reinterpret_cast<u64 (*)(u64, u64)>(m_page);
    const u64 before = function(argument, argument);
    u8* place = m_page + 4096;
    const auto detour = make_detour({m_page, m_page + code.size()}, m_page + cpuid_at, place, extra);
    EXPECT_TRUE(detour);
    if (!detour) return {};
    memcpy(place, detour->code.data(), detour->code.size());
    const auto way = way_into(*detour, place);
    memcpy(m_page + cpuid_at, way.data(), way.size());
    return {before, function(argument, argument)};
  }
  u8* m_page;
};

constexpr ExtraFeature kBit3OfLeaf0{0, 3};

TEST_F(Running, LeafOfTheFeatureHasTheBitMore) {
  // push %rbx; mov %edi, %eax; xor %ecx, %ecx; cpuid; mov %ecx, %eax; pop %rbx; ret
  const std::vector<u8> code = {0x53, 0x89, 0xf8, 0x31, 0xc9, 0x0f, 0xa2, 0x89, 0xc8, 0x5b, 0xc3};
  const auto with = run(code, 5, {0, 7}, 0);  // letters of the vendor's name have no bit 7
  EXPECT_EQ(with.after, with.before | 0x80);
  EXPECT_NE(with.after, with.before);
  const auto without = run(code, 5, {1, 7}, 0);
  EXPECT_EQ(without.after, without.before);
}

TEST_F(Running, FlagsAndRedZoneStay) {
  // push %rbx; mov %rdi, -8(%rsp); xor %eax, %eax; stc; cpuid; setc %al; movzx %al, %eax;
  // add -8(%rsp), %rax; pop %rbx; ret
  const auto result = run({0x53, 0x48, 0x89, 0x7c, 0x24, 0xf8, 0x31, 0xc0, 0xf9, 0x0f, 0xa2, 0x0f,
                           0x92, 0xc0, 0x0f, 0xb6, 0xc0, 0x48, 0x03, 0x44, 0x24, 0xf8, 0x5b, 0xc3},
                          9, kBit3OfLeaf0, 41);
  EXPECT_EQ(result.before, 42u);
  EXPECT_EQ(result.after, 42u);
}

TEST_F(Running, MovedJumpsAndAddressesKeepTheirTargets) {
  // push %rbx; xor %eax, %eax; cpuid; cmp %edi, %eax; jb 1f; mov 3f(%rip), %eax; jmp 2f; 1: mov $7, %eax; 2:
  // pop; ret; 3: .long 9
  const std::vector<u8> code = {0x53, 0x31, 0xc0, 0x0f, 0xa2, 0x39, 0xf8, 0x72, 0x08, 0x8b,
                                0x05, 0x09, 0,    0,    0,    0xeb, 0x05, 0xb8, 7,    0,
                                0,    0,    0x5b, 0xc3, 9,    0,    0,    0,    0x90};
  const auto low = run(code, 3, kBit3OfLeaf0, 0);
  EXPECT_EQ(low.before, 9u);
  EXPECT_EQ(low.after, 9u);
  const auto high = run(code, 3, kBit3OfLeaf0, 0xffff'ffff);
  EXPECT_EQ(high.before, 7u);
  EXPECT_EQ(high.after, 7u);
  // cpuid; mov 1f(%rip), %eax behind it: the address moves with the instruction.
  const auto address = run({0x53, 0x31, 0xc0, 0x0f, 0xa2, 0x8b, 0x05, 0x02, 0,    0,   0,
                            0x5b, 0xc3, 5,    0,    0,    0,    0x90, 0x90, 0x90, 0x90},
                           3, kBit3OfLeaf0, 0);
  EXPECT_EQ(address.before, 5u);
  EXPECT_EQ(address.after, 5u);
}

}  // namespace
}  // namespace anykvm::program
