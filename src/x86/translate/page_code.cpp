#include "x86/translate/page_code.h"

#include <bit>

#include "base/bits.h"
#include "base/guarded_memory.h"

namespace anykvm::x86 {
namespace {

constexpr unsigned kPiece = 64;
// So many writes next to code, and the page counts as data: its blocks go, its writes are fast again.
constexpr unsigned kNearMissLimit = 64;

u64 pieces_of(unsigned offset, unsigned bytes) {
  const unsigned first = offset / kPiece, last = (offset + bytes - 1) / kPiece;
  return low_bits(last - first + 1) << first;
}

// `work(first piece, number of pieces)` for each run of adjacent ones, until it returns false.
template <class Work>
bool for_runs(u64 pieces, Work work) {
  while (pieces) {
    const auto first = static_cast<unsigned>(std::countr_zero(pieces));
    const auto count = static_cast<unsigned>(std::countr_one(pieces >> first));
    pieces &= ~(low_bits(count) << first);
    if (!work(first, count)) return false;
  }
  return true;
}

}  // namespace

void PageCode::add(RecordRef block, unsigned offset, unsigned bytes, const PageBytes& page) {
  // By little more than is needed: most pages have few blocks.
  if (m_blocks.size() == m_blocks.capacity()) m_blocks.reserve(m_blocks.size() + 8);
  m_blocks.push_back(block);
  for_runs(pieces_of(offset, bytes) & ~m_pieces, [&](unsigned first, unsigned count) {
    const int before = std::popcount(m_pieces & low_bits(first));
    const std::size_t size = m_bytes.size() + count * kPiece;
    if (size > m_bytes.capacity()) m_bytes.reserve(size + 2 * kPiece);
    m_bytes.insert(m_bytes.begin() + before * static_cast<int>(kPiece), page.begin() + first * kPiece,
                   page.begin() + (first + count) * kPiece);
    m_pieces |= low_bits(count) << first;
    return true;
  });
}

bool PageCode::touches(unsigned offset, unsigned bytes) const { return m_pieces & pieces_of(offset, bytes); }

bool PageCode::same_as(const u8* now) const {
  const u8* kept = m_bytes.data();
  return for_runs(m_pieces, [&](unsigned first, unsigned count) {
    const u8* piece = kept;
    kept += count * kPiece;
    return guarded_equal(now + first * kPiece, piece, count * kPiece) == Guarded::kYes;
  });
}

bool PageCode::is_data_after_near_miss() { return ++m_near_misses >= kNearMissLimit; }

}  // namespace anykvm::x86
