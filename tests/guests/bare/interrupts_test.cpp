// The local APIC and when interrupts are taken (SDM 3A 6.8, 10.5, 10.8).

#include "apic.h"
#include "report.h"
#include "traps.h"

namespace bare {
namespace {

constexpr u8 kLow = 0x31, kMiddle = 0x52, kHigh = 0x73;

volatile unsigned s_count;
volatile u64 s_rip;
volatile u8 s_order[8];

void note(Trap& t) {
  if (s_count < 8) s_order[s_count] = static_cast<u8>(t.vector);
  s_rip = t.rip;
  s_count = s_count + 1;
  apic_write(kApicEoi, 0);
}
void note_nmi(Trap& t) {
  s_rip = t.rip;
  s_count = s_count + 1;
}

// Handlers for the length of a test, interrupts off.
class Handlers {
 public:
  Handlers() {
    s_count = 0;
    for (u8 vector : {kLow, kMiddle, kHigh}) set_handler(vector, note);
  }
  ~Handlers() {
    for (u8 vector : {kLow, kMiddle, kHigh}) set_handler(vector, nullptr);
    set_handler(kNmi, nullptr);
    apic_write(kApicTpr, 0);
    apic_write(kApicLvtTimer, kLvtMasked);
  }
};

void self(u8 vector) { send_ipi(0, kIcrSelf | kIcrAssert | vector); }
void self_nmi() { send_ipi(own_apic_id(), kIcrNmi | kIcrAssert); }

// Waits with interrupts on until s_count reaches `count`, or long enough.
bool wait_for_count(unsigned count) {
  const u64 limit = rdtsc() + 20'000'000'000;
  sti();
  while (s_count < count && rdtsc() < limit) pause();
  cli();
  return s_count >= count;
}

u64 address_of(const void* p) { return reinterpret_cast<u64>(p); }
extern "C" {
extern const u8 after_sti_shadow[], after_ss_shadow[];
}

}  // namespace

BARE_TEST(interrupts, wait_while_if_is_clear) {
  Handlers handlers;
  self(kLow);
  for (int i = 0; i < 1000; ++i) pause();
  CHECK_EQ(s_count, 0u);
  open_interrupts_once();
  CHECK_EQ(s_count, 1u);
}

BARE_TEST(interrupts, sti_keeps_them_off_for_one_instruction) {
  Handlers handlers;
  self(kLow);
  asm volatile("sti; nop; after_sti_shadow: nop; cli" : : : "memory");
  CHECK_EQ(s_count, 1u);
  CHECK_EQ(u64{s_rip}, address_of(after_sti_shadow));
  self(kLow);
  asm volatile("sti; cli" : : : "memory");
  CHECK_EQ(s_count, 1u);
  open_interrupts_once();
}

BARE_TEST(interrupts, sti_with_interrupts_on_casts_no_shadow) {
  Handlers handlers;
  self(kLow);
  open_interrupts_once();
  CHECK_EQ(s_count, 1u);
  asm volatile("sti; sti; sti; cli" : : : "memory");
}

BARE_TEST(interrupts, mov_ss_keeps_them_off_for_one_instruction) {
  Handlers handlers;
  self(kLow);
  const u64 ss = SEL_DATA;
  asm volatile("sti; mov %0, %%ss; nop; after_ss_shadow: nop; cli" : : "r"(ss) : "memory");
  CHECK_EQ(s_count, 1u);
  CHECK_EQ(u64{s_rip}, address_of(after_ss_shadow));
}

BARE_TEST(interrupts, hlt_after_sti_wakes_up) {
  Handlers handlers;
  self(kLow);
  wait_for_interrupt();
  CHECK_EQ(s_count, 1u);
}

BARE_TEST(interrupts, highest_vector_comes_first) {
  Handlers handlers;
  self(kLow);
  self(kHigh);
  self(kMiddle);
  CHECK(wait_for_count(3));
  // Each handler runs with interrupts off and its EOI lets the next one through.
  CHECK_EQ(u8{s_order[0]}, kHigh);
  CHECK_EQ(u8{s_order[1]}, kMiddle);
  CHECK_EQ(u8{s_order[2]}, kLow);
}

BARE_TEST(interrupts, one_vector_is_requested_once) {
  Handlers handlers;
  for (int i = 0; i < 5; ++i) self(kLow);
  CHECK(apic_read(static_cast<ApicRegister>(kApicIrr + 0x10)) & bit(kLow & 31));
  wait_for_count(1);
  open_interrupts_once();
  CHECK_EQ(s_count, 1u);
}

BARE_TEST(interrupts, task_priority_holds_back_its_class_and_below) {
  Handlers handlers;
  write_cr8(kMiddle >> 4);
  CHECK_EQ(apic_read(kApicTpr), kMiddle & 0xf0u);
  self(kLow);
  self(kMiddle);
  self(kHigh);
  for (int i = 0; i < 4; ++i) open_interrupts_once();
  CHECK_EQ(s_count, 1u);
  CHECK_EQ(u8{s_order[0]}, kHigh);
  sti();
  write_cr8(0);
  asm volatile("nop");
  cli();
  CHECK_EQ(s_count, 3u);
}

BARE_TEST(interrupts, processor_priority_follows_what_is_in_service) {
  Handlers handlers;
  static u32 seen;
  set_handler(kMiddle, [](Trap&) {
    seen = apic_read(kApicPpr);
    s_count = s_count + 1;
    apic_write(kApicEoi, 0);
  });
  self(kMiddle);
  open_interrupts_once();
  CHECK_EQ(seen, kMiddle & 0xf0u);
  CHECK_EQ(apic_read(kApicPpr), 0u);
}

BARE_TEST(interrupts, nmi_ignores_if) {
  Handlers handlers;
  set_handler(kNmi, note_nmi);
  self_nmi();
  for (int i = 0; i < 1000 && !s_count; ++i) pause();
  CHECK_EQ(s_count, 1u);
}

BARE_TEST(interrupts, nmis_do_not_nest_and_one_is_kept) {
  Handlers handlers;
  static unsigned depth, deepest;
  depth = deepest = 0;
  set_handler(kNmi, [](Trap&) {
    ++depth;
    if (depth > deepest) deepest = depth;
    s_count = s_count + 1;
    if (s_count == 1) {
      for (int i = 0; i < 5; ++i) self_nmi();
      for (int i = 0; i < 1000; ++i) pause();
    }
    --depth;
  });
  self_nmi();
  for (int i = 0; i < 100000 && s_count < 2; ++i) pause();
  CHECK_EQ(s_count, 2u);
  CHECK_EQ(deepest, 1u);
}

BARE_TEST(interrupts, logical_destination_reaches_its_cpu) {
  Handlers handlers;
  apic_write(kApicDfr, ~0u);
  apic_write(kApicLdr, 0x10 << 24);
  send_ipi(0x30, 1 << 11 | kIcrAssert | kLow);  // one of two bits fits
  open_interrupts_once();
  CHECK_EQ(s_count, 1u);
  send_ipi(0x20, 1 << 11 | kIcrAssert | kLow);
  open_interrupts_once();
  CHECK_EQ(s_count, 1u);
}

BARE_TEST(interrupts, illegal_vector_is_an_apic_error) {
  Handlers handlers;
  apic_write(kApicEsr, 0);
  self(5);
  apic_write(kApicEsr, 0);
  const u32 errors = apic_read(kApicEsr);
  CHECK(errors & 0x60);
  apic_write(kApicEsr, 0);
}

BARE_TEST(interrupts, software_disabled_apic_takes_nothing_fixed) {
  Handlers handlers;
  const u32 svr = apic_read(kApicSvr);
  apic_write(kApicSvr, svr & ~0x100u);
  self(kLow);
  for (int i = 0; i < 4; ++i) open_interrupts_once();
  CHECK_EQ(s_count, 0u);
  CHECK(apic_read(kApicLvtTimer) & kLvtMasked);
  apic_write(kApicSvr, svr);
}

BARE_TEST(timer, one_shot_fires_once) {
  Handlers handlers;
  apic_write(kApicTimerDivide, 0xb);
  apic_write(kApicLvtTimer, kHigh);
  apic_write(kApicTimerInitial, 10000);
  CHECK(wait_for_count(1));
  CHECK_EQ(apic_read(kApicTimerCurrent), 0u);
  for (int i = 0; i < 1000; ++i) open_interrupts_once();
  CHECK_EQ(s_count, 1u);
}

BARE_TEST(timer, periodic_goes_on_and_zero_stops_it) {
  Handlers handlers;
  apic_write(kApicTimerDivide, 0xb);
  apic_write(kApicLvtTimer, kTimerPeriodic | kHigh);
  apic_write(kApicTimerInitial, 1'000'000);
  CHECK(wait_for_count(3));
  apic_write(kApicTimerInitial, 0);
  open_interrupts_once();
  CHECK_EQ(apic_read(kApicTimerCurrent), 0u);
}

BARE_TEST(timer, masked_it_counts_without_interrupting) {
  Handlers handlers;
  apic_write(kApicTimerDivide, 0xb);
  apic_write(kApicLvtTimer, kLvtMasked | kHigh);
  apic_write(kApicTimerInitial, 100000);
  const u64 limit = rdtsc() + 20'000'000'000;
  while (apic_read(kApicTimerCurrent) && rdtsc() < limit) pause();
  CHECK_EQ(apic_read(kApicTimerCurrent), 0u);
  open_interrupts_once();
  CHECK_EQ(s_count, 0u);
}

BARE_TEST(timer, tsc_deadline_fires_and_reads_zero) {
  constexpr u32 kMsrTscDeadline = 0x6e0;
  if (!has_tsc_deadline()) return skip("no TSC deadline");
  Handlers handlers;
  apic_write(kApicLvtTimer, kTimerDeadline | kHigh);
  asm volatile("mfence");
  wrmsr(kMsrTscDeadline, rdtsc() + 100000);
  CHECK(wait_for_count(1));
  CHECK_EQ(rdmsr(kMsrTscDeadline), 0);
  wrmsr(kMsrTscDeadline, 1);  // in the past: at once
  CHECK(wait_for_count(2));
}

BARE_TEST(timer, hlt_ends_with_it) {
  Handlers handlers;
  apic_write(kApicTimerDivide, 0xb);
  apic_write(kApicLvtTimer, kHigh);
  apic_write(kApicTimerInitial, 1'000'000);
  wait_for_interrupt();
  CHECK_EQ(s_count, 1u);
}

BARE_TEST(apic, modes_change_as_figure_10_27_says) {
  if (!has_x2apic()) return skip("no x2APIC");
  const u64 off = rdmsr(kMsrApicBase) & ~(bit(10) | bit(11));
  auto refused = [&](u64 mode) { return catch_trap([=] { wrmsr(kMsrApicBase, off | mode); }).vector == kGp; };
  CHECK(refused(bit(10)));
  enter_x2apic_mode();
  CHECK(refused(bit(10)));
  CHECK(refused(bit(11)));
  CHECK(!refused(0));
  CHECK(refused(bit(10) | bit(11)));
  CHECK_EQ(cpuid(1).edx & bit(9), 0);
  CHECK(!refused(bit(11)));
  CHECK_EQ(cpuid(1).edx & bit(9), bit(9));
  init_apic();
}

BARE_TEST(apic, x2apic_registers_are_msrs) {
  if (!has_x2apic()) return skip("no x2APIC");
  CHECK_EQ(catch_trap([] { rdmsr(0x803); }).vector, kGp);
  const u32 version = apic_read(kApicVersion);
  enter_x2apic_mode();
  CHECK_EQ(apic_read(kApicVersion), version);
  CHECK_EQ(catch_trap([] { wrmsr(0x803, 0); }).vector, kGp);  // read-only
  CHECK_EQ(catch_trap([] { rdmsr(0x80b); }).vector, kGp);     // EOI is write-only
  CHECK_EQ(catch_trap([] { wrmsr(0x80b, 1); }).vector, kGp);  // and takes 0 only
  CHECK_EQ(catch_trap([] { wrmsr(0x808, 0x100); }).vector, kGp);
  CHECK_EQ(catch_trap([] { rdmsr(0x80e); }).vector, kGp);  // there is no DFR
  Handlers handlers;
  wrmsr(0x83f, kLow);  // self IPI
  open_interrupts_once();
  CHECK_EQ(s_count, 1u);
  reset_apic_mode();
}

}  // namespace bare
