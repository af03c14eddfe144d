// The thunk's C++ part. Compiled without vector instructions: the guest's may be in the host's registers.
#include "x86/translate/far_links.h"

#include "x86/cpu.h"
#include "x86/machine.h"
#include "x86/translate/code_cache.h"
#include "x86/translate/context.h"
#include "x86/translate/thunks.h"

namespace anykvm::x86 {
namespace {

// From now on it jumps by its place, on all vCPUs.
void open(const FarLink& link, const CodeMemory& memory) {
  constexpr u64 kJumpByGs = 0x2524ff65;  // JMP gs:[...]
  const std::size_t place =
      offsetof(Context, far_links) + offsetof(FarLinks, target) + sizeof(u64) * link.number();
  const u64 jump = kJumpByGs | u64{place} << 32;
  // SAFETY: aligned to eight bytes (Emitter::jump_by_far_link), which other CPUs see before or after the
  // store, so that either jump is whole.
  auto* site = reinterpret_cast<u64*>(memory.writable(memory.at(link.site * 8)));
  if (__atomic_load_n(site, __ATOMIC_RELAXED) != jump) __atomic_store_n(site, jump, __ATOMIC_RELEASE);
}

}  // namespace

extern "C" u64 anykvm_follow_far_link(Context* context, RecordRef ref) {
  const CodeCache& code = context->cpu->machine().code();
  const FarLink& link = code.far_link(ref);
  const u64 rip = context->state.rip;
  const bool user = context->user();
  for (unsigned index : {jump_cache_index(rip, user), second_jump_index(rip, user)}) {
    const JumpEntry entry = context->jumps[index];
    if (static_cast<u64>(entry.tag) + rip + context->stamp.word != 0) continue;
    const JumpEntries& entries = context->jump_entries;
    if (entries.lasts(index)) {
      const i64 host_entry = link.flags_in_image ? 0 : entries.host_entry(index);
      context->far_links.fill(link, entry.target + static_cast<u64>(host_entry),
                              entries.global(index) && !link.code_page);
      open(link, code.memory());
    }
    return entry.target;
  }
  return 0;
}

}  // namespace anykvm::x86
