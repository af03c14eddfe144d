// The first program of a guest that asks Linux for its performance counters: a loop of known length counted to the
// instruction, on its own and beside other processes, cycles, and samples taken by the counters' interrupts.
#include <errno.h>
#include <linux/perf_event.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { kRounds = 20000000, kPeriod = 1000000 };

static int failures;

static void expect(const char* what, int holds, uint64_t value) {
  printf("%s: %s (%llu)\n", holds ? "passed" : "FAILED", what, (unsigned long long)value);
  failures += !holds;
}

static int open_counter(uint64_t event, uint64_t period) {
  struct perf_event_attr attributes;
  memset(&attributes, 0, sizeof attributes);
  attributes.size = sizeof attributes;
  attributes.type = PERF_TYPE_HARDWARE;
  attributes.config = event;
  attributes.exclude_kernel = 1;
  attributes.disabled = 1;
  attributes.sample_period = period;
  attributes.sample_type = PERF_SAMPLE_IP;
  return (int)syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0);
}

// Two instructions, one of them a branch, for each round.
static __attribute__((noinline)) void loop(uint64_t rounds) { __asm__ volatile("1: dec %0\n\tjnz 1b" : "+r"(rounds) : : "cc"); }

static uint64_t count(uint64_t event, uint64_t rounds) {
  uint64_t value = 0;
  int fd = open_counter(event, 0);
  if (fd < 0) {
    printf("FAILED: event %d: %s\n", (int)event, strerror(errno));
    ++failures;
    return 0;
  }
  ioctl(fd, PERF_EVENT_IOC_ENABLE, 0);
  loop(rounds);
  ioctl(fd, PERF_EVENT_IOC_DISABLE, 0);
  if (read(fd, &value, sizeof value) != sizeof value) value = 0;
  close(fd);
  return value;
}

// How many samples of `event` lie in loop().
static uint64_t samples(uint64_t event) {
  uint64_t seen = 0, at;
  int fd = open_counter(event, kPeriod);
  struct perf_event_mmap_page* page =
      mmap(NULL, 129 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (page == MAP_FAILED) return 0;
  ioctl(fd, PERF_EVENT_IOC_ENABLE, 0);
  loop(kRounds);
  ioctl(fd, PERF_EVENT_IOC_DISABLE, 0);
  for (at = page->data_tail; at < page->data_head;) {
    struct {
      struct perf_event_header header;
      uint64_t ip;
    }* record = (void*)((char*)page + page->data_offset + at % page->data_size);
    if (record->header.type == PERF_RECORD_SAMPLE && record->ip - (uint64_t)loop < 64) ++seen;
    at += record->header.size;
  }
  close(fd);
  return seen;
}

static uint64_t more(uint64_t event) {  // for twice the rounds; what is around the loop drops out
  const uint64_t once = count(event, kRounds);
  return count(event, 2 * (uint64_t)kRounds) - once;
}

int main(void) {
  uint64_t value;
  mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
  mount("proc", "/proc", "proc", 0, NULL);
  value = more(PERF_COUNT_HW_INSTRUCTIONS);
  expect("instructions of a loop", value == 2ull * kRounds, value);
  value = more(PERF_COUNT_HW_BRANCH_INSTRUCTIONS);
  expect("its branches", value == kRounds, value);
  value = count(PERF_COUNT_HW_CPU_CYCLES, kRounds);
  expect("its cycles", value > 0, value);
  const int child = fork();
  if (child == 0) {
    loop(kRounds);
    _exit(0);
  }
  value = more(PERF_COUNT_HW_INSTRUCTIONS);
  waitpid(child, NULL, 0);
  expect("instructions beside another process", value == 2ull * kRounds, value);
  value = samples(PERF_COUNT_HW_INSTRUCTIONS);
  expect("samples by instructions", value > 0 && value <= 2ull * kRounds / kPeriod, value);  // Linux drops some
  value = samples(PERF_COUNT_HW_CPU_CYCLES);
  expect("samples by cycles", value > 0, value);
  printf("perf guest done, %d failures\n", failures);
  fflush(stdout);
  reboot(RB_POWER_OFF);
  return 0;
}
