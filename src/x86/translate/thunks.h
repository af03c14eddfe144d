#pragma once
// The hand-made host code between C++ and translated blocks: entry, exits, TLB misses, helper calls, vector
// state. Owner: CodeCache (generated once for each). Immutable afterwards.

#include "base/bits.h"
#include "base/types.h"
#include "x86/ops/gather_form.h"
#include "x86/translate/block.h"
#include "x86/translate/context.h"

namespace anykvm::x86 {

// What a dead block passes in place of a link. Context::leave_pc lies in its code.
inline constexpr RecordRef kStaleBlock = 1;
// What an indirect jump, call or return leaves with: its Block's record and this bit.
inline constexpr RecordRef kIndirectBranch = 2;

struct Thunks {
  // Runs translated code at `code` (Block::code) until it leaves; returns the Link that it left through,
  // kNoRecord, or kStaleBlock.
  RecordRef (*enter)(Context* context, const u8* code) = nullptr;

  // Jumped to from blocks. R11 = the Link, or kNoRecord, and state.rip is set.
  const u8* leave_flags_in_host = nullptr;
  const u8* leave_flags_in_image = nullptr;
  // Jumped to where the jump cache does not have state.rip at its first place: goes on at the second one, or
  // leaves. Flags are in the image, R11 as above.
  const u8* jump_miss[2] = {};  // the second: of user code
  // Jumped to where a far link has no place or an empty one, R11 = FarLink: with flags in the host, and in
  // the image.
  const u8* far_miss[2] = {};
  // Called from where dead blocks begin (CodeCache::divert).
  const u8* stale_flags_in_host = nullptr;
  const u8* stale_flags_in_image = nullptr;
  // Resumed to by the signal handler, registers as translated code had them.
  const u8* leave_by_signal = nullptr;

  // Called from blocks; preserve every guest register; flags must be dead or in the image.
  const u8* tlb_miss = nullptr;  // R10 = linear address, R11 = MissInfo; returns R10 = host address
  // For guests and for nested guests, for reads and for writes: the same, by the TLB if that has the page, or
  // kSplitPages.
  const u8* slot_miss[2][2] = {};
  const u8* helper = nullptr;                 // R10 = HelperSite*
  const u8* helper_keeping_vector = nullptr;  // the same for rows with kOpKeepsVector
  const u8* gather = nullptr;           // R10 = HelperSite*, R11 = GatherInfo; sets Context::gather.done
  const u8* commit_crossing = nullptr;  // preserves flags as well
  const u8 *move_string[4] = {}, *store_string[4] = {};  // string_thunks.h, by the element's size
  // R11 = FlagRecovery*: Context::flags_image from the registers. Clobbers R10 and R11.
  const u8* recover_flags = nullptr;
  const u8* slow_access = nullptr;  // R10 address, R11 = SlowSite*; returns R10 = host address of the copy
  const u8* slow_commit = nullptr;  // R11 = SlowSite*
  const u8* load_vector = nullptr;  // preserves flags as well
};

// What a fast access tells the handler of its misses, in one register.
//   bits 15:0 4096 - size   bit 16 write   bit 17 masked (a fault may be that of an inactive element)
//   bit 18 has a slot   bit 19 leads a group   bits 25:24 MmuIndex   bits 46:32 slot
//   bit 22 writes, on a copy if there is code for it   bit 23 there is
//   of a leader, whose size and address are those of the group, and which writes if one of them does:
//   bit 20 its own access is a read   bit 21 takes kSplitPages for an answer
//   bits 54:47 where its own access begins   bits 61:55 size of that
struct MissInfo {
  static constexpr unsigned kSlotShift = 32, kOwnShift = 47, kOwnSizeShift = 55;
  static constexpr u32 kKnowsSplitPages = 1u << 21, kMayCross = 1u << 22, kKnowsCrossing = 1u << 23;
  static_assert(kSlotCount <= 1u << (kOwnShift - kSlotShift) && kMmuIndexCount <= 8);

  static constexpr u64 make(unsigned size, bool write, MmuIndex mmu, bool masked) {
    return (kPageSize - size) | u64{write} << 16 | u64{masked} << 17 | u64{mmu} << 24;
  }
  static constexpr u64 with_slot(u64 info, u32 slot) { return info | bit(18) | u64{slot} << kSlotShift; }
  static constexpr u64 leading(u64 info, unsigned own_at, unsigned own_size, bool own_write) {
    return info | bit(19) | u64{!own_write} << 20 | u64{own_at} << kOwnShift | u64{own_size} << kOwnSizeShift;
  }
  static constexpr u64 knowing_split_pages(u64 info) { return info | kKnowsSplitPages; }
  static constexpr unsigned size(u64 info) { return static_cast<unsigned>(kPageSize - (info & 0xffff)); }
  static constexpr bool write(u64 info) { return info >> 16 & 1; }
  static constexpr bool masked(u64 info) { return info >> 17 & 1; }
  static constexpr bool has_slot(u64 info) { return info >> 18 & 1; }
  static constexpr bool leads(u64 info) { return info >> 19 & 1; }
  static constexpr bool own_write(u64 info) { return write(info) && !(info >> 20 & 1); }
  static constexpr bool knows_split_pages(u64 info) { return info & kKnowsSplitPages; }
  static constexpr bool may_cross(u64 info) { return info & kMayCross; }
  static constexpr bool knows_crossing(u64 info) { return info & kKnowsCrossing; }
  static constexpr MmuIndex mmu(u64 info) { return static_cast<MmuIndex>(info >> 24 & 7); }
  static constexpr u32 slot(u64 info) { return static_cast<u32>(info >> kSlotShift) & (kSlotCount - 1); }
  static constexpr unsigned own_at(u64 info) { return leads(info) ? info >> kOwnShift & 0xff : 0; }
  static constexpr unsigned own_size(u64 info) {
    return leads(info) ? info >> kOwnSizeShift & 0x7f : size(info);
  }
};

// A gather or scatter.
//   bit 0 scatter   bit 1 the mask is a vector register   bit 2 elements of 8 bytes   bit 3 indices of 8
//   bytes bits 7:4 scale   bits 15:8 number of elements   bits 18:16 MmuIndex
struct GatherInfo {
  static u32 make(const GatherForm& form, MmuIndex mmu) {
    return u32{form.scatter} | u32{form.vector_mask} << 1 | u32{form.data_size == 8} << 2 |
           u32{form.index_size == 8} << 3 | u32{form.scale} << 4 | form.count << 8 | u32{mmu} << 16;
  }
  static constexpr bool scatter(u64 info) { return info & 1; }
  static constexpr bool vector_mask(u64 info) { return info & 2; }
  static constexpr unsigned data_size(u64 info) { return info & 4 ? 8 : 4; }
  static constexpr unsigned index_size(u64 info) { return info & 8 ? 8 : 4; }
  static constexpr unsigned scale(u64 info) { return info >> 4 & 15; }
  static constexpr unsigned count(u64 info) { return info >> 8 & 0xff; }
  static constexpr MmuIndex mmu(u64 info) { return static_cast<MmuIndex>(info >> 16 & 7); }
};

// One in so many misses of a slot goes to C++ even if the TLB has the page.
inline constexpr unsigned kSlotMissesAside = 16;
// The miss thunks' answer to a leader whose bytes lie on two pages that are apart in the host's memory,
// in place of a host address.
inline constexpr u64 kSplitPages = 1;

// --- C++ ends of the thunks ---
inline constexpr u64 kHelperLeaves = 0;  // to the dispatcher
inline constexpr u64 kHelperStays = 1;   // the block goes on
extern "C" {
// Compiled without vector instructions (the guest's may be live). Null: Context::leave says why.
u8* anykvm_tlb_miss(Context* context, u64 address, u64 info);
// What was written to the copy goes where it belongs.
void anykvm_commit_crossing(Context* context);
// False: not done; its helper is to do it.
bool anykvm_gather(Context* context, u64 info);
// kHelperLeaves, kHelperStays, or the host code of the next block to run.
u64 anykvm_run_helper(Context* context, const HelperSite* site);
u8* anykvm_slow_access(Context* context, u64 address, const SlowSite* site);
u64 anykvm_slow_commit(Context* context, const SlowSite* site);  // zero: leave
// Compiled without vector instructions, too.
// The host code to go on at, which expects flags in the image; 0: the dispatcher finds it. state.rip is set.
u64 anykvm_follow_far_link(Context* context, RecordRef far_link);
void anykvm_recover_flags(Context* context, u64, const FlagRecovery* recovery);
}

// `records`: where RecordRefs count from.
class CodeMemory;
Thunks make_thunks(CodeMemory& memory, const u8* records);

}  // namespace anykvm::x86
