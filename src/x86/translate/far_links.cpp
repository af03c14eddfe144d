// The thunk's C++ part. Compiled without vector instructions: the guest's may be in the host's registers.
#include "x86/translate/far_links.h"

#include "x86/cpu.h"
#include "x86/machine.h"
#include "x86/translate/code_cache.h"
#include "x86/translate/context.h"
#include "x86/translate/thunks.h"

namespace anykvm::x86 {

extern "C" u64 anykvm_follow_far_link(Context* context, RecordRef ref) {
  const FarLink& link = context->cpu->machine().code().far_link(ref);
  const u64 moved = link.code_page ? context->code_pages[link.code_page] - Block::kNowhere : 0;
  const u64 rip = link.target + moved;
  context->state.rip = rip;
  const bool user = context->user();
  for (unsigned index : {jump_cache_index(rip, user), second_jump_index(rip, user)}) {
    const JumpEntry entry = context->jumps[index];
    if (static_cast<u64>(entry.tag) + rip + context->stamp.word != 0) continue;
    const JumpEntries& entries = context->jump_entries;
    if (entries.lasts(index)) {
      const i64 host_entry = link.number & 1 ? 0 : entries.host_entry(index);
      context->far_links.fill(link, entry.target + static_cast<u64>(host_entry),
                              entries.global(index) && !link.code_page);
    }
    return entry.target;
  }
  return 0;
}

}  // namespace anykvm::x86
