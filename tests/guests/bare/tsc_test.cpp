// The time-stamp counter and what moves it (SDM 3B 18.17).

#include "apic.h"
#include "report.h"
#include "traps.h"

namespace bare {
namespace {

constexpr u32 kMsrTsc = 0x10, kMsrTscAdjust = 0x3b, kMsrTscAux = 0xc0000103;
constexpr u64 kFar = bit(50);  // further than it gets by itself

bool has_adjust() { return cpuid(7).ebx & bit(1); }
bool has_rdtscp() { return cpuid(0x80000001).edx & bit(27); }

}  // namespace

BARE_TEST(tsc, is_the_same_on_all_cpus) {
  if (cpu_count() < 2) return skip("one CPU");
  // Whatever is read later, on whichever CPU, is not less.
  static volatile u64 latest, turn;
  static u64 wrong;
  latest = 0;
  turn = 0;
  wrong = 0;
  constexpr u64 kRounds = 100;
  auto play = [](u64 parity) {
    for (u64 i = 0; i < kRounds; ++i) {
      while (turn % 2 != parity) pause();
      asm volatile("lfence" : : : "memory");  // RDTSC may run ahead (SDM 2B)
      const u64 now = rdtsc();
      if (now < latest) ++wrong;
      latest = now;
      turn = turn + 1;
    }
  };
  auto other = [&] { play(1); };
  start_on(1, other);
  play(0);
  wait_for(1);
  CHECK_EQ(wrong, 0);
}

BARE_TEST(tsc, goes_on) {
  u64 before = rdtsc();
  for (unsigned i = 0; i < 1000; ++i) {
    u64 now = rdtsc();
    CHECK(now >= before);
    before = now;
  }
}

BARE_TEST(tsc, can_be_written) {
  const u64 adjust = has_adjust() ? rdmsr(kMsrTscAdjust) : 0, before = rdtsc();
  wrmsr(kMsrTsc, before + kFar);
  CHECK(rdtsc() >= before + kFar);
  CHECK(rdmsr(kMsrTsc) >= before + kFar);
  if (has_adjust()) {
    CHECK(rdmsr(kMsrTscAdjust) != adjust);
    wrmsr(kMsrTscAdjust, adjust);
  } else {
    wrmsr(kMsrTsc, rdtsc() - kFar);
  }
  CHECK(rdtsc() < before + kFar);
}

BARE_TEST(tsc, adjust_moves_it_by_the_difference) {
  if (!has_adjust()) return skip("no TSC_ADJUST");
  const u64 adjust = rdmsr(kMsrTscAdjust), before = rdtsc();
  wrmsr(kMsrTscAdjust, adjust + kFar);
  CHECK_EQ(rdmsr(kMsrTscAdjust), adjust + kFar);
  CHECK(rdtsc() >= before + kFar);
  wrmsr(kMsrTscAdjust, adjust);
  CHECK(rdtsc() >= before && rdtsc() < before + kFar);
}

BARE_TEST(tsc, rdtscp_tells_the_cpu) {
  if (!has_rdtscp()) return skip("no RDTSCP");
  const u64 aux = rdmsr(kMsrTscAux);
  wrmsr(kMsrTscAux, 0x89abcdef);
  u64 a, c, d;
  asm volatile("rdtscp" : "=a"(a), "=c"(c), "=d"(d));
  CHECK_EQ(c, 0x89abcdef);
  CHECK_EQ(a >> 32, 0);
  CHECK_EQ(d >> 32, 0);
  wrmsr(kMsrTscAux, aux);
}

}  // namespace bare
