#include "core/pv_eoi.h"

#include <utility>

#include "x86/mmu/access.h"

namespace anykvm::core {

void PvEoi::offer(x86::Cpu& cpu) {
  const Gpa at(cpu.state().msrs.kvm_pv_eoi & ~u64{3});
  const u8 bit = 1;
  if (x86::write_physical(cpu, at, &bit, sizeof bit)) m_offered = at;
}

bool PvEoi::withdraw(x86::Cpu& cpu) {
  const std::optional<Gpa> at = std::exchange(m_offered, std::nullopt);
  u8 bit = 0;
  if (!at || !x86::read_physical(cpu, *at, &bit, sizeof bit)) return false;
  if (!(bit & 1)) return true;
  bit = 0;
  x86::write_physical(cpu, *at, &bit, sizeof bit);
  return false;
}

}  // namespace anykvm::core
