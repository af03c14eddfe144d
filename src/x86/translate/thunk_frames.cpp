#include "x86/translate/thunk_frames.h"

#include <Zydis/Zydis.h>

#include <algorithm>
#include <map>

namespace anykvm::x86 {
namespace {

struct Step {
  ZydisDecodedInstruction instruction;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];

  bool is(ZydisMnemonic mnemonic) const { return instruction.mnemonic == mnemonic; }
  bool writes_rsp() const {
    return operands[0].type == ZYDIS_OPERAND_TYPE_REGISTER && operands[0].reg.value == ZYDIS_REGISTER_RSP;
  }
  bool ends_here() const { return is(ZYDIS_MNEMONIC_RET) || is(ZYDIS_MNEMONIC_JMP); }
};

FrameRow first_row(ThunkEntry entry) {
  return entry == ThunkEntry::kJumpedToByBlock ? FrameRow{0, kBlockCfa, true} : FrameRow{};
}

// What the stack is like behind an instruction.
FrameRow after(const Step& step, FrameRow row, ThunkEntry entry) {
  unsigned cfa = row.cfa;
  if (step.is(ZYDIS_MNEMONIC_PUSH)) cfa += 8;
  if (step.is(ZYDIS_MNEMONIC_POP)) cfa -= 8;
  if (step.writes_rsp()) {
    auto value = static_cast<unsigned>(step.operands[1].imm.value.u);
    if (step.is(ZYDIS_MNEMONIC_SUB)) cfa += value;
    if (step.is(ZYDIS_MNEMONIC_ADD)) cfa -= value;
    if (step.is(ZYDIS_MNEMONIC_MOV)) cfa = kBlockCfa;
  }
  row.cfa = cfa;
  if (entry == ThunkEntry::kCalledByCpp && cfa == kBlockCfa) row.saved = true;
  // The return address to the block is gone: from here on, the frame is the block's.
  if (entry == ThunkEntry::kCalledByBlock && cfa == 0) row = {0, kBlockCfa, true};
  return row;
}

}  // namespace

std::vector<FrameRow> stack_rows(const u8* code, std::size_t size, ThunkEntry entry) {
  ZydisDecoder decoder;
  ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
  std::vector<FrameRow> rows = {first_row(entry)};
  std::map<unsigned, FrameRow> at_targets;  // of forward jumps
  unsigned offset = 0;
  Step step;
  while (offset < size && ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, code + offset, size - offset,
                                                              &step.instruction, step.operands))) {
    FrameRow row = after(step, rows.back(), entry);
    offset += step.instruction.length;
    if (step.instruction.raw.imm[0].is_relative && !step.is(ZYDIS_MNEMONIC_CALL)) {
      at_targets[offset + static_cast<unsigned>(step.instruction.raw.imm[0].value.s)] = row;
    }
    if (step.ends_here()) row = first_row(entry);
    if (auto jumped = at_targets.find(offset); jumped != at_targets.end()) row = jumped->second;
    row.offset = offset;
    if (row.cfa != rows.back().cfa || row.saved != rows.back().saved) rows.push_back(row);
  }
  return rows;
}

std::vector<GeneratedFunction> generated_functions(const Thunks& thunks, const u8* after_thunks,
                                                   const u8* end) {
  using enum ThunkEntry;
  struct Known {
    const char* name;
    const u8* begin;
    ThunkEntry entry;
  };
  std::vector<Known> known = {
      {"anykvm_thunk_enter", reinterpret_cast<const u8*>(thunks.enter), kCalledByCpp},
      {"anykvm_thunk_leave_flags_in_host", thunks.leave_flags_in_host, kJumpedToByBlock},
      {"anykvm_thunk_leave_flags_in_image", thunks.leave_flags_in_image, kJumpedToByBlock},
      {"anykvm_thunk_jump_miss", thunks.jump_miss[0], kJumpedToByBlock},
      {"anykvm_thunk_jump_miss_of_user", thunks.jump_miss[1], kJumpedToByBlock},
      {"anykvm_thunk_far_miss_flags_in_host", thunks.far_miss[0], kJumpedToByBlock},
      {"anykvm_thunk_far_miss_flags_in_image", thunks.far_miss[1], kJumpedToByBlock},
      {"anykvm_thunk_stale_flags_in_host", thunks.stale_flags_in_host, kCalledByBlock},
      {"anykvm_thunk_stale_flags_in_image", thunks.stale_flags_in_image, kCalledByBlock},
      {"anykvm_thunk_leave_by_signal", thunks.leave_by_signal, kJumpedToByBlock},
      {"anykvm_thunk_tlb_miss", thunks.tlb_miss, kCalledByBlock},
      {"anykvm_thunk_helper", thunks.helper, kCalledByBlock},
      {"anykvm_thunk_helper_keeping_vector", thunks.helper_keeping_vector, kCalledByBlock},
      {"anykvm_thunk_strings", thunks.move_string[0], kCalledByBlock},
      {"anykvm_thunk_slow_access", thunks.slow_access, kCalledByBlock},
      {"anykvm_thunk_slow_commit", thunks.slow_commit, kCalledByBlock},
      {"anykvm_thunk_gather", thunks.gather, kCalledByBlock},
      {"anykvm_thunk_commit_crossing", thunks.commit_crossing, kCalledByBlock},
      {"anykvm_thunk_recover_flags", thunks.recover_flags, kCalledByBlock},
      {"anykvm_thunk_load_vector", thunks.load_vector, kCalledByBlock},
  };
  std::sort(known.begin(), known.end(), [](const Known& a, const Known& b) { return a.begin < b.begin; });
  std::vector<GeneratedFunction> functions;
  for (std::size_t i = 0; i < known.size(); ++i) {
    const u8* next = i + 1 < known.size() ? known[i + 1].begin : after_thunks;
    auto size = static_cast<std::size_t>(next - known[i].begin);
    functions.push_back(
        {known[i].name, known[i].begin, size, stack_rows(known[i].begin, size, known[i].entry)});
  }
  functions.push_back({"anykvm_guest_code",
                       after_thunks,
                       static_cast<std::size_t>(end - after_thunks),
                       {first_row(kJumpedToByBlock)}});
  return functions;
}

}  // namespace anykvm::x86
