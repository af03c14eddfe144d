#pragma once
// What one guest page's blocks were made from: the translated bytes, in pieces of 64, side by side.
// Owner: CodeCache, whose mutex guards it.

#include <array>
#include <vector>

#include "x86/translate/block.h"

namespace anykvm::x86 {

using PageBytes = std::array<u8, kPageSize>;

class PageCode {
 public:
  // A block was made from `bytes` bytes of the page at `offset`.
  void add(RecordRef block, unsigned offset, unsigned bytes, const PageBytes& page);
  const std::vector<RecordRef>& blocks() const { return m_blocks; }
  // Block::code_page of its blocks; 0: none roams.
  u16 number() const { return m_number; }
  void set_number(u16 number) { m_number = number; }
  // Do `bytes` bytes at `offset` hold what blocks were made from, or lie in one piece with such?
  bool touches(unsigned offset, unsigned bytes) const;
  // Does the page, whose host address is `now`, still hold what the blocks were made from? False as well if
  // it cannot be read.
  bool same_as(const u8* now) const;
  // Counts a write that touched no code; true when there have been so many that the page counts as data.
  bool is_data_after_near_miss();

 private:
  std::vector<RecordRef> m_blocks;
  u64 m_pieces = 0;         // a bit for each piece of the page that is kept
  std::vector<u8> m_bytes;  // these pieces, as they were translated
  unsigned m_near_misses = 0;
  u16 m_number = 0;
};

}  // namespace anykvm::x86
