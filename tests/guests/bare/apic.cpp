#include "apic.h"

#include "report.h"
#include "traps.h"

namespace bare {

extern "C" {
extern u8 ap_begin[], ap_end[];
void cpu_main(unsigned cpu);
}

namespace {

constexpr u64 kPage = 0xfee00000;
constexpr u32 kSpurious = 0xff, kEnabled = 0x100;
constexpr u32 kMsrFirst = 0x800;
constexpr u8 kWakeUp = 0xfd;

struct Work {
  void (*function)(void*);
  void* argument;
  u32 busy;
};
Work s_work[MAX_CPUS];
u32 s_ready = 1;

volatile u32& page_register(u32 index) { return *reinterpret_cast<volatile u32*>(kPage + index); }

}  // namespace

// The first CPU waits for each before it starts the next, so that they can share the TSS descriptor.
void cpu_main(unsigned cpu) {
  init_traps(cpu);
  init_apic();
  __atomic_fetch_add(&s_ready, 1, __ATOMIC_SEQ_CST);
  for (;;) {
    Work& work = s_work[cpu];
    while (!__atomic_load_n(&work.busy, __ATOMIC_ACQUIRE)) wait_for_interrupt();
    work.function(work.argument);
    __atomic_store_n(&work.busy, 0, __ATOMIC_RELEASE);
  }
}

bool x2apic_mode() { return rdmsr(kMsrApicBase) & bit(10); }

u32 apic_read(ApicRegister index) {
  return x2apic_mode() ? static_cast<u32>(rdmsr(kMsrFirst + index / 16)) : page_register(index);
}

void apic_write(ApicRegister index, u32 value) {
  if (x2apic_mode()) {
    wrmsr(kMsrFirst + index / 16, value);
  } else {
    page_register(index) = value;
  }
}

void send_ipi(u32 destination, u32 low) {
  if (x2apic_mode()) return wrmsr(kMsrFirst + kApicIcr / 16, u64{destination} << 32 | low);
  page_register(kApicIcrHigh) = destination << 24;
  page_register(kApicIcr) = low;
  while (page_register(kApicIcr) & bit(12)) pause();
}

u32 own_apic_id() { return x2apic_mode() ? apic_read(kApicId) : apic_read(kApicId) >> 24; }

void init_apic() {
  outb(0x21, 0xff);
  outb(0xa1, 0xff);
  apic_write(kApicSvr, kEnabled | kSpurious);
  apic_write(kApicTpr, 0);
  for (ApicRegister lvt : {kApicLvtTimer, kApicLint0, kApicLint1, kApicLvtError}) apic_write(lvt, kLvtMasked);
}

void reset_apic_mode() {
  u64 base = rdmsr(kMsrApicBase) & ~(bit(10) | bit(11));
  wrmsr(kMsrApicBase, base);
  wrmsr(kMsrApicBase, base | bit(11));
  init_apic();
}

void enter_x2apic_mode() { wrmsr(kMsrApicBase, rdmsr(kMsrApicBase) | bit(10) | bit(11)); }

void start_cpus(unsigned expected) {
  u8* target = reinterpret_cast<u8*>(AP_START);
  set_handler(kWakeUp, [](Trap&) { apic_write(kApicEoi, 0); });
  for (const u8* from = ap_begin; from < ap_end; ++from) *target++ = *from;
  for (u32 id = 1; id < expected; ++id) {
    send_ipi(id, kIcrInit | kIcrAssert);
    send_ipi(id, kIcrStartup | kIcrAssert | AP_START >> 12);
    while (__atomic_load_n(&s_ready, __ATOMIC_SEQ_CST) != id + 1) pause();
  }
}

unsigned cpu_count() { return s_ready; }

void start_on(unsigned cpu, void (*function)(void*), void* argument) {
  s_work[cpu].function = function;
  s_work[cpu].argument = argument;
  __atomic_store_n(&s_work[cpu].busy, 1, __ATOMIC_RELEASE);
  send_ipi(cpu, kIcrAssert | kWakeUp);
}

void wait_for(unsigned cpu) {
  while (__atomic_load_n(&s_work[cpu].busy, __ATOMIC_ACQUIRE)) pause();
}

}  // namespace bare
