/* Integer arithmetic in registers and on the stack. */
#include "bench.h"

enum { kBlocks = 20000 };

static uint32_t round_constants[64];

/* The first 32 bits of the fractional part of the cube root of `prime` (FIPS 180-4 4.2.2). */
static uint32_t cube_root_fraction(unsigned prime) {
  uint64_t root = 0;
  for (int bit = 35; bit >= 0; bit--) {
    unsigned __int128 x = root | 1ull << bit;
    if (x * x * x <= (unsigned __int128)prime << 96) root = (uint64_t)x;
  }
  return (uint32_t)root;
}

static bool is_prime(unsigned n) {
  for (unsigned d = 2; d * d <= n; d++) {
    if (n % d == 0) return false;
  }
  return true;
}

static void prepare_sha(void) {
  unsigned n = 2;
  for (int i = 0; i < 64; n++) {
    if (is_prime(n)) round_constants[i++] = cube_root_fraction(n);
  }
}

static inline uint32_t rotate(uint32_t x, int count) { return x >> count | x << (32 - count); }

static void compress(uint32_t state[8], const uint32_t block[16]) {
  uint32_t w[64], v[8];
  for (int i = 0; i < 16; i++) w[i] = block[i];
  for (int i = 16; i < 64; i++) {
    uint32_t s0 = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
    uint32_t s1 = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;
    w[i] = w[i - 16] + s0 + w[i - 7] + s1;
  }
  for (int i = 0; i < 8; i++) v[i] = state[i];
  for (int i = 0; i < 64; i++) {
    uint32_t s1 = rotate(v[4], 6) ^ rotate(v[4], 11) ^ rotate(v[4], 25);
    uint32_t choose = (v[4] & v[5]) ^ (~v[4] & v[6]);
    uint32_t t1 = v[7] + s1 + choose + round_constants[i] + w[i];
    uint32_t s0 = rotate(v[0], 2) ^ rotate(v[0], 13) ^ rotate(v[0], 22);
    uint32_t majority = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
    v[7] = v[6];
    v[6] = v[5];
    v[5] = v[4];
    v[4] = v[3] + t1;
    v[3] = v[2];
    v[2] = v[1];
    v[1] = v[0];
    v[0] = t1 + s0 + majority;
  }
  for (int i = 0; i < 8; i++) state[i] += v[i];
}

static uint64_t run_sha(void) {
  uint32_t state[8] = {1, 2, 3, 4, 5, 6, 7, 8}, block[16] = {0};
  for (uint32_t i = 0; i < kBlocks; i++) {
    block[i % 16] += i;
    compress(state, block);
  }
  return (uint64_t)state[0] << 32 | state[7];
}

const struct workload arithmetic_workloads[] = {
    {"sha", "integer", kBlocks, run_sha, prepare_sha, NULL},
    {0},
};
