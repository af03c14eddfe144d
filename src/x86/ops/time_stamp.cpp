// RDTSC, RDTSCP and RDPID (SDM 2B). Compiled without vector instructions (kOpKeepsVector).

#include "x86/nested/svm/exits.h"
#include "x86/ops/ops.h"

namespace anykvm::x86 {

namespace {

// TSD comes before a hypervisor's intercept (APM 2 15.9).
bool rdtsc_permitted(const CpuState& state) { return state.cpl == 0 || !(state.cr4 & kCr4Tsd); }

void read_into_edx_eax(Cpu& cpu) {
  u64 value = cpu.state().svm.running_tsc(cpu.read_tsc());
  cpu.state().gpr[kRax] = static_cast<u32>(value);
  cpu.state().gpr[kRdx] = value >> 32;
}

}  // namespace

Guest<void> op_rdtsc(Cpu& cpu, const Insn&) {
  if (!rdtsc_permitted(cpu.state())) return GuestStop::gp(0);
  TRY(svm::check(cpu, Intercept::kRdtsc));
  read_into_edx_eax(cpu);
  return {};
}

Guest<void> op_rdtscp(Cpu& cpu, const Insn&) {
  if (!cpu.model().has(Feature::kRdtscp)) return GuestStop::ud();
  if (!rdtsc_permitted(cpu.state())) return GuestStop::gp(0);
  TRY(svm::check(cpu, Intercept::kRdtscp));
  read_into_edx_eax(cpu);
  cpu.state().gpr[kRcx] = cpu.state().msrs.tsc_aux;
  return {};
}

Guest<void> op_rdpid(Cpu& cpu, const Insn& insn) {
  if (!cpu.model().has(Feature::kRdpid)) return GuestStop::ud();
  unsigned size = insn.code_bits == 64 ? 8 : 4;  // whatever the prefixes say
  write_gpr(cpu.state(), insn, insn.rm, size, cpu.state().msrs.tsc_aux);
  return {};
}

}  // namespace anykvm::x86
