#pragma once
// What unwinders need to know about the generated code of a CodeCache. The thunks' effect on the stack is
// read off their own instructions, so nothing has to be kept in step with them by hand. Owner: nobody. Any
// thread.

#include "x86/translate/thunks.h"
#include "x86/translate/unwind.h"

namespace anykvm::x86 {

// How code gets to a thunk.
enum class ThunkEntry {
  kCalledByCpp,
  kJumpedToByBlock,  // on the block's own stack frame
  kCalledByBlock,
};

// The rows for `code`, which moves RSP by PUSH, POP, ADD, SUB and a load of Context::host_rsp only.
std::vector<FrameRow> stack_rows(const u8* code, std::size_t size, ThunkEntry entry);

// The thunks, which lie below `after_thunks`, and from there to `end` all blocks as one function.
std::vector<GeneratedFunction> generated_functions(const Thunks& thunks, const u8* after_thunks,
                                                   const u8* end);

}  // namespace anykvm::x86
