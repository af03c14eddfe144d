#pragma once
// tables/features.def as data: where CPUID shows each feature and when it is offered.
// Owner: nobody; constants. Any thread.

#include "x86/sys/cpu_model.h"

namespace anykvm::x86 {

enum class CpuidRegister : u8 { eax, ebx, ecx, edx };
enum class FeatureRequirement : u8 { kHost, kAlways, kModel, kSchedstat, kIntelHost, kAmdHost };

struct FeatureRow {
  Feature feature;
  u32 leaf, subleaf;
  CpuidRegister reg;
  u8 bitnr;
  FeatureRequirement requirement;
};

inline constexpr FeatureRow kFeatureRows[] = {
#define ANYKVM_FEATURE(name, leaf, subleaf, reg, bitnr, requirement) \
  {Feature::name, leaf, subleaf, CpuidRegister::reg, bitnr, FeatureRequirement::requirement},
#include "x86/tables/features.def"
#undef ANYKVM_FEATURE
};

// One of KVM's own, in the leaf behind its signature.
inline constexpr u32 kPvFeaturesLeaf = 0x40000001;
constexpr bool is_pv_feature(Feature feature) {
  return kFeatureRows[static_cast<std::size_t>(feature)].leaf == kPvFeaturesLeaf;
}

// The register of a CPUID answer (CpuidEntry or CpuidResult) that a row means.
template <class Answer>
auto& cpuid_register(Answer& answer, CpuidRegister reg) {
  switch (reg) {
    case CpuidRegister::eax:
      return answer.eax;
    case CpuidRegister::ebx:
      return answer.ebx;
    case CpuidRegister::ecx:
      return answer.ecx;
    default:
      return answer.edx;
  }
}

}  // namespace anykvm::x86
