#pragma once
// struct kvm_cpuid_entry2, and the older kvm_cpuid_entry, from and to the CPU model's entries.
// Owner: nobody; pure functions. Any thread.

#include <linux/kvm.h>

#include <vector>

#include "x86/sys/cpu_model.h"

namespace anykvm::abi {

inline constexpr u32 kMaxCpuidEntries = 256;  // as the kernel's

inline std::vector<kvm_cpuid_entry2> client_cpuid(const std::vector<x86::CpuidEntry>& from) {
  std::vector<kvm_cpuid_entry2> entries;
  entries.reserve(from.size());
  for (const x86::CpuidEntry& e : from)
    entries.push_back({e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx, {}});
  return entries;
}

inline std::vector<x86::CpuidEntry> guest_cpuid(const std::vector<kvm_cpuid_entry2>& from) {
  std::vector<x86::CpuidEntry> entries;
  entries.reserve(from.size());
  for (const kvm_cpuid_entry2& e : from)
    entries.push_back({e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx});
  return entries;
}

// Leaves without an index.
inline std::vector<x86::CpuidEntry> guest_cpuid(const std::vector<kvm_cpuid_entry>& from) {
  std::vector<x86::CpuidEntry> entries;
  entries.reserve(from.size());
  for (const kvm_cpuid_entry& e : from) entries.push_back({e.function, 0, 0, e.eax, e.ebx, e.ecx, e.edx});
  return entries;
}

}  // namespace anykvm::abi
