#include "x86/translate/code_cache.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/counters.h"
#include "base/guarded_memory.h"
#include "base/optimizations.h"
#include "base/trace.h"
#include "x86/mmu/code_pages.h"
#include "x86/translate/perf_map.h"
#include "x86/translate/thunk_frames.h"
#include "x86/translate/translator.h"

namespace anykvm::x86 {
namespace {

// Address space for generated code of one VM; memory is taken as it fills.
constexpr std::size_t kCodeBytes = 128u << 20;
// A block never gets larger than this (block.h, sites), nor what describes it.
constexpr std::size_t kBlockReserve = 256u << 10;
constexpr std::size_t kRecordReserve = 64u << 10;
constexpr std::size_t kRecordBytes = kCodeBytes;

}  // namespace

Result<std::unique_ptr<CodeCache>> CodeCache::create() {
  std::unique_ptr<CodeCache> cache(new CodeCache);
  cache->m_memory = TRY(CodeMemory::create(kCodeBytes));
  cache->m_records = TRY(RecordMemory::create(kRecordBytes));
  cache->m_blocks.emplace(*cache->m_records);
  cache->m_thunks = make_thunks(*cache->m_memory, cache->m_records->at<u8>(0));
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
  return m_blocks->find(gpa, rip, mode);
}

bool CodeCache::ready_for(const CodeSource& source, Untranslated* why) const {
  bool claimed = code_pages::claim_holds(*source.page) &&
                 (!source.second_page || code_pages::claim_holds(*source.second_page));
  if (!claimed) return *why = Untranslated::kClaimLost, false;
  if (m_memory->room() < kBlockReserve || !m_records->reserve(kRecordReserve))
    return *why = Untranslated::kNoRoom, false;
  return true;
}

bool CodeCache::copy_source(const CodeSource& source, Source* copy) {
  const u8* first = source.bytes - source.gpa.page_offset();
  if (!guarded_copy(copy->first.data(), first, kPageSize)) return false;
  return !source.second_page || guarded_copy(copy->second.data(), source.second_bytes, kPageSize);
}

Block CodeCache::facts_of(const CodeSource& source) {
  Block facts;
  facts.gpa = source.gpa;
  facts.rip = source.rip;
  facts.mode = source.mode;
  if (!source.mode.may_roam()) return facts;
  facts.roams = true;
  facts.rip = Block::kNowhere + source.gpa.page_offset();
  facts.code_page = page_number(source.gpa);
  return facts;
}

// Pages that share one push each other out of jump caches; so it is well that there are enough.
u16 CodeCache::page_number(Gpa address) {
  const auto known = m_pages.find(address.value / kPageSize);
  if (known != m_pages.end() && known->second.number()) return known->second.number();
  m_last_number = static_cast<u16>(m_last_number % (kCodePages - 1) + 1);
  return m_last_number;
}

Block* CodeCache::translate(const CodeSource& source, Untranslated* why) {
  std::lock_guard lock(m_mutex);
  if (!ready_for(source, why)) return nullptr;
  Source copy;
  if (!copy_source(source, &copy)) return *why = Untranslated::kUnmapped, nullptr;
  const Block facts = facts_of(source);
  Block* block = make(facts, copy.first.data() + source.gpa.page_offset(), source.size, copy, why);
  if (block) perf_map::add(*block, source.rip);
  return block;
}

Block* CodeCache::translate_straddling(const CodeSource& source, Untranslated* why) {
  std::lock_guard lock(m_mutex);
  if (!ready_for(source, why)) return nullptr;
  Source copy;
  if (!copy_source(source, &copy)) return *why = Untranslated::kUnmapped, nullptr;
  Block facts = facts_of(source);
  facts.straddles = true;
  facts.gpa2 = source.second_gpa;
  // An instruction has at most 15 bytes, so there are fewer on the first page.
  std::array<u8, 30> bytes;
  unsigned first = std::min(source.size, 15u), second = std::min(source.second_size, 15u);
  std::memcpy(bytes.data(), copy.first.data() + source.gpa.page_offset(), first);
  std::memcpy(bytes.data() + first, copy.second.data(), second);
  Block* block = make(facts, bytes.data(), first + second, copy, why);
  if (block) perf_map::add(*block, source.rip);
  return block;
}

Block* CodeCache::make(const Block& facts, const u8* bytes, unsigned size, const Source& source,
                       Untranslated* why) {
  const KnownCode known = [&](u64 rip) {
    return m_blocks->find(facts.gpa + (rip - facts.rip), rip, facts.mode);
  };
  Block* block =
      translate_block(facts, bytes, size, {m_thunks, m_slots, m_far_links, *m_records, *m_memory, known});
  if (!block) return *why = Untranslated::kNeedsMore, nullptr;
  try {
    install(block, source);
  } catch (const std::bad_alloc&) {
    kill(block);  // parts of the tables may know it
    throw;
  }
  return block;
}

void CodeCache::install(Block* block, const Source& source) {
  m_all.push_back(m_records->ref(block));
  unsigned in_first =
      static_cast<unsigned>(std::min<u64>(block->guest_bytes, kPageSize - block->gpa.page_offset()));
  add_to_page(block, block->gpa, in_first, source.first);
  if (block->straddles) {
    add_to_page(block, block->gpa2, block->guest_bytes - in_first, source.second);
  }
  // Where both of its pages are one, that may have changed in between.
  if (!block->is_alive()) return;
  // Two vCPUs may have wanted the same.
  if (Block* older = m_blocks->find(block->gpa, block->rip, block->mode)) m_blocks->remove(older);
  m_blocks->add(block);
}

// Blocks that were made from other bytes than are there now go: still_as() compares with the latest.
void CodeCache::add_to_page(Block* block, Gpa first, unsigned bytes, const PageBytes& page_bytes) {
  if (!bytes) return;
  const u64 number = first.value / kPageSize;
  if (auto known = m_pages.find(number); known != m_pages.end() && !known->second.same_as(page_bytes.data()))
    drop_page(number);
  PageCode& page = m_pages[number];
  if (block->roams && first == block->gpa) page.set_number(block->code_page);
  page.add(m_records->ref(block), static_cast<unsigned>(first.page_offset()), bytes, page_bytes);
}

void CodeCache::patch_rel32(u8* displacement, const u8* target) {
  // SAFETY: the four bytes do not straddle an aligned eight bytes (Emitter::align_displacement), so other
  // CPUs see the old or the new jump.
  auto relative = static_cast<i32>(target - (displacement + 4));
  auto* word = reinterpret_cast<u32*>(m_memory->writable(displacement));
  __atomic_store_n(word, static_cast<u32>(relative), __ATOMIC_RELEASE);
}

void CodeCache::link(RecordRef ref, Block* to) {
  std::lock_guard lock(m_mutex);
  Link* link = m_records->at<Link>(ref);
  const Block& from = *m_records->at<Block>(link->from);
  if (!from.is_alive() || !to->is_alive() || link->to != kNoRecord) return;
  Mode wanted = from.mode;
  wanted.narrow = link->narrow;
  if (to->mode != wanted || to->gpa.page() != from.gpa.page()) return;
  if (to->straddles) return link_to_gate(*link, *to);
  if (link->loops && to != &from) return;
  u8* const entry = link->flags_in_host ? to->code_host() : to->code_image();
  patch_rel32(at(link->displacement), link->loops ? to->code_loop() : entry);
  link->to = m_records->ref(to);
  link->next_incoming = to->incoming;
  to->incoming = ref;
}

// A gate is right for its RIP and mode for ever, so nobody has to take the link back.
void CodeCache::link_to_gate(const Link& link, const Block& to) {
  const u32 gate = link.flags_in_host ? to.gate_host : to.gate_image;
  if (gate && !link.narrow) patch_rel32(at(link.displacement), to.code + gate);
}

u64 CodeCache::target_of(RecordRef ref, const Context& context) const {
  const Link& link = *m_records->at<Link>(ref);
  return context.rip_of(*m_records->at<Block>(link.from)) + static_cast<u64>(i64{link.target});
}

bool CodeCache::leads_to_narrow(RecordRef ref) const { return m_records->at<Link>(ref)->narrow; }

bool CodeCache::before_write(Gpa address, unsigned size) {
  std::lock_guard lock(m_mutex);
  u64 number = address.value / kPageSize;
  auto it = m_pages.find(number);
  if (it == m_pages.end()) return true;
  PageCode& page = it->second;
  const bool touches = page.touches(static_cast<unsigned>(address.page_offset()), size);
  if (!touches && !page.is_data_after_near_miss()) return false;
  drop_page(number);
  return true;
}

void CodeCache::sample(Gpa page) {
  std::lock_guard lock(m_mutex);
  if (!m_slots.short_of_slots() || m_slots.is_hot(page) || !m_hot_pages.sample(page)) return;
  if (m_pages.contains(page.value / kPageSize)) drop_page(page.value / kPageSize);
  m_slots.note_hot(page);
}

bool CodeCache::still_as(Gpa page, const u8* now) {
  std::lock_guard lock(m_mutex);
  auto it = m_pages.find(page.value / kPageSize);
  return it != m_pages.end() && it->second.same_as(now);
}

void CodeCache::drop(Gpa page) {
  std::lock_guard lock(m_mutex);
  if (m_pages.contains(page.value / kPageSize)) drop_page(page.value / kPageSize);
}

void CodeCache::drop_page(u64 number) {
  m_slots.note_changed(Gpa(number * kPageSize));
  auto it = m_pages.find(number);
  const PageCode page = std::move(it->second);
  m_pages.erase(it);
  for (RecordRef block : page.blocks()) kill(m_records->at<Block>(block));
}

// The host code stays where it is, since a vCPU may be inside; it can only leave to the dispatcher.
void CodeCache::kill(Block* block) {
  if (!block->is_alive()) return;
  ANYKVM_COUNT(blocks_invalidated);
  __atomic_store_n(&block->alive, false, __ATOMIC_RELAXED);
  m_blocks->remove(block);
  for (RecordRef ref = block->incoming; ref != kNoRecord;) {
    Link* link = m_records->at<Link>(ref);
    ref = link->next_incoming;
    patch_rel32(at(link->displacement), at(link->unlinked));
    link->to = link->next_incoming = kNoRecord;
  }
  block->incoming = kNoRecord;
  for (Link& link : block->links()) unlink(&link);
  divert(block->code_image(), m_thunks.stale_flags_in_image);
  divert(block->code_host(), m_thunks.stale_flags_in_host);
}

// Out of the list of the block that it leads to. Its jump stays: the code that it is in is dead.
void CodeCache::unlink(Link* link) {
  if (link->to == kNoRecord) return;
  const RecordRef wanted = m_records->ref(link);
  RecordRef* place = &m_records->at<Block>(link->to)->incoming;
  while (*place != wanted) place = &m_records->at<Link>(*place)->next_incoming;
  *place = link->next_incoming;
  link->to = link->next_incoming = kNoRecord;
}

void CodeCache::divert(u8* entry, const u8* thunk) {
  // SAFETY: an entry is 8-byte aligned and begins with a five-byte instruction (emit_entries); one store
  // replaces it.
  u8 bytes[8];
  u8* writable = m_memory->writable(entry);
  std::memcpy(bytes, writable, 8);
  auto relative = static_cast<i32>(thunk - (entry + 5));
  bytes[0] = 0xe8;  // call: by the return address, the block is known
  std::memcpy(bytes + 1, &relative, 4);
  u64 word;
  std::memcpy(&word, bytes, 8);
  __atomic_store_n(reinterpret_cast<u64*>(writable), word, __ATOMIC_RELEASE);
}

Block* CodeCache::block_at(const u8* pc) {
  std::lock_guard lock(m_mutex);
  return holding(pc);
}

std::optional<CodeCache::LeftAt> CodeCache::left_at(const u8* pc, bool fault) {
  std::lock_guard lock(m_mutex);
  Block* block = holding(pc);
  Site site;
  if (!block || !site_words::find(block->sites(), static_cast<u32>(pc - block->code), fault, &site))
    return {};
  return LeftAt{block, site, m_records->at<FlagRecovery>(site.recovery)};
}

void CodeCache::do_without_slot(const u8* pc) {
  std::lock_guard lock(m_mutex);
  make_anew(pc, &SlotNumbers::avoid);
}

void CodeCache::do_with_crossing(const u8* pc) {
  std::lock_guard lock(m_mutex);
  make_anew(pc, &SlotNumbers::note_crossing);
}

void CodeCache::do_without_group(const u8* pc) {
  std::lock_guard lock(m_mutex);
  make_anew(pc, &SlotNumbers::leave_alone);
}

// What roams has no RIP of its own to go on from when the client has to answer.
void CodeCache::do_by_bus(const u8* pc) {
  if (!optimizations().devices) return;
  std::lock_guard lock(m_mutex);
  Block* block = holding(pc);
  Site site;
  if (!block || block->roams) return;
  if (!site_words::find(block->sites(), static_cast<u32>(pc - block->code), false, &site)) return;
  if (m_slots.note_bus(block->gpa + site.guest_offset)) kill(block);
}

void CodeCache::do_by_tlb(Gpa instruction) {
  std::lock_guard lock(m_mutex);
  m_slots.forget_bus(instruction);
  if (m_pages.contains(instruction.value / kPageSize)) drop_page(instruction.value / kPageSize);
}

void CodeCache::make_anew(const u8* pc, void (SlotNumbers::*note)(Gpa instruction)) {
  Block* block = holding(pc);
  Site site;
  if (!block || !site_words::find(block->sites(), static_cast<u32>(pc - block->code), false, &site)) return;
  (m_slots.*note)(block->gpa + site.guest_offset);
  kill(block);
}

Block* CodeCache::holding(const u8* pc) {
  auto code_of = [this](RecordRef ref) { return m_records->at<Block>(ref)->code; };
  auto it = std::upper_bound(m_all.begin(), m_all.end(), pc,
                             [&](const u8* p, RecordRef b) { return p < code_of(b); });
  if (it == m_all.begin()) return nullptr;
  Block* block = m_records->at<Block>(*std::prev(it));
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

void CodeCache::add(FarLinks& links) {
  std::lock_guard lock(m_mutex);
  links.begin(m_thunks.far_miss);
  m_far_links.add(links);
}

void CodeCache::remove(FarLinks& links) {
  std::lock_guard lock(m_mutex);
  m_far_links.remove(links);
}

void CodeCache::clear() {
  std::lock_guard lock(m_mutex);
  ANYKVM_COUNT(code_discarded);
  ANYKVM_TRACE(translate, "all code goes: {} blocks, {} of them alive, in {} pages", m_all.size(),
               m_blocks->size(), m_pages.size());
  m_blocks->clear();
  m_pages.clear();
  m_slots.take_back();
  m_far_links.take_back();
  m_all = {};
  m_records->clear();
  m_memory->rewind(m_after_thunks);
}

}  // namespace anykvm::x86
