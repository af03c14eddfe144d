/* The guest benchmark: runs workloads, each several times, and prints the best time and the value it
 * computed.
 *
 * As the first process of a guest it mounts what it needs and powers off at the end; elsewhere it is a plain
 * program. The environment (in a guest: words of the kernel command line) says what to do:
 *   bench_only=NAME,NAME...   these workloads; nothing if it is empty or missing
 *   bench_best=N              the best of N runs or more, after one that is not counted; default 3
 *   bench_folder=PATH         for files; default /tmp
 * Without it, `bench --list` prints name and group of every workload.
 * Output, times in ns of CLOCK_MONOTONIC:
 *   BENCH begin TIME | BENCH result NAME BEST OPERATIONS VALUE | BENCH skip NAME | BENCH failed WHAT | BENCH
 * end TIME */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"

static const struct workload* const themes[] = {
    arithmetic_workloads, memory_workloads,  control_workloads, vector_workloads, program_workloads,
    kernel_workloads,     process_workloads, wake_workloads,    file_workloads,   smp_workloads,
};

/* Short runs are repeated for so many ns: one of them will be undisturbed. */
enum { kLeastTotal = 60000000 };

const char* scratch_folder(void) {
  const char* folder = getenv("bench_folder");
  return folder ? folder : "/tmp";
}

static uint64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static _Noreturn void leave(int code) {
  fflush(stdout);
  if (getpid() == 1) {
    sync();
    reboot(RB_POWER_OFF);
  }
  exit(code);
}

_Noreturn void fail(const char* what) {
  printf("BENCH failed %s: %s\n", what, strerror(errno));
  leave(1);
}

static bool is_in_list(const char* list, const char* name) {
  size_t length = strlen(name);
  for (const char* at = list; (at = strstr(at, name)) != NULL; at++) {
    if ((at == list || at[-1] == ',') && (at[length] == ',' || at[length] == 0)) return true;
  }
  return false;
}

static void measure(const struct workload* workload, int times) {
  if (workload->possible && !workload->possible()) {
    printf("BENCH skip %s\n", workload->name);
    return;
  }
  if (workload->prepare) workload->prepare();
  uint64_t value = workload->run(), best = UINT64_MAX, total = 0;
  for (int i = 0; i < times || total < kLeastTotal; i++) {
    uint64_t begin = now();
    uint64_t again = workload->run();
    uint64_t taken = now() - begin;
    total += taken;
    if (taken < best) best = taken;
    if (again != value) {
      printf("BENCH failed %s gave 0x%llx, then 0x%llx\n", workload->name, (unsigned long long)value,
             (unsigned long long)again);
      leave(1);
    }
  }
  printf("BENCH result %s %llu %llu 0x%llx\n", workload->name, (unsigned long long)best,
         (unsigned long long)workload->operations, (unsigned long long)value);
}

static void for_each_workload(void (*visit)(const struct workload*, void*), void* argument) {
  for (size_t i = 0; i < sizeof themes / sizeof *themes; i++) {
    for (const struct workload* w = themes[i]; w->name; w++) visit(w, argument);
  }
}

static void print_workload(const struct workload* workload, void* unused) {
  (void)unused;
  printf("%s %s\n", workload->name, workload->group);
}

static void measure_if_chosen(const struct workload* workload, void* times) {
  const char* only = getenv("bench_only");
  if (only && is_in_list(only, workload->name)) measure(workload, *(int*)times);
}

static void mount_all(void) {
  mkdir("/proc", 0755);
  mkdir("/tmp", 01777);
  if (mount("proc", "/proc", "proc", 0, NULL) != 0) fail("mount of proc");
  if (mount("tmpfs", "/tmp", "tmpfs", 0, NULL) != 0) fail("mount of tmpfs");
}

int main(int argc, char** argv) {
  if (argc == 2 && strcmp(argv[1], EXIT_AT_ONCE) == 0) return kExitAtOnceCode;
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (argc == 2 && strcmp(argv[1], "--list") == 0) {
    for_each_workload(print_workload, NULL);
    return 0;
  }
  printf("\nBENCH begin %llu\n", (unsigned long long)now());
  if (getpid() == 1) mount_all();
  const char* best = getenv("bench_best");
  int times = best && atoi(best) > 0 ? atoi(best) : 3;
  for_each_workload(measure_if_chosen, &times);
  printf("BENCH end %llu\n", (unsigned long long)now());
  leave(0);
}
