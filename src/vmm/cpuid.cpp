#include "vmm/cpuid.h"

#include <algorithm>
#include <bit>

#include "base/bits.h"

namespace anykvm::vmm {
namespace {

using Entry = kvm_cpuid_entry2;

// Bits of an APIC ID that number the cores of the package.
unsigned core_bits(u32 cpus) { return static_cast<unsigned>(std::bit_width(cpus - 1)); }

void put_field(u32& word, unsigned last, unsigned first, u32 value) {
  u32 mask = static_cast<u32>(low_bits(last - first + 1)) << first;
  word = (word & ~mask) | ((value << first) & mask);
}

void put_bit(u32& word, unsigned n, bool value) { put_field(word, n, n, value); }

bool is_amd(const std::vector<Entry>& entries) {
  constexpr u32 kAuth = 0x68747541, kHygo = 0x6f677948;  // "Auth", "Hygo"
  return std::any_of(entries.begin(), entries.end(),
                     [](const Entry& e) { return e.function == 0 && (e.ebx == kAuth || e.ebx == kHygo); });
}

u32 highest_leaf(const std::vector<Entry>& entries) {
  auto it = std::find_if(entries.begin(), entries.end(), [](const Entry& e) { return e.function == 0; });
  return it == entries.end() ? 0 : it->eax;
}

void fill_leaf_1(Entry& e, const CpuidTopology& t) {
  put_field(e.ebx, 31, 24, t.apic_id);
  put_field(e.ebx, 23, 16, std::min<u32>(1u << core_bits(t.cpus), 255));
  put_bit(e.edx, 28, t.cpus > 1);  // HTT: the count in EBX is valid
  if (t.tsc_deadline_timer) put_bit(e.ecx, 24, true);
  put_bit(e.ecx, 31, true);  // a hypervisor is present: Linux looks for KVM's leaves only then
}

// Leaf 4: the cores of the package, and which caches they share: the third level, not the first two.
void fill_leaf_4(Entry& e, const CpuidTopology& t) {
  if ((e.eax & 31) == 0) return;
  unsigned level = (e.eax >> 5) & 7;
  u32 ids = 1u << core_bits(t.cpus);
  put_field(e.eax, 31, 26, std::min<u32>(ids - 1, 63));
  put_field(e.eax, 25, 14, level >= 3 ? std::min<u32>(ids - 1, 4095) : 0);
}

void fill_leaf_8000001d(Entry& e, const CpuidTopology& t) {
  if ((e.eax & 31) == 0) return;
  unsigned level = (e.eax >> 5) & 7;
  put_field(e.eax, 25, 14, level >= 3 ? std::min<u32>(t.cpus - 1, 4095) : 0);
}

// AMD: the number of cores and the width of the core number in the APIC ID.
void fill_leaf_80000008(Entry& e, const CpuidTopology& t) {
  put_field(e.ecx, 7, 0, std::min<u32>(t.cpus - 1, 255));
  put_field(e.ecx, 15, 12, core_bits(t.cpus));
}

void fill_leaf_8000001e(Entry& e, const CpuidTopology& t) {
  e.eax = t.apic_id;
  e.ebx = t.apic_id & 0xff;  // compute unit, one thread each
  e.ecx = 0;                 // node 0 of 1
}

// Leaves 0BH and 1FH: subleaf 0 threads, 1 cores, 2 the end of the list (SDM 3A 10.9.1).
void append_extended_topology(std::vector<Entry>& entries, u32 function, const CpuidTopology& t) {
  constexpr u32 kThreadLevel = 1, kCoreLevel = 2;
  auto add = [&](u32 index, u32 shift, u32 count, u32 level) {
    Entry e{};
    e.function = function;
    e.index = index;
    e.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    e.eax = shift;
    e.ebx = count;
    e.ecx = level << 8 | index;
    e.edx = t.apic_id;
    entries.push_back(e);
  };
  add(0, 0, 1, kThreadLevel);
  add(1, core_bits(t.cpus), t.cpus, kCoreLevel);
  add(2, 0, 0, 0);
}

void fill_entry(Entry& e, const CpuidTopology& t, bool amd) {
  switch (e.function) {
    case 1:
      return fill_leaf_1(e, t);
    case 4:
      return fill_leaf_4(e, t);
    case 0x80000001:
      if (amd) put_bit(e.ecx, 1, t.cpus > 1);  // CmpLegacy
      return;
    case 0x80000008:
      if (amd) fill_leaf_80000008(e, t);
      return;
    case 0x8000001d:
      return fill_leaf_8000001d(e, t);
    case 0x8000001e:
      return fill_leaf_8000001e(e, t);
    default:
      return;
  }
}

// 80000026H would describe the host's own topology.
bool is_host_topology(const Entry& e) {
  return e.function == 0x0b || e.function == 0x1f || e.function == 0x80000026;
}

}  // namespace

std::vector<Entry> cpuid_for_vcpu(std::vector<Entry> entries, const CpuidTopology& topology) {
  bool amd = is_amd(entries);
  u32 highest = highest_leaf(entries);
  std::erase_if(entries, is_host_topology);
  for (Entry& entry : entries) fill_entry(entry, topology, amd);
  if (highest >= 0x0b) append_extended_topology(entries, 0x0b, topology);
  if (highest >= 0x1f) append_extended_topology(entries, 0x1f, topology);
  return entries;
}

}  // namespace anykvm::vmm
