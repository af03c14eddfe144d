// Performance counters: what the client says about them, and what a guest on this vendor's CPU counts.
#include "kvm.h"

namespace anykvm::test {
namespace {

constexpr std::uint32_t kK7Select = 0xc0010000, kK7Counter = 0xc0010004;

template <unsigned kCount>
struct Filter {
  kvm_pmu_event_filter header{};
  std::uint64_t events[kCount] = {};
};

std::uint64_t masked(std::uint64_t select, std::uint64_t mask, std::uint64_t match, bool exclude) {
  return select | match << 8 | std::uint64_t{exclude} << 55 | mask << 56;
}

// mov ecx, 100; 1: dec ecx; jnz 1b; hlt on an AMD model that counts retired instructions.
struct AmdGuest : Guest {
  AmdGuest() : Guest() {
    enter_long_mode();
    SupportedCpuid cpuid = supported_cpuid();
    for (std::uint32_t i = 0; i < cpuid.header.nent; ++i) {
      if (cpuid.entries[i].function) continue;
      cpuid.entries[i].ebx = 0x68747541, cpuid.entries[i].edx = 0x69746e65, cpuid.entries[i].ecx = 0x444d4163;
    }
    EXPECT_EQ(call(vcpu, KVM_SET_CPUID2, &cpuid), 0);
    set_code({0xb9, 100, 0, 0, 0, 0xff, 0xc9, 0x75, 0xfc, 0xf4});
    EXPECT_TRUE(set_msr(kK7Select, 0xc0 | 1 << 17 | 1 << 22));
  }
  std::uint64_t count() {
    EXPECT_TRUE(set_msr(kK7Counter, 0));
    start_at_code();
    EXPECT_EQ(run(), 0);
    EXPECT_EQ(shared->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
    return msr(kK7Counter);
  }
};

constexpr std::uint64_t kInstructions = 202;  // of AmdGuest's code

TEST(PerformanceCounters, guest_counts_its_instructions_again_and_again) {
  AmdGuest guest;
  EXPECT_EQ(guest.count(), kInstructions);
  EXPECT_EQ(guest.count(), kInstructions);
}

TEST(PerformanceCounters, filter_denies_and_allows_events) {
  AmdGuest guest;
  Filter<1> filter;
  filter.header.nevents = 1;
  filter.events[0] = 0xc0;
  filter.header.action = KVM_PMU_EVENT_DENY;
  ASSERT_EQ(call(guest.vm, KVM_SET_PMU_EVENT_FILTER, &filter), 0);
  EXPECT_EQ(guest.count(), 0u);
  filter.header.action = KVM_PMU_EVENT_ALLOW;
  ASSERT_EQ(call(guest.vm, KVM_SET_PMU_EVENT_FILTER, &filter), 0);
  EXPECT_EQ(guest.count(), kInstructions);
  filter.events[0] = 0xc2;
  ASSERT_EQ(call(guest.vm, KVM_SET_PMU_EVENT_FILTER, &filter), 0);
  EXPECT_EQ(guest.count(), 0u);
}

TEST(PerformanceCounters, masked_entries_name_unit_masks_and_exclude_some) {
  AmdGuest guest;
  Filter<2> filter;
  filter.header.nevents = 2;
  filter.header.flags = 1;  // KVM_PMU_EVENT_FLAG_MASKED_EVENTS
  filter.header.action = KVM_PMU_EVENT_ALLOW;
  filter.events[0] = masked(0xc0, 0x0f, 0, false);
  filter.events[1] = masked(0xc0, 0xff, 0x10, true);
  ASSERT_EQ(call(guest.vm, KVM_SET_PMU_EVENT_FILTER, &filter), 0);
  EXPECT_EQ(guest.count(), kInstructions);
  ASSERT_TRUE(guest.set_msr(kK7Select, 0x10c0 | 1 << 17 | 1 << 22));
  EXPECT_EQ(guest.count(), 0u);
  ASSERT_TRUE(guest.set_msr(kK7Select, 0x20c0 | 1 << 17 | 1 << 22));
  EXPECT_EQ(guest.count(), kInstructions);
}

TEST(PerformanceCounters, filters_that_make_no_sense_are_refused) {
  Vm vm;
  Filter<1> filter;
  filter.header.action = 2;
  EXPECT_EQ(call(vm.vm, KVM_SET_PMU_EVENT_FILTER, &filter), -EINVAL);
  filter.header = {};
  filter.header.flags = 2;
  EXPECT_EQ(call(vm.vm, KVM_SET_PMU_EVENT_FILTER, &filter), -EINVAL);
  filter.header = {};
  filter.header.nevents = 301;
  EXPECT_EQ(call(vm.vm, KVM_SET_PMU_EVENT_FILTER, &filter), -E2BIG);
  filter.header = {};
  filter.header.nevents = 1;
  filter.header.flags = 1;
  filter.events[0] = 1ull << 40;
  EXPECT_EQ(call(vm.vm, KVM_SET_PMU_EVENT_FILTER, &filter), -EINVAL);
  EXPECT_EQ(call(vm.vm, KVM_SET_PMU_EVENT_FILTER, kBadPointer), -EFAULT);
}

TEST(PerformanceCounters, vm_without_them_counts_nothing) {
  Vm vm;
  EXPECT_EQ(call(vm.vm, KVM_CHECK_EXTENSION, KVM_CAP_PMU_CAPABILITY), KVM_PMU_CAP_DISABLE);
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_PMU_CAPABILITY, 2), -EINVAL);
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE), 0);
  Handle vcpu(call(vm.vm, KVM_CREATE_VCPU, 0));
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_PMU_CAPABILITY, 0), -EINVAL);
}

}  // namespace
}  // namespace anykvm::test
