#pragma once
// All translated code of a VM: finding it, making it, linking it, dropping it.
// Owner: x86::Machine; shared by its vCPUs. Every function takes the cache's own mutex unless it says
// otherwise; clear() needs the world stopped as well.

#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "base/expected.h"
#include "x86/mmu/physical_memory.h"
#include "x86/translate/block_index.h"
#include "x86/translate/code_memory.h"
#include "x86/translate/hot_pages.h"
#include "x86/translate/page_code.h"
#include "x86/translate/thunks.h"
#include "x86/translate/unwind.h"

namespace anykvm::x86 {

// Why there is no block.
enum class Untranslated : u8 {
  kNeedsMore,  // the first instruction continues on the next page
  kNoRoom,     // clear() first
  kClaimLost,  // somebody wrote to the page since it was claimed (mmu/code_pages.h)
  kUnmapped,   // the client has taken the memory away
};

// Guest bytes to translate: those to the end of a page and, for an instruction that continues there, of a
// second one.
struct CodeSource {
  Gpa gpa{};
  u64 rip = 0;
  Mode mode{};
  const u8* bytes = nullptr;  // host address of `gpa`
  unsigned size = 0;          // to the end of the page
  const PageMeta* page = nullptr;
  Gpa second_gpa{};
  const u8* second_bytes = nullptr;
  unsigned second_size = 0;
  const PageMeta* second_page = nullptr;  // null: there is no second page
};

class CodeCache {
 public:
  static Result<std::unique_ptr<CodeCache>> create();
  ~CodeCache();

  const Thunks& thunks() const { return m_thunks; }

  Block* find(Gpa gpa, u64 rip, const Mode& mode);

  // Makes a block from whole instructions within the page. Null: `*why` says why not.
  Block* translate(const CodeSource& source, Untranslated* why);
  // The block of one instruction whose bytes lie on two pages. kNeedsMore: it is longer than any instruction.
  Block* translate_straddling(const CodeSource& source, Untranslated* why);

  // Lets `link` (what Thunks::enter returned) jump to `to` directly, if both still stand.
  void link(RecordRef link, Block* to);
  // The RIP that it leads to, from the block that `context` has just left. No lock.
  u64 target_of(RecordRef link, const Context& context) const;
  // Is that block to be of Mode::narrow? No lock.
  bool leads_to_narrow(RecordRef link) const;
  // No lock.
  const FarLink& far_link(RecordRef ref) const { return *m_records->at<FarLink>(ref); }
  // A vCPU's, from before it runs to behind its last run.
  void add(FarLinks& links);
  void remove(FarLinks& links);
  // No lock.
  const Block& block_of(RecordRef ref) const { return *m_records->at<Block>(ref); }

  // A write of `size` bytes within one page is about to happen. Drops the page's blocks if it touches code;
  // true if the page holds no code afterwards.
  bool before_write(Gpa address, unsigned size);

  // The access that called a thunk and returns to `pc` is better off without a slot: its block will be made
  // anew.
  void do_without_slot(const u8* pc);
  void do_with_crossing(const u8* pc);

  // The access that called a thunk and returns to `pc` is better off without leading a group.
  void do_without_group(const u8* pc);

  // The access that called a thunk and returns to `pc` is better off in its slow form within its block.
  void do_by_bus(const u8* pc);
  // Or not, after all: no more than other accesses of the instruction.
  void do_by_tlb(Gpa instruction);

  // An interrupt came while code in `page` ran. Gives the page's accesses slots where they are scarce and it
  // is one of the hottest.
  void sample(Gpa page);

  // Does the page, whose host address is `now`, still hold what its blocks were made from? False as well if
  // it cannot be read or has no blocks.
  bool still_as(Gpa page, const u8* now);
  // Drops the page's blocks.
  void drop(Gpa page);

  // The block whose host code holds `pc`, dead or alive.
  Block* block_at(const u8* pc);
  // Where control left translated code, at host address `pc`: the block's site there.
  struct LeftAt {
    const Block* block;
    Site site;
    const FlagRecovery* recovery;  // Site::recovery
  };
  std::optional<LeftAt> left_at(const u8* pc, bool fault);
  // The address range of all host code.
  const CodeMemory& memory() const { return *m_memory; }

  // The pages that hold translated code: all, or those among `size` bytes from `first` on. World stopped.
  std::vector<Gpa> pages() const;
  std::vector<Gpa> pages(Gpa first, u64 size) const;
  // Forgets everything. World stopped.
  void clear();

 private:
  CodeCache() = default;
  // m_mutex. Drops the block of the instruction that `note` is told of.
  void make_anew(const u8* pc, void (SlotNumbers::*note)(Gpa instruction));
  // m_mutex. False: no block can be made now.
  bool ready_for(const CodeSource& source, Untranslated* why) const;
  // What is known of the block to be made.
  Block facts_of(const CodeSource& source);
  u16 page_number(Gpa address);
  // Copies of the pages to translate from: what is translated and what is remembered must be the same bytes.
  struct Source {
    PageBytes first, second;
  };
  static bool copy_source(const CodeSource& source, Source* copy);
  Block* make(const Block& facts, const u8* bytes, unsigned size, const Source& source, Untranslated* why);
  void install(Block* block, const Source& source);
  void add_to_page(Block* block, Gpa first, unsigned bytes, const PageBytes& page_bytes);
  void drop_page(u64 page);
  void kill(Block* block);
  void unlink(Link* link);
  void link_to_gate(const Link& link, const Block& to);
  Block* holding(const u8* pc);
  u8* at(u32 code_offset) const { return m_memory->at(code_offset); }
  void divert(u8* entry, const u8* thunk);
  void patch_rel32(u8* displacement, const u8* target);

  std::mutex m_mutex;
  std::unique_ptr<CodeMemory> m_memory;
  Thunks m_thunks;
  SlotNumbers m_slots;
  FarLinkNumbers m_far_links;
  HotPages m_hot_pages;
  const u8* m_after_thunks = nullptr;
  u16 m_last_number = 0;  // of page_number()
  std::unique_ptr<UnwindInfo> m_unwind;
  std::unique_ptr<RecordMemory> m_records;
  std::optional<BlockIndex> m_blocks;         // those that are alive
  std::unordered_map<u64, PageCode> m_pages;  // by gpa / 4096
  std::vector<RecordRef> m_all;               // Blocks, with ascending host addresses
};

}  // namespace anykvm::x86
