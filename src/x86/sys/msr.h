#pragma once
// Model-specific registers: RDMSR and WRMSR by the guest, KVM_GET_MSRS and KVM_SET_MSRS by the client, index
// lists. All from tables/msrs.def. Owner: nobody; functions over a Cpu. Only the vCPU's thread.

#include <optional>
#include <vector>

#include "x86/cpu.h"

namespace anykvm::x86 {

// By whom: the client may write what the guest may only read (for instance IA32_TSC by value, read-only
// feature MSRs).
enum class MsrAccess : u8 { kGuest, kClient };

// Nothing / false: no such MSR, or a value with reserved bits: #GP for the guest, a short count for the
// client.
std::optional<u64> read_msr(Cpu& cpu, u32 index, MsrAccess access);
bool write_msr(Cpu& cpu, u32 index, u64 value, MsrAccess access);

// RDPMC. Nothing: no such counter.
std::optional<u64> read_counter(Cpu& cpu, u32 number);

// Is there such an MSR at all, whoever may use it and for what?
bool msr_exists(u32 index);

std::vector<u32> msr_index_list();               // KVM_GET_MSR_INDEX_LIST
std::vector<u32> feature_msr_index_list();       // KVM_GET_MSR_FEATURE_INDEX_LIST
std::optional<u64> read_feature_msr(u32 index);  // KVM_GET_MSRS on the system fd

}  // namespace anykvm::x86
