#include "vmm/cpuid.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace anykvm::vmm {
namespace {

using Entries = std::vector<kvm_cpuid_entry2>;

kvm_cpuid_entry2 entry(u32 function, u32 index, u32 eax, u32 ebx, u32 ecx, u32 edx) {
  kvm_cpuid_entry2 e{};
  e.function = function;
  e.index = index;
  e.eax = eax;
  e.ebx = ebx;
  e.ecx = ecx;
  e.edx = edx;
  return e;
}

kvm_cpuid_entry2 find(const Entries& entries, u32 function, u32 index = 0) {
  auto it = std::find_if(entries.begin(), entries.end(),
                         [&](const auto& e) { return e.function == function && e.index == index; });
  return it == entries.end() ? kvm_cpuid_entry2{} : *it;
}

constexpr u32 kIntel = 0x756e6547, kAmd = 0x68747541;

TEST(Cpuid, leaf_1_shows_apic_id_count_and_hypervisor) {
  Entries result =
      cpuid_for_vcpu({entry(0, 0, 0xd, kIntel, 0, 0), entry(1, 0, 0x806f8, 0x55550800, 0, 0)}, {2, 3, true});
  kvm_cpuid_entry2 e = find(result, 1);
  EXPECT_EQ(e.ebx, 0x02040800u);  // three CPUs take IDs of two bits
  EXPECT_EQ(e.edx >> 28 & 1, 1u);
  EXPECT_EQ(e.ecx >> 31 & 1, 1u);
  EXPECT_EQ(e.ecx >> 24 & 1, 1u);
}

TEST(Cpuid, tsc_deadline_timer_shows_only_with_its_capability) {
  Entries result = cpuid_for_vcpu({entry(0, 0, 1, kIntel, 0, 0), entry(1, 0, 0, 0, 0, 0)}, {0, 1, false});
  EXPECT_EQ(find(result, 1).ecx >> 24 & 1, 0u);
  EXPECT_EQ(find(result, 1).edx >> 28 & 1, 0u);
}

TEST(Cpuid, extended_topology_replaces_the_hosts) {
  Entries result = cpuid_for_vcpu({entry(0, 0, 0xd, kIntel, 0, 0), entry(0xb, 0, 9, 9, 9, 9)}, {3, 4, true});
  kvm_cpuid_entry2 threads = find(result, 0xb, 0), cores = find(result, 0xb, 1), end = find(result, 0xb, 2);
  EXPECT_EQ(threads.eax, 0u);
  EXPECT_EQ(threads.ebx, 1u);
  EXPECT_EQ(threads.ecx, 0x100u);
  EXPECT_EQ(cores.eax, 2u);
  EXPECT_EQ(cores.ebx, 4u);
  EXPECT_EQ(cores.ecx, 0x201u);
  EXPECT_EQ(cores.edx, 3u);
  EXPECT_EQ(end.ecx, 2u);
  EXPECT_EQ(find(result, 0x1f).function, 0u);
}

TEST(Cpuid, leaf_4_shares_the_last_level_only) {
  Entries result = cpuid_for_vcpu(
      {entry(0, 0, 4, kIntel, 0, 0), entry(4, 0, 0xfc004121, 0, 0, 0), entry(4, 3, 0xfc1fc163, 0, 0, 0)},
      {0, 4, true});
  EXPECT_EQ(find(result, 4, 0).eax, 0x0c000121u);
  EXPECT_EQ(find(result, 4, 3).eax, 0x0c00c163u);
}

TEST(Cpuid, amd_leaves_show_core_count_and_id) {
  Entries result =
      cpuid_for_vcpu({entry(0, 0, 0x10, kAmd, 0, 0), entry(0x80000001, 0, 0, 0, 0, 0),
                      entry(0x80000008, 0, 0, 0, 0x7007, 0), entry(0x8000001e, 0, 9, 0x109, 0x2ff, 0)},
                     {1, 2, true});
  EXPECT_EQ(find(result, 0x80000001).ecx & 2, 2u);
  EXPECT_EQ(find(result, 0x80000008).ecx, 0x1001u);
  EXPECT_EQ(find(result, 0x8000001e).eax, 1u);
  EXPECT_EQ(find(result, 0x8000001e).ebx, 1u);
  EXPECT_EQ(find(result, 0x8000001e).ecx, 0u);
}

TEST(Cpuid, intel_keeps_amd_fields_clear) {
  Entries result =
      cpuid_for_vcpu({entry(0, 0, 0x10, kIntel, 0, 0), entry(0x80000008, 0, 0x3930, 0, 0, 0)}, {1, 2, true});
  EXPECT_EQ(find(result, 0x80000008).ecx, 0u);
}

}  // namespace
}  // namespace anykvm::vmm
