#pragma once
// From guest bytes to host code: decode a run of instructions, find out where flags are dead, emit.
// Owner: CodeCache, whose mutex is held.

#include <functional>
#include <vector>

#include "x86/translate/block.h"
#include "x86/translate/thunks.h"

namespace anykvm::x86 {

// The block for this RIP, on the same page and in the same mode; null: none yet.
using KnownCode = std::function<const Block*(u64 rip)>;

// Fills `block` (rip, mode, straddles set by the caller) from `bytes`, which are `size` long; code will be
// placed at `base`. Block::lead bytes and the host code are returned; empty if the first instruction is not
// complete within `size` bytes.
std::vector<u8> translate_block(Block& block, const u8* bytes, unsigned size, const Thunks& thunks,
                                SlotNumbers& slots, const KnownCode& known, const u8* base);

}  // namespace anykvm::x86
