// MOVS, STOS, LODS, SCAS and CMPS, with and without REP (SDM 1 7.3.9, SDM 2B REP). Whole pages of RAM are
// done at once.

#include <array>
#include <cstring>

#include "base/guarded_memory.h"
#include "x86/mmu/access.h"
#include "x86/ops/compare_flags.h"
#include "x86/ops/string_common.h"

namespace anykvm::x86 {
namespace {

// Host addresses are within one page of RAM each, checked by host_pointer(), so the client's unmapping spoils
// an operation at its start or not at all (but for races, after which it starts over as well).

Guest<u64> read_element(const u8* from, unsigned size) {
  u64 value = 0;
  if (!guarded_copy(&value, from, size)) return GuestStop::unmapped();
  return value;
}

// MOVS with DF set; the pointers are to the first elements, which are the highest.
bool move_downwards(u8* to, const u8* from, u64 elements, unsigned size) {
  u64 below = (elements - 1) * size;
  u64 bytes = below + size;
  // Copied from the top, only a target that lies lower is read again after it was written.
  bool pattern = to < from && static_cast<u64>(from - to) < bytes;
  if (!pattern) {
    std::array<u8, kPageSize> copy;
    return guarded_copy(copy.data(), from - below, bytes) && guarded_copy(to - below, copy.data(), bytes);
  }
  for (u64 done = 0; done < bytes; done += size) {
    if (!guarded_copy(to - done, from - done, size)) return false;
  }
  return true;
}

// Up to a page of consecutive elements of one operand, in RAM; `elements` is 0 where the slow way must be
// taken (also for faults, so that they are raised for the right element).
struct Chunk {
  u8* host = nullptr;  // the first element in the direction of the run
  u64 elements = 0;
};

Chunk chunk_at(Cpu& cpu, const StringRun& run, SegmentIndex segment, u64 offset, u64 limit, Access access) {
  if (limit < 2) return {};
  Guest<Gva> first = linear_address(cpu.state(), segment, offset, run.size(), access);
  if (!first) return {};
  u64 elements = std::min(run.elements_in_page(offset, first.value()), limit);
  if (elements < 2) return {};
  auto bytes = static_cast<unsigned>(elements * run.size());
  u64 below = run.backward() ? bytes - run.size() : 0;
  Guest<Gva> whole = linear_address(cpu.state(), segment, offset - below, bytes, access);
  if (!whole) return {};
  Guest<u8*> host = host_pointer(cpu, whole.value(), bytes, access);
  if (!host || !host.value()) return {};
  return {host.value() + below, elements};
}

Guest<u64> load_element(Cpu& cpu, const StringRun& run, SegmentIndex segment, u64 offset) {
  Gva address = TRY(linear_address(cpu.state(), segment, offset, run.size(), Access::kRead));
  u64 value = 0;
  TRY(read_linear(cpu, address, &value, run.size()));
  return value;
}

Guest<void> store_element(Cpu& cpu, const StringRun& run, u64 offset, u64 value) {
  Gva address = TRY(linear_address(cpu.state(), kEs, offset, run.size(), Access::kWrite));
  return write_linear(cpu, address, &value, run.size());
}

// Does SCAS or CMPS go on after these two? REPNE while they differ, REP while they are equal.
bool goes_on(const Insn& insn, u64 left, u64 right) { return insn.repne ? left != right : left == right; }

void set_compare_flags(CpuState& state, u64 left, u64 right, unsigned size) {
  state.rflags = (state.rflags & ~kFlagsArithmetic) | compare_flags(left, right, size);
}

void finish_comparison(Cpu& cpu, const Insn& insn, StringRun& run, u64 left, u64 right) {
  set_compare_flags(cpu.state(), left, right, run.size());
  if (!goes_on(insn, left, right)) run.stop();
}

// A copy of elements in a row, so that each is read from the guest's memory once.
class Elements {
 public:
  static constexpr unsigned kMost = 32;

  // `first` is the highest where the run goes backwards.
  bool read(const StringRun& run, const u8* first, u64 elements) {
    m_first = run.backward() ? (elements - 1) * run.size() : 0;
    return guarded_copy(m_bytes.data(), first - m_first, elements * run.size());
  }
  u64 at(const StringRun& run, u64 i) const {
    const u8* from = m_bytes.data() + m_first + static_cast<i64>(i) * run.step();
    u64 value = 0;
    switch (run.size()) {
      case 1:
        return *from;
      case 2:
        return std::memcpy(&value, from, 2), value;
      case 4:
        return std::memcpy(&value, from, 4), value;
      default:
        return std::memcpy(&value, from, 8), value;
    }
  }

 private:
  u64 m_first = 0;
  std::array<u8, kMost * 8> m_bytes;
};

// Compares elements of `right` with those at `left`, or with the one value `*last_left` if that is null
// (SCAS), until the condition ends the run; returns how many were compared.
Guest<u64> compare_chunk(const Insn& insn, const StringRun& run, const u8* left, Chunk right, u64* last_left,
                         u64* last_right) {
  Elements lefts, rights;
  for (u64 i = 0; i < right.elements; ++i) {
    const u64 in_copy = i % Elements::kMost;
    if (in_copy == 0) {
      const u64 elements = std::min<u64>(right.elements - i, Elements::kMost);
      const i64 offset = static_cast<i64>(i) * run.step();
      const bool read = (!left || lefts.read(run, left + offset, elements)) &&
                        rights.read(run, right.host + offset, elements);
      if (!read) return GuestStop::unmapped();
    }
    if (left) *last_left = lefts.at(run, in_copy);
    *last_right = rights.at(run, in_copy);
    if (!goes_on(insn, *last_left, *last_right)) return i + 1;
  }
  return right.elements;
}

}  // namespace

Guest<void> op_movs(Cpu& cpu, const Insn& insn) {
  StringRun run(cpu, insn);
  SegmentIndex segment = string_source_segment(insn);
  while (u64 left = run.left()) {
    Chunk source = chunk_at(cpu, run, segment, run.rsi(), left, Access::kRead);
    Chunk target =
        source.elements ? chunk_at(cpu, run, kEs, run.rdi(), source.elements, Access::kWrite) : Chunk{};
    if (target.elements) {
      bool moved = run.backward()
                       ? move_downwards(target.host, source.host, target.elements, run.size())
                       : anykvm_guarded_movs(target.host, source.host, target.elements, run.size());
      if (!moved) return GuestStop::unmapped();
      run.advance(target.elements, true, true);
      continue;
    }
    u64 value = TRY(load_element(cpu, run, segment, run.rsi()));
    TRY(store_element(cpu, run, run.rdi(), value));
    run.advance(1, true, true);
  }
  run.finish();
  return {};
}

Guest<void> op_stos(Cpu& cpu, const Insn& insn) {
  StringRun run(cpu, insn);
  u64 value = cpu.state().gpr[kRax];
  while (u64 left = run.left()) {
    Chunk target = chunk_at(cpu, run, kEs, run.rdi(), left, Access::kWrite);
    if (target.elements) {
      u64 below = run.backward() ? (target.elements - 1) * run.size() : 0;
      if (!anykvm_guarded_stos(target.host - below, value, target.elements, run.size()))
        return GuestStop::unmapped();
      run.advance(target.elements, false, true);
      continue;
    }
    TRY(store_element(cpu, run, run.rdi(), value));
    run.advance(1, false, true);
  }
  run.finish();
  return {};
}

Guest<void> op_lods(Cpu& cpu, const Insn& insn) {
  StringRun run(cpu, insn);
  SegmentIndex segment = string_source_segment(insn);
  while (u64 left = run.left()) {
    Chunk source = chunk_at(cpu, run, segment, run.rsi(), left, Access::kRead);
    u64 elements = std::max<u64>(source.elements, 1);
    u64 value = source.elements
                    ? TRY(read_element(source.host + static_cast<i64>(elements - 1) * run.step(), run.size()))
                    : TRY(load_element(cpu, run, segment, run.rsi()));
    write_gpr(cpu.state(), insn, kRax, run.size(), value);
    run.advance(elements, true, false);
  }
  run.finish();
  return {};
}

Guest<void> op_scas(Cpu& cpu, const Insn& insn) {
  StringRun run(cpu, insn);
  u64 wanted = cpu.state().gpr[kRax] & low_bits(run.size() * 8);
  while (u64 left = run.left()) {
    Chunk chunk = chunk_at(cpu, run, kEs, run.rdi(), left, Access::kRead);
    u64 last_left = wanted, last_right = 0, elements = 1;
    if (chunk.elements) {
      elements = TRY(compare_chunk(insn, run, nullptr, chunk, &last_left, &last_right));
    } else {
      last_right = TRY(load_element(cpu, run, kEs, run.rdi()));
    }
    run.advance(elements, false, true);
    finish_comparison(cpu, insn, run, last_left, last_right);
  }
  run.finish();
  return {};
}

Guest<void> op_cmps(Cpu& cpu, const Insn& insn) {
  StringRun run(cpu, insn);
  SegmentIndex segment = string_source_segment(insn);
  while (u64 left = run.left()) {
    Chunk first = chunk_at(cpu, run, segment, run.rsi(), left, Access::kRead);
    Chunk second =
        first.elements ? chunk_at(cpu, run, kEs, run.rdi(), first.elements, Access::kRead) : Chunk{};
    u64 last_left = 0, last_right = 0, elements = 1;
    if (second.elements) {
      elements = TRY(compare_chunk(insn, run, first.host, second, &last_left, &last_right));
    } else {
      last_left = TRY(load_element(cpu, run, segment, run.rsi()));
      last_right = TRY(load_element(cpu, run, kEs, run.rdi()));
    }
    run.advance(elements, true, true);
    finish_comparison(cpu, insn, run, last_left, last_right);
  }
  run.finish();
  return {};
}

}  // namespace anykvm::x86
