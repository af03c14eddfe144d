// Gathers and scatters: one load or store for each active element (SDM 2C, VGATHERDPS and relatives,
// VPSCATTERDD and relatives).
#include <Zydis/Zydis.h>

#include <algorithm>
#include <cstring>

#include "x86/mmu/access.h"
#include "x86/ops/gather_form.h"
#include "x86/ops/ops.h"
#include "x86/state/xsave_image.h"

namespace anykvm::x86 {
namespace {

constexpr unsigned kSse = 1, kAvxHigh = 2, kOpmask = 5, kZmmHigh = 6, kHighZmm = 7;  // XSAVE components

// A vector register as wide as there is.
struct Vector {
  u8 bytes[64] = {};

  u64 element(unsigned index, unsigned size) const {
    u64 value = 0;
    std::memcpy(&value, bytes + index * size, size);
    return value;
  }
  void set_element(unsigned index, unsigned size, u64 value) {
    std::memcpy(bytes + index * size, &value, size);
  }
};

Vector read_vector(const CpuState& state, unsigned number) {
  Vector v;
  u64 in_use = xstate_in_use(state);
  auto part = [&](unsigned component, unsigned index, unsigned size, unsigned at) {
    if (has_bit(in_use, component))
      std::memcpy(v.bytes + at, xsave_component_bytes(state, component) + index * size, size);
  };
  if (number >= 16) {
    part(kHighZmm, number - 16, 64, 0);
    return v;
  }
  part(kSse, number, 16, 0);
  part(kAvxHigh, number, 16, 16);
  part(kZmmHigh, number, 32, 32);
  return v;
}

// A component in its initial configuration stays there as long as only zeros are written to it.
void write_part(CpuState& state, unsigned component, unsigned index, const u8* from, unsigned size) {
  static constexpr u8 kZeros[64] = {};
  bool in_use = has_bit(xstate_in_use(state), component);
  if (!in_use && std::memcmp(from, kZeros, size) == 0) return;
  std::memcpy(xsave_component_for_change(state, component) + index * size, from, size);
}

void write_vector(CpuState& state, unsigned number, const Vector& v) {
  if (number >= 16) return write_part(state, kHighZmm, number - 16, v.bytes, 64);
  write_part(state, kSse, number, v.bytes, 16);
  write_part(state, kAvxHigh, number, v.bytes + 16, 16);
  write_part(state, kZmmHigh, number, v.bytes + 32, 32);
}

u64 read_opmask(const CpuState& state, unsigned number) {
  u64 value = 0;
  if (has_bit(xstate_in_use(state), kOpmask))
    std::memcpy(&value, xsave_component_bytes(state, kOpmask) + 8 * number, sizeof value);
  return value;
}

void write_opmask(CpuState& state, unsigned number, u64 value) {
  u8 bytes[8];
  std::memcpy(bytes, &value, sizeof value);
  write_part(state, kOpmask, number, bytes, sizeof bytes);
}

using Form = GatherForm;

unsigned register_id(ZydisRegister reg) { return static_cast<unsigned>(ZydisRegisterGetId(reg)); }

ZydisMachineMode machine_mode(unsigned code_bits) {
  return code_bits == 64   ? ZYDIS_MACHINE_MODE_LONG_64
         : code_bits == 32 ? ZYDIS_MACHINE_MODE_LEGACY_32
                           : ZYDIS_MACHINE_MODE_LEGACY_16;
}

ZydisStackWidth stack_width_of(unsigned code_bits) {
  return code_bits == 64   ? ZYDIS_STACK_WIDTH_64
         : code_bits == 32 ? ZYDIS_STACK_WIDTH_32
                           : ZYDIS_STACK_WIDTH_16;
}

// Equal registers where the manual forbids them. A scatter may store from its index register.
bool registers_conflict(const Form& f) {
  if (f.scatter) return false;
  if (f.data == f.index) return true;
  return f.vector_mask && (f.mask == f.index || f.mask == f.data);
}

// Works through the elements from the lowest up, so that what a fault leaves behind is what the manual
// allows.
class Run {
 public:
  Run(Cpu& cpu, const Insn& insn, const Form& form)
      : m_cpu(cpu),
        m_insn(insn),
        m_form(form),
        m_base(effective_offset(cpu.state(), insn)),
        m_index(read_vector(cpu.state(), form.index)),
        m_data(read_vector(cpu.state(), form.data)) {
    read_mask();
  }

  Guest<void> run() {
    for (unsigned i = 0; i < m_form.count; ++i) {
      auto done = has_bit(m_active, i) ? element(i) : Guest<void>();
      if (!done.ok()) {
        // The client's answers come again when the instruction starts over, from its first element: leave no
        // trace.
        if (done.error().kind == GuestStop::Kind::kFault) commit();
        return done;
      }
      m_opmask &= ~bit(i);
      if (m_form.vector_mask) m_mask.set_element(i, m_form.data_size, 0);
    }
    if (!m_form.scatter) clear_above_data();
    m_mask = {};
    m_opmask = 0;
    commit();
    return {};
  }

 private:
  void read_mask() {
    const CpuState& state = m_cpu.state();
    if (!m_form.vector_mask) {
      m_opmask = read_opmask(state, m_form.mask);
      m_active = m_opmask & low_bits(m_form.count);
      return;
    }
    m_mask = read_vector(state, m_form.mask);
    for (unsigned i = 0; i < m_form.count; ++i)
      m_active |= u64{m_mask.bytes[(i + 1) * m_form.data_size - 1]} >> 7 << i;
  }

  void clear_above_data() {
    unsigned end = m_form.count * m_form.data_size;
    std::memset(m_data.bytes + end, 0, sizeof m_data.bytes - end);
  }

  Guest<Gva> address(unsigned i) const {
    u64 index = sign_extend(m_index.element(i, m_form.index_size), m_form.index_size * 8);
    u64 offset = (m_base + index * m_form.scale) & low_bits(m_insn.address_size * 8);
    Access access = m_form.scatter ? Access::kWrite : Access::kRead;
    // Gathers do not check alignment (SDM 2C VPGATHERDD).
    return unaligned_address(m_cpu.state(), m_insn.memory.segment, offset, m_form.data_size, access);
  }

  Guest<void> element(unsigned i) {
    Gva at = TRY(address(i));
    if (m_form.scatter) {
      u64 value = m_data.element(i, m_form.data_size);
      return write_linear(m_cpu, at, &value, m_form.data_size);
    }
    u64 value = 0;
    TRY(read_linear(m_cpu, at, &value, m_form.data_size));
    m_data.set_element(i, m_form.data_size, value);
    return {};
  }

  void commit() {
    CpuState& state = m_cpu.state();
    if (!m_form.scatter) write_vector(state, m_form.data, m_data);
    if (!m_form.vector_mask) return write_opmask(state, m_form.mask, m_opmask);
    write_vector(state, m_form.mask, m_mask);
  }

  Cpu& m_cpu;
  const Insn& m_insn;
  const Form& m_form;
  u64 m_base;
  Vector m_index, m_data;
  Vector m_mask;  // the mask register, whichever it is: completed elements are cleared in it
  u64 m_opmask = 0;
  u64 m_active = 0;  // elements still to do
};

}  // namespace

Guest<GatherForm> gather_form(const Insn& insn) {
  ZydisDecoder decoder;
  ZydisDecodedInstruction z;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
  ZydisDecoderInit(&decoder, machine_mode(insn.code_bits), stack_width_of(insn.code_bits));
  bool valid = ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, insn.bytes, insn.length, &z, operands));
  if (!valid) return GuestStop::ud();
  bool gather = z.opcode >= 0x90 && z.opcode <= 0x93;
  bool scatter = z.opcode >= 0xa0 && z.opcode <= 0xa3;
  if (!gather && !scatter) return GuestStop::ud();  // the prefetching relatives

  Form f;
  f.scatter = scatter;
  f.vector_mask = z.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;
  const ZydisDecodedOperand& memory = operands[f.vector_mask ? 1 : scatter ? 0 : 2];
  const ZydisDecodedOperand& data = operands[scatter ? 2 : 0];
  f.data = static_cast<u8>(register_id(data.reg.value));
  f.index = static_cast<u8>(register_id(memory.mem.index));
  f.mask = static_cast<u8>(register_id(f.vector_mask ? operands[2].reg.value : z.avx.mask.reg));
  f.scale = memory.mem.scale ? memory.mem.scale : 1;
  bool wide = f.vector_mask ? z.raw.vex.W : z.raw.evex.W;
  f.data_size = wide ? 8 : 4;
  f.index_size = z.opcode & 1 ? 8 : 4;
  f.count = z.avx.vector_length / 8 / std::max(f.data_size, f.index_size);
  if (!f.vector_mask && f.mask == 0) return GuestStop::ud();
  if (registers_conflict(f)) return GuestStop::ud();
  return f;
}

Guest<void> op_gather_scatter(Cpu& cpu, const Insn& insn) {
  Form form = TRY(gather_form(insn));
  return Run(cpu, insn, form).run();
}

}  // namespace anykvm::x86
