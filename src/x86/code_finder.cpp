#include "x86/code_finder.h"

#include <algorithm>

#include "base/optimizations.h"
#include "x86/mmu/absent_pages.h"
#include "x86/mmu/client_writes.h"
#include "x86/mmu/code_pages.h"
#include "x86/mmu/paging.h"

namespace anykvm::x86 {

CodeFinder::CodeFinder(Cpu& cpu, Cpu::Private& p)
    : m_cpu(cpu),
      m_private(p),
      m_context(cpu.context()),
      m_state(cpu.state()),
      m_code(cpu.machine().code()) {}

Block* CodeFinder::stop_with(const GuestStop& stop) {
  m_context.leave = Leave::kStop;
  m_context.leave_pc = 0;
  m_context.stop = stop;
  return nullptr;
}

Block* CodeFinder::find(const Mode& mode) {
  u64 room = 0;
  auto linear = fetch_address(&room);
  if (!linear.ok()) return stop_with(linear.error());
  FetchCache::Entry* page = nullptr;
  if (auto fetched = fetch_page(linear.value(), &page); !fetched.ok()) return stop_with(fetched.error());
  m_page = page;
  look_at(*page);
  CodeSource source{.gpa = page->page + linear.value().page_offset(), .rip = m_state.rip, .mode = mode};
  Block* known = find_at(source);
  if (known && (!known->straddles || continues_on(*known, linear.value()))) return known;
  source.bytes = page->host + linear.value().page_offset();
  source.size = static_cast<unsigned>(std::min(kPageSize - linear.value().page_offset(), room));
  source.page = page->meta;
  Block* made = translate(source, linear.value(), room);
  if (made) m_private.found.at(source) = made;
  return made;
}

JumpedTo CodeFinder::way_to(const Block& block) const {
  const bool compared = block.straddles || !optimizations().moments || ClientWrites::compares(*m_page->meta);
  return {m_state.rip + block.mode.cs_base, m_page->global, block.straddles, compared, block.host_entry};
}

// Looks only where it need not walk: what runs was found a moment ago.
void CodeFinder::sample() {
  if (!optimizations().sampling || !is_user(m_private.mode.mmu) || !m_state.code64()) return;
  const Gva linear(m_state.rip);
  const FetchCache::Entry& page = m_private.fetch.at(linear);
  if (page.tag == FetchCache::tag_of(linear, m_private.mode.mmu)) m_code.sample(page.page);
}

Block* CodeFinder::find_at(const CodeSource& source) {
  Block*& lately = m_private.found.at(source);
  if (lately && optimizations().found && lately->is_alive() &&
      lately->is(source.gpa, source.rip, source.mode))
    return lately;
  Block* known = m_code.find(source.gpa, source.rip, source.mode);
  if (known) lately = known;
  return known;
}

// Is the second page of a straddling block still the one it was made from?
bool CodeFinder::continues_on(const Block& block, Gva linear) {
  FetchCache::Entry* page = nullptr;
  if (!fetch_page(next_page(linear), &page).ok() || page->page != block.gpa2) return false;
  look_at(*page);
  return block.is_alive();
}

// Before its code is entered for the first time since the CPU's moment.
void CodeFinder::look_at(FetchCache::Entry& page) {
  if (page.moment == m_private.moment) return;
  page.moment = m_private.moment;
  m_cpu.machine().client_writes().entering(*page.meta, page.page, page.host);
}

Gva CodeFinder::next_page(Gva linear) const {
  Gva next = linear.page() + kPageSize;
  return m_state.code64() ? next : Gva(next.value & 0xffffffff);
}

// Linear address of RIP after CS checks; `room` is how many bytes from there the segment allows.
Guest<Gva> CodeFinder::fetch_address(u64* room) {
  *room = ~u64{0};
  if (m_state.code64()) {
    if (!m_state.canonical(m_state.rip)) return GuestStop::gp(0);
    return Gva(m_state.rip);
  }
  const Segment& cs = m_state.segments[kCs];
  if (m_state.rip > cs.limit) return GuestStop::gp(0);
  *room = u64{cs.limit} - m_state.rip + 1;
  return Gva((cs.base + m_state.rip) & 0xffffffff);
}

Guest<void> CodeFinder::fetch_page(Gva linear, FetchCache::Entry** out) {
  FetchCache::Entry& entry = m_private.fetch.at(linear);
  u64 tag = FetchCache::tag_of(linear, m_private.mode.mmu);
  *out = &entry;
  if (entry.tag == tag) return {};
  const PhysicalMemory& memory = m_cpu.machine().memory();
  Translation t = TRY(x86::translate(m_state, memory, linear, Access::kFetch, Privilege::kCurrent,
                                     m_cpu.model().physical_address_bits()));
  const MemorySlot* slot = memory.find(t.gpa);
  if (!slot) {
    // Code outside RAM: the kernel cannot run that either.
    Exit exit;
    exit.reason = Exit::Reason::kInternalError;
    exit.code = 1;  // KVM_INTERNAL_ERROR_EMULATION
    return m_cpu.stop_for_client(exit);
  }
  if (may_be_absent(m_context, *slot, t.gpa)) return GuestStop::absent(t.gpa);
  if (t.page_size > kPageSize) m_cpu.note_large_page(linear, t.page_size);
  m_private.fetch.put(
      linear, {tag, t.gpa.page(), slot->host + (t.gpa.page() - slot->base), &slot->meta(t.gpa), t.global});
  return {};
}

Block* CodeFinder::translate(const CodeSource& source, Gva linear, u64 room) {
  if (!claim(source.gpa)) return look_again();
  Untranslated why{};
  Block* block = m_code.translate(source, &why);
  if (block) return block;
  if (why == Untranslated::kUnmapped) return stop_with(GuestStop::unmapped());
  return why == Untranslated::kNeedsMore ? translate_straddling(source, linear, room) : try_again(why);
}

// False: the world was stopped meanwhile, and nothing found before is to be trusted.
bool CodeFinder::claim(Gpa address) {
  const MemorySlot* slot = m_cpu.machine().memory().find(address);
  code_pages::claim_for_code(m_cpu, *slot, address);
  return !(m_context.stamp.part.attention.load() & kAttentionWorld);
}

Block* CodeFinder::look_again() {
  m_context.leave = Leave::kLookup;
  return nullptr;
}

Block* CodeFinder::translate_straddling(CodeSource source, Gva linear, u64 room) {
  if (source.size == room) return stop_with(GuestStop::gp(0));  // the instruction runs over the segment limit
  FetchCache::Entry* page = nullptr;
  if (auto fetched = fetch_page(next_page(linear), &page); !fetched.ok()) return stop_with(fetched.error());
  Gpa second = page->page;
  if (!claim(second)) return look_again();
  source.second_gpa = second;
  source.second_bytes = page->host;
  source.second_size = static_cast<unsigned>(std::min<u64>(15, room - source.size));
  source.second_page = page->meta;
  Untranslated why{};
  Block* block = m_code.translate_straddling(source, &why);
  if (block) return block;
  if (why == Untranslated::kUnmapped) return stop_with(GuestStop::unmapped());
  return why == Untranslated::kNeedsMore ? stop_with(GuestStop::gp(0)) : try_again(why);
}

Block* CodeFinder::try_again(Untranslated why) {
  if (why == Untranslated::kNoRoom) m_cpu.machine_discards_code();
  return look_again();
}

}  // namespace anykvm::x86
