/* Loads and stores: dependent loads in a large and a small ring, bytes, a compressor's match search, a sort,
 * LOCKed instructions. */
#include <string.h>

#include "bench.h"

/* Pointer chases: one cycle through all cells, in random order. */
enum { kLargeRing = 512 * 1024 / sizeof(void*), kSmallRing = 16 * 1024 / sizeof(void*), kSteps = 1500000 };

static void *large_ring[kLargeRing], *small_ring[kSmallRing];

static void make_ring(void** cells, uint32_t count) {
  static uint32_t order[kLargeRing];
  uint32_t seed = 12345;
  for (uint32_t i = 0; i < count; i++) order[i] = i;
  for (uint32_t i = count - 1; i > 0; i--) {
    uint32_t j = next_random(&seed) % i, other = order[j];
    order[j] = order[i];
    order[i] = other;
  }
  for (uint32_t i = 0; i < count; i++) cells[order[i]] = &cells[order[(i + 1) % count]];
}

static uint64_t chase(void** cells) {
  void** at = cells;
  for (int i = 0; i < kSteps; i++) at = *at;
  return (uint64_t)(at - cells);
}

static void prepare_large_ring(void) { make_ring(large_ring, kLargeRing); }
static void prepare_small_ring(void) { make_ring(small_ring, kSmallRing); }
static uint64_t run_large_chase(void) { return chase(large_ring); }
static uint64_t run_small_chase(void) { return chase(small_ring); }

/* Bytes, one at a time. */
enum { kText = 64 * 1024, kCopies = 250 };

static uint8_t text[kText], copied[kText];

static void prepare_text(void) {
  uint32_t seed = 99;
  for (int i = 0; i < kText; i++) {
    uint32_t r = next_random(&seed);
    /* Words from a small alphabet, now and then a repetition from before, so that there are matches to find.
     */
    if (i > 4096 && r % 16 == 0) {
      int from = (int)(next_random(&seed) % 4096), length = 4 + (int)(r >> 8) % 40;
      for (; length > 0 && i < kText - 1; length--, i++) text[i] = text[i - 4096 + from % 2048];
    }
    text[i] = (uint8_t)("etaoin shrdlu\n,."[r >> 28]);
  }
}

__attribute__((noipa)) static void copy_bytes(uint8_t* to, const uint8_t* from, size_t count) {
  for (size_t i = 0; i < count; i++) to[i] = from[i];
}

static uint64_t run_bytes(void) {
  uint64_t sum = 0;
  for (int i = 0; i < kCopies; i++) {
    text[0] = (uint8_t)i;
    copy_bytes(copied, text, kText);
    sum += copied[0] + copied[kText - 1];
  }
  text[0] = 0;
  return sum;
}

/* The longest earlier match at each position, by chains of positions with the same hash of three bytes. */
enum { kHashes = 4096, kChain = 16, kLongest = 64, kSearched = kText };

static uint64_t run_matches(void) {
  static uint16_t head[kHashes], previous[kText];
  uint64_t total = 0;
  memset(head, 0, sizeof head);
  for (uint32_t at = 1; at + kLongest < kSearched; at++) {
    uint32_t three = text[at] | (uint32_t)text[at + 1] << 8 | (uint32_t)text[at + 2] << 16;
    uint32_t hash = three * 2654435761u >> 20, best = 2;
    uint32_t candidate = head[hash];
    for (int tries = kChain; candidate != 0 && tries > 0; tries--, candidate = previous[candidate]) {
      if (text[candidate + best] != text[at + best]) continue;
      uint32_t length = 0;
      while (length < kLongest - 1 && text[candidate + length] == text[at + length]) length++;
      if (length > best) best = length;
    }
    total += best;
    previous[at] = head[hash];
    head[hash] = (uint16_t)at;
  }
  return total;
}

/* Quicksort. */
enum { kNumbers = 64 * 1024 };

static void sort(uint32_t* first, uint32_t* last) {
  while (first < last) {
    uint32_t pivot = first[(last - first) / 2], *low = first, *high = last;
    while (low <= high) {
      while (*low < pivot) low++;
      while (*high > pivot) high--;
      if (low > high) break;
      uint32_t other = *low;
      *low++ = *high;
      *high-- = other;
    }
    sort(first, high);
    first = low;
  }
}

static uint64_t run_sort(void) {
  static uint32_t numbers[kNumbers];
  uint32_t seed = 7;
  uint64_t sum = 0;
  for (int i = 0; i < kNumbers; i++) numbers[i] = next_random(&seed);
  sort(numbers, numbers + kNumbers - 1);
  for (uint32_t i = 0; i < kNumbers; i++) sum += (uint64_t)numbers[i] * i;
  return sum;
}

/* LOCKed instructions that nobody else disturbs. */
enum { kAtomics = 200000 };

static uint64_t run_atomics(void) {
  static uint64_t counters[4];
  memset(counters, 0, sizeof counters);
  for (uint64_t i = 0; i < kAtomics; i++) {
    uint64_t seen = __atomic_load_n(&counters[i % 4], __ATOMIC_RELAXED);
    __atomic_compare_exchange_n(&counters[i % 4], &seen, seen + i, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    __atomic_fetch_add(&counters[1], seen & 3, __ATOMIC_SEQ_CST);
    counters[3] += __atomic_exchange_n(&counters[2], i, __ATOMIC_SEQ_CST);
  }
  return counters[0] ^ counters[1] ^ counters[2] ^ counters[3];
}

const struct workload memory_workloads[] = {
    {"chase-512k", "integer", kSteps, run_large_chase, prepare_large_ring, NULL},
    {"chase-16k", "integer", kSteps, run_small_chase, prepare_small_ring, NULL},
    {"bytes", "integer", (uint64_t)kCopies* kText, run_bytes, prepare_text, NULL},
    {"matches", "integer", kSearched, run_matches, prepare_text, NULL},
    {"sort", "integer", kNumbers, run_sort, NULL, NULL},
    {"atomics", "integer", 3 * kAtomics, run_atomics, NULL, NULL},
    {0},
};
