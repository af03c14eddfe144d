#include "x86/translate/decode.h"

#include <Zydis/Zydis.h>

#include <algorithm>
#include <cstring>
#include <span>

namespace anykvm::x86 {
namespace {

const ZydisDecoder& decoder_for(unsigned code_bits) {
  struct Decoders {
    ZydisDecoder d16, d32, d64;
    Decoders() {
      ZydisDecoderInit(&d16, ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16);
      ZydisDecoderInit(&d32, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
      ZydisDecoderInit(&d64, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
      // Without memory protection extensions, which no guest has, these are NOPs.
      for (ZydisDecoder* decoder : {&d16, &d32, &d64})
        ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
    }
  };
  static const Decoders decoders;
  return code_bits == 64 ? decoders.d64 : code_bits == 32 ? decoders.d32 : decoders.d16;
}

bool is_gpr(ZydisRegister reg) {
  ZydisRegisterClass c = ZydisRegisterGetClass(reg);
  return c == ZYDIS_REGCLASS_GPR8 || c == ZYDIS_REGCLASS_GPR16 || c == ZYDIS_REGCLASS_GPR32 ||
         c == ZYDIS_REGCLASS_GPR64;
}

bool is_high_byte(ZydisRegister reg) { return reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH; }

u8 gpr_number(ZydisRegister reg) {
  if (is_high_byte(reg)) return static_cast<u8>(reg - ZYDIS_REGISTER_AH);
  auto wide = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg);
  return static_cast<u8>(ZydisRegisterGetId(wide));
}

VectorClass class_of_register(ZydisRegister reg, Encoding encoding) {
  switch (ZydisRegisterGetClass(reg)) {
    case ZYDIS_REGCLASS_X87:
      return VectorClass::kX87;
    case ZYDIS_REGCLASS_MMX:
      return VectorClass::kMmx;
    case ZYDIS_REGCLASS_XMM:
    case ZYDIS_REGCLASS_YMM:
      return encoding == Encoding::kEvex     ? VectorClass::kAvx512
             : encoding == Encoding::kLegacy ? VectorClass::kSse
                                             : VectorClass::kAvx;
    case ZYDIS_REGCLASS_ZMM:
    case ZYDIS_REGCLASS_MASK:
      return VectorClass::kAvx512;
    default:
      return VectorClass::kNone;
  }
}

// Conversions between memory and a general register touch MXCSR, though no vector register.
VectorClass class_of_conversion(const ZydisDecodedInstruction& z) {
  // CBW to CQO are conversions as well; CDQE and CQO count as an extension named LONGMODE.
  bool integer = z.meta.isa_ext == ZYDIS_ISA_EXT_BASE || z.meta.isa_ext == ZYDIS_ISA_EXT_LONGMODE;
  if (z.meta.category != ZYDIS_CATEGORY_CONVERT || integer) return VectorClass::kNone;
  switch (z.encoding) {
    case ZYDIS_INSTRUCTION_ENCODING_VEX:
      return VectorClass::kAvx;
    case ZYDIS_INSTRUCTION_ENCODING_EVEX:
      return VectorClass::kAvx512;
    default:
      return VectorClass::kSse;
  }
}

VectorClass class_of_isa(const ZydisDecodedInstruction& z) {
  switch (z.meta.isa_set) {
    case ZYDIS_ISA_SET_X87:
    case ZYDIS_ISA_SET_FCMOV:
    case ZYDIS_ISA_SET_SSE3X87:
      return VectorClass::kX87;
    case ZYDIS_ISA_SET_PENTIUMMMX:
      return VectorClass::kMmx;
    case ZYDIS_ISA_SET_SSEMXCSR:
      return VectorClass::kSse;
    default:
      break;
  }
  if (z.mnemonic == ZYDIS_MNEMONIC_VZEROALL || z.mnemonic == ZYDIS_MNEMONIC_VZEROUPPER ||
      z.mnemonic == ZYDIS_MNEMONIC_VLDMXCSR || z.mnemonic == ZYDIS_MNEMONIC_VSTMXCSR)
    return VectorClass::kAvx;
  return class_of_conversion(z);
}

SegmentIndex segment_of(ZydisRegister reg) {
  switch (reg) {
    case ZYDIS_REGISTER_ES:
      return kEs;
    case ZYDIS_REGISTER_CS:
      return kCs;
    case ZYDIS_REGISTER_SS:
      return kSs;
    case ZYDIS_REGISTER_FS:
      return kFs;
    case ZYDIS_REGISTER_GS:
      return kGs;
    default:
      return kDs;
  }
}

void take_memory(const ZydisDecodedInstruction& z, const ZydisDecodedOperand& op, Decoded* out) {
  MemoryOperand& m = out->insn.memory;
  out->insn.has_memory = true;
  m.segment = segment_of(op.mem.segment);
  m.size = static_cast<u16>(op.size / 8);
  m.displacement = op.mem.disp.value;
  if (op.mem.type == ZYDIS_MEMOP_TYPE_VSIB) out->vsib = true;
  if (op.mem.base == ZYDIS_REGISTER_RIP || op.mem.base == ZYDIS_REGISTER_EIP) {
    m.base = kRipBase;
  } else if (op.mem.base != ZYDIS_REGISTER_NONE) {
    m.base = gpr_number(op.mem.base);
  }
  bool no_base = z.raw.modrm.rm == 4 && z.raw.modrm.mod == 0 && z.raw.sib.base == 5;
  if (no_base && out->insn.address_size != 2) {
    // Whatever REX.B says (SDM 2A table 2-5); Zydis takes R13D for a base.
    m.base = kNoRegister;
    m.displacement = z.raw.disp.value;
  }
  if (op.mem.index != ZYDIS_REGISTER_NONE && !out->vsib) {
    m.index = gpr_number(op.mem.index);
    m.scale = op.mem.scale ? op.mem.scale : 1;
  }
  bool flushes_line = z.mnemonic == ZYDIS_MNEMONIC_CLFLUSH || z.mnemonic == ZYDIS_MNEMONIC_CLFLUSHOPT ||
                      z.mnemonic == ZYDIS_MNEMONIC_CLWB;
  if (flushes_line) m.size = 1;  // any byte of the line
  if (op.mem.type == ZYDIS_MEMOP_TYPE_AGEN || op.mem.type == ZYDIS_MEMOP_TYPE_MIB) m.size = 0;
  out->memory_read = op.actions & ZYDIS_OPERAND_ACTION_MASK_READ;
  out->memory_write = op.actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
}

// Of all memory operands, implied ones, too. What only names memory (LEA, NOP) or hints at it has none.
void count_access(const ZydisDecodedInstruction& z, const ZydisDecodedOperand& op, Decoded* out) {
  const bool data = op.mem.type == ZYDIS_MEMOP_TYPE_MEM || op.mem.type == ZYDIS_MEMOP_TYPE_VSIB;
  const bool hint = z.meta.category == ZYDIS_CATEGORY_PREFETCH || z.meta.category == ZYDIS_CATEGORY_WIDENOP;
  if (!data || hint) return;
  const bool read = op.actions & ZYDIS_OPERAND_ACTION_MASK_READ;
  const bool written = op.actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
  if (!read && !written) return;
  const bool all_registers = z.mnemonic == ZYDIS_MNEMONIC_PUSHA || z.mnemonic == ZYDIS_MNEMONIC_PUSHAD ||
                             z.mnemonic == ZYDIS_MNEMONIC_POPA || z.mnemonic == ZYDIS_MNEMONIC_POPAD;
  u8& kind = read && written ? out->updates : read ? out->loads : out->stores;
  kind = static_cast<u8>(kind + (all_registers ? 8 : 1));
}

// `kept`: registers whose old value counts.
void take_register(const ZydisDecodedOperand& op, Decoded* out, u16* kept) {
  ZydisRegister reg = op.reg.value;
  VectorClass vector = class_of_register(reg, out->encoding);
  out->vector = std::max(out->vector, vector);
  if (!is_gpr(reg)) return;
  out->gprs |= static_cast<u16>(1u << gpr_number(reg));
  if (is_high_byte(reg)) out->high_byte = true;
  if (is_high_byte(reg) && op.encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG) out->reg_high = true;
  if (is_high_byte(reg) && op.encoding != ZYDIS_OPERAND_ENCODING_MODRM_REG) out->rm_high = true;
  bool written = op.actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
  const auto mask = static_cast<u16>(1u << gpr_number(reg));
  if (written) out->gprs_written |= mask;
  const bool whole = op.actions == ZYDIS_OPERAND_ACTION_WRITE && op.size >= 32;
  (whole ? out->gprs_replaced : *kept) |= mask;
  switch (op.encoding) {
    case ZYDIS_OPERAND_ENCODING_MODRM_REG:
      out->reg_is_gpr = true, out->reg_written |= written;
      break;
    case ZYDIS_OPERAND_ENCODING_MODRM_RM:
      out->rm_is_gpr = true, out->rm_written |= written;
      break;
    case ZYDIS_OPERAND_ENCODING_NDSNDD:
      out->vvvv_is_gpr = true, out->vvvv_written |= written, out->vvvv = gpr_number(reg);
      break;
    case ZYDIS_OPERAND_ENCODING_OPCODE:
      out->opcode_is_gpr = true, out->opcode_written |= written;
      out->insn.rm = static_cast<u8>(gpr_number(reg) + (is_high_byte(reg) ? 4 : 0));
      break;
    default:
      break;
  }
}

void take_immediate(const ZydisDecodedInstruction& z, const ZydisDecodedOperand& op, Decoded* out) {
  if (op.type == ZYDIS_OPERAND_TYPE_POINTER) {
    out->insn.immediate = op.ptr.offset;
    out->insn.immediate2 = op.ptr.segment;
  } else if (z.mnemonic == ZYDIS_MNEMONIC_ENTER && op.id == 1) {
    out->insn.immediate2 = op.imm.value.u;
  } else {
    out->insn.immediate = op.imm.value.u;
  }
}

// Shifts and rotates leave the flags alone when the masked count is 0, which only an immediate can rule out.
bool count_may_be_zero(const ZydisDecodedInstruction& z, const Insn& insn) {
  bool shift = z.meta.category == ZYDIS_CATEGORY_SHIFT || z.meta.category == ZYDIS_CATEGORY_ROTATE;
  if (!shift) return false;
  bool by_one = insn.opcode_map == 0 && (insn.opcode == 0xd0 || insn.opcode == 0xd1);
  if (by_one) return false;
  if (z.raw.imm[0].size == 0) return true;
  return (insn.immediate & (insn.operand_size == 8 ? 63 : 31)) == 0;
}

void take_flags(const ZydisDecodedInstruction& z, Decoded* out) {
  if (!z.cpu_flags) return;
  const ZydisAccessedFlags& f = *z.cpu_flags;
  constexpr u32 kStatus = kFlagsArithmetic;
  out->flags_read = f.tested & kStatus;
  out->flags_written = (f.modified | f.set_0 | f.set_1 | f.undefined) & kStatus;
  // Undefined flags may also be left as they were, so they do not end the life of an earlier value; but no
  // CPU keeps AF across a logical operation or a shift.
  bool overwrites = z.meta.category == ZYDIS_CATEGORY_LOGICAL || z.meta.category == ZYDIS_CATEGORY_SHIFT;
  u32 kept = overwrites ? 0 : f.undefined;
  out->flags_killed = (f.modified | f.set_0 | f.set_1 | f.undefined) & ~kept & kStatus;
  if (count_may_be_zero(z, out->insn)) out->flags_killed = 0;
  if (z.mnemonic == ZYDIS_MNEMONIC_BSF || z.mnemonic == ZYDIS_MNEMONIC_BSR) out->flags_killed &= kFlagZf;
}

u8 opcode_map(const ZydisDecodedInstruction& z) {
  switch (z.opcode_map) {
    case ZYDIS_OPCODE_MAP_0F:
      return 1;
    case ZYDIS_OPCODE_MAP_0F38:
      return 2;
    case ZYDIS_OPCODE_MAP_0F3A:
      return 3;
    default:
      return static_cast<u8>(z.opcode_map);
  }
}

// In 16-bit code the sense of the 66 prefix is reversed for instructions whose size it chooses, and only for
// those.
bool integer_sized(const ZydisDecodedInstruction& z) {
  switch (z.meta.category) {
    case ZYDIS_CATEGORY_BINARY:
    case ZYDIS_CATEGORY_LOGICAL:
    case ZYDIS_CATEGORY_SHIFT:
    case ZYDIS_CATEGORY_ROTATE:
    case ZYDIS_CATEGORY_BITBYTE:
    case ZYDIS_CATEGORY_CMOV:
    case ZYDIS_CATEGORY_CONVERT:
    case ZYDIS_CATEGORY_SEMAPHORE:
    case ZYDIS_CATEGORY_MISC:
    case ZYDIS_CATEGORY_LZCNT:
    case ZYDIS_CATEGORY_RDRAND:
    case ZYDIS_CATEGORY_RDSEED:
    case ZYDIS_CATEGORY_DECIMAL:
    case ZYDIS_CATEGORY_BMI1:
      return true;
    case ZYDIS_CATEGORY_DATAXFER:
      return z.meta.isa_ext == ZYDIS_ISA_EXT_BASE || z.mnemonic == ZYDIS_MNEMONIC_MOVBE;
    case ZYDIS_CATEGORY_SSE:
      return z.mnemonic == ZYDIS_MNEMONIC_CRC32 || z.mnemonic == ZYDIS_MNEMONIC_POPCNT;
    default:
      return false;
  }
}

Encoding encoding_of(const ZydisDecodedInstruction& z) {
  switch (z.encoding) {
    case ZYDIS_INSTRUCTION_ENCODING_3DNOW:
      return Encoding::k3dnow;
    case ZYDIS_INSTRUCTION_ENCODING_XOP:
      return Encoding::kXop;
    case ZYDIS_INSTRUCTION_ENCODING_VEX:
      return Encoding::kVex;
    case ZYDIS_INSTRUCTION_ENCODING_EVEX:
    case ZYDIS_INSTRUCTION_ENCODING_MVEX:
      return Encoding::kEvex;
    default:
      return Encoding::kLegacy;
  }
}

void take_layout(const ZydisDecodedInstruction& z, Decoded* out) {
  const auto& raw = z.raw;
  bool has_modrm = z.attributes & ZYDIS_ATTRIB_HAS_MODRM;
  out->insn.has_modrm = has_modrm;
  out->modrm_at = has_modrm ? raw.modrm.offset : 0;
  out->immediate_at = raw.imm[0].size ? raw.imm[0].offset : 0;
  out->immediate_bytes = static_cast<u8>((raw.imm[0].size + raw.imm[1].size) / 8);
  switch (out->encoding) {
    case Encoding::kVex:
      out->prefix_at = raw.vex.offset;
      break;
    case Encoding::kEvex:
      out->prefix_at = raw.evex.offset;
      break;
    case Encoding::kXop:
      out->prefix_at = raw.xop.offset;
      break;
    default:
      break;
  }
  if (has_modrm) {
    out->opcode_at = static_cast<u8>(out->modrm_at - 1);
  } else {
    unsigned tail = out->immediate_bytes + raw.disp.size / 8;
    out->opcode_at = static_cast<u8>(z.length - tail - 1);
  }
  for (unsigned i = 0; i < raw.prefix_count; ++i) {
    if (raw.prefixes[i].value != 0x66) continue;
    out->insn.operand_size_prefix = true;
    out->mandatory_66 = raw.prefixes[i].type == ZYDIS_PREFIX_TYPE_MANDATORY;
  }
}

// Outside 64-bit mode there are eight registers of each kind, and bits that would name more are ignored.
unsigned register_mask(const Insn& insn) { return insn.code_bits == 64 ? 15 : 7; }

// ModRM's register fields with their extension bits, which VEX, XOP and EVEX hold inverted.
void take_register_fields(const ZydisDecodedInstruction& z, Decoded* out) {
  bool r = false, b = false;
  switch (out->encoding) {
    case Encoding::kVex:
      r = !z.raw.vex.R, b = !z.raw.vex.B;
      break;
    case Encoding::kXop:
      r = !z.raw.xop.R, b = !z.raw.xop.B;
      break;
    case Encoding::kEvex:
      r = !z.raw.evex.R, b = !z.raw.evex.B;
      break;
    default:
      r = out->insn.rex && z.raw.rex.R, b = out->insn.rex && z.raw.rex.B;
      break;
  }
  out->insn.rex_w = out->encoding == Encoding::kLegacy && out->insn.rex && z.raw.rex.W;
  if (!out->insn.has_modrm) return;
  const unsigned mask = register_mask(out->insn);
  out->insn.reg = static_cast<u8>((z.raw.modrm.reg | (r ? 8 : 0)) & mask);
  out->insn.rm = static_cast<u8>((z.raw.modrm.rm | (b ? 8 : 0)) & mask);
}

bool avx_mask_move(u16 mnemonic) {
  switch (mnemonic) {
    case ZYDIS_MNEMONIC_VMASKMOVPS:
    case ZYDIS_MNEMONIC_VMASKMOVPD:
    case ZYDIS_MNEMONIC_VPMASKMOVD:
    case ZYDIS_MNEMONIC_VPMASKMOVQ:
      return true;
    default:
      return false;
  }
}

const ZydisDecodedOperand* memory_operand_of(const ZydisDecodedInstruction& z,
                                             const ZydisDecodedOperand* operands) {
  for (unsigned i = 0; i < z.operand_count; ++i)
    if (operands[i].type == ZYDIS_OPERAND_TYPE_MEMORY) return &operands[i];
  return nullptr;
}

bool no_fault_suppression(ZydisExceptionClass exception_class) {
  switch (exception_class) {
    case ZYDIS_EXCEPTION_CLASS_E1NF:
    case ZYDIS_EXCEPTION_CLASS_E2NF:
    case ZYDIS_EXCEPTION_CLASS_E3NF:
    case ZYDIS_EXCEPTION_CLASS_E4NF:
    case ZYDIS_EXCEPTION_CLASS_E5NF:
    case ZYDIS_EXCEPTION_CLASS_E6NF:
    case ZYDIS_EXCEPTION_CLASS_E9NF:
    case ZYDIS_EXCEPTION_CLASS_E10NF:
    case ZYDIS_EXCEPTION_CLASS_E11NF:
      return true;
    default:
      return false;
  }
}

// Instructions that read their whole memory operand whatever the mask (SDM 2A 2.8: classes with "NF"; the
// three combine several memory elements into one of the destination).
bool reads_all(const ZydisDecodedInstruction& z) {
  switch (z.mnemonic) {
    case ZYDIS_MNEMONIC_VCVTNE2PS2BF16:
    case ZYDIS_MNEMONIC_VDBPSADBW:
    case ZYDIS_MNEMONIC_VGF2P8AFFINEQB:
    case ZYDIS_MNEMONIC_VGF2P8AFFINEINVQB:
      return true;
    default:
      return no_fault_suppression(z.meta.exception_class);
  }
}

// Elements of the destination that a broadcast fills; 0 if there is none.
u8 broadcast_lanes(ZydisBroadcastMode mode) {
  switch (mode) {
    case ZYDIS_BROADCAST_MODE_1_TO_2:
      return 2;
    case ZYDIS_BROADCAST_MODE_1_TO_4:
    case ZYDIS_BROADCAST_MODE_2_TO_4:
      return 4;
    case ZYDIS_BROADCAST_MODE_1_TO_8:
    case ZYDIS_BROADCAST_MODE_2_TO_8:
    case ZYDIS_BROADCAST_MODE_4_TO_8:
      return 8;
    case ZYDIS_BROADCAST_MODE_1_TO_16:
    case ZYDIS_BROADCAST_MODE_2_TO_16:
    case ZYDIS_BROADCAST_MODE_4_TO_16:
    case ZYDIS_BROADCAST_MODE_8_TO_16:
      return 16;
    case ZYDIS_BROADCAST_MODE_1_TO_32:
      return 32;
    case ZYDIS_BROADCAST_MODE_1_TO_64:
      return 64;
    default:
      return 0;
  }
}

void take_mask(const ZydisDecodedInstruction& z, const ZydisDecodedOperand* operands, Decoded* out) {
  const ZydisDecodedOperand* memory = memory_operand_of(z, operands);
  bool opmask = z.avx.mask.reg > ZYDIS_REGISTER_K0 && z.avx.mask.reg <= ZYDIS_REGISTER_K7;
  bool vector = avx_mask_move(z.mnemonic);
  if (!memory || (!opmask && !vector)) return;
  if (opmask && reads_all(z)) {
    out->memory_read = true;  // a masked store keeps what is there
    return;
  }
  out->masked_memory = true;
  out->mask_is_vector = vector;
  out->mask_register = vector ? static_cast<u8>(~(z.raw.vex.vvvv) & register_mask(out->insn))
                              : static_cast<u8>(z.avx.mask.reg - ZYDIS_REGISTER_K0);
  out->mask_packed = z.meta.category == ZYDIS_CATEGORY_COMPRESS || z.meta.category == ZYDIS_CATEGORY_EXPAND;
  unsigned element = memory->element_size / 8;
  if (vector) {
    bool quad = z.mnemonic == ZYDIS_MNEMONIC_VMASKMOVPD || z.mnemonic == ZYDIS_MNEMONIC_VPMASKMOVQ;
    element = quad ? 8 : 4;
  }
  out->mask_element = static_cast<u8>(element ? element : 1);
  u8 broadcast = opmask ? broadcast_lanes(z.avx.broadcast.mode) : u8{0};
  out->mask_lanes = broadcast ? broadcast : static_cast<u8>(out->insn.memory.size / out->mask_element);
}

}  // namespace

namespace {

bool is_legacy_prefix(u8 byte) {
  switch (byte) {
    case 0x26:
    case 0x2e:
    case 0x36:
    case 0x3e:
    case 0x64:
    case 0x65:
    case 0x66:
    case 0x67:
    case 0xf0:
    case 0xf2:
    case 0xf3:
      return true;
    default:
      return false;
  }
}
bool is_rex(u8 byte) { return byte >> 4 == 4; }

// Do bytes that do not decode lack their end? CPUs look at that first, Zydis at prefixes that do not go with
// the opcode. The length does not depend on those but for an immediate's by 66.
bool lack_their_end(const u8* bytes, unsigned size, unsigned code_bits, ZyanStatus status) {
  auto says_so = [](ZyanStatus s) {
    return s == ZYDIS_STATUS_NO_MORE_DATA || s == ZYDIS_STATUS_INSTRUCTION_TOO_LONG;
  };
  if (says_so(status)) return true;
  constexpr u8 kLock = 0xf0, kRepne = 0xf2, kRep = 0xf3, kOperandSize = 0x66, kHarmless = 0x3e;
  u8 plain[15];
  std::copy_n(bytes, size, plain);
  for (bool keeps_size : {true, false}) {
    auto in_the_way = [&](u8 byte) {
      return byte == kLock || byte == kRepne || byte == kRep || (byte == kOperandSize && !keeps_size);
    };
    for (u8& byte : std::span(plain, size)) {
      if (in_the_way(byte)) byte = kHarmless;
      if (!is_legacy_prefix(byte) && !(code_bits == 64 && is_rex(byte))) break;
    }
    ZydisDecodedInstruction z;
    if (says_so(ZydisDecoderDecodeInstruction(&decoder_for(code_bits), nullptr, plain, size, &z)))
      return true;
  }
  return false;
}

// Without 64-bit registers W means nothing to these; emitted as itself it would.
void ignore_vex_w(Decoded* out) {
  constexpr u8 kVex3 = 0xc4, kW = 0x80;
  switch (out->insn.mnemonic) {
    case ZYDIS_MNEMONIC_VPCMPESTRI:
    case ZYDIS_MNEMONIC_VPCMPESTRM:
      if (out->insn.bytes[out->prefix_at] == kVex3)
        out->insn.bytes[out->prefix_at + 2] &= static_cast<u8>(~kW);
      break;
    default:
      break;
  }
}

// LOCK MOV of CR0 is MOV of CR8 on AMD's CPUs (APM 3, AltMovCr8), in any mode.
bool decode_locked_cr8(const u8* bytes, unsigned size, unsigned code_bits, unsigned stack_bytes, u64 rip,
                       Decoded* out) {
  constexpr u8 kLock = 0xf0, kHarmless = 0x3e, kMovFromCr = 0x20, kMovToCr = 0x22;
  u8 plain[15];
  std::replace_copy(bytes, bytes + size, plain, kLock, kHarmless);
  if (decode(plain, size, code_bits, stack_bytes, rip, out) != DecodeStatus::kOk) return false;
  Insn& insn = out->insn;
  bool moves = insn.mnemonic == ZYDIS_MNEMONIC_MOV && insn.opcode_map == 1 &&
               (insn.opcode == kMovFromCr || insn.opcode == kMovToCr);
  if (!moves || insn.reg != 0) return false;
  insn.reg = 8;
  insn.lock = true;
  return true;
}

// F3 90 with REX.B is no PAUSE but XCHG with R8: Zydis sees that without the F3 only.
bool is_exchange(const ZydisDecodedInstruction& z) {
  return z.mnemonic == ZYDIS_MNEMONIC_PAUSE && (z.attributes & ZYDIS_ATTRIB_HAS_REX) && z.raw.rex.B;
}

}  // namespace

bool is_locked(const Decoded& d) { return d.insn.lock || d.insn.mnemonic == ZYDIS_MNEMONIC_XCHG; }

DecodeStatus decode(const u8* bytes, unsigned size, unsigned code_bits, unsigned stack_bytes, u64 rip,
                    Decoded* out) {
  ZydisDecodedInstruction z;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
  unsigned limit = std::min(size, 15u);
  ZyanStatus status = ZydisDecoderDecodeFull(&decoder_for(code_bits), bytes, limit, &z, operands);
  if (!ZYAN_SUCCESS(status)) {
    bool locked = status == ZYDIS_STATUS_ILLEGAL_LOCK;
    if (locked && decode_locked_cr8(bytes, limit, code_bits, stack_bytes, rip, out)) return DecodeStatus::kOk;
    if (!lack_their_end(bytes, limit, code_bits, status)) return DecodeStatus::kInvalid;
    return size < 15 ? DecodeStatus::kTruncated : DecodeStatus::kTooLong;
  }

  if (is_exchange(z)) {
    constexpr u8 kRep = 0xf3, kHarmless = 0x3e;
    u8 plain[15];
    std::replace_copy(bytes, bytes + z.length, plain, kRep, kHarmless);
    return decode(plain, z.length, code_bits, stack_bytes, rip, out);
  }

  *out = Decoded{};
  Insn& insn = out->insn;
  insn.mnemonic = static_cast<u16>(z.mnemonic);
  insn.length = z.length;
  insn.code_bits = static_cast<u8>(code_bits);
  insn.operand_size = static_cast<u8>(z.operand_width / 8);
  insn.address_size = static_cast<u8>(z.address_width / 8);
  insn.stack_size = static_cast<u8>(stack_bytes);
  insn.opcode_map = opcode_map(z);
  insn.opcode = z.opcode;
  insn.lock = z.attributes & ZYDIS_ATTRIB_HAS_LOCK;
  insn.rep = z.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE);
  insn.repne = z.attributes & ZYDIS_ATTRIB_HAS_REPNE;
  insn.rex = z.attributes & ZYDIS_ATTRIB_HAS_REX;
  std::memcpy(insn.bytes, bytes, z.length);
  out->category = static_cast<u16>(z.meta.category);
  out->encoding = encoding_of(z);
  take_layout(z, out);
  take_register_fields(z, out);
  out->vector = class_of_isa(z);
  u16 kept = 0;
  for (unsigned i = 0; i < z.operand_count; ++i) {
    const ZydisDecodedOperand& op = operands[i];
    bool explicit_memory =
        op.type == ZYDIS_OPERAND_TYPE_MEMORY && op.visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN;
    if (op.type == ZYDIS_OPERAND_TYPE_MEMORY) count_access(z, op, out);
    if (explicit_memory) take_memory(z, op, out);
    if (op.type == ZYDIS_OPERAND_TYPE_MEMORY && !explicit_memory) out->hidden_memory = true;
    if (op.type == ZYDIS_OPERAND_TYPE_REGISTER) take_register(op, out, &kept);
    if (op.type == ZYDIS_OPERAND_TYPE_IMMEDIATE || op.type == ZYDIS_OPERAND_TYPE_POINTER)
      take_immediate(z, op, out);
  }
  // BSF and BSR of 0 leave the destination as it was.
  const bool may_keep = z.mnemonic == ZYDIS_MNEMONIC_BSF || z.mnemonic == ZYDIS_MNEMONIC_BSR;
  out->gprs_replaced &= may_keep ? u16{0} : static_cast<u16>(~kept);
  if (insn.has_memory && insn.memory.base == kRipBase) {
    // RIP-relative: the address is a constant of the block.
    u64 target = rip + z.length + static_cast<u64>(insn.memory.displacement);
    insn.memory.base = kNoRegister;
    insn.memory.rip_relative = true;
    insn.memory.displacement = static_cast<i64>(insn.address_size == 4 ? target & 0xffffffff : target);
  }
  if (insn.has_memory) take_mask(z, operands, out);
  if (code_bits != 64) ignore_vex_w(out);
  out->operand_size_matters = out->encoding == Encoding::kLegacy && integer_sized(z) && !out->mandatory_66;
  take_flags(z, out);
  return DecodeStatus::kOk;
}

}  // namespace anykvm::x86
