#include <algorithm>

#include "x86/translate/reencode.h"
#include "x86/translate/rules.h"

namespace anykvm::x86 {
namespace {

using host::kAddress;
using host::kScratch;

// Chooses host registers for the guest registers that an instruction names but that have no host register now
// (or none that it can name), loads them before and stores them after.
class OperandRegisters {
 public:
  // `address`: the scratch register that the memory operand needs.
  OperandRegisters(Emitter& e, const Decoded& d, const asmjit::x86::Gp& address) : m_e(e), m_d(d) {
    for (const auto& scratch : {kScratch, kAddress}) {
      bool taken = d.insn.has_memory && scratch == address;
      if (!d.high_byte && !taken) m_free[m_free_count++] = static_cast<u8>(scratch.id());
    }
  }

  u8 map(u8 gpr, bool written) {
    u8 direct = m_e.host_of(gpr);
    bool reachable = direct != kNoRegister && !(m_d.high_byte && direct >= 8);
    if (reachable) return direct;
    for (unsigned i = 0; i < m_moved_count; ++i) {
      if (m_moved[i].guest != gpr) continue;
      m_moved[i].written |= written;
      return m_moved[i].host;
    }
    u8 chosen = take_register();
    m_moved[m_moved_count++] = {gpr, chosen, written};
    const bool replaced = m_d.gprs_replaced >> gpr & 1;
    if (!replaced) m_e.load_gpr(asmjit::x86::gpq(chosen), gpr);
    return chosen;
  }

  // The memory operand's address register: R10, or a low one where a REX prefix would hide AH..BH.
  u8 map_address() {
    if (!m_d.high_byte) return static_cast<u8>(kAddress.id());
    u8 chosen = take_register();
    m_e.a.mov(asmjit::x86::gpq(chosen), kAddress);
    return chosen;
  }

  const u8* borrowed() const { return m_borrowed; }

  void write_back() {
    for (unsigned i = 0; i < m_moved_count; ++i) {
      if (m_moved[i].written) m_e.store_gpr(m_moved[i].guest, asmjit::x86::gpq(m_moved[i].host), 8);
    }
    for (unsigned i = 0; i < m_borrowed_count; ++i) m_e.a.mov(asmjit::x86::gpq(m_borrowed[i]), slot(i));
  }

 private:
  struct Moved {
    u8 guest, host;
    bool written;
  };

  static asmjit::x86::Mem slot(unsigned i) { return host::gs(offsetof(Context, borrowed) + 8 * i); }

  u8 take_register() {
    if (m_free_count) {
      const u8 chosen = m_free[--m_free_count];
      if (chosen == kScratch.id()) m_e.forget_delta();
      return chosen;
    }
    // Nothing free: borrow a low register that the instruction does not use.
    static constexpr u8 kLendable[] = {kRdi, kRsi, kRbp, kRbx, kRcx, kRdx, kRax};
    for (u8 candidate : kLendable) {
      bool addresses = m_d.insn.has_memory && m_d.insn.memory.base == candidate;
      bool used = addresses || ((m_d.gprs >> candidate) & 1);
      bool taken =
          std::find(m_borrowed, m_borrowed + m_borrowed_count, candidate) != m_borrowed + m_borrowed_count;
      if (used || taken) continue;
      m_e.a.mov(slot(m_borrowed_count), asmjit::x86::gpq(candidate));
      m_borrowed[m_borrowed_count++] = candidate;
      return candidate;
    }
    __builtin_unreachable();  // an instruction names at most four registers
  }

  Emitter& m_e;
  const Decoded& m_d;
  u8 m_free[2] = {};
  unsigned m_free_count = 0;
  Moved m_moved[4] = {};
  unsigned m_moved_count = 0;
  u8 m_borrowed[2] = {kNoRegister, kNoRegister};
  unsigned m_borrowed_count = 0;
};

// An x87 store with an unmasked exception pending in its own result writes nothing; then the copy that a slow
// access writes back must hold what was there.
bool may_write_nothing(const Decoded& d) { return d.memory_write && d.vector == VectorClass::kX87; }

bool reads_host_flags(const Decoded& d) {
  const bool partial_write = d.flags_written && d.flags_killed != kFlagsArithmetic;
  return d.flags_read || partial_write;
}

// Does the instruction leave both scratch registers to its address?
bool spares_scratch(const Emitter& e, const Decoded& d) {
  if (d.high_byte || reads_host_flags(d)) return false;
  for (u8 gpr = 0; gpr < 16; ++gpr) {
    if ((d.gprs >> gpr & 1) && !e.resident(gpr)) return false;
  }
  return true;
}

// Where the memory operand is once it is open.
enum class Operand : u8 {
  kAtAddress,  // its host address is in R10
  kByDelta,    // as in the guest, and R11 (Emitter::open_by_delta)
  kBySum,      // R10 + R11
};

Operand open_memory(Emitter& e, const Decoded& d) {
  const MemoryOperand& m = d.insn.memory;
  const bool simple = !d.high_byte && !d.masked_memory && m.index == kNoRegister && d.insn.address_size == 8;
  if (simple && e.open_by_delta(m.base, m.displacement, m.segment, m.size, d.memory_write))
    return Operand::kByDelta;
  e.effective_offset(d.insn);
  const bool read = d.memory_read || may_write_nothing(d);
  if (d.masked_memory) {
    e.open_masked_access(d);
  } else if (!spares_scratch(e, d)) {
    e.open_access(m.segment, m.size, read, d.memory_write);
  } else if (e.open_indexed(m.segment, m.size, read, d.memory_write)) {
    return Operand::kBySum;
  }
  return Operand::kAtAddress;
}

// R11 = how far from the operand's address the word of memory lies that a register's bit offset selects.
// Clobbers flags.
void load_bit_string_offset(Emitter& e, const Insn& insn) {
  e.load_gpr(kScratch, insn.reg);
  if (insn.operand_size == 4) e.a.movsxd(kScratch, kScratch.r32());
  if (insn.operand_size == 2) e.a.movsx(kScratch, kScratch.r16());
  e.a.sar(kScratch, 3);
  e.a.and_(kScratch, -static_cast<i32>(insn.operand_size));
}

}  // namespace

// BT, BTS, BTR and BTC of memory by a register: the instruction itself adds the offset to its address again.
void emit_bit_string(Emitter& e, const Decoded& d) {
  const Insn& insn = d.insn;
  e.protect_flags();
  e.effective_offset(insn);
  load_bit_string_offset(e, insn);
  if (insn.address_size == 4) {
    e.a.add(kAddress.r32(), kScratch.r32());
  } else {
    e.a.add(kAddress, kScratch);
  }
  e.open_access(insn.memory.segment, insn.operand_size, true, d.memory_write);
  load_bit_string_offset(e, insn);
  e.a.sub(kAddress, kScratch);
  e.flags_to_host();
  OperandRegisters registers(e, d, kAddress);
  HostFields fields;
  fields.memory_base = static_cast<u8>(kAddress.id());
  fields.reg = registers.map(insn.reg, false);
  u8 bytes[28];
  const unsigned length = reencode(d, fields, bytes);
  e.record_fault_site();
  e.embed_instruction(bytes, length);
  e.flags_written(d.flags_killed);
  if (d.memory_write) e.close_access();
}

void emit_as_is(Emitter& e, const Decoded& d) {
  bool memory = d.insn.has_memory && d.insn.memory.size != 0;
  if (d.vector != VectorClass::kNone) e.ensure_vector();
  const Operand operand = memory ? open_memory(e, d) : Operand::kAtAddress;
  const bool by_delta = operand == Operand::kByDelta;
  const bool may_cross = memory && d.memory_write && !d.masked_memory && !is_locked(d);
  if (may_cross) e.begin_crossing();
  if (d.vector != VectorClass::kNone) e.ensure_vector();  // a slow access has saved it
  if (reads_host_flags(d)) e.flags_to_host(by_delta ? kAddress : kScratch);

  OperandRegisters registers(e, d, by_delta ? kScratch : kAddress);
  HostFields fields;
  if (by_delta) {
    fields.memory_base = e.host_of(d.insn.memory.base);
    fields.memory_index = static_cast<u8>(kScratch.id());
    fields.displacement = static_cast<i32>(d.insn.memory.displacement);
  } else if (operand == Operand::kBySum) {
    fields.memory_base = static_cast<u8>(kAddress.id());
    fields.memory_index = static_cast<u8>(kScratch.id());
  } else if (d.insn.has_memory) {
    fields.memory_base = registers.map_address();
  }
  if (d.reg_is_gpr) fields.reg = d.reg_high ? d.insn.reg : registers.map(d.insn.reg, d.reg_written);
  if (d.rm_is_gpr || d.opcode_is_gpr)
    fields.rm = d.rm_high ? d.insn.rm : registers.map(d.insn.rm, d.rm_written || d.opcode_written);
  if (d.vvvv_is_gpr) fields.vvvv = registers.map(d.vvvv, d.vvvv_written);

  u8 bytes[28];
  unsigned length = reencode(d, fields, bytes);
  e.record_fault_site(registers.borrowed());
  e.embed_instruction(bytes, length);
  if (d.flags_written) e.flags_written(d.flags_killed);
  registers.write_back();
  if (may_cross) e.end_crossing();
  if (memory && d.memory_write) e.close_access();
}

}  // namespace anykvm::x86
