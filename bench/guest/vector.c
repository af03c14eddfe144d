/* Floating point and vectors: scalar double, SSE, AVX2. Results are exact: the same operations in the same
 * order. */
#include <string.h>

#include "bench.h"

typedef float float4 __attribute__((vector_size(16)));
typedef uint32_t uint8x32 __attribute__((vector_size(32)));
typedef float float8 __attribute__((vector_size(32)));

static uint64_t hash_bytes(const void* bytes, size_t count) {
  const uint8_t* at = bytes;
  uint64_t hash = 1469598103934665603ull;
  for (size_t i = 0; i < count; i++) hash = (hash ^ at[i]) * 1099511628211ull;
  return hash;
}

/* 64x64 single-precision matrices, four columns at a time. */
enum { kSide = 64, kProducts = 40 };

static float4 left[kSide][kSide / 4], right[kSide][kSide / 4], product[kSide][kSide / 4];

static void prepare_matrices(void) {
  uint32_t seed = 17;
  for (int i = 0; i < kSide; i++) {
    for (int j = 0; j < kSide; j++) {
      left[i][j / 4][j % 4] = (float)(next_random(&seed) % 1000) / 512;
      right[i][j / 4][j % 4] = (float)(next_random(&seed) % 1000) / 1024;
    }
  }
}

__attribute__((noipa)) static void multiply_matrices(void) {
  for (int i = 0; i < kSide; i++) {
    for (int j = 0; j < kSide / 4; j++) {
      float4 sum = {0, 0, 0, 0};
      for (int k = 0; k < kSide; k++) sum += left[i][k / 4][k % 4] * right[k][j];
      product[i][j] = sum;
    }
  }
}

static uint64_t run_matmul(void) {
  for (int i = 0; i < kProducts; i++) multiply_matrices();
  return hash_bytes(product, sizeof product);
}

/* Integers and floats, eight at a time, in arrays of 16 KB. */
enum { kVectors = 512, kPasses = 6000 };

static bool has_avx2(void) { return __builtin_cpu_supports("avx2"); }

__attribute__((noipa, target("avx2"))) static uint64_t run_avx2(void) {
  static uint8x32 words[kVectors];
  static float8 numbers[kVectors];
  for (uint32_t i = 0; i < kVectors; i++) {
    for (uint32_t j = 0; j < 8; j++) {
      words[i][j] = i * 8 + j;
      numbers[i][j] = (float)(i + j);
    }
  }
  for (uint32_t pass = 0; pass < kPasses; pass++) {
    for (int i = 0; i < kVectors; i++) {
      uint8x32 x = words[i];
      x = x * 2654435769u + pass;
      x ^= x >> 15;
      words[i] = x;
      numbers[i] = numbers[i] * 0.5f + 3.0f;
    }
  }
  return hash_bytes(words, sizeof words) ^ hash_bytes(numbers, sizeof numbers);
}

/* Bodies under gravity, scalar double. */
enum { kBodies = 6, kTimeSteps = 30000 };

static double root(double x) {
  __asm__("sqrtsd %0, %0" : "+x"(x));
  return x;
}

static uint64_t run_bodies(void) {
  double position[kBodies][3], speed[kBodies][3] = {{0}}, mass[kBodies];
  for (int i = 0; i < kBodies; i++) {
    mass[i] = 1.0 / (i + 1);
    for (int d = 0; d < 3; d++) position[i][d] = (i * 7 + d * 3) % 11 - 5;
  }
  for (int step = 0; step < kTimeSteps; step++) {
    for (int i = 0; i < kBodies; i++) {
      for (int j = i + 1; j < kBodies; j++) {
        double delta[3], square = 0.01;
        for (int d = 0; d < 3; d++) {
          delta[d] = position[i][d] - position[j][d];
          square += delta[d] * delta[d];
        }
        double pull = 0.001 / (square * root(square));
        for (int d = 0; d < 3; d++) {
          speed[i][d] -= delta[d] * mass[j] * pull;
          speed[j][d] += delta[d] * mass[i] * pull;
        }
      }
    }
    for (int i = 0; i < kBodies; i++) {
      for (int d = 0; d < 3; d++) position[i][d] += 0.001 * speed[i][d];
    }
  }
  return hash_bytes(position, sizeof position);
}

const struct workload vector_workloads[] = {
    {"matmul-sse", "vector", (uint64_t)kProducts* kSide* kSide* kSide, run_matmul, prepare_matrices, NULL},
    {"avx2", "vector", kVectors* kPasses, run_avx2, NULL, has_avx2},
    {"bodies", "float", kTimeSteps, run_bodies, NULL, NULL},
    {0},
};
