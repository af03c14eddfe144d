#include "x86/translate/block_index.h"

namespace anykvm::x86 {
namespace {

u64 hash(Gpa gpa, u64 rip, const Mode& mode) {
  const u64 place = mode.may_roam() ? 0 : rip * 0x9e3779b97f4a7c15;
  const u64 h = (gpa.value ^ place) + ModeHash{}(mode);
  return h ^ h >> 29;
}

}  // namespace

BlockIndex::BlockIndex(const RecordMemory& records) : m_records(records), m_buckets(kFirstBuckets) {}

RecordRef& BlockIndex::bucket_of(Gpa gpa, u64 rip, const Mode& mode) {
  return m_buckets[hash(gpa, rip, mode) & (m_buckets.size() - 1)];
}

Block* BlockIndex::find(Gpa gpa, u64 rip, const Mode& mode) const {
  RecordRef ref = m_buckets[hash(gpa, rip, mode) & (m_buckets.size() - 1)];
  while (ref != kNoRecord) {
    auto* block = m_records.at<Block>(ref);
    if (block->is(gpa, rip, mode)) return block;
    ref = block->next_in_index;
  }
  return nullptr;
}

void BlockIndex::add(Block* block) {
  if (m_size >= m_buckets.size()) grow();
  RecordRef& bucket = bucket_of(block->gpa, block->rip, block->mode);
  block->next_in_index = bucket;
  bucket = m_records.ref(block);
  ++m_size;
}

bool BlockIndex::remove(Block* block) {
  const RecordRef wanted = m_records.ref(block);
  RecordRef* place = &bucket_of(block->gpa, block->rip, block->mode);
  while (*place != kNoRecord && *place != wanted) place = &m_records.at<Block>(*place)->next_in_index;
  if (*place == kNoRecord) return false;
  *place = block->next_in_index;
  block->next_in_index = kNoRecord;
  --m_size;
  return true;
}

void BlockIndex::grow() {
  std::vector<RecordRef> before(m_buckets.size() * 2);
  before.swap(m_buckets);
  for (RecordRef ref : before) {
    while (ref != kNoRecord) {
      auto* block = m_records.at<Block>(ref);
      ref = block->next_in_index;
      RecordRef& bucket = bucket_of(block->gpa, block->rip, block->mode);
      block->next_in_index = bucket;
      bucket = m_records.ref(block);
    }
  }
}

void BlockIndex::clear() {
  m_buckets.assign(kFirstBuckets, kNoRecord);
  m_buckets.shrink_to_fit();
  m_size = 0;
}

}  // namespace anykvm::x86
