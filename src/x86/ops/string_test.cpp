#include "x86/ops/string_common.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <string>

#include "x86/translate/decode.h"
#include "x86/translate/guest_fixture.h"

namespace anykvm::x86 {
namespace {

constexpr u64 kArithmetic = kFlagsArithmetic;
constexpr u64 kBufferBytes = 4 * kPageSize;

struct Registers {
  u64 rax = 0, rcx = 0, rsi = 0, rdi = 0, flags = 0;
};

// Executes one string instruction on the host.
class HostCode {
 public:
  HostCode(const std::vector<u8>& instruction, bool backward) {
    std::vector<u8> code;
    if (backward) code.push_back(0xfd);  // STD
    code.insert(code.end(), instruction.begin(), instruction.end());
    code.insert(code.end(), {0x9c, 0x5a, 0xfc, 0xc3});  // PUSHFQ, POP RDX, CLD, RET
    m_code = mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    std::memcpy(m_code, code.data(), code.size());
    mprotect(m_code, kPageSize, PROT_READ | PROT_EXEC);
  }
  ~HostCode() { munmap(m_code, kPageSize); }
  HostCode(const HostCode&) = delete;
  HostCode& operator=(const HostCode&) = delete;

  void run(Registers* r) const {
    asm volatile("lea -128(%%rsp), %%rsp\n\txor %%edx, %%edx\n\tcall *%[code]\n\tlea 128(%%rsp), %%rsp"
                 : "+a"(r->rax), "+c"(r->rcx), "+S"(r->rsi), "+D"(r->rdi), "=&d"(r->flags)
                 : [code] "r"(m_code)
                 : "memory", "cc");
  }

 private:
  void* m_code;
};

struct StringCase {
  const char* name;
  std::vector<u8> code;
  Op op;
  u64 count, source, target;  // offsets in the buffer
  bool backward = false;
  u64 rax = 0x1122334455667788;
};

void PrintTo(const StringCase& c, std::ostream* out) { *out << c.name; }

class StringOracle : public testing::TestWithParam<StringCase> {
 protected:
  static void SetUpTestSuite() { s_guest = new Guest64; }
  static void TearDownTestSuite() {
    delete s_guest;
    s_guest = nullptr;
  }

  // Two pages that repeat with one difference near their end, so that comparisons run long.
  void SetUp() override {
    for (u64 i = 0; i < kBufferBytes; ++i) m_host[i] = static_cast<u8>(i % (2 * kPageSize) * 7 + i / 500);
    std::memcpy(&m_host[2 * kPageSize], &m_host[0], 2 * kPageSize);
    m_host[3 * kPageSize + 77] ^= 1;
    std::memset(&m_host[100], 0x88, 300);
    std::memcpy(s_guest->ram + Guest64::kData, m_host.data(), kBufferBytes);
  }

  Registers run_on_host() {
    const StringCase& c = GetParam();
    Registers r{c.rax, c.count, address(c.source), address(c.target), 0};
    HostCode(c.code, c.backward).run(&r);
    r.rsi -= address(0), r.rdi -= address(0), r.flags &= kArithmetic;
    return r;
  }

  // The helper, called again as long as it puts RIP back.
  Registers run_helper() {
    const StringCase& c = GetParam();
    Decoded decoded;
    EXPECT_EQ(decode(c.code.data(), static_cast<unsigned>(c.code.size()), 64, 8, 0, &decoded),
              DecodeStatus::kOk);
    CpuState& state = s_guest->state();
    state.gpr[kRax] = c.rax, state.gpr[kRcx] = c.count;
    state.gpr[kRsi] = Guest64::kData + c.source, state.gpr[kRdi] = Guest64::kData + c.target;
    state.rflags =
        kFlagFixed1 | (c.backward ? u64{kFlagDf} : 0) | kFlagZf | kFlagPf;  // XOR on the host set these
    constexpr u64 kStart = 0x1000;
    state.rip = kStart;
    while (state.rip == kStart) {
      state.rip += decoded.insn.length;
      EXPECT_TRUE(c.op(*s_guest->cpu, decoded.insn).ok());
    }
    return {state.gpr[kRax], state.gpr[kRcx], state.gpr[kRsi] - Guest64::kData,
            state.gpr[kRdi] - Guest64::kData, state.rflags & kArithmetic};
  }

  u64 address(u64 offset) const { return reinterpret_cast<u64>(&m_host[0]) + offset; }

  alignas(kPageSize) std::array<u8, kBufferBytes> m_host{};
  inline static Guest64* s_guest = nullptr;
};

using Bytes = std::vector<u8>;
const Bytes kRepMovsb{0xf3, 0xa4}, kRepMovsw{0x66, 0xf3, 0xa5}, kRepMovsd{0xf3, 0xa5},
    kRepMovsq{0xf3, 0x48, 0xa5};
const Bytes kRepStosb{0xf3, 0xaa}, kRepStosw{0x66, 0xf3, 0xab}, kRepStosd{0xf3, 0xab},
    kRepStosq{0xf3, 0x48, 0xab};
const Bytes kRepLodsb{0xf3, 0xac}, kRepLodsd{0xf3, 0xad}, kRepLodsq{0xf3, 0x48, 0xad};
const Bytes kRepneScasb{0xf2, 0xae}, kRepeScasb{0xf3, 0xae}, kRepneScasw{0x66, 0xf2, 0xaf};
const Bytes kRepeScasq{0xf3, 0x48, 0xaf};
const Bytes kRepeCmpsb{0xf3, 0xa6}, kRepneCmpsb{0xf2, 0xa6}, kRepeCmpsd{0xf3, 0xa7},
    kRepeCmpsq{0xf3, 0x48, 0xa7};

INSTANTIATE_TEST_SUITE_P(
    Movs, StringOracle,
    testing::Values(StringCase{"once", {0xa4}, op_movs, 9, 0, 5000},
                    StringCase{"once_q", {0x48, 0xa5}, op_movs, 9, 4, 9000},
                    StringCase{"none", kRepMovsb, op_movs, 0, 0, 5000},
                    StringCase{"bytes", kRepMovsb, op_movs, 5000, 3, 8191},
                    StringCase{"words", kRepMovsw, op_movs, 2500, 3, 8192},
                    StringCase{"doublewords_unaligned", kRepMovsd, op_movs, 1500, 1, 8195},
                    StringCase{"quadwords", kRepMovsq, op_movs, 1024, 0, 8192},
                    StringCase{"quadwords_across_pages", kRepMovsq, op_movs, 900, 5, 8201},
                    StringCase{"overlap_up_by_1", kRepMovsb, op_movs, 6000, 0, 1},
                    StringCase{"overlap_up_by_3_of_8", kRepMovsq, op_movs, 600, 0, 3},
                    StringCase{"overlap_up_by_20", kRepMovsq, op_movs, 600, 0, 20},
                    StringCase{"overlap_down", kRepMovsb, op_movs, 6000, 7, 0},
                    StringCase{"backward", kRepMovsb, op_movs, 5000, 6000, 12000, true},
                    StringCase{"backward_overlap", kRepMovsd, op_movs, 1000, 6000, 6006, true},
                    StringCase{"backward_overlap_down_by_1", kRepMovsb, op_movs, 6000, 7001, 7000, true},
                    StringCase{"backward_overlap_down_by_3_of_8", kRepMovsq, op_movs, 600, 6003, 6000, true},
                    StringCase{"backward_overlap_down_by_20", kRepMovsw, op_movs, 2500, 6020, 6000, true},
                    StringCase{"backward_quadwords_across_pages", kRepMovsq, op_movs, 900, 7997, 16381 - 8,
                               true},
                    StringCase{"backward_from_page_end", kRepMovsd, op_movs, 1500, 8188, 16380, true}),
    [](const auto& info) { return info.param.name; });
INSTANTIATE_TEST_SUITE_P(Stos, StringOracle,
                         testing::Values(StringCase{"once", {0xaa}, op_stos, 9, 0, 5000},
                                         StringCase{"bytes", kRepStosb, op_stos, 9000, 0, 77},
                                         StringCase{"words", kRepStosw, op_stos, 4000, 0, 77},
                                         StringCase{"doublewords", kRepStosd, op_stos, 3000, 0, 4090},
                                         StringCase{"quadwords", kRepStosq, op_stos, 2048, 0, 0},
                                         StringCase{"backward", kRepStosq, op_stos, 700, 0, 9003, true},
                                         StringCase{"backward_words", kRepStosw, op_stos, 2700, 0, 8190,
                                                    true}),
                         [](const auto& info) { return info.param.name; });
INSTANTIATE_TEST_SUITE_P(
    Lods, StringOracle,
    testing::Values(StringCase{"once", {0xac}, op_lods, 9, 33, 0},
                    StringCase{"doubleword_clears_upper_half", {0xad}, op_lods, 9, 33, 0},
                    StringCase{"bytes", kRepLodsb, op_lods, 5001, 33, 0},
                    StringCase{"doublewords", kRepLodsd, op_lods, 1500, 33, 0},
                    StringCase{"quadwords", kRepLodsq, op_lods, 1500, 1, 0},
                    StringCase{"backward", kRepLodsb, op_lods, 5000, 6000, 0, true},
                    StringCase{"backward_quadwords", kRepLodsq, op_lods, 1000, 8189, 0, true}),
    [](const auto& info) { return info.param.name; });
INSTANTIATE_TEST_SUITE_P(
    Scas, StringOracle,
    testing::Values(StringCase{"once", {0xae}, op_scas, 9, 0, 33},
                    StringCase{"found", kRepneScasb, op_scas, 9000, 0, 0},
                    StringCase{"while_equal", kRepeScasb, op_scas, 9000, 0, 100},
                    StringCase{"never_found", kRepneScasw, op_scas, 3000, 0, 401, false, 0xbeef},
                    StringCase{"none", kRepneScasb, op_scas, 0, 0, 0},
                    StringCase{"quadwords", kRepeScasq, op_scas, 300, 0, 104, false, 0x8888888888888888},
                    StringCase{"backward", kRepneScasb, op_scas, 9000, 0, 9000, true}),
    [](const auto& info) { return info.param.name; });
INSTANTIATE_TEST_SUITE_P(Cmps, StringOracle,
                         testing::Values(StringCase{"once", {0xa6}, op_cmps, 9, 5, 33},
                                         StringCase{"until_difference", kRepeCmpsb, op_cmps, 8000, 401, 8593},
                                         StringCase{"equal_to_the_end", kRepeCmpsb, op_cmps, 3000, 401, 8593},
                                         StringCase{"until_equal", kRepneCmpsb, op_cmps, 8000, 0, 401},
                                         StringCase{"doublewords", kRepeCmpsd, op_cmps, 2000, 402, 8594},
                                         StringCase{"quadwords", kRepeCmpsq, op_cmps, 1000, 403, 8595},
                                         StringCase{"backward", kRepeCmpsb, op_cmps, 8000, 7000, 15192,
                                                    true}),
                         [](const auto& info) { return info.param.name; });

TEST_P(StringOracle, does_what_the_host_does) {
  Registers host = run_on_host(), guest = run_helper();
  EXPECT_EQ(guest.rax, host.rax);
  EXPECT_EQ(guest.rcx, host.rcx);
  EXPECT_EQ(guest.rsi, host.rsi);
  EXPECT_EQ(guest.rdi, host.rdi);
  EXPECT_EQ(guest.flags, host.flags);
  EXPECT_EQ(std::memcmp(s_guest->ram + Guest64::kData, m_host.data(), kBufferBytes), 0);
}

// --- What the host cannot show ---

Insn decoded(const Bytes& code, unsigned code_bits = 64) {
  Decoded out;
  EXPECT_EQ(decode(code.data(), static_cast<unsigned>(code.size()), code_bits, code_bits / 8, 0, &out),
            DecodeStatus::kOk);
  return out.insn;
}

class Strings : public testing::Test {
 protected:
  Guest64 m_guest;
  CpuState& m_state = m_guest.state();
};

TEST_F(Strings, rep_movs_fault_in_the_middle_keeps_exact_registers) {
  constexpr u64 kHole = 0x400000;  // the third 2 MiB page goes
  m_guest.write<u64>(Guest64::kTables + 0x2000 + 2 * 8, 0);
  m_guest.cpu->state_replaced();
  m_state.gpr[kRcx] = 1000, m_state.gpr[kRsi] = Guest64::kData, m_state.gpr[kRdi] = kHole - 100 * 8 - 3;
  Guest<void> result = op_movs(*m_guest.cpu, decoded(kRepMovsq));
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().fault.vector, kVectorPf);
  EXPECT_EQ(result.error().fault.payload, kHole);
  EXPECT_EQ(m_state.gpr[kRcx], 900u);
  EXPECT_EQ(m_state.gpr[kRsi], Guest64::kData + 800);
  EXPECT_EQ(m_state.gpr[kRdi], kHole - 3);
}

TEST_F(Strings, rep_stos_long_returns_to_itself) {
  m_state.gpr[kRcx] = 100'000, m_state.gpr[kRdi] = Guest64::kData;
  Insn insn = decoded(kRepStosb);
  m_state.rip = 0x1002;
  ASSERT_TRUE(op_stos(*m_guest.cpu, insn).ok());
  EXPECT_EQ(m_state.rip, 0x1000u);
  EXPECT_EQ(m_state.gpr[kRcx], 100'000 - kStringBurstBytes);
  m_state.rip = 0x1002;
  ASSERT_TRUE(op_stos(*m_guest.cpu, insn).ok());
  EXPECT_EQ(m_state.rip, 0x1002u);
  EXPECT_EQ(m_state.gpr[kRcx], 0u);
}

TEST_F(Strings, rep_with_trap_flag_does_one_iteration) {
  m_state.gpr[kRcx] = 10, m_state.gpr[kRdi] = Guest64::kData;
  m_state.rflags |= kFlagTf;
  m_state.rip = 0x1002;
  ASSERT_TRUE(op_stos(*m_guest.cpu, decoded(kRepStosb)).ok());
  EXPECT_EQ(m_state.rip, 0x1000u);
  EXPECT_EQ(m_state.gpr[kRcx], 9u);
}

TEST_F(Strings, address_size_32_clears_upper_halves) {
  m_state.gpr[kRcx] = 0x5'00000004, m_state.gpr[kRsi] = 0x7'00200000, m_state.gpr[kRdi] = 0x8'00201000;
  m_guest.write<u32>(Guest64::kData, 0xaabbccdd);
  ASSERT_TRUE(op_movs(*m_guest.cpu, decoded({0x67, 0xf3, 0xa4})).ok());
  EXPECT_EQ(m_guest.read<u32>(0x201000), 0xaabbccddu);
  EXPECT_EQ(m_state.gpr[kRcx], 0u);
  EXPECT_EQ(m_state.gpr[kRsi], 0x200004u);
  EXPECT_EQ(m_state.gpr[kRdi], 0x201004u);
}

TEST_F(Strings, address_size_16_wraps_and_keeps_upper_bits) {
  m_state.efer = 0, m_state.cr0 = kCr0Et, m_state.cr4 = 0;  // real mode
  for (Segment& segment : m_state.segments)
    segment = Segment{.base = 0x20000, .type = 3, .present = 1, .s = 1};
  m_guest.cpu->state_replaced();
  m_state.gpr[kRcx] = 0xabcd0004, m_state.gpr[kRdi] = 0x1234fffe, m_state.gpr[kRax] = 0x55;
  ASSERT_TRUE(op_stos(*m_guest.cpu, decoded(kRepStosb, 16)).ok());
  EXPECT_EQ(m_guest.read<u16>(0x2fffe), 0x5555);
  EXPECT_EQ(m_guest.read<u16>(0x20000), 0x5555);
  EXPECT_EQ(m_state.gpr[kRdi], 0x12340002u);
  EXPECT_EQ(m_state.gpr[kRcx], 0xabcd0000u);
}

// Downwards past offset 0 the next element is at the top of the segment.
TEST_F(Strings, address_size_16_wraps_downwards) {
  m_state.efer = 0, m_state.cr0 = kCr0Et, m_state.cr4 = 0;  // real mode
  for (Segment& segment : m_state.segments)
    segment = Segment{.base = 0x20000, .type = 3, .present = 1, .s = 1};
  m_guest.cpu->state_replaced();
  m_state.rflags |= kFlagDf;
  m_state.gpr[kRcx] = 5, m_state.gpr[kRdi] = 4, m_state.gpr[kRax] = 0x6655;
  ASSERT_TRUE(op_stos(*m_guest.cpu, decoded({0xf3, 0xab}, 16)).ok());
  EXPECT_EQ(m_guest.read<u64>(0x20000), 0x0000'6655'6655'6655u);
  EXPECT_EQ(m_guest.read<u32>(0x2fffc), 0x6655'6655u);
  EXPECT_EQ(m_state.gpr[kRdi], 0xfffau);
}

TEST_F(Strings, rep_movs_downwards_fault_in_the_middle_keeps_exact_registers) {
  constexpr u64 kHoleEnd = 0x400000;  // the second 2 MiB page goes
  m_guest.write<u64>(Guest64::kTables + 0x2000 + 8, 0);
  m_guest.cpu->state_replaced();
  m_state.rflags |= kFlagDf;
  m_state.gpr[kRcx] = 1000, m_state.gpr[kRsi] = 0x8000, m_state.gpr[kRdi] = kHoleEnd + 99 * 8 - 5;
  Guest<void> result = op_movs(*m_guest.cpu, decoded(kRepMovsq));
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().fault.vector, kVectorPf);
  EXPECT_EQ(result.error().fault.payload, kHoleEnd - 5);
  EXPECT_EQ(m_state.gpr[kRcx], 901u);
  EXPECT_EQ(m_state.gpr[kRdi], kHoleEnd - 5);
}

TEST_F(Strings, source_segment_is_the_last_override) {
  EXPECT_EQ(string_source_segment(decoded({0xa4})), kDs);
  EXPECT_EQ(string_source_segment(decoded({0x65, 0x64, 0xa4})), kFs);
  EXPECT_EQ(string_source_segment(decoded({0x2e, 0xa4}, 32)), kCs);
  EXPECT_EQ(string_source_segment(decoded({0x2e, 0xa4}, 64)), kDs);
  EXPECT_EQ(string_source_segment(decoded({0x64, 0x48, 0xa5})), kFs);
}

TEST_F(Strings, lods_uses_the_fs_base) {
  m_state.segments[kFs].base = 0x1000;
  m_state.gpr[kRsi] = Guest64::kData;
  m_guest.write<u8>(Guest64::kData + 0x1000, 0x99);
  ASSERT_TRUE(op_lods(*m_guest.cpu, decoded({0x64, 0xac})).ok());
  EXPECT_EQ(m_state.gpr[kRax] & 0xff, 0x99u);
}

// Through the translator, to see that it resumes where RIP says.
TEST_F(Strings, translated_rep_stos_of_a_megabyte_completes) {
  m_guest.code({0xf3, 0xaa, 0xf4});
  m_state.gpr[kRcx] = 1 << 20, m_state.gpr[kRdi] = Guest64::kData, m_state.gpr[kRax] = 0x5a;
  EXPECT_EQ(m_guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(m_state.gpr[kRcx], 0u);
  EXPECT_EQ(m_guest.read<u8>(Guest64::kData + (1 << 20) - 1), 0x5a);
  EXPECT_EQ(m_guest.read<u8>(Guest64::kData + (1 << 20)), 0);
}

}  // namespace
}  // namespace anykvm::x86
