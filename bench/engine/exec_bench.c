/* What a program that knows nothing of anykvm pays: run it under `anykvm exec`. Writes what Google Benchmark writes, as far as
 * bench/engine_costs.py reads it: seconds and cycles of the host's TSC for one operation, the median of several batches. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <x86intrin.h>

enum { kBatches = 15, kOperations = 20000, kMemory = 0x10000, kCode = 0x1000 };

/* Linked statically: another thread does the work (docs/decisions/static-clients.md), so the clock counts. */
#ifdef BENCH_STATIC
#define KIND "exec_static/"
#define CLOCK CLOCK_MONOTONIC
#else
#define KIND "exec/"
#define CLOCK CLOCK_THREAD_CPUTIME_ID
#endif

static struct kvm_run* run;
static int vcpu;

static void must(int ok, const char* what) {
  if (ok) return;
  perror(what);
  exit(1);
}

/* A vCPU in real mode with 64 KiB, about to run `code`. */
static void make_guest(const unsigned char* code, size_t size) {
  const int device = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  must(device >= 0, "/dev/kvm");
  const int vm = ioctl(device, KVM_CREATE_VM, 0);
  must(vm >= 0, "KVM_CREATE_VM");
  unsigned char* memory = mmap(NULL, kMemory, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  struct kvm_userspace_memory_region region = {.memory_size = kMemory, .userspace_addr = (unsigned long)memory};
  must(memory != MAP_FAILED && ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) == 0, "memory");
  memcpy(memory + kCode, code, size);
  vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
  must(vcpu >= 0, "KVM_CREATE_VCPU");
  const int run_size = ioctl(device, KVM_GET_VCPU_MMAP_SIZE, 0);
  run = mmap(NULL, (size_t)run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
  must(run != MAP_FAILED, "mmap");
  struct kvm_sregs sregs;
  must(ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
  sregs.cs.base = sregs.cs.selector = 0;
  sregs.ds.base = 0xf0000; /* nothing is there */
  sregs.ds.selector = 0xf000;
  struct kvm_regs regs = {.rip = kCode, .rflags = 2};
  must(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0 && ioctl(vcpu, KVM_SET_REGS, &regs) == 0, "registers");
}

static void exit_with(unsigned reason) {
  must(ioctl(vcpu, KVM_RUN, 0) == 0 && run->exit_reason == reason, "KVM_RUN");
}
static void exit_io(void) { exit_with(KVM_EXIT_IO); }
static void exit_mmio(void) { exit_with(KVM_EXIT_MMIO); }
static void get_registers(void) {
  struct kvm_regs regs;
  must(ioctl(vcpu, KVM_GET_REGS, &regs) == 0, "KVM_GET_REGS");
}

static double seconds_now(void) {
  struct timespec now;
  clock_gettime(CLOCK, &now);
  return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static int compare(const void* a, const void* b) {
  const double difference = *(const double*)a - *(const double*)b;
  return (difference > 0) - (difference < 0);
}

static void measure(const char* name, void (*operation)(void), const char* separator) {
  const double cycles_begin = (double)__rdtsc();
  struct timespec clock_begin, clock_end;
  clock_gettime(CLOCK_MONOTONIC, &clock_begin);
  double times[kBatches];
  for (int batch = 0; batch < kBatches; ++batch) {
    const double begin = seconds_now();
    for (int i = 0; i < kOperations; ++i) operation();
    times[batch] = (seconds_now() - begin) / kOperations;
  }
  clock_gettime(CLOCK_MONOTONIC, &clock_end);
  const double elapsed = (double)(clock_end.tv_sec - clock_begin.tv_sec) +
                         (double)(clock_end.tv_nsec - clock_begin.tv_nsec) / 1e9;
  qsort(times, kBatches, sizeof *times, compare);
  const double median = times[kBatches / 2];
  printf("{\"name\": \"%s\", \"per_op\": %.4g, \"cycles\": %.1f}%s\n", name, median,
         median * ((double)__rdtsc() - cycles_begin) / elapsed, separator);
}

int main(void) {
  static const unsigned char out[] = {0xe6, 0x10, 0xeb, 0xfc};        /* out 10H, al; and again */
  static const unsigned char load[] = {0xa1, 0x00, 0x00, 0xeb, 0xfb}; /* mov ax, [0]; and again */
  puts("{\"benchmarks\": [");
  make_guest(out, sizeof out);
  measure(KIND "exit_pio_write", exit_io, ",");
  measure(KIND "get_registers", get_registers, ",");
  make_guest(load, sizeof load);
  measure(KIND "exit_mmio_read", exit_mmio, "");
  puts("]}");
  return 0;
}
