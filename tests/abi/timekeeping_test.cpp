// What Documentation/virt/kvm/x86/timekeeping.rst says of clocks and timers, as guests see it: the TSC at
// other rates than the host's, on several vCPUs and after a move to another VM; timers of the APIC; kvmclock.
#include "kvm.h"

namespace anykvm::test {
namespace {

constexpr std::uint32_t kTscMsr = 0x10, kApicBaseMsr = 0x1b, kClockMsr = 0x4b564d01;
constexpr unsigned kVector = 0x40;

std::uint64_t tsc_of(const kvm_regs& regs) { return regs.rdx << 32 | (regs.rax & 0xffffffff); }

unsigned long host_khz() {
  Guest guest;
  return static_cast<unsigned long>(call(guest.vcpu, KVM_GET_TSC_KHZ));
}

// A guest with a local APIC and all features, whose TSC runs at `percent` of the host's rate.
struct TimedGuest : Guest {
  TimedGuest(std::initializer_list<std::uint8_t> code, unsigned percent) : Guest(code, Chips::kIrqchip) {
    SupportedCpuid cpuid = supported_cpuid();
    for (unsigned i = 0; i < cpuid.header.nent; ++i) {
      if (cpuid.entries[i].function == 1) cpuid.entries[i].ecx |= 1u << 24;  // TSC deadline
    }
    EXPECT_EQ(call(vcpu, KVM_SET_CPUID2, &cpuid), 0);
    khz = host_khz() * percent / 100;
    EXPECT_EQ(call(vcpu, KVM_SET_TSC_KHZ, khz), 0);
    set_lapic(0xf0, 0x1ff);
    // rdtsc; out 11h,al
    set_handler(kVector, 0x2000, {0x0f, 0x31, 0xe6, 0x11});
  }

  // Runs the code up to an OUT at `port`; the TSC that it read before.
  std::uint64_t run_to(unsigned port) {
    EXPECT_EQ(run(), 0);
    EXPECT_EQ(shared->exit_reason, static_cast<unsigned>(KVM_EXIT_IO));
    EXPECT_EQ(shared->io.port, port);
    return tsc_of(regs());
  }
  std::uint64_t clock() const {
    kvm_clock_data data{};
    EXPECT_EQ(call(vm, KVM_GET_CLOCK, &data), 0);
    return data.clock;
  }

  unsigned long khz = 0;
};

class Rates : public testing::TestWithParam<unsigned> {};
INSTANTIATE_TEST_SUITE_P(PercentOfTheHosts, Rates, testing::Values(50u, 100u, 150u));

// --- The TSC ---

// rdtsc; out 10h,al; mov ecx,10h; rdmsr; out 10h,al; rdtsc; out 10h,al
TEST_P(Rates, tsc_goes_on_through_all_its_registers) {
  TimedGuest guest(
      {0x0f, 0x31, 0xe6, 0x10, 0x66, 0xb9, 0x10, 0, 0, 0, 0x0f, 0x32, 0xe6, 0x10, 0x0f, 0x31, 0xe6, 0x10},
      GetParam());
  const std::uint64_t first = guest.run_to(0x10), second = guest.run_to(0x10), third = guest.run_to(0x10);
  EXPECT_GT(second, first);
  EXPECT_GT(third, second);
  EXPECT_GT(guest.msr(kTscMsr), third);
}

// mov eax,7; mov edx,12345678h; mov ecx,10h; wrmsr; rdtsc; out 10h,al
TEST_P(Rates, all_bits_of_the_tsc_are_written) {
  TimedGuest guest({0x66, 0xb8, 7,    0, 0, 0, 0x66, 0xba, 0x78, 0x56, 0x34, 0x12,
                    0x66, 0xb9, 0x10, 0, 0, 0, 0x0f, 0x30, 0x0f, 0x31, 0xe6, 0x10},
                   GetParam());
  EXPECT_EQ(guest.run_to(0x10) >> 32, 0x12345678u);
}

// 3.1, 4.2: no processor sees a time that is behind what another has seen.
TEST(Tsc, is_the_same_on_processors_made_at_different_times) {
  Guest guest({0x0f, 0x31, 0xe6, 0x10, 0xeb, 0xfa}, Guest::Chips::kIrqchip);  // 1: rdtsc; out 10h,al; jmp 1b
  ASSERT_EQ(guest.run(), 0);
  std::uint64_t latest = tsc_of(guest.regs());
  Handle second(call(guest.vm, KVM_CREATE_VCPU, 1ul));
  kvm_sregs sregs{};
  kvm_regs regs{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_SREGS, &sregs), 0);
  ASSERT_EQ(call(second, KVM_SET_SREGS, &sregs), 0);
  regs.rip = Guest::kCode;
  regs.rflags = 2;
  ASSERT_EQ(call(second, KVM_SET_REGS, &regs), 0);
  kvm_mp_state runnable{KVM_MP_STATE_RUNNABLE};
  ASSERT_EQ(call(second, KVM_SET_MP_STATE, &runnable), 0);
  for (unsigned i = 0; i < 10; ++i) {
    ASSERT_EQ(call(second, KVM_RUN), 0);
    ASSERT_EQ(call(second, KVM_GET_REGS, &regs), 0);
    EXPECT_GT(tsc_of(regs), latest);
    ASSERT_EQ(guest.run(), 0);
    EXPECT_GT(tsc_of(guest.regs()), tsc_of(regs));
    latest = tsc_of(guest.regs());
  }
}

// 4.4: what a client saves and restores goes on from there, at the rate that the guest knows.
TEST_P(Rates, tsc_and_kvmclock_go_on_in_another_vm) {
  const std::initializer_list<std::uint8_t> code = {0x0f, 0x31, 0xe6, 0x10};  // rdtsc; out 10h,al
  TimedGuest from(code, GetParam());
  const std::uint64_t tsc_before = from.run_to(0x10);
  const std::uint64_t saved_tsc = from.msr(kTscMsr);
  kvm_clock_data saved{};
  ASSERT_EQ(call(from.vm, KVM_GET_CLOCK, &saved), 0);

  TimedGuest to(code, GetParam());
  kvm_clock_data restored{};
  restored.clock = saved.clock;
  ASSERT_EQ(call(to.vm, KVM_SET_CLOCK, &restored), 0);
  ASSERT_EQ(to.set_msr(kTscMsr, saved_tsc), 1);
  const std::uint64_t tsc_after = to.run_to(0x10);
  EXPECT_GT(tsc_after, tsc_before);
  EXPECT_LE(tsc_after, from.msr(kTscMsr));  // the source went on meanwhile
  EXPECT_GE(to.clock(), saved.clock);
  EXPECT_LE(to.clock(), from.clock());
}

// --- Timers ---

// rdtsc; add eax,1 ms; adc edx,0; esi, edi = eax, edx; mov ecx,6e0h; wrmsr; sti; hlt
TEST_P(Rates, deadline_of_the_tsc_has_passed_when_its_interrupt_comes) {
  TimedGuest guest({0x0f, 0x31, 0x66, 0x05, 0,    0,    0,    0, 0x66, 0x83, 0xd2, 0x00, 0x66, 0x89, 0xc6,
                    0x66, 0x89, 0xd7, 0x66, 0xb9, 0xe0, 0x06, 0, 0,    0x0f, 0x30, 0xfb, 0xf4, 0xf4},
                   GetParam());
  const auto millisecond = static_cast<std::uint32_t>(guest.khz);
  std::memcpy(guest.memory.data() + Guest::kCode + 4, &millisecond, sizeof millisecond);
  guest.set_lapic(0x320, 0x40000 | kVector);
  const std::uint64_t now = guest.run_to(0x11);
  const kvm_regs regs = guest.regs();
  EXPECT_GE(now, regs.rdi << 32 | regs.rsi);
  EXPECT_EQ(guest.msr(0x6e0), 0u);
}

// 2.3: the timer counts the bus's clock, 1 GHz here, divided down; it comes once, and not too early.
// rdtsc; esi, edi = eax, edx; mov eax,500000; xor edx,edx; mov ecx,838h; wrmsr; sti; hlt
TEST_P(Rates, one_shot_of_the_apic_is_not_early) {
  TimedGuest guest({0x0f, 0x31, 0x66, 0x89, 0xc6, 0x66, 0x89, 0xd7, 0x66, 0xb8, 0x20, 0xa1, 0x07, 0,
                    0x66, 0x31, 0xd2, 0x66, 0xb9, 0x38, 0x08, 0,    0,    0x0f, 0x30, 0xfb, 0xf4},
                   GetParam());
  guest.set_lapic(0x320, kVector);
  guest.set_lapic(0x3e0, 0);                                      // divided by 2: a millisecond
  ASSERT_EQ(guest.set_msr(kApicBaseMsr, 0xfee00000 | 0xd00), 1);  // x2APIC
  const std::uint64_t now = guest.run_to(0x11);
  const kvm_regs regs = guest.regs();
  EXPECT_GE(now - (regs.rdi << 32 | regs.rsi), guest.khz - guest.khz / 100);
}

// --- kvmclock ---

struct ClockRecord {
  std::uint32_t version, pad;
  std::uint64_t tsc, system_time;
  std::uint32_t mul;
  std::int8_t shift;
  std::uint8_t flags, pad2[2];
};

std::uint64_t time_at(const ClockRecord& record, std::uint64_t tsc) {
  const std::uint64_t passed = tsc - record.tsc;
  const std::uint64_t shifted = record.shift < 0 ? passed >> -record.shift : passed << record.shift;
  return record.system_time +
         static_cast<std::uint64_t>(static_cast<unsigned __int128>(shifted) * record.mul >> 32);
}

// KVM_GET_CLOCK rounds where the guest's multiplier rounds otherwise.
constexpr std::uint64_t kRounding = 1'000;

TEST_P(Rates, guests_clock_is_the_clients) {
  TimedGuest guest({0x0f, 0x31, 0xe6, 0x10, 0x0f, 0x31, 0xe6, 0x10}, GetParam());
  ASSERT_EQ(guest.set_msr(kClockMsr, 0x4001), 1);
  for (unsigned i = 0; i < 2; ++i) {
    const std::uint64_t before = guest.clock();
    const std::uint64_t tsc = guest.run_to(0x10);
    ClockRecord record;
    std::memcpy(&record, guest.memory.data() + 0x4000, sizeof record);
    EXPECT_EQ(record.version % 2, 0u);
    EXPECT_GE(time_at(record, tsc) + kRounding, before);
    EXPECT_LE(time_at(record, tsc), guest.clock() + kRounding);
  }
}

TEST_P(Rates, guests_clock_follows_what_the_client_sets) {
  TimedGuest guest({0x0f, 0x31, 0xe6, 0x10, 0x0f, 0x31, 0xe6, 0x10}, GetParam());
  ASSERT_EQ(guest.set_msr(kClockMsr, 0x4001), 1);
  guest.run_to(0x10);
  kvm_clock_data later{};
  later.clock = guest.clock() + 3'600'000'000'000;
  ASSERT_EQ(call(guest.vm, KVM_SET_CLOCK, &later), 0);
  const std::uint64_t tsc = guest.run_to(0x10);
  ClockRecord record;
  std::memcpy(&record, guest.memory.data() + 0x4000, sizeof record);
  EXPECT_GE(time_at(record, tsc) + kRounding, later.clock);
  EXPECT_LE(time_at(record, tsc), guest.clock() + kRounding);
}

}  // namespace
}  // namespace anykvm::test
