// PAT and MTRRs (SDM 3A 12.11, 12.12). Guest RAM is always cached as the host has it; the values are kept for
// the guest.

#include "x86/sys/msr_functions.h"

namespace anykvm::x86 {
namespace {

constexpr bool valid_mtrr_type(u64 type) { return type == 0 || type == 1 || (type >= 4 && type <= 6); }
constexpr bool valid_pat_type(u64 type) { return valid_mtrr_type(type) || type == 7; }

template <class Predicate>
bool all_bytes(u64 value, Predicate valid) {
  for (unsigned byte = 0; byte < 8; ++byte) {
    if (!valid(bits(value, byte * 8 + 7, byte * 8))) return false;
  }
  return true;
}

u64& fixed_mtrr(Cpu& cpu, u32 index) {
  auto& fixed = cpu.state().msrs.mtrr_fixed;
  if (index == 0x250) return fixed[0];
  if (index <= 0x259) return fixed[index - 0x258 + 1];
  return fixed[index - 0x268 + 3];
}

}  // namespace

std::optional<u64> get_pat(Cpu& cpu, u32, MsrAccess) { return cpu.state().msrs.pat; }
bool set_pat(Cpu& cpu, u32, u64 value, MsrAccess) {
  if (!all_bytes(value, valid_pat_type)) return false;
  cpu.state().msrs.pat = value;
  return true;
}

std::optional<u64> get_mtrr_def_type(Cpu& cpu, u32, MsrAccess) { return cpu.state().msrs.mtrr_def_type; }
bool set_mtrr_def_type(Cpu& cpu, u32, u64 value, MsrAccess) {
  constexpr u64 kEnables = bit(10) | bit(11);
  if (value & ~(kEnables | 0xff) || !valid_mtrr_type(value & 0xff)) return false;
  cpu.state().msrs.mtrr_def_type = value;
  return true;
}

std::optional<u64> get_mtrr_variable(Cpu& cpu, u32 index, MsrAccess) {
  return cpu.state().msrs.mtrr_variable[index - 0x200];
}
bool set_mtrr_variable(Cpu& cpu, u32 index, u64 value, MsrAccess) {
  bool is_mask = index & 1;
  u64 reserved = ~low_bits(cpu.model().physical_address_bits()) | (is_mask ? u64{0x7ff} : u64{0xf00});
  if (value & reserved) return false;
  if (!is_mask && !valid_mtrr_type(value & 0xff)) return false;
  cpu.state().msrs.mtrr_variable[index - 0x200] = value;
  return true;
}

std::optional<u64> get_mtrr_fixed(Cpu& cpu, u32 index, MsrAccess) { return fixed_mtrr(cpu, index); }
bool set_mtrr_fixed(Cpu& cpu, u32 index, u64 value, MsrAccess) {
  if (!all_bytes(value, valid_mtrr_type)) return false;
  fixed_mtrr(cpu, index) = value;
  return true;
}

}  // namespace anykvm::x86
