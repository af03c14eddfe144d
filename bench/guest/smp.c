/* The same work on one, two and four threads at once, each on a CPU of its own as far as there are so many:
 * how far CPUs get beside each other. */
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include "bench.h"

enum { kSmpSteps = 30000000 };

struct thread {
  pthread_t id;
  long cpu;
  uint64_t result;
};

static void move_to(long cpu) {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  CPU_SET((size_t)cpu, &cpus);
  if (sched_setaffinity(0, sizeof cpus, &cpus) != 0) fail("sched_setaffinity");
}

static void* work(void* argument) {
  struct thread* self = argument;
  move_to(self->cpu);
  uint64_t x = 88172645463325252ull, table[64] = {0};
  for (uint32_t i = 0; i < kSmpSteps; i++) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    table[x % 64] += x;
  }
  for (int i = 0; i < 64; i++) x ^= table[i];
  self->result = x;
  return NULL;
}

static uint64_t work_on(int count) {
  struct thread threads[4];
  uint64_t sum = 0;
  long cpus = sysconf(_SC_NPROCESSORS_ONLN);
  for (int i = 0; i < count; i++) {
    threads[i].cpu = i % cpus;
    if (i > 0 && pthread_create(&threads[i].id, NULL, work, &threads[i]) != 0) fail("pthread_create");
  }
  work(&threads[0]);
  for (int i = 1; i < count; i++) pthread_join(threads[i].id, NULL);
  for (int i = 0; i < count; i++) sum += threads[i].result;
  return sum;
}

static uint64_t run_one(void) { return work_on(1); }
static uint64_t run_two(void) { return work_on(2); }
static uint64_t run_four(void) { return work_on(4); }

const struct workload smp_workloads[] = {
    {"busy-1", "smp", kSmpSteps, run_one, NULL, NULL},
    {"busy-2", "smp", 2 * kSmpSteps, run_two, NULL, NULL},
    {"busy-4", "smp", 4 * kSmpSteps, run_four, NULL, NULL},
    {0},
};
