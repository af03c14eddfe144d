/* Entering and leaving the kernel: system calls, page faults, signals. */
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bench.h"

enum { kCalls = 40000 };

static uint64_t run_syscall(void) {
  uint64_t parent = (uint64_t)getppid(), same = 0;
  for (int i = 0; i < kCalls; i++) same += (uint64_t)syscall(SYS_getppid) == parent;
  return same;
}

enum { kPage = 4096, kPages = 1024, kMappings = 4 };

static uint64_t run_page_faults(void) {
  uint64_t zeros = 0;
  for (int i = 0; i < kMappings; i++) {
    volatile uint8_t* memory =
        mmap(NULL, kPages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) fail("mmap");
    madvise((void*)memory, kPages * kPage, MADV_NOHUGEPAGE);
    for (int page = 0; page < kPages; page++) {
      zeros += memory[page * kPage] == 0; /* a read maps the zero page */
      memory[page * kPage] = 1;           /* and a write replaces it */
    }
    munmap((void*)memory, kPages * kPage);
  }
  return zeros;
}

enum { kSignals = 5000 };

static volatile sig_atomic_t handled;

static void handle(int number) { handled += number; }

static uint64_t run_signals(void) {
  handled = 0;
  signal(SIGUSR1, handle);
  for (int i = 0; i < kSignals; i++) raise(SIGUSR1);
  return (uint64_t)handled;
}

const struct workload kernel_workloads[] = {
    {"syscall", "kernel", kCalls, run_syscall, NULL, NULL},
    {"page-fault", "kernel", 2 * kMappings* kPages, run_page_faults, NULL, NULL},
    {"signal", "kernel", kSignals, run_signals, NULL, NULL},
    {0},
};
