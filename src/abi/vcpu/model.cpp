// CPUID, MSRs, the local APIC, the TSC's rate.
#include <errno.h>

#include <algorithm>

#include "abi/client_list.h"
#include "abi/cpuid_entries.h"
#include "abi/handlers.h"
#include "core/vcpu.h"
#include "core/vm.h"
#include "x86/sys/kvmclock.h"
#include "x86/sys/msr.h"

namespace anykvm::abi::vcpu {
namespace {

constexpr u32 kMaxMsrs = 256;

struct MsrList {
  ClientPtr<kvm_msr_entry> at;
  std::vector<kvm_msr_entry> entries;
};

Result<MsrList> read_msr_list(ClientPtr<kvm_msrs> list) {
  const u32 count = TRY(ClientPtr<u32>(list.address()).read());
  if (count >= kMaxMsrs) return Error{E2BIG, "too many MSRs at once"};
  MsrList msrs{items_after<kvm_msr_entry>(list, offsetof(kvm_msrs, entries)), {}};
  msrs.entries = TRY(read_items(msrs.at, count));
  return msrs;
}

// What says which CPU it is stays as it is once the CPU has run; the same may be written again.
bool is_settled(core::Vcpu& vcpu, u32 index) {
  constexpr u32 kArchCapabilities = 0x10a, kPerfCapabilities = 0x345, kDecodeConfig = 0xc0011029;
  return vcpu.has_run() &&
         (index == kArchCapabilities || index == kPerfCapabilities || index == kDecodeConfig);
}

// The client may go from any mode of the local APIC to any other, unlike the guest.
bool set_msr(core::Vcpu& vcpu, u32 index, u64 value) {
  constexpr u32 kApicBase = 0x1b;
  if (is_settled(vcpu, index)) return x86::read_msr(vcpu.cpu(), index, x86::MsrAccess::kClient) == value;
  if (index == kApicBase) return vcpu.set_apic_base(value).ok();
  return x86::write_msr(vcpu.cpu(), index, value, x86::MsrAccess::kClient);
}

Result<u32> cpuid_count(u64 list) {
  const u32 count = TRY(ClientPtr<u32>(list).read());
  if (count > kMaxCpuidEntries) return Error{E2BIG, "too many CPUID entries"};
  return count;
}

// Linear addresses have 48 or 57 bits, or the model does not say.
bool has_known_linear_width(const std::vector<x86::CpuidEntry>& entries) {
  constexpr u32 kAddressSizes = 0x80000008;
  const auto sizes = std::ranges::find(entries, kAddressSizes, &x86::CpuidEntry::function);
  if (sizes == entries.end()) return true;
  const u32 bits = sizes->eax >> 8 & 0xff;
  return bits == 0 || bits == 48 || bits == 57;
}

Result<long> replace_cpuid(core::Vcpu& vcpu, std::vector<x86::CpuidEntry> entries) {
  if (!has_known_linear_width(entries)) return Error{EINVAL, "no CPU has linear addresses of this width"};
  // A guest that has run may have cached what it saw; only the same again is accepted (KVM API 4.20).
  if (vcpu.has_run() && !vcpu.cpu().model().shows_the_same(entries, vcpu.cpu().state()))
    return Error{EINVAL, "CPUID cannot change after KVM_RUN"};
  TRY(vcpu.set_cpuid(std::move(entries)));
  return 0;
}

}  // namespace

// Both stop at the first MSR that there is not, and return how many went before.
Result<long> get_msrs(core::Vcpu& vcpu, ClientPtr<kvm_msrs> list) {
  MsrList msrs = TRY(read_msr_list(list));
  long done = 0;
  for (kvm_msr_entry& entry : msrs.entries) {
    auto value = x86::read_msr(vcpu.cpu(), entry.index, x86::MsrAccess::kClient);
    if (!value) break;
    entry.data = *value;
    ++done;
  }
  TRY(msrs.at.write_array(msrs.entries.data(), msrs.entries.size()));
  return done;
}

Result<long> set_msrs(core::Vcpu& vcpu, ClientPtr<kvm_msrs> list) {
  const MsrList msrs = TRY(read_msr_list(list));
  long done = 0;
  // Some of them have the CPU write to guest memory.
  vcpu.cpu().visit_memory([&] {
    for (const kvm_msr_entry& entry : msrs.entries) {
      if (!set_msr(vcpu, entry.index, entry.data)) break;
      ++done;
    }
  });
  vcpu.cpu().state_replaced();
  return done;
}

Result<long> set_cpuid2(core::Vcpu& vcpu, ClientPtr<kvm_cpuid2> list) {
  const u32 count = TRY(cpuid_count(list.address()));
  return replace_cpuid(
      vcpu, guest_cpuid(
                TRY(read_items(items_after<kvm_cpuid_entry2>(list, offsetof(kvm_cpuid2, entries)), count))));
}

Result<long> set_cpuid(core::Vcpu& vcpu, ClientPtr<kvm_cpuid> list) {
  const u32 count = TRY(cpuid_count(list.address()));
  return replace_cpuid(
      vcpu,
      guest_cpuid(TRY(read_items(items_after<kvm_cpuid_entry>(list, offsetof(kvm_cpuid, entries)), count))));
}

Result<long> get_cpuid2(core::Vcpu& vcpu, ClientPtr<kvm_cpuid2> list) {
  const ClientPtr<u32> count(list.address());
  const u32 room = TRY(count.read());
  TRY(write_items(count, room, items_after<kvm_cpuid_entry2>(list, offsetof(kvm_cpuid2, entries)),
                  client_cpuid(vcpu.cpu().model().entries_now(vcpu.cpu().state()))));
  return 0;
}

Result<long> get_lapic(core::Vcpu& vcpu, kvm_lapic_state& state) {
  if (!vcpu.lapic()) return Error{EINVAL, "the vCPU has no local APIC"};
  vcpu.lapic()->get_state(&state, vcpu.vm().irqchip()->ids_32bit());
  return 0;
}

Result<long> set_lapic(core::Vcpu& vcpu, ClientPtr<kvm_lapic_state> from) {
  if (!vcpu.lapic()) return Error{EINVAL, "the vCPU has no local APIC"};
  const kvm_lapic_state state = TRY(from.read());
  TRY(vcpu.lapic()->set_state(state, vcpu.vm().irqchip()->ids_32bit()));
  return 0;
}

Result<long> tpr_access_reporting(core::Vcpu& vcpu, kvm_tpr_access_ctl& control) {
  if (control.flags) return Error{EINVAL, "unknown flags"};
  vcpu.set_tpr_access_reporting(control.enabled != 0);
  return 0;
}

Result<long> set_vapic_addr(core::Vcpu& vcpu, ClientPtr<kvm_vapic_addr> from) {
  if (!vcpu.lapic()) return Error{EINVAL, "the vCPU has no local APIC"};
  TRY(vcpu.set_vapic_address(TRY(from.read()).vapic_addr));
  return 0;
}

Result<long> get_tsc_khz(core::Vcpu& vcpu, u64) { return vcpu.guest_tsc_khz(); }

Result<long> set_tsc_khz(core::Vcpu& vcpu, u64 khz) {
  TRY(vcpu.set_guest_tsc_khz(static_cast<u32>(khz)));  // an unsigned int to the kernel, too
  return 0;
}

Result<long> kvmclock_ctrl(core::Vcpu& vcpu, u64) {
  bool marked = false;
  vcpu.cpu().visit_memory([&] { marked = x86::mark_guest_stopped(vcpu.cpu()); });
  if (!marked) return Error{EINVAL, "the guest has no kvmclock"};
  return 0;
}

}  // namespace anykvm::abi::vcpu
