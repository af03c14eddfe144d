#pragma once
// From guest bytes to host code: decode a run of instructions, find out where flags are dead, emit.
// Owner: CodeCache, whose mutex is held.

#include <functional>

#include "x86/translate/block.h"
#include "x86/translate/code_memory.h"
#include "x86/translate/thunks.h"

namespace anykvm::x86 {

// The block for this RIP, on the same page and in the same mode; null: none yet.
using KnownCode = std::function<const Block*(u64 rip)>;

// What a translation takes from, and where it puts what it makes.
struct TranslationPlace {
  const Thunks& thunks;
  SlotNumbers& slots;
  FarLinkNumbers& far_links;
  RecordMemory& records;
  CodeMemory& code;
  const KnownCode& known;
};

// Makes a block from `bytes`, which are `size` long; `facts` says where they are and for what mode. Null: the
// first instruction is not complete within `size` bytes.
Block* translate_block(const Block& facts, const u8* bytes, unsigned size, const TranslationPlace& place);

}  // namespace anykvm::x86
