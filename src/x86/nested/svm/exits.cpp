// Compiled without vector instructions: the guest's may be in the host's registers (kOpKeepsVector).
#include "x86/nested/svm/exits.h"

#include "x86/cpu_private.h"
#include "x86/mmu/access.h"
#include "x86/translate/insn.h"

namespace anykvm::x86 {

void Cpu::set_pending_vmexit(const svm::PendingExit& exit) { m_private->vmexit = exit; }
svm::MsrMapCopy& Cpu::msr_map_copy() { return m_private->msr_map; }

namespace svm {
namespace {

// A bit of a permission map. One that is not in RAM permits nothing.
bool map_bit(Cpu& cpu, u64 map, u64 number) {
  u8 byte = 0;
  const bool read = read_physical(cpu, Gpa((map & ~low_bits(12)) + number / 8), &byte, 1);
  return !read || has_bit(byte, number % 8);
}

// Two bits for each MSR of three ranges, read and write; all others always leave (APM 2 15.11).
std::optional<u64> place_in_msr_map(u32 index) {
  constexpr u32 kFirsts[] = {0, 0xc0000000, 0xc0010000};
  constexpr u32 kRange = 0x2000, kRangeBytes = 0x800;
  for (u64 i = 0; i < std::size(kFirsts); ++i) {
    if (index - kFirsts[i] < kRange) return (i * kRangeBytes * 8) + 2 * u64{index - kFirsts[i]};
  }
  return std::nullopt;
}

bool msr_denied(Cpu& cpu, u64 place) {
  const SvmState& svm = cpu.state().svm;
  const u8* copy = cpu.msr_map_copy().of(svm.vmcb_pa);
  return copy ? has_bit(copy[place / 8], place % 8) : map_bit(cpu, svm.control.msrpm_base, place);
}

// EXITINFO1 of IN, OUT, INS and OUTS (APM 2 15.10.2).
u64 describe(const Insn& insn, const PortAccess& access) {
  u64 info = u64{access.port} << 16 | u64{insn.address_size} << 6 | u64{access.size} << 4 | access.in;
  if (!access.string) return info;
  const bool repeated = insn.rep || insn.repne;
  return info | u64{access.segment} << 10 | u64{repeated} << 3 | 1u << 2;
}

}  // namespace

GuestStop stop_for_hypervisor(Cpu& cpu, u64 code, u64 info_1, u64 info_2) {
  cpu.set_pending_vmexit({code, info_1, info_2, cpu.state().rip});
  return GuestStop::vmexit();
}

namespace nested {

Guest<void> check_cr(Cpu& cpu, unsigned number, bool write) {
  const VmcbControl& control = cpu.state().svm.control;
  if (!has_bit(write ? control.cr_write : control.cr_read, number)) return {};
  return stop_for_hypervisor(cpu, (write ? kExitWriteCr0 : kExitReadCr0) + number);
}

Guest<void> check_dr(Cpu& cpu, unsigned number, bool write) {
  const VmcbControl& control = cpu.state().svm.control;
  if (!has_bit(write ? control.dr_write : control.dr_read, number)) return {};
  return stop_for_hypervisor(cpu, (write ? kExitWriteDr0 : kExitReadDr0) + number);
}

Guest<void> check_msr(Cpu& cpu, u32 index, bool write) {
  const SvmState& svm = cpu.state().svm;
  if (!svm.intercepts(Intercept::kMsr)) return {};
  const std::optional<u64> place = place_in_msr_map(index);
  if (place && !msr_denied(cpu, *place + write)) return {};
  return check(cpu, Intercept::kMsr, write);
}

Guest<void> check_io(Cpu& cpu, const Insn& insn, const PortAccess& access) {
  const CpuState& state = cpu.state();
  if (!state.svm.intercepts(Intercept::kIoio)) return {};
  bool denied = false;
  for (unsigned i = 0; i < access.size; ++i)
    denied = denied || map_bit(cpu, state.svm.control.iopm_base, u64{access.port} + i);
  if (!denied) return {};
  return check(cpu, Intercept::kIoio, describe(insn, access), state.rip);
}

}  // namespace nested
}  // namespace svm
}  // namespace anykvm::x86
