// The selftests ask the kvm module for its parameters in /sys; here is no module. Loaded before the preload library, this
// answers what is true of anykvm, also where the host has the module.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const char kModules[] = "/sys/module/kvm";

static const struct {
  const char *path, *value;
} kParameters[] = {
    {"/sys/module/kvm/parameters/enable_pmu", "Y\n"},
    {"/sys/module/kvm/parameters/force_emulation_prefix", "0\n"},
    {"/sys/module/kvm/parameters/eager_page_split", "N\n"},
    {"/sys/module/kvm/parameters/tdp_mmu", "N\n"},
    {"/sys/module/kvm_intel/parameters/ept", "N\n"},
    {"/sys/module/kvm_intel/parameters/unrestricted_guest", "Y\n"},
    {"/sys/module/kvm_amd/parameters/npt", "N\n"},
    {"/sys/module/kvm_amd/parameters/avic", "N\n"},
};

static int open_parameter(const char* path) {
  for (size_t i = 0; i < sizeof kParameters / sizeof *kParameters; ++i) {
    if (strcmp(path, kParameters[i].path) != 0) continue;
    const size_t size = strlen(kParameters[i].value);
    int fd = memfd_create("parameter", MFD_CLOEXEC);
    if (fd < 0) return -1;
    if (write(fd, kParameters[i].value, size) == (ssize_t)size && lseek(fd, 0, SEEK_SET) == 0) return fd;
    close(fd);
    return -1;
  }
  errno = ENOENT;
  return -1;
}

int open(const char* path, int flags, ...) {
  if (strncmp(path, kModules, sizeof kModules - 1) == 0) return open_parameter(path);
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = va_arg(arguments, mode_t);
  va_end(arguments);
  int (*next)(const char*, int, ...) = (int (*)(const char*, int, ...))dlsym(RTLD_NEXT, "open");
  return next(path, flags, mode);
}
