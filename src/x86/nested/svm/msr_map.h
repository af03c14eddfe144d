#pragma once
// The copy of an MSR permission map (APM 2 15.11) for hypervisors that say when they have changed theirs
// (MsrMapUse). Owner: Cpu. Only the vCPU's thread.

#include <vector>

#include "x86/platform.h"

namespace anykvm::x86 {

class Cpu;

namespace svm {

// Two bits for each MSR of three ranges.
inline constexpr unsigned kMsrMapBytes = 0x1800;

class MsrMapCopy {
 public:
  // At VMRUN of the VMCB at `vmcb`, whose map is at `map`.
  void enter(Cpu& cpu, Gpa vmcb, Gpa map, MsrMapUse use);
  // Null: the map of that VMCB is in memory.
  const u8* of(u64 vmcb) const { return m_vmcb == vmcb ? m_bytes.data() : nullptr; }
  void forget() { m_vmcb = kNone; }

 private:
  static constexpr u64 kNone = ~u64{0};  // no page begins there

  u64 m_vmcb = kNone;
  std::vector<u8> m_bytes;
};

}  // namespace svm
}  // namespace anykvm::x86
