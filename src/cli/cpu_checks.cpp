// What the processor can do, and whether the kernel lets programs use it.

#include <cpuid.h>
#include <sys/auxv.h>

#include "base/bits.h"
#include "cli/host_checks.h"

namespace anykvm::cli {
namespace {

struct Leaf {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Leaf cpuid(unsigned function, unsigned index) {
  Leaf leaf;
  __get_cpuid_count(function, index, &leaf.eax, &leaf.ebx, &leaf.ecx, &leaf.edx);
  return leaf;
}

// Register state that the kernel saves on a context switch; OSXSAVE must be set.
u64 enabled_states() {
  u32 low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return u64{high} << 32 | low;
}

bool has_xsave() { return has_bit(cpuid(1, 0).ecx, 27); }
bool has_states(u64 states) { return has_xsave() && (enabled_states() & states) == states; }

Check yes_or(bool present, const char* name, Finding absent, const char* detail, const char* cost) {
  if (present) return {name, Finding::kPresent, "", ""};
  return {name, absent, detail, cost};
}

}  // namespace

Check check_bmi2() {
  constexpr u32 kBmi1And2 = 1u << 3 | 1u << 8;
  return yes_or((cpuid(7, 0).ebx & kBmi1And2) == kBmi1And2, "CPU: BMI2", Finding::kBlocking,
                "the processor lacks it or BMI1",
                "translated code is built on BEXTR, and on RORX, which leaves the flags alone");
}

// The instructions trap unless the kernel has set CR4.FSGSBASE, which it says in the second hardware
// capability word.
Check check_fsgsbase() {
  constexpr unsigned kHwcap2Fsgsbase = 1;
  return yes_or(has_bit(getauxval(AT_HWCAP2), kHwcap2Fsgsbase), "CPU: FSGSBASE", Finding::kMissing,
                "the processor or the kernel (before 5.9) lacks it",
                "a system call whenever the engine moves the GS or FS base");
}

Check check_xsave() {
  return yes_or(has_xsave(), "CPU: XSAVE", Finding::kBlocking, "the processor or the kernel lacks it",
                "guest and host vector registers cannot be switched");
}

Check check_avx2() {
  constexpr u64 kSseAvx = 6;
  return yes_or(has_states(kSseAvx) && has_bit(cpuid(7, 0).ebx, 5), "CPU: AVX2", Finding::kMissing,
                "the processor or the kernel lacks it", "guests do not see AVX2 either");
}

Check check_avx512() {
  constexpr u64 kSseAvx512 = 0xe6;
  return yes_or(has_states(kSseAvx512) && has_bit(cpuid(7, 0).ebx, 16), "CPU: AVX-512", Finding::kMissing,
                "the processor or the kernel lacks it", "guests do not see AVX-512 either");
}

}  // namespace anykvm::cli
