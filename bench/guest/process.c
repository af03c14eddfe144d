/* Processes: fork, exit and wait; the same with exec of this program. */
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

enum { kForks = 60, kExecs = 30 };

static uint64_t exit_code_of(pid_t child) {
  int status;
  if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status)) fail("fork");
  return (uint64_t)WEXITSTATUS(status);
}

static uint64_t run_fork(void) {
  uint64_t sum = 0;
  for (int i = 0; i < kForks; i++) {
    pid_t child = fork();
    if (child == 0) _exit(i % 32);
    sum += exit_code_of(child);
  }
  return sum;
}

static uint64_t run_exec(void) {
  uint64_t sum = 0;
  for (int i = 0; i < kExecs; i++) {
    pid_t child = fork();
    if (child == 0) {
      execl("/proc/self/exe", "bench", EXIT_AT_ONCE, (char*)NULL);
      _exit(1);
    }
    sum += exit_code_of(child);
  }
  if (sum != (uint64_t)kExecs * kExitAtOnceCode) fail("exec");
  return sum;
}

const struct workload process_workloads[] = {
    {"fork-wait", "kernel", kForks, run_fork, NULL, NULL},
    {"fork-exec", "kernel", kExecs, run_exec, NULL, NULL},
    {0},
};
