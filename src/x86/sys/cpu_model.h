#pragma once
// The CPU that the guest sees: the CPUID entries that the client stored, and questions about features that
// other code asks of them. Owner: x86::Cpu. Only the vCPU's thread.

#include <optional>
#include <vector>

#include "base/types.h"

namespace anykvm::x86 {

struct CpuState;

// One CPUID answer; the fields are those of struct kvm_cpuid_entry2 (KVM API 4.20).
struct CpuidEntry {
  u32 function = 0, index = 0, flags = 0;
  u32 eax = 0, ebx = 0, ecx = 0, edx = 0;

  bool operator==(const CpuidEntry&) const = default;
};

// Guest features by the manuals' names; the row of each in tables/features.def says where CPUID shows it.
enum class Feature : u16 {
#define ANYKVM_FEATURE(name, leaf, subleaf, reg, bitnr, requirement) name,
#include "x86/tables/features.def"
#undef ANYKVM_FEATURE
};

struct CpuidResult {
  u32 eax, ebx, ecx, edx;
};

class CpuModel {
 public:
  CpuModel();
  // Exactly what KVM_SET_CPUID2 stored (SEEDS X1).
  void set_entries(std::vector<CpuidEntry> entries);
  const std::vector<CpuidEntry>& entries() const { return m_entries; }

  // What KVM_GET_CPUID2 tells: those, with what the guest has switched on since (OSXSAVE, OSPKE, the sizes of
  // leaf 0DH).
  std::vector<CpuidEntry> entries_now(const CpuState& state) const;
  // Would storing these change what the guest sees? The bits that follow the state do not count.
  bool shows_the_same(const std::vector<CpuidEntry>& entries, const CpuState& state) const;

  // Has the guest this feature? Until the client sets entries: no feature at all beyond x86-64-v1's.
  // Is `value` canonical for registers that hold an address for later? The widest form that the model has
  // counts, whatever CR4.LA57 says now (SDM 3A 4.5.1).
  bool canonical_register(u64 value) const;
  bool has(Feature feature) const;

  // What the CPUID instruction answers now: stored entries, with the bits that follow the state (OSXSAVE,
  // OSPKE, leaf 0DH sizes) and the rules for leaves out of range (SDM 2A, CPUID). The APIC bit follows
  // IA32_APIC_BASE, which is not part of CpuState: op_cpuid() minds it.
  CpuidResult cpuid(u32 leaf, u32 subleaf, const CpuState& state) const;

  // The entry with KVM's own features, or null. It points into entries().
  const CpuidEntry* find_pv_features() const;
  unsigned physical_address_bits() const { return m_physical_address_bits; }
  u64 xcr0_supported() const { return m_xcr0_supported; }
  // Bits of CR4 and EFER that this CPU has; others are reserved (#GP).
  u64 cr4_supported() const { return m_cr4_supported; }
  u64 efer_supported() const { return m_efer_supported; }
  bool intel() const { return m_intel; }  // vendor string GenuineIntel: some rules differ between the manuals

 private:
  void recompute();
  CpuidEntry with_state(CpuidEntry entry, const CpuState& state) const;
  const CpuidEntry* find(u32 leaf, u32 subleaf) const;
  const CpuidEntry* find_out_of_range(u32 leaf, u32 subleaf) const;

  std::vector<CpuidEntry> m_entries;
  std::vector<bool> m_features;
  unsigned m_physical_address_bits = 36;
  u64 m_xcr0_supported = 0;
  u64 m_cr4_supported = 0;
  u64 m_efer_supported = 0;
  bool m_intel = false;
};

// The vendor of the host's CPU is AMD, or one whose CPUs are AMD's.
bool host_is_amd();

// KVM_GET_SUPPORTED_CPUID: the host's CPUID, masked to what works in guests here (features.def).
std::vector<CpuidEntry> supported_cpuid();
// KVM_GET_EMULATED_CPUID: what of it the host's CPU does not have.
std::vector<CpuidEntry> emulated_cpuid();
// Does the host's kernel say how long threads wait for a CPU?
bool host_tells_waiting_time();

}  // namespace anykvm::x86
