#pragma once
// The x87 registers of an XSAVE image, to go back to when an instruction that has changed them starts over.
// Owner: whoever keeps it. Only the vCPU's thread.

#include <array>
#include <cstring>

#include "base/types.h"
#include "x86/state/cpu_state.h"

namespace anykvm::x86 {

// The legacy region but for what is SSE's (SDM 1 10.5.1), and whether the image holds it (SDM 1 13.4.2).
// MXCSR, in between, is as it was: no x87 instruction changes it.
class X87State {
 public:
  void take(const CpuState& state) {
    std::memcpy(m_registers.data(), state.xsave.data(), m_registers.size());
    m_held = state.xsave[kHeader] & 1;
  }
  void put_back(CpuState& state) const {
    std::memcpy(state.xsave.data(), m_registers.data(), m_registers.size());
    u8& held = state.xsave[kHeader];
    held = static_cast<u8>((held & ~1) | m_held);
  }

 private:
  static constexpr std::size_t kHeader = 512;  // XSTATE_BV

  std::array<u8, 160> m_registers{};
  u8 m_held = 0;
};

}  // namespace anykvm::x86
