/* Transfers of control: calls and returns, indirect jumps, branches that depend on data. */
#include "bench.h"

enum { kFibonacci = 31, kFibonacciCalls = 4356617 };

__attribute__((noipa)) static uint64_t fibonacci(unsigned n) {
  return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}

static uint64_t run_fibonacci(void) { return fibonacci(kFibonacci); }

/* One function that returns to sixteen places. */
enum { kHelperRounds = 200000 };

__attribute__((noipa)) static uint64_t helper(uint64_t x, uint64_t y) { return (x ^ y) + (x >> 7); }

static uint64_t run_helper(void) {
  uint64_t x = 1;
  for (uint64_t i = 0; i < kHelperRounds; i++) {
    x = helper(x, i);
    x = helper(x, 1);
    if (x & 1) x = helper(x, 2);
    x = helper(x, 3) + helper(i, 4);
    x = helper(x, 5);
    if (x & 2) x = helper(x, 6);
    x = helper(x, 7) + helper(i, 8);
    x = helper(x, 9);
    x = helper(x, 10);
    if (x & 4) x = helper(x, 11);
    x = helper(x, 12) + helper(i, 13);
    x = helper(x, 14);
    x = helper(x, 15);
  }
  return x;
}

/* An interpreter of a stack machine. Its program counts the steps of the 3n+1 sequences from 1 to kSequences.
 */
enum { kSequences = 5000, kSequenceSteps = 387940 };
enum op { kPush, kLoad, kStore, kAdd, kMultiply, kAnd, kShift, kJump, kJumpIfZero, kJumpIfLess, kStop };

static uint64_t interpret(const int16_t* program, uint64_t* variables) {
  static const void* const targets[] = {&&push,  &&load, &&store,        &&add,          &&multiply, &&and,
                                        &&shift, &&jump, &&jump_if_zero, &&jump_if_less, &&stop};
  uint64_t stack[16], *top = stack;
  const int16_t* at = program;
#define NEXT goto* targets[*at++]
  NEXT;
push:
  *++top = (uint64_t)*at++;
  NEXT;
load:
  *++top = variables[*at++];
  NEXT;
store:
  variables[*at++] = *top--;
  NEXT;
add:
  top--;
  top[0] += top[1];
  NEXT;
multiply:
  top--;
  top[0] *= top[1];
  NEXT;
  and : top--;
  top[0] &= top[1];
  NEXT;
shift:
  top[0] >>= *at++;
  NEXT;
jump:
  at = program + *at;
  NEXT;
jump_if_zero:
  at = *top-- == 0 ? program + *at : at + 1;
  NEXT;
jump_if_less:
  top -= 2;
  at = top[1] < top[2] ? program + *at : at + 1;
  NEXT;
stop:
  return *top;
#undef NEXT
}

static uint64_t run_interpreter(void) {
  enum { kN, kX, kCount };
  static int16_t code[64];
  int n = 0, outer, inner, ends, even;
#define EMIT(...)                                                                   \
  do {                                                                              \
    const int16_t words[] = {__VA_ARGS__};                                          \
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) code[n++] = words[i]; \
  } while (0)
  EMIT(kPush, 1, kStore, kN);
  outer = n;
  EMIT(kLoad, kN, kStore, kX);
  inner = n;
  EMIT(kLoad, kX, kPush, 2, kJumpIfLess, 0);
  ends = n - 1;
  EMIT(kLoad, kCount, kPush, 1, kAdd, kStore, kCount);
  EMIT(kLoad, kX, kPush, 1, kAnd, kJumpIfZero, 0);
  even = n - 1;
  EMIT(kLoad, kX, kPush, 3, kMultiply, kPush, 1, kAdd, kStore, kX, kJump, (int16_t)inner);
  code[even] = (int16_t)n;
  EMIT(kLoad, kX, kShift, 1, kStore, kX, kJump, (int16_t)inner);
  code[ends] = (int16_t)n;
  EMIT(kLoad, kN, kPush, 1, kAdd, kStore, kN, kLoad, kN, kPush, kSequences, kJumpIfLess, (int16_t)outer);
  EMIT(kLoad, kCount, kStop);
#undef EMIT
  uint64_t variables[3] = {0};
  return interpret(code, variables);
}

/* Branches that nobody can predict; the empty asm keeps the compiler from using conditional moves. */
enum { kBranchRounds = 500000 };

static uint64_t run_branches(void) {
  uint64_t small = 0, odd = 0, runs = 0, state = 0;
  uint32_t seed = 4711;
  for (int i = 0; i < kBranchRounds; i++) {
    uint32_t x = next_random(&seed) >> 24;
    if (x < 40) {
      small++;
      __asm__ volatile("" : "+r"(small));
    } else if (x & 1) {
      odd += x;
      __asm__ volatile("" : "+r"(odd));
    }
    if (x > 250 && state == 0) {
      state = x & 3;
      __asm__ volatile("" : "+r"(state));
    } else if (state != 0) {
      state--;
      runs++;
      __asm__ volatile("" : "+r"(runs));
    }
  }
  return small ^ odd << 16 ^ runs << 40;
}

const struct workload control_workloads[] = {
    {"fibonacci", "integer", kFibonacciCalls, run_fibonacci, NULL, NULL},
    {"helper-16", "integer", 16 * kHelperRounds, run_helper, NULL, NULL},
    {"interpreter", "integer", kSequenceSteps, run_interpreter, NULL, NULL},
    {"branches", "integer", kBranchRounds, run_branches, NULL, NULL},
    {0},
};
