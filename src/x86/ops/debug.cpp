// MOV to and from debug registers (SDM 2B, MOV; SDM 3B 18.2).

#include "x86/nested/svm/exits.h"
#include "x86/ops/ops.h"

namespace anykvm::x86 {

namespace {

constexpr u64 kDr6Writable = 0xe00f;  // B0-B3, BD, BS, BT
constexpr u64 kDr7Writable = 0xffff23ff;

// The register that `insn` names: 0-3, 6 or 7. With CR4.DE clear, 4 and 5 are 6 and 7.
Guest<unsigned> debug_register(const CpuState& state, const Insn& insn) {
  unsigned number = insn.reg;
  if (number > 7) return GuestStop::ud();
  bool alias = number == 4 || number == 5;
  if (alias && (state.cr4 & kCr4De)) return GuestStop::ud();
  if (state.cpl != 0) return GuestStop::gp(0);
  if (state.dr7 & kDr7Gd) return GuestStop::db(kDr6Bd);
  return alias ? number + 2 : number;
}

// DR7.GD of the client's debugger: the access is its to see, before it happens.
std::optional<GuestStop> general_detect_for_client(Cpu& cpu, const Insn& insn) {
  const GuestDebug& client = cpu.guest_debug();
  if (!client.hardware_breakpoints || !(client.breakpoints.control & kDr7Gd)) return {};
  const CpuState& state = cpu.state();
  Exit exit;
  exit.reason = Exit::Reason::kDebug;
  exit.debug_vector = kVectorDb;
  exit.debug_dr6 = kDr6Bd | kDr6Fixed1;
  exit.debug_pc = state.rip - insn.length + (state.code64() ? 0 : state.segments[kCs].base);
  return cpu.stop_for_client(exit);
}

unsigned operand_size(const CpuState& state) { return state.code64() ? 8 : 4; }

}  // namespace

Guest<void> op_mov_from_dr(Cpu& cpu, const Insn& insn) {
  CpuState& state = cpu.state();
  unsigned number = TRY(debug_register(state, insn));
  if (auto stop = general_detect_for_client(cpu, insn)) return *stop;
  TRY(svm::check_dr(cpu, insn.reg, false));
  u64 value = number == 6 ? state.dr6 : number == 7 ? state.dr7 : state.dr[number];
  write_gpr(state, insn, insn.rm, operand_size(state), value);
  return {};
}

Guest<void> op_mov_to_dr(Cpu& cpu, const Insn& insn) {
  CpuState& state = cpu.state();
  unsigned number = TRY(debug_register(state, insn));
  if (auto stop = general_detect_for_client(cpu, insn)) return *stop;
  TRY(svm::check_dr(cpu, insn.reg, true));
  u64 value = read_gpr(state, insn, insn.rm, operand_size(state));
  if (number >= 6 && value >> 32) return GuestStop::gp(0);
  if (number == 6) {
    state.dr6 = (value & kDr6Writable) | kDr6Fixed1;
  } else if (number == 7) {
    state.dr7 = (value & kDr7Writable) | kDr7Fixed1;
  } else {
    state.dr[number] = value;
  }
  cpu.mode_changed();
  return {};
}

}  // namespace anykvm::x86
