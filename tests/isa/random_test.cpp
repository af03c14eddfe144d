// Random instructions of each family that the translator emits as themselves, natively and translated.
// Encodings and operands come from the generator; every case also has random registers, flags and memory.
#include <Zydis/Zydis.h>
#include <gtest/gtest.h>

#include "run_random.h"

namespace anykvm::isa {
namespace {

struct Family {
  const char* name;
  u64 seed, count;
  std::vector<u16> categories;
};

std::ostream& operator<<(std::ostream& out, const Family& family) { return out << family.name; }

class RandomFamily : public testing::TestWithParam<Family> {};

TEST_P(RandomFamily, agrees_with_the_host_cpu) {
  run_random(of_categories(GetParam().categories), GetParam().seed, GetParam().count);
}

const Family kFamilies[] = {
    {"arithmetic", 1'000'000, 12000, {ZYDIS_CATEGORY_BINARY, ZYDIS_CATEGORY_ADOX_ADCX}},
    {"logic", 1'100'000, 10000, {ZYDIS_CATEGORY_LOGICAL}},
    {"shifts", 1'200'000, 8000, {ZYDIS_CATEGORY_SHIFT, ZYDIS_CATEGORY_ROTATE}},
    {"bits",
     1'300'000,
     8000,
     {ZYDIS_CATEGORY_BITBYTE, ZYDIS_CATEGORY_BMI1, ZYDIS_CATEGORY_BMI2, ZYDIS_CATEGORY_LZCNT}},
    {"moves", 1'400'000, 10000, {ZYDIS_CATEGORY_DATAXFER, ZYDIS_CATEGORY_CONVERT}},
    {"conditions", 1'500'000, 6000, {ZYDIS_CATEGORY_CMOV, ZYDIS_CATEGORY_SETCC, ZYDIS_CATEGORY_FLAGOP}},
    {"exchanges", 1'600'000, 6000, {ZYDIS_CATEGORY_SEMAPHORE, ZYDIS_CATEGORY_DATAXFER}},
    {"x87", 1'700'000, 12000, {ZYDIS_CATEGORY_X87_ALU, ZYDIS_CATEGORY_FCMOV}},
    {"mmx", 1'800'000, 6000, {ZYDIS_CATEGORY_MMX}},
    {"sse", 1'900'000, 12000, {ZYDIS_CATEGORY_SSE, ZYDIS_CATEGORY_LOGICAL_FP, ZYDIS_CATEGORY_STTNI}},
    {"crypto",
     2'000'000,
     4000,
     {ZYDIS_CATEGORY_AES, ZYDIS_CATEGORY_SHA, ZYDIS_CATEGORY_PCLMULQDQ, ZYDIS_CATEGORY_VAES,
      ZYDIS_CATEGORY_VPCLMULQDQ, ZYDIS_CATEGORY_GFNI}},
    {"avx", 2'100'000, 12000, {ZYDIS_CATEGORY_AVX, ZYDIS_CATEGORY_AVX2, ZYDIS_CATEGORY_BROADCAST}},
    {"fma", 2'200'000, 6000, {ZYDIS_CATEGORY_VFMA, ZYDIS_CATEGORY_IFMA}},
    {"avx512",
     2'300'000,
     24000,
     {ZYDIS_CATEGORY_AVX512, ZYDIS_CATEGORY_AVX512_BITALG, ZYDIS_CATEGORY_AVX512_VBMI,
      ZYDIS_CATEGORY_AVX512_VP2INTERSECT, ZYDIS_CATEGORY_VBMI2, ZYDIS_CATEGORY_CONFLICT,
      ZYDIS_CATEGORY_BLEND}},
    {"masks", 2'400'000, 4000, {ZYDIS_CATEGORY_KMASK}},
    {"compress_expand", 2'500'000, 6000, {ZYDIS_CATEGORY_COMPRESS, ZYDIS_CATEGORY_EXPAND}},
    {"miscellaneous", 2'600'000, 3000, {ZYDIS_CATEGORY_MISC}},
};

INSTANTIATE_TEST_SUITE_P(Isa, RandomFamily, testing::ValuesIn(kFamilies),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(Random, everything_that_runs_as_itself) { run_random(runs_as_itself, 3'000'000, 40000); }
TEST(Random, long_runs_of_everything) { run_random(runs_as_itself, 4'000'000, 3000, 64, 12); }
TEST(Random, everything_in_compatibility_mode) {
  auto filter = [](const x86::Decoded& d) { return runs_as_itself(d) && !differs_among_vendors(d); };
  run_random(filter, 5'000'000, 20000, 32);
}

bool gathers_or_scatters(const x86::Decoded& d) {
  bool prefetch = d.insn.opcode == 0xc6 || d.insn.opcode == 0xc7;
  return d.vsib && !prefetch;
}

TEST(Random, gathers_and_scatters) { run_random(gathers_or_scatters, 6'000'000, 10000, 64, 2); }
TEST(Random, gathers_and_scatters_in_compatibility_mode) {
  run_random(gathers_or_scatters, 6'500'000, 3000, 32, 2);
}

}  // namespace
}  // namespace anykvm::isa
