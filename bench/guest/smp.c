/* The same work on one, two and four threads at once, each on a CPU of its own as far as there are so many:
 * how far CPUs get beside each other. */
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include "bench.h"

enum { kSmpSteps = 30000000 };

struct thread {
  pthread_t id;
  uint64_t result;
};

/* A thread that had to move itself would first wait on its parent's CPU, whose only CPU it inherits, until
 * the scheduler takes that from the parent: 4 to 10 ms. */
static void start(struct thread* thread, long cpu, void* (*work)(void*)) {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  CPU_SET((size_t)cpu, &cpus);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  if (pthread_attr_setaffinity_np(&attributes, sizeof cpus, &cpus) != 0) fail("pthread_attr_setaffinity_np");
  if (pthread_create(&thread->id, &attributes, work, thread) != 0) fail("pthread_create");
  pthread_attr_destroy(&attributes);
}

static void* work(void* argument) {
  struct thread* self = argument;
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
  for (int i = 0; i < count; i++) start(&threads[i], i % cpus, work);
  for (int i = 0; i < count; i++) {
    pthread_join(threads[i].id, NULL);
    sum += threads[i].result;
  }
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
