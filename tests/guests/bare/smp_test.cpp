// Several CPUs: messages between them, LOCKed operations, ordering, code that another CPU changes (SDM
// 3A 8.1, 8.2).

#include "apic.h"
#include "memory.h"
#include "report.h"
#include "traps.h"

namespace bare {
namespace {

bool alone() {
  if (cpu_count() > 1) return false;
  skip("one CPU");
  return true;
}

constexpr u8 kVector = 0x61;
u32 s_received;
void receive(Trap&) {
  __atomic_fetch_add(&s_received, 1, __ATOMIC_SEQ_CST);
  apic_write(kApicEoi, 0);
}

// `both` on CPU 1 and here at the same time, with 1 and 0.
template <class Both>
void run_both(Both both) {
  auto other = [&] { both(1); };
  start_on(1, other);
  both(0);
  wait_for(1);
}

}  // namespace

BARE_TEST(smp, interrupts_reach_the_others) {
  if (alone()) return;
  s_received = 0;
  set_handler(kVector, receive);
  constexpr unsigned kRounds = 50;
  auto listen = [] {
    while (__atomic_load_n(&s_received, __ATOMIC_SEQ_CST) < kRounds) wait_for_interrupt();
  };
  start_on(1, listen);
  for (unsigned i = 0; i < kRounds; ++i) {
    send_ipi(1, kIcrAssert | kVector);
    while (__atomic_load_n(&s_received, __ATOMIC_SEQ_CST) < i + 1) pause();
  }
  wait_for(1);
  CHECK_EQ(s_received, kRounds);
  set_handler(kVector, nullptr);
}

BARE_TEST(smp, locked_additions_are_not_lost) {
  if (alone()) return;
  constexpr u32 kRounds = 200'000;
  static u64 total[2];
  static u8 bytes[128];
  // Inside a cache line, and across two.
  u32* split = reinterpret_cast<u32*>((reinterpret_cast<u64>(bytes) + 63) / 64 * 64 + 62);
  total[0] = 0;
  *split = 0;
  run_both([&](unsigned) {
    for (u32 i = 0; i < kRounds; ++i) {
      asm volatile("lock incq %0" : "+m"(total[0]));
      if (i % 16 == 0) asm volatile("lock incl %0" : "+m"(*split));
    }
  });
  CHECK_EQ(total[0], 2u * kRounds);
  CHECK_EQ(*split, 2u * kRounds / 16);
}

BARE_TEST(smp, exchange_is_a_lock_without_prefix) {
  if (alone()) return;
  constexpr u32 kRounds = 50'000;
  static u32 lock, plain;
  lock = plain = 0;
  run_both([&](unsigned) {
    for (u32 i = 0; i < kRounds; ++i) {
      u32 taken = 1;
      for (;;) {
        asm volatile("xchg %0, %1" : "+r"(taken), "+m"(lock) : : "memory");
        if (!taken) break;
        pause();
      }
      plain = plain + 1;
      asm volatile("movl $0, %0" : "=m"(lock) : : "memory");
    }
  });
  CHECK_EQ(plain, 2 * kRounds);
}

BARE_TEST(smp, stores_are_seen_in_order) {
  if (alone()) return;
  constexpr u64 kRounds = 200'000;
  static volatile u64 data, flag;
  static u64 wrong;
  data = 0;
  flag = 0;
  wrong = 0;
  run_both([&](unsigned cpu) {
    if (cpu == 0) {
      for (u64 i = 1; i <= kRounds; ++i) {
        data = i;
        flag = i;
      }
    } else {
      for (u64 seen = 0; seen < kRounds;) {
        seen = flag;
        if (data < seen) ++wrong;
      }
    }
  });
  CHECK_EQ(wrong, 0);
}

BARE_TEST(smp, locked_operations_are_fences) {
  if (alone()) return;
  constexpr u32 kRounds = 300;
  static volatile u32 mine[2], saw[2], turn[2];
  static u32 both_missed;
  both_missed = 0;
  turn[0] = 0;
  turn[1] = 0;
  run_both([&](unsigned cpu) {
    for (u32 i = 1; i <= kRounds; ++i) {
      mine[cpu] = 0;
      turn[cpu] = 2 * i - 1;
      while (turn[1 - cpu] < 2 * i - 1) pause();
      mine[cpu] = 1;
      asm volatile("lock orl $0, (%%rsp)" : : : "memory", "cc");
      saw[cpu] = mine[1 - cpu];
      turn[cpu] = 2 * i;
      while (turn[1 - cpu] < 2 * i) pause();
      if (cpu == 0 && !saw[0] && !saw[1]) ++both_missed;
    }
  });
  CHECK_EQ(both_missed, 0u);
}

BARE_TEST(smp, code_changed_by_another_cpu_is_executed) {
  if (alone()) return;
  constexpr u32 kRounds = 100;
  u8* code = at_physical<u8>(allocate_frame());
  const u8 bytes[] = {0xb8, 0, 0, 0, 0, 0xc3};  // mov $n, %eax; ret
  for (unsigned i = 0; i < sizeof bytes; ++i) code[i] = bytes[i];
  static u32 version, done, wrong;
  version = done = wrong = 0;
  auto execute = [=] {
    for (u32 i = 1; i <= kRounds; ++i) {
      while (__atomic_load_n(&version, __ATOMIC_ACQUIRE) != i) pause();
      cpuid(0);  // serializes (SDM 3A 8.1.3)
      u32 value;
      asm volatile("call *%1" : "=a"(value) : "r"(code) : "memory");
      if (value != i) ++wrong;
      __atomic_store_n(&done, i, __ATOMIC_RELEASE);
    }
  };
  start_on(1, execute);
  for (u32 i = 1; i <= kRounds; ++i) {
    *reinterpret_cast<volatile u32*>(code + 1) = i;
    __atomic_store_n(&version, i, __ATOMIC_RELEASE);
    while (__atomic_load_n(&done, __ATOMIC_ACQUIRE) != i) pause();
  }
  wait_for(1);
  CHECK_EQ(wrong, 0u);
}

// Without a handshake (SDM 3A 8.1.3 asks for one): the store is aligned, so whatever is executed is one of
// the versions, and after a serializing instruction the last.
BARE_TEST(smp, code_changed_under_its_reader_is_old_or_new) {
  if (alone()) return;
  constexpr u32 kRounds = 300;
  u8* code = at_physical<u8>(allocate_frame());
  const u8 bytes[] = {0x90, 0x90, 0x90, 0xb8, 0, 0, 0, 0, 0xc3};  // nops; mov $n, %eax; ret
  for (unsigned i = 0; i < sizeof bytes; ++i) code[i] = bytes[i];
  static volatile u32 published, finished;
  static u32 wrong, last;
  published = 0;
  finished = 0;
  wrong = 0;
  auto execute = [=] {
    u32 value = 0, before = 0;
    while (!finished) {
      asm volatile("call *%1" : "=a"(value) : "r"(code) : "memory");
      if (value < before || value > published + 1) ++wrong;
      before = value;
    }
    cpuid(0);
    asm volatile("call *%1" : "=a"(value) : "r"(code) : "memory");
    last = value;
  };
  start_on(1, execute);
  for (u32 i = 1; i <= kRounds; ++i) {
    *reinterpret_cast<volatile u32*>(code + 4) = i;
    published = i;
    for (unsigned wait = 0; wait < 50; ++wait) pause();
  }
  finished = 1;
  wait_for(1);
  CHECK_EQ(wrong, 0u);
  CHECK_EQ(last, kRounds);
}

// Two pages in a row that lie apart in physical memory.
struct SplitPages {
  static constexpr u64 kAddress = bit(39), kBoundary = kAddress + kPageSize;
  SplitPages() {
    first = allocate_frame();
    allocate_frame();
    second = allocate_frame();
    space.map(kAddress, first, kPresent | kWritable);
    space.map(kBoundary, second, kPresent | kWritable);
  }
  AddressSpace space;
  u64 first, second;
};

// An operand in two of them, against LOCKed and plain accesses to one of its
// halves.
BARE_TEST(smp, locked_operations_across_pages_are_atomic) {
  if (alone()) return;
  constexpr u32 kRounds = 2000;
  constexpr u64 kSplit = SplitPages::kBoundary - 2;
  static SplitPages pages;
  pages = SplitPages();
  static u64 beside;
  beside = 0;
  run_both([&](unsigned cpu) {
    pages.space.enter();
    for (u32 i = 0; i < kRounds; ++i) {
      if (cpu == 0) {
        asm volatile("lock addl $0x10001, (%0)" : : "r"(kSplit) : "memory", "cc");
      } else {
        asm volatile("lock incw (%0)" : : "r"(kSplit) : "memory", "cc");
        *at_physical<volatile u8>(kSplit + 4) = static_cast<u8>(i);
        if (*at_physical<volatile u8>(kSplit + 4) != static_cast<u8>(i)) ++beside;
      }
    }
    AddressSpace::leave();
  });
  CHECK_EQ(*at_physical<u16>(pages.first + kPageSize - 2), 2 * kRounds);
  CHECK_EQ(*at_physical<u16>(pages.second), kRounds);
  CHECK_EQ(beside, 0);
}

// A spinlock that is one XCHG across two pages.
BARE_TEST(smp, exchange_across_pages_is_a_lock) {
  if (alone()) return;
  constexpr u32 kRounds = 500;
  constexpr u64 kLock = SplitPages::kBoundary - 1;
  static SplitPages pages;
  pages = SplitPages();
  static volatile u32 plain;
  plain = 0;
  run_both([&](unsigned) {
    pages.space.enter();
    for (u32 i = 0; i < kRounds; ++i) {
      u32 taken = ~0u;
      for (;;) {
        asm volatile("xchg %0, (%1)" : "+r"(taken) : "r"(kLock) : "memory");
        if (!taken) break;
        pause();
      }
      plain = plain + 1;
      u32 nothing = 0;
      asm volatile("xchg %0, (%1)" : "+r"(nothing) : "r"(kLock) : "memory");
    }
    AddressSpace::leave();
  });
  CHECK_EQ(plain, 2 * kRounds);
}

BARE_TEST(smp, a_page_taken_away_is_gone_after_the_other_flushed) {
  if (alone()) return;
  static AddressSpace space;
  space = AddressSpace();
  constexpr u64 kAddress = bit(39);
  const u64 first = allocate_frame(), second = allocate_frame();
  *at_physical(first) = 1;
  *at_physical(second) = 2;
  space.map(kAddress, first, kPresent | kWritable);
  static volatile u32 phase;
  static u64 before, after;
  phase = 0;
  auto look = [] {
    space.enter();
    before = *at_physical<volatile u64>(kAddress);
    phase = 1;
    while (phase != 2) pause();
    invlpg(kAddress);
    after = *at_physical<volatile u64>(kAddress);
    AddressSpace::leave();
  };
  start_on(1, look);
  while (phase != 1) pause();
  space.map(kAddress, second, kPresent | kWritable);
  phase = 2;
  wait_for(1);
  CHECK_EQ(before, 1);
  CHECK_EQ(after, 2);
}

}  // namespace bare
