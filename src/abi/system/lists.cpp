// What guests may be shown: KVM_GET_SUPPORTED_CPUID, the MSR lists, feature MSRs.
#include <errno.h>

#include <algorithm>

#include "abi/client_list.h"
#include "abi/cpuid_entries.h"
#include "abi/handlers.h"
#include "x86/sys/msr.h"

namespace anykvm::abi::system {
namespace {

constexpr u32 kMaxMsrs = 256;

Result<long> write_index_list(ClientPtr<kvm_msr_list> list, const std::vector<u32>& indices) {
  const ClientPtr<u32> count(list.address());
  const u32 room = TRY(count.read());
  TRY(write_items(count, room, items_after<u32>(list, offsetof(kvm_msr_list, indices)), indices));
  return 0;
}

Result<long> write_cpuid(ClientPtr<kvm_cpuid2> list, const std::vector<x86::CpuidEntry>& entries) {
  const ClientPtr<u32> count(list.address());
  const u32 room = std::min(TRY(count.read()), kMaxCpuidEntries);
  TRY(write_items(count, room, items_after<kvm_cpuid_entry2>(list, offsetof(kvm_cpuid2, entries)),
                  client_cpuid(entries)));
  return 0;
}

}  // namespace

Result<long> get_supported_cpuid(System&, ClientPtr<kvm_cpuid2> list) {
  return write_cpuid(list, x86::supported_cpuid());
}

// The client's entries have to be there already, with clean padding (unlike KVM_GET_SUPPORTED_CPUID's).
Result<long> get_emulated_cpuid(System&, ClientPtr<kvm_cpuid2> list) {
  const u32 room = std::min(TRY(ClientPtr<u32>(list.address()).read()), kMaxCpuidEntries);
  const auto entries = read_items(items_after<kvm_cpuid_entry2>(list, offsetof(kvm_cpuid2, entries)), room);
  const auto is_clean = [](const kvm_cpuid_entry2& entry) {
    return !entry.padding[0] && !entry.padding[1] && !entry.padding[2];
  };
  if (!entries.ok() || !std::ranges::all_of(entries.value(), is_clean))
    return Error{EINVAL, "entries that cannot be read, or with padding"};
  return write_cpuid(list, x86::emulated_cpuid());
}

Result<long> get_msr_index_list(System&, ClientPtr<kvm_msr_list> list) {
  return write_index_list(list, x86::msr_index_list());
}

Result<long> get_msr_feature_index_list(System&, ClientPtr<kvm_msr_list> list) {
  return write_index_list(list, x86::feature_msr_index_list());
}

Result<long> get_msrs(System&, ClientPtr<kvm_msrs> list) {
  const u32 count = TRY(ClientPtr<u32>(list.address()).read());
  if (count >= kMaxMsrs) return Error{E2BIG, "too many MSRs at once"};
  const auto at = items_after<kvm_msr_entry>(list, offsetof(kvm_msrs, entries));
  auto entries = TRY(read_items(at, count));
  long done = 0;
  for (kvm_msr_entry& entry : entries) {
    auto value = x86::read_feature_msr(entry.index);
    if (!value) break;
    entry.data = *value;
    ++done;
  }
  TRY(at.write_array(entries.data(), entries.size()));
  return done;
}

}  // namespace anykvm::abi::system
