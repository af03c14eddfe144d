#include "x86/nested/svm/msr_map.h"

#include <algorithm>

#include "x86/mmu/access.h"

namespace anykvm::x86::svm {

void MsrMapCopy::enter(Cpu& cpu, Gpa vmcb, Gpa map, MsrMapUse use) {
  if (use == MsrMapUse::kKeep && m_vmcb == vmcb.value) return;
  forget();
  if (use == MsrMapUse::kMemory) return;
  m_bytes.resize(kMsrMapBytes);
  // What is not in RAM permits nothing.
  for (unsigned at = 0; at < kMsrMapBytes; at += kPageSize) {
    const auto size = std::min<unsigned>(kPageSize, kMsrMapBytes - at);
    if (!read_physical(cpu, map + at, m_bytes.data() + at, size))
      std::fill_n(m_bytes.data() + at, size, 0xff);
  }
  m_vmcb = vmcb.value;
}

}  // namespace anykvm::x86::svm
