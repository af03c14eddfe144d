#include "x86/translate/code_cache.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>

#include "base/bits.h"
#include "base/guarded_memory.h"
#include "base/trace.h"
#include "x86/mmu/code_pages.h"
#include "x86/translate/perf_map.h"
#include "x86/translate/thunk_frames.h"
#include "x86/translate/translator.h"

namespace anykvm::x86 {
namespace {

// Address space for generated code of one VM; memory is taken as it fills.
constexpr std::size_t kCodeBytes = 128u << 20;
// A block never gets larger than this.
constexpr std::size_t kBlockReserve = 256u << 10;
// So many writes next to code, and the page counts as data: its blocks go, its writes are fast again.
constexpr unsigned kNearMissLimit = 64;

u64 granule_mask(unsigned first_byte, unsigned bytes) {
  unsigned first = first_byte / 64, last = (first_byte + bytes - 1) / 64;
  return low_bits(last - first + 1) << first;
}

}  // namespace

const Site* Block::find_site(u32 offset, bool fault) const {
  auto range = std::equal_range(sites.begin(), sites.end(), Site{offset, 0, false, FlagsAt::kHost, {}},
                                [](const Site& a, const Site& b) { return a.offset < b.offset; });
  for (auto site = range.first; site != range.second; ++site)
    if (site->fault == fault) return &*site;
  return nullptr;
}

std::size_t CodeCache::KeyHash::operator()(const Key& k) const {
  u64 h = (k.gpa ^ k.rip * 0x9e3779b97f4a7c15) + ModeHash{}(k.mode);
  return h ^ h >> 29;
}

Result<std::unique_ptr<CodeCache>> CodeCache::create() {
  std::unique_ptr<CodeCache> cache(new CodeCache);
  cache->m_memory = TRY(CodeMemory::create(kCodeBytes));
  cache->m_thunks = make_thunks(*cache->m_memory);
  cache->m_after_thunks = cache->m_memory->next();
  auto functions = generated_functions(cache->m_thunks, cache->m_after_thunks, cache->m_memory->end());
  for (const GeneratedFunction& f : functions) {
    if (f.begin < cache->m_after_thunks) perf_map::add(f.begin, f.size, f.name);
  }
  cache->m_unwind = std::make_unique<UnwindInfo>(functions);
  return cache;
}

CodeCache::~CodeCache() = default;

Block* CodeCache::find(Gpa gpa, u64 rip, const Mode& mode) {
  std::lock_guard lock(m_mutex);
  auto it = m_blocks.find({gpa.value, rip, mode});
  return it == m_blocks.end() ? nullptr : it->second;
}

bool CodeCache::ready_for(const CodeSource& source, Untranslated* why) const {
  bool claimed = code_pages::claim_holds(*source.page) &&
                 (!source.second_page || code_pages::claim_holds(*source.second_page));
  if (!claimed) return *why = Untranslated::kClaimLost, false;
  if (m_memory->room() < kBlockReserve) return *why = Untranslated::kNoRoom, false;
  return true;
}

bool CodeCache::copy_source(const CodeSource& source, Source* copy) {
  const u8* first = source.bytes - source.gpa.page_offset();
  if (!guarded_copy(copy->first.data(), first, kPageSize)) return false;
  return !source.second_page || guarded_copy(copy->second.data(), source.second_bytes, kPageSize);
}

Block* CodeCache::translate(const CodeSource& source, Untranslated* why) {
  std::lock_guard lock(m_mutex);
  if (!ready_for(source, why)) return nullptr;
  Source copy;
  if (!copy_source(source, &copy)) return *why = Untranslated::kUnmapped, nullptr;
  auto block = std::make_unique<Block>();
  block->gpa = source.gpa;
  block->rip = source.rip;
  block->mode = source.mode;
  const u8* bytes = copy.first.data() + source.gpa.page_offset();
  auto known = [&](u64 rip) -> const Block* {
    auto it = m_blocks.find({source.gpa.value + (rip - source.rip), rip, source.mode});
    return it == m_blocks.end() ? nullptr : it->second;
  };
  std::vector<u8> code =
      translate_block(*block, bytes, source.size, m_thunks, m_slots, known, m_memory->next());
  if (code.empty()) return *why = Untranslated::kNeedsMore, nullptr;
  return install(std::move(block), code, copy);
}

Block* CodeCache::translate_straddling(const CodeSource& source, Untranslated* why) {
  std::lock_guard lock(m_mutex);
  if (!ready_for(source, why)) return nullptr;
  Source copy;
  if (!copy_source(source, &copy)) return *why = Untranslated::kUnmapped, nullptr;
  auto block = std::make_unique<Block>();
  block->gpa = source.gpa;
  block->rip = source.rip;
  block->mode = source.mode;
  block->straddles = true;
  block->gpa2 = source.second_gpa;
  // An instruction has at most 15 bytes, so there are fewer on the first page.
  std::array<u8, 30> bytes;
  unsigned first = std::min(source.size, 15u), second = std::min(source.second_size, 15u);
  std::memcpy(bytes.data(), copy.first.data() + source.gpa.page_offset(), first);
  std::memcpy(bytes.data() + first, copy.second.data(), second);
  std::vector<u8> code = translate_block(
      *block, bytes.data(), first + second, m_thunks, m_slots, [](u64) { return nullptr; }, m_memory->next());
  if (code.empty()) return *why = Untranslated::kNeedsMore, nullptr;
  return install(std::move(block), code, copy);
}

Block* CodeCache::install(std::unique_ptr<Block> owned, const std::vector<u8>& host_code,
                          const Source& source) {
  Block* block = owned.get();
  block->code = m_memory->put(host_code.data(), host_code.size()) + block->lead;
  block->host_bytes = static_cast<u32>(host_code.size()) - block->lead;
  perf_map::add(*block);
  std::stable_sort(block->sites.begin(), block->sites.end(),
                   [](const Site& a, const Site& b) { return a.offset < b.offset; });
  m_all.push_back(std::move(owned));
  unsigned in_first =
      static_cast<unsigned>(std::min<u64>(block->guest_bytes, kPageSize - block->gpa.page_offset()));
  add_to_page(block, block->gpa, in_first, source.first);
  if (block->straddles) {
    add_to_page(block, block->gpa2, block->guest_bytes - in_first, source.second);
  }
  m_blocks[{block->gpa.value, block->rip, block->mode}] = block;
  return block;
}

// Blocks that were made from other bytes than are there now go: still_as() compares with the latest.
void CodeCache::add_to_page(Block* block, Gpa first, unsigned bytes, const PageBytes& page_bytes) {
  if (!bytes) return;
  const u64 number = first.value / kPageSize;
  if (auto known = m_pages.find(number);
      known != m_pages.end() && !same_granules(known->second, page_bytes.data()))
    drop_page(number);
  PageCode& page = m_pages[number];
  if (!page.bytes) page.bytes = std::make_unique<PageBytes>();
  page.blocks.push_back(block);
  const u64 granules = granule_mask(static_cast<unsigned>(first.page_offset()), bytes);
  page.granules |= granules;
  for (u64 left = granules; left; left &= left - 1) {
    const auto offset = static_cast<std::size_t>(std::countr_zero(left)) * 64;
    std::memcpy(page.bytes->data() + offset, page_bytes.data() + offset, 64);
  }
}

bool CodeCache::same_granules(const PageCode& page, const u8* now) {
  for (u64 left = page.granules; left;) {
    const auto first = static_cast<unsigned>(std::countr_zero(left));
    const auto count = static_cast<unsigned>(std::countr_one(left >> first));
    left &= ~(low_bits(count) << first);
    if (guarded_equal(now + first * 64, page.bytes->data() + first * 64, count * 64) != Guarded::kYes)
      return false;
  }
  return true;
}

void CodeCache::patch_rel32(u8* displacement, const u8* target) {
  // SAFETY: the four bytes do not straddle an aligned eight bytes (Emitter::align_displacement), so other
  // CPUs see the old or the new jump.
  auto relative = static_cast<i32>(target - (displacement + 4));
  auto* word = reinterpret_cast<u32*>(m_memory->writable(displacement));
  __atomic_store_n(word, static_cast<u32>(relative), __ATOMIC_RELEASE);
}

void CodeCache::link(Link* link, Block* to) {
  std::lock_guard lock(m_mutex);
  if (!link->from->alive || !to->alive || to->straddles || link->to) return;
  if (to->mode != link->from->mode || to->gpa.page() != link->from->gpa.page()) return;
  if (link->loops && to != link->from) return;
  u8* const entry = link->flags_in_host ? to->code_host : to->code;
  patch_rel32(link->displacement, link->loops ? to->code_loop : entry);
  link->to = to;
  to->incoming.push_back(link);
}

bool CodeCache::before_write(Gpa address, unsigned size) {
  std::lock_guard lock(m_mutex);
  u64 number = address.value / kPageSize;
  auto it = m_pages.find(number);
  if (it == m_pages.end()) return true;
  PageCode& page = it->second;
  bool touches = page.granules & granule_mask(static_cast<unsigned>(address.page_offset()), size);
  if (!touches && ++page.near_misses < kNearMissLimit) return false;
  drop_page(number);
  return true;
}

bool CodeCache::still_as(Gpa page, const u8* now) {
  std::lock_guard lock(m_mutex);
  auto it = m_pages.find(page.value / kPageSize);
  return it != m_pages.end() && same_granules(it->second, now);
}

void CodeCache::drop(Gpa page) {
  std::lock_guard lock(m_mutex);
  if (m_pages.contains(page.value / kPageSize)) drop_page(page.value / kPageSize);
}

void CodeCache::drop_page(u64 number) {
  auto it = m_pages.find(number);
  std::vector<Block*> blocks = std::move(it->second.blocks);
  m_pages.erase(it);
  for (Block* block : blocks) kill(block);
}

// The host code stays where it is, since a vCPU may be inside; it can only leave to the dispatcher.
void CodeCache::kill(Block* block) {
  if (!block->alive) return;
  block->alive = false;
  auto known = m_blocks.find({block->gpa.value, block->rip, block->mode});
  if (known != m_blocks.end() && known->second == block) m_blocks.erase(known);
  for (Link* link : block->incoming) {
    patch_rel32(link->displacement, link->unlinked);
    link->to = nullptr;
  }
  block->incoming.clear();
  for (auto& link : block->links) {
    if (link->to) std::erase(link->to->incoming, link.get());
    link->to = nullptr;
  }
  divert(block->code, block->stale_exit);
  divert(block->code_host, block->stale_exit_host);
}

void CodeCache::divert(u8* entry, const u8* target) {
  // SAFETY: an entry is 8-byte aligned and begins with a five-byte instruction (emit_entries); one store
  // replaces it.
  u8 bytes[8];
  u8* writable = m_memory->writable(entry);
  std::memcpy(bytes, writable, 8);
  auto relative = static_cast<i32>(target - (entry + 5));
  bytes[0] = 0xe9;
  std::memcpy(bytes + 1, &relative, 4);
  u64 word;
  std::memcpy(&word, bytes, 8);
  __atomic_store_n(reinterpret_cast<u64*>(writable), word, __ATOMIC_RELEASE);
}

Block* CodeCache::block_at(const u8* pc) {
  std::lock_guard lock(m_mutex);
  return holding(pc);
}

void CodeCache::do_without_slot(const u8* pc) {
  std::lock_guard lock(m_mutex);
  make_anew(pc, &SlotNumbers::avoid);
}

void CodeCache::do_without_group(const u8* pc) {
  std::lock_guard lock(m_mutex);
  make_anew(pc, &SlotNumbers::leave_alone);
}

void CodeCache::make_anew(const u8* pc, void (SlotNumbers::*note)(Gpa instruction)) {
  Block* block = holding(pc);
  const Site* site = block ? block->find_site(static_cast<u32>(pc - block->code), false) : nullptr;
  if (!site) return;
  (m_slots.*note)(block->gpa + site->guest_offset);
  kill(block);
}

Block* CodeCache::holding(const u8* pc) {
  auto it = std::upper_bound(m_all.begin(), m_all.end(), pc,
                             [](const u8* p, const std::unique_ptr<Block>& b) { return p < b->code; });
  if (it == m_all.begin()) return nullptr;
  Block* block = std::prev(it)->get();
  return pc <= block->code + block->host_bytes ? block : nullptr;
}

std::vector<Gpa> CodeCache::pages() const {
  std::vector<Gpa> pages;
  for (const auto& [number, code] : m_pages) pages.push_back(Gpa(number * kPageSize));
  return pages;
}

std::vector<Gpa> CodeCache::pages(Gpa first, u64 size) const {
  std::vector<Gpa> pages;
  const u64 begin = first.value / kPageSize, count = size / kPageSize;
  if (count < m_pages.size()) {
    for (u64 page = begin; page < begin + count; ++page)
      if (m_pages.contains(page)) pages.push_back(Gpa(page * kPageSize));
  } else {
    for (const auto& [page, code] : m_pages)
      if (page - begin < count) pages.push_back(Gpa(page * kPageSize));
  }
  return pages;
}

void CodeCache::clear() {
  std::lock_guard lock(m_mutex);
  ANYKVM_TRACE(translate, "all code goes: {} blocks, {} of them alive, in {} pages", m_all.size(),
               m_blocks.size(), m_pages.size());
  m_blocks.clear();
  m_pages.clear();
  m_all.clear();
  m_memory->rewind(m_after_thunks);
}

}  // namespace anykvm::x86
