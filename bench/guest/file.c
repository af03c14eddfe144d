/* Files in memory (tmpfs): made, written, read, removed. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench.h"

enum { kFiles = 40, kBlock = 4096, kFileBlocks = 16 };

static uint64_t use_file(const char* name, int number) {
  uint8_t block[kBlock] = {(uint8_t)number};
  struct stat status;
  uint64_t sum = 0;
  int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
  if (fd < 0) fail("open of a file");
  for (int i = 0; i < kFileBlocks; i++) {
    block[i] = (uint8_t)i;
    if (write(fd, block, kBlock) != kBlock) fail("write to a file");
  }
  lseek(fd, 0, SEEK_SET);
  for (int i = 0; i < kFileBlocks; i++) {
    if (read(fd, block, kBlock) != kBlock) fail("read from a file");
    sum += block[0] + block[i];
  }
  close(fd);
  if (stat(name, &status) != 0) fail("stat");
  unlink(name);
  return sum + (uint64_t)status.st_size;
}

static uint64_t run_files(void) {
  uint64_t sum = 0;
  char name[256];
  for (int i = 0; i < kFiles; i++) {
    snprintf(name, sizeof name, "%s/bench.%d.%d", scratch_folder(), (int)getpid(), i);
    sum += use_file(name, i);
  }
  return sum;
}

const struct workload file_workloads[] = {
    {"tmpfs", "kernel", 2 * kFiles* kFileBlocks, run_files, NULL, NULL},
    {0},
};
