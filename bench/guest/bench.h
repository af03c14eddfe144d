/* What the themes of the guest benchmark offer to main.c: tables of workloads. A workload does a fixed amount
 * of work and returns a value that depends on all of it; the value must be the same in every run and on every
 * machine. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct workload {
  const char* name;
  const char* group;   /* integer, vector, float, program, kernel, smp: what bench/report.py averages over */
  uint64_t operations; /* in one run(), for times per operation */
  uint64_t (*run)(void);
  void (*prepare)(void);  /* once, not timed; may be NULL */
  bool (*possible)(void); /* NULL: always */
};

/* Each ends with a row without a name. */
extern const struct workload arithmetic_workloads[], memory_workloads[], control_workloads[],
    vector_workloads[], program_workloads[], kernel_workloads[], process_workloads[], wake_workloads[],
    file_workloads[], smp_workloads[];

/* Ends the program with a message: a benchmark that could not do its work has no time. */
_Noreturn void fail(const char* what);

/* A sequence that is the same everywhere (xorshift). */
static inline uint32_t next_random(uint32_t* state) {
  uint32_t x = *state;
  x ^= x << 13;
  x ^= x >> 17;
  x ^= x << 5;
  return *state = x;
}

/* Where files are made. */
const char* scratch_folder(void);
/* argv[1] of this program when it shall exit at once, with kExitAtOnceCode. */
#define EXIT_AT_ONCE "--exit-at-once"
enum { kExitAtOnceCode = 7 };
