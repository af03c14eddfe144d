#pragma once
// Finds blocks by what they were made for: a hash table whose chains run through the blocks themselves.
// Owner: CodeCache, whose mutex guards it.

#include <vector>

#include "x86/translate/block.h"

namespace anykvm::x86 {

class BlockIndex {
 public:
  explicit BlockIndex(const RecordMemory& records);

  Block* find(Gpa gpa, u64 rip, const Mode& mode) const;
  // One block for the same code at most: the caller removes an older one first.
  void add(Block* block);
  // True if it was there.
  bool remove(Block* block);
  std::size_t size() const { return m_size; }
  void clear();

 private:
  static constexpr std::size_t kFirstBuckets = 1024;

  RecordRef& bucket_of(Gpa gpa, u64 rip, const Mode& mode);
  void grow();

  const RecordMemory& m_records;
  std::vector<RecordRef> m_buckets;  // a power of two
  std::size_t m_size = 0;
};

}  // namespace anykvm::x86
