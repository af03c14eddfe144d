/* Two that wait for each other: processes with pipes, threads with futexes. */
#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

enum { kPings = 1500 };

/* Reads a byte, writes the next one, kPings times. */
static uint64_t answer(int in, int out) {
  uint64_t sum = 0;
  for (int i = 0; i < kPings; i++) {
    uint8_t byte;
    if (read(in, &byte, 1) != 1) fail("read from a pipe");
    sum += byte++;
    if (write(out, &byte, 1) != 1) fail("write to a pipe");
  }
  return sum;
}

static uint64_t run_pipe(void) {
  int there[2], back[2];
  if (pipe(there) != 0 || pipe(back) != 0) fail("pipe");
  pid_t child = fork();
  if (child < 0) fail("fork");
  if (child == 0) _exit(answer(there[0], back[1]) == 0);
  uint8_t byte = 0;
  uint64_t sum = 0;
  if (write(there[1], &byte, 1) != 1) fail("write to a pipe");
  for (int i = 0; i < kPings; i++) {
    if (read(back[0], &byte, 1) != 1) fail("read from a pipe");
    sum += byte++;
    if (i < kPings - 1 && write(there[1], &byte, 1) != 1) fail("write to a pipe");
  }
  waitpid(child, NULL, 0);
  close(there[0]), close(there[1]), close(back[0]), close(back[1]);
  return sum;
}

enum { kTurns = 2000 };

static uint32_t turn;

static void wait_for_turn(uint32_t mine) {
  uint32_t now;
  while ((now = __atomic_load_n(&turn, __ATOMIC_ACQUIRE)) % 2 != mine) {
    syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, now, NULL, NULL, 0);
  }
}

static void* take_turns(void* odd) {
  for (int i = 0; i < kTurns; i++) {
    wait_for_turn(odd != NULL);
    __atomic_fetch_add(&turn, 1, __ATOMIC_RELEASE);
    syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
  }
  return NULL;
}

static uint64_t run_switch(void) {
  pthread_t other;
  turn = 0;
  if (pthread_create(&other, NULL, take_turns, &turn) != 0) fail("pthread_create");
  take_turns(NULL);
  pthread_join(other, NULL);
  return turn;
}

const struct workload wake_workloads[] = {
    {"pipe", "kernel", kPings, run_pipe, NULL, NULL},
    {"switch", "kernel", 2 * kTurns, run_switch, NULL, NULL},
    {0},
};
