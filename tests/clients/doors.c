/*
 * A program that uses KVM by every door that programs have: each way to open /dev/kvm, to look for it, and to
 * use, copy, wait for and close what comes from it. It knows nothing of anykvm but the capability by which it
 * tells who answers. Usage: doors            all doors; a line for each that fails, exit code 1 if one did
 *        doors which      who answers: anykvm, kernel or nobody
 *        doors uses       exit code 0 if anykvm answers, 1 if not
 *        doors inherited DEVICE VM CLOSED      descriptors that an exec(2) left open or closed
 *        doors cpu        what CPUID says, but for virtualization
 *        doors plain      no KVM at all: what descriptors, forks and threads do, for comparison
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/kvm.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define KVM_CAP_ANYKVM 0x616b766d
#define DEVICE "/dev/kvm"

extern char** environ;
int __open_2(const char*, int);
int __open64_2(const char*, int);
int __openat_2(int, const char*, int);
int __openat64_2(int, const char*, int);

static int failures;
static void expect(const char* what, int condition) {
  if (condition) return;
  printf("FAILED: %s (%s)\n", what, strerror(errno));
  ++failures;
}

static int is_anykvm(int fd) { return fd >= 0 && ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_ANYKVM) == 1; }
static int fails_with(long result, int error) { return result == -1 && errno == error; }

/* --- opening --- */

static void opened(const char* how, int fd) {
  expect(how, is_anykvm(fd));
  if (fd >= 0) expect(how, close(fd) == 0);
}

static void test_opening(void) {
  const int dev = open("/dev", O_RDONLY | O_DIRECTORY);
  struct open_how how = {.flags = O_RDWR | O_CLOEXEC};
  opened("open", open(DEVICE, O_RDWR));
  opened("open for reading", open(DEVICE, O_RDONLY));
  opened("open64", open64(DEVICE, O_RDWR));
  opened("openat", openat(AT_FDCWD, DEVICE, O_RDWR));
  opened("openat64", openat64(AT_FDCWD, DEVICE, O_RDWR));
  opened("openat a directory", openat(dev, "kvm", O_RDWR));
  opened("another spelling", open("/dev/../dev//./kvm", O_RDWR));
  opened("__open_2", __open_2(DEVICE, O_RDWR));
  opened("__open64_2", __open64_2(DEVICE, O_RDWR));
  opened("__openat_2", __openat_2(AT_FDCWD, DEVICE, O_RDWR));
  opened("__openat64_2", __openat64_2(dev, "kvm", O_RDWR));
  opened("syscall(SYS_open)", (int)syscall(SYS_open, DEVICE, O_RDWR));
  opened("syscall(SYS_openat)", (int)syscall(SYS_openat, dev, "kvm", O_RDWR));
  opened("syscall(SYS_openat2)", (int)syscall(SYS_openat2, AT_FDCWD, DEVICE, &how, sizeof how));
  FILE* stream = fopen(DEVICE, "r+");
  expect("fopen", stream && is_anykvm(fileno(stream)));
  if (stream) fclose(stream);
  stream = fopen64(DEVICE, "re");
  expect("fopen64", stream && is_anykvm(fileno(stream)) && fcntl(fileno(stream), F_GETFD) == FD_CLOEXEC);
  if (stream) fclose(stream);
  expect("O_EXCL", fails_with(open(DEVICE, O_RDWR | O_CREAT | O_EXCL, 0600), EEXIST));
  expect("O_DIRECTORY", fails_with(open(DEVICE, O_RDONLY | O_DIRECTORY), ENOTDIR));
  expect("a name that goes on", fails_with(open("/dev/kvmx", O_RDWR), ENOENT));
  close(dev);

  const int kept = open(DEVICE, O_RDWR), closed = open(DEVICE, O_RDWR | O_CLOEXEC);
  expect("without O_CLOEXEC", fcntl(kept, F_GETFD) == 0);
  expect("with O_CLOEXEC", fcntl(closed, F_GETFD) == FD_CLOEXEC);
  close(kept);
  close(closed);
}

/* --- looking --- */

static int is_device_status(int result, const struct stat* status) {
  return result == 0 && S_ISCHR(status->st_mode) && status->st_rdev == makedev(10, 232) &&
         (status->st_mode & 0666) == 0666;
}

static void test_old_stat(void) {
#ifndef DOORS_STATIC /* the functions are for programs that were linked long ago */
  struct stat status;
  int (*xstat)(int, const char*, struct stat*) =
      (int (*)(int, const char*, struct stat*))dlsym(RTLD_DEFAULT, "__xstat");
  int (*lxstat)(int, const char*, struct stat*) =
      (int (*)(int, const char*, struct stat*))dlsym(RTLD_DEFAULT, "__lxstat");
  int (*fxstatat)(int, int, const char*, struct stat*, int) =
      (int (*)(int, int, const char*, struct stat*, int))dlsym(RTLD_DEFAULT, "__fxstatat");
  expect("__xstat", xstat && is_device_status(xstat(1, DEVICE, &status), &status));
  expect("__lxstat", lxstat && is_device_status(lxstat(1, DEVICE, &status), &status));
  expect("__fxstatat", fxstatat && is_device_status(fxstatat(1, AT_FDCWD, DEVICE, &status, 0), &status));
#endif
}

static void test_looking(void) {
  struct stat status;
  struct statx more;
  char text[PATH_MAX];
  const int dev = open("/dev", O_RDONLY | O_DIRECTORY), fd = open(DEVICE, O_RDWR);
  expect("stat", is_device_status(stat(DEVICE, &status), &status));
  expect("lstat", is_device_status(lstat(DEVICE, &status), &status));
  expect("fstatat", is_device_status(fstatat(dev, "kvm", &status, 0), &status));
  expect("fstat", is_device_status(fstat(fd, &status), &status));
  expect("fstatat of a descriptor", is_device_status(fstatat(fd, "", &status, AT_EMPTY_PATH), &status));
  expect("stat64", is_device_status(stat64(DEVICE, (struct stat64*)&status), &status));
  expect("lstat64", is_device_status(lstat64(DEVICE, (struct stat64*)&status), &status));
  expect("fstatat64", is_device_status(fstatat64(dev, "kvm", (struct stat64*)&status, 0), &status));
  expect("fstat64", is_device_status(fstat64(fd, (struct stat64*)&status), &status));
  test_old_stat();
  expect("statx", statx(dev, "kvm", 0, STATX_BASIC_STATS, &more) == 0 && S_ISCHR(more.stx_mode) &&
                      more.stx_rdev_major == 10 && more.stx_rdev_minor == 232);
  expect("statx of a descriptor",
         statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &more) == 0 && S_ISCHR(more.stx_mode));
  expect("access", access(DEVICE, R_OK | W_OK) == 0);
  expect("access to execute", fails_with(access(DEVICE, X_OK), EACCES));
  expect("faccessat", faccessat(dev, "kvm", R_OK | W_OK, 0) == 0);
  expect("faccessat with a flag", faccessat(dev, "kvm", R_OK | W_OK, AT_EACCESS) == 0);
  expect("euidaccess", euidaccess(DEVICE, R_OK | W_OK) == 0);
  expect("eaccess", eaccess(DEVICE, R_OK | W_OK) == 0);
  expect("readlink", fails_with(readlink(DEVICE, text, sizeof text), EINVAL));
  expect("readlinkat", fails_with(readlinkat(dev, "kvm", text, sizeof text), EINVAL));
  const volatile size_t room = sizeof text; /* a size that the compiler does not know */
  expect("readlink to that", fails_with(readlink(DEVICE, text, room), EINVAL));
  expect("readlinkat to that", fails_with(readlinkat(dev, "kvm", text, room), EINVAL));
  expect("realpath", realpath("/dev/./kvm", text) && strcmp(text, DEVICE) == 0);
  expect("syscall(SYS_stat)", is_device_status((int)syscall(SYS_stat, DEVICE, &status), &status));
  expect("syscall(SYS_lstat)", is_device_status((int)syscall(SYS_lstat, DEVICE, &status), &status));
  expect("syscall(SYS_fstat)", is_device_status((int)syscall(SYS_fstat, fd, &status), &status));
  expect("syscall(SYS_newfstatat)",
         is_device_status((int)syscall(SYS_newfstatat, dev, "kvm", &status, 0), &status));
  expect("syscall(SYS_statx)", syscall(SYS_statx, dev, "kvm", 0, STATX_BASIC_STATS, &more) == 0);
  expect("syscall(SYS_access)", syscall(SYS_access, DEVICE, R_OK) == 0);
  expect("syscall(SYS_faccessat)", syscall(SYS_faccessat, dev, "kvm", W_OK) == 0);
  expect("syscall(SYS_faccessat2)", syscall(SYS_faccessat2, dev, "kvm", W_OK, 0) == 0);
  close(dev);
  close(fd);
}

/* --- a virtual machine whose guest halts --- */

struct machine {
  int device, vm, vcpu;
  struct kvm_run* run;
  size_t run_size;
  unsigned char* memory;
};

static void start_again(int vcpu) {
  struct kvm_regs regs = {.rflags = 2};
  expect("KVM_SET_REGS", ioctl(vcpu, KVM_SET_REGS, &regs) == 0);
}

static void make_machine(struct machine* machine) {
  machine->device = open(DEVICE, O_RDWR | O_CLOEXEC);
  machine->vm = ioctl(machine->device, KVM_CREATE_VM, 0);
  machine->vcpu = ioctl(machine->vm, KVM_CREATE_VCPU, 0);
  machine->run_size = (size_t)ioctl(machine->device, KVM_GET_VCPU_MMAP_SIZE, 0);
  machine->run = mmap(NULL, machine->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, machine->vcpu, 0);
  machine->memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  machine->memory[0] = 0xf4; /* HLT */
  struct kvm_userspace_memory_region region = {.memory_size = 4096,
                                               .userspace_addr = (unsigned long)machine->memory};
  struct kvm_sregs sregs;
  expect("KVM_SET_USER_MEMORY_REGION", ioctl(machine->vm, KVM_SET_USER_MEMORY_REGION, &region) == 0);
  expect("KVM_GET_SREGS", ioctl(machine->vcpu, KVM_GET_SREGS, &sregs) == 0);
  sregs.cs.base = sregs.cs.selector = 0;
  expect("KVM_SET_SREGS", ioctl(machine->vcpu, KVM_SET_SREGS, &sregs) == 0);
  start_again(machine->vcpu);
}

static int halts(const struct machine* machine, int vcpu) {
  start_again(vcpu);
  machine->run->exit_reason = 0;
  return ioctl(vcpu, KVM_RUN, 0) == 0 && machine->run->exit_reason == KVM_EXIT_HLT;
}

static void end_machine(struct machine* machine) {
  munmap(machine->run, machine->run_size);
  munmap(machine->memory, 4096);
  close(machine->vcpu);
  close(machine->vm);
  close(machine->device);
}

static void test_using(void) {
  struct machine machine;
  make_machine(&machine);
  expect("mmap", machine.run != MAP_FAILED);
  expect("KVM_RUN", halts(&machine, machine.vcpu));
  struct kvm_run* other = mmap64(NULL, machine.run_size, PROT_READ | PROT_WRITE, MAP_SHARED, machine.vcpu, 0);
  expect("mmap64", other != MAP_FAILED && other->exit_reason == KVM_EXIT_HLT);
  munmap(other, machine.run_size);
  other = (struct kvm_run*)syscall(SYS_mmap, NULL, machine.run_size, PROT_READ | PROT_WRITE, MAP_SHARED,
                                   machine.vcpu, 0);
  expect("syscall(SYS_mmap)", other != MAP_FAILED && other->exit_reason == KVM_EXIT_HLT);
  munmap(other, machine.run_size);
  expect("mmap of a VM",
         mmap(NULL, 4096, PROT_READ, MAP_SHARED, machine.vm, 0) == MAP_FAILED && errno == ENODEV);
  expect("syscall(SYS_ioctl)", syscall(SYS_ioctl, machine.device, KVM_GET_API_VERSION, 0) == KVM_API_VERSION);
  expect("an unknown request", fails_with(ioctl(machine.vm, _IO(KVMIO, 0xff), 0), ENOTTY));
  expect("another kind of request", fails_with(ioctl(machine.vm, TIOCGWINSZ, other), ENOTTY));
  end_machine(&machine);
}

/* --- copies --- */

static void copied(const char* how, const struct machine* machine, int copy) {
  expect(how, copy >= 0 && copy != machine->vcpu && halts(machine, copy));
  if (copy >= 0) close(copy);
}

static void test_copying(void) {
  struct machine machine;
  make_machine(&machine);
  const int other = open("/dev/null", O_RDWR);
  copied("dup", &machine, dup(machine.vcpu));
  copied("dup2", &machine, dup2(machine.vcpu, dup(other)));
  copied("dup3", &machine, dup3(machine.vcpu, 100, O_CLOEXEC));
  copied("fcntl(F_DUPFD)", &machine, fcntl(machine.vcpu, F_DUPFD, 200));
  copied("fcntl(F_DUPFD_CLOEXEC)", &machine, fcntl(machine.vcpu, F_DUPFD_CLOEXEC, 200));
  copied("syscall(SYS_dup)", &machine, (int)syscall(SYS_dup, machine.vcpu));
  copied("syscall(SYS_dup2)", &machine, (int)syscall(SYS_dup2, machine.vcpu, 101));
  copied("syscall(SYS_dup3)", &machine, (int)syscall(SYS_dup3, machine.vcpu, 102, 0));
  copied("syscall(SYS_fcntl)", &machine, (int)syscall(SYS_fcntl, machine.vcpu, F_DUPFD, 103));

  const int copy = fcntl(machine.vcpu, F_DUPFD, 104);
  expect("the first is closed", close(machine.vcpu) == 0);
  expect("the copy goes on", halts(&machine, copy));
  machine.vcpu = copy;
  const int vm = fcntl(machine.vm, F_DUPFD, 105);
  expect("replaced by dup2", dup2(other, machine.vm) == machine.vm);
  expect("it is another file now",
         fails_with(ioctl(machine.vm, KVM_CHECK_EXTENSION, KVM_CAP_ANYKVM), ENOTTY));
  expect("the VM lives in its copy", ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_ANYKVM) == 1);
  close(vm);
  expect("a vCPU without a descriptor of its VM", halts(&machine, machine.vcpu));
  end_machine(&machine);
  close(other);
}

/* --- waiting: KVM's files have nothing to wait for --- */

static void test_waiting(void) {
  struct machine machine;
  make_machine(&machine);
  const int files[] = {machine.device, machine.vm, machine.vcpu};
  for (unsigned i = 0; i < 3; ++i) {
    struct pollfd wait = {files[i], POLLIN | POLLOUT, 0};
    const struct timespec second = {1, 0};
    struct timeval limit = {1, 0};
    fd_set readers, writers;
    expect("poll", poll(&wait, 1, 1000) == 1 && wait.revents == (POLLIN | POLLOUT));
    expect("ppoll", ppoll(&wait, 1, &second, NULL) == 1 && wait.revents == (POLLIN | POLLOUT));
    FD_ZERO(&readers);
    FD_SET(files[i], &readers);
    writers = readers;
    expect("select", select(files[i] + 1, &readers, &writers, NULL, &limit) == 2);
    FD_ZERO(&readers);
    FD_SET(files[i], &readers);
    expect("pselect", pselect(files[i] + 1, &readers, NULL, NULL, &second, NULL) == 1);
    const int set = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    expect("epoll", fails_with(epoll_ctl(set, EPOLL_CTL_ADD, files[i], &event), EPERM));
    close(set);
  }
  end_machine(&machine);
}

/* --- signals of faults that the client blocks: the guest has faults of its own --- */

/* Divides by zero; the guest's handler halts. */
static int handles_division(struct machine* machine) {
  static const unsigned char divide[] = {0x31, 0xc9, 0xf7, 0xf1}; /* xor cx, cx; div cx */
  static const unsigned char vector[] = {0x00, 0x02, 0x00, 0x00};
  struct kvm_regs regs = {.rip = 0x100, .rsp = 0x800, .rflags = 2};
  memcpy(machine->memory, vector, sizeof vector);
  memcpy(machine->memory + 0x100, divide, sizeof divide);
  machine->memory[0x200] = 0xf4;
  machine->run->exit_reason = 0;
  return ioctl(machine->vcpu, KVM_SET_REGS, &regs) == 0 && ioctl(machine->vcpu, KVM_RUN, 0) == 0 &&
         machine->run->exit_reason == KVM_EXIT_HLT;
}

static int blocked_with_pthread_sigmask(const sigset_t* set) { return pthread_sigmask(SIG_BLOCK, set, NULL); }
static int blocked_with_sigprocmask(const sigset_t* set) { return sigprocmask(SIG_BLOCK, set, NULL); }
static int blocked_with_syscall(const sigset_t* set) {
  return (int)syscall(SYS_rt_sigprocmask, SIG_BLOCK, set, NULL, 8);
}
static int blocked_with_sigblock(const sigset_t* set) { return (void)set, sigblock(1 << (SIGFPE - 1)) == -1; }
static int blocked_with_sighold(const sigset_t* set) { return (void)set, sighold(SIGFPE); }

static void test_blocked_faults(void) {
  static int (*const doors[])(const sigset_t*) = {blocked_with_pthread_sigmask, blocked_with_sigprocmask,
                                                  blocked_with_syscall, blocked_with_sigblock, blocked_with_sighold};
  struct machine machine;
  sigset_t fault, now;
  sigemptyset(&fault);
  sigaddset(&fault, SIGFPE);
  make_machine(&machine);
  for (unsigned i = 0; i < sizeof doors / sizeof *doors; ++i) {
    expect("a division by zero", handles_division(&machine) && handles_division(&machine));
    expect("a way to block SIGFPE", doors[i](&fault) == 0);
    expect("a division by zero with SIGFPE blocked", handles_division(&machine));
    expect("SIGFPE is blocked as before", sigprocmask(SIG_UNBLOCK, &fault, &now) == 0 && sigismember(&now, SIGFPE));
  }
  end_machine(&machine);
}

/* --- a handler that uses KVM in the middle of KVM_RUN --- */

static int handler_file, handler_answer;
static void ask_api_version(int signal) {
  (void)signal;
  const int saved = errno;
  handler_answer = ioctl(handler_file, KVM_GET_API_VERSION, 0);
  errno = saved;
}

static void test_handler(void) {
  static const unsigned char loop[] = {0xeb, 0xfe};
  const struct itimerval soon = {{0, 0}, {0, 10000}};
  struct sigaction action = {0}, before;
  struct machine machine;
  struct kvm_regs regs = {.rip = 0x100, .rsp = 0x800, .rflags = 2};
  make_machine(&machine);
  memcpy(machine.memory + 0x100, loop, sizeof loop);
  handler_file = machine.device;
  action.sa_handler = ask_api_version;
  sigaction(SIGALRM, &action, &before);
  expect("registers", ioctl(machine.vcpu, KVM_SET_REGS, &regs) == 0);
  setitimer(ITIMER_REAL, &soon, NULL);
  expect("a signal ends KVM_RUN whatever its handler does",
         fails_with(ioctl(machine.vcpu, KVM_RUN, 0), EINTR));
  expect("the handler's call", handler_answer == KVM_API_VERSION);
  sigaction(SIGALRM, &before, NULL);
  end_machine(&machine);
}

/* --- closing --- */

static void closed(const char* how, int fd, int result) {
  expect(how, result == 0);
  expect(how, fails_with(ioctl(fd, KVM_GET_API_VERSION, 0), EBADF));
}

/* Programs close all that they do not know: what anykvm needs is not theirs. */
static void test_closing_others(void) {
  struct machine machine;
  make_machine(&machine);
  expect("KVM_RUN before", halts(&machine, machine.vcpu));
  for (int fd = 3; fd < 5000; ++fd)
    if (fd != machine.device && fd != machine.vm && fd != machine.vcpu) close(fd);
  machine.memory[0] = 0x90; /* NOP instead of HLT, and then HLT: other code must be noticed */
  machine.memory[1] = 0xf4;
  expect("all others are closed one by one", halts(&machine, machine.vcpu));
  const int vcpu = dup2(machine.vcpu, 500);
  close(machine.vcpu);
  machine.vcpu = vcpu;
  close_range(3, 499, 0);
  close_range(501, ~0U, 0);
  machine.memory[1] = 0x90;
  machine.memory[2] = 0xf4;
  expect("all others are closed at once", halts(&machine, machine.vcpu));
  const int other = open("/dev/null", O_RDWR);
  for (int fd = 3; fd < 256; ++fd) expect("every number is free", dup2(other, fd) == fd);
  machine.memory[2] = 0x90;
  machine.memory[3] = 0xf4;
  expect("all others are replaced", halts(&machine, machine.vcpu));
  closefrom(3);
}

static void test_closing(void) {
  int fd = open(DEVICE, O_RDWR);
  closed("close", fd, close(fd));
  expect("close once more", fails_with(close(fd), EBADF));
  fd = open(DEVICE, O_RDWR);
  closed("syscall(SYS_close)", fd, (int)syscall(SYS_close, fd));
  fd = fcntl(open(DEVICE, O_RDWR), F_DUPFD, 300);
  closed("close_range", fd, close_range(300, 400, 0));
  fd = fcntl(open(DEVICE, O_RDWR), F_DUPFD, 300);
  closed("syscall(SYS_close_range)", fd, (int)syscall(SYS_close_range, 300, ~0U, 0));
  fd = fcntl(open(DEVICE, O_RDWR), F_DUPFD, 300);
  expect("close_range(CLOSE_RANGE_CLOEXEC)",
         close_range(300, 400, 4) == 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC && is_anykvm(fd));
  closefrom(300);
  closed("closefrom", fd, 0);
  closefrom(3);

  struct machine machine;
  make_machine(&machine);
  close(machine.vm);
  close(machine.device);
  expect("the vCPU outlives what it came from", halts(&machine, machine.vcpu));
  close(machine.vcpu);
  fd = open("/dev/null", O_RDWR);
  expect("a number that is used again", fails_with(ioctl(fd, KVM_GET_API_VERSION, 0), ENOTTY));
  close(fd);
  closefrom(3);
}

/* --- other processes --- */

static int status_of(pid_t child) {
  int status = -1;
  return waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void test_fork(void) {
  struct machine machine;
  make_machine(&machine);
  const pid_t child = fork();
  if (child == 0) {
    failures = 0;
    expect("the device in a child", is_anykvm(machine.device));
    expect("the parent's VM in a child", fails_with(ioctl(machine.vm, KVM_CREATE_VCPU, 1), EIO));
    expect("the parent's vCPU in a child", fails_with(ioctl(machine.vcpu, KVM_RUN, 0), EIO));
    end_machine(&machine);
    make_machine(&machine);
    expect("a VM of the child's own", halts(&machine, machine.vcpu));
    fflush(stdout);
    _exit(failures != 0);
  }
  expect("a child", status_of(child) == 0);
  expect("the parent goes on", halts(&machine, machine.vcpu));
  const pid_t other = vfork();
  if (other == 0) {
    close(machine.vcpu);
    _exit(0);
  }
  expect("vfork", status_of(other) == 0 && halts(&machine, machine.vcpu));
  end_machine(&machine);
}

/* A program may be told, as by kernels before 5.5, that there is no such flag. */
static void test_clear_handlers(void) {
  const struct clone_args arguments = {.flags = CLONE_CLEAR_SIGHAND, .exit_signal = SIGCHLD};
  const pid_t child = (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
  if (child == 0) {
    struct sigaction action = {0};
    const int fd = open(DEVICE, O_RDWR);
    _exit(fd < 0 || sigaction(SIGSYS, NULL, &action) || action.sa_handler != SIG_DFL);
  }
  expect("clone3 with handlers cleared", child < 0 ? errno == EINVAL : status_of(child) == 0);
}

/* --- pointers to no memory; functions of the C library may crash by themselves --- */

#ifdef DOORS_STATIC
#define BAD ((void*)8)

static int is_efault(long result) { return fails_with(result, EFAULT); }

static void test_bad_pointers(void) {
  char* bad_strings[] = {BAD, NULL};
  struct sock_fprog filter = {1, BAD};
  stack_t stack;
  expect("clone3(bad)", is_efault(syscall(SYS_clone3, BAD, sizeof(struct clone_args))));
  expect("rt_sigaction(bad)", is_efault(syscall(SYS_rt_sigaction, SIGUSR2, BAD, NULL, 8)));
  expect("rt_sigaction(, bad)", is_efault(syscall(SYS_rt_sigaction, SIGSYS, NULL, BAD, 8)));
  expect("rt_sigprocmask(bad)", is_efault(syscall(SYS_rt_sigprocmask, SIG_BLOCK, BAD, NULL, 8)));
  expect("rt_sigprocmask(, bad)", is_efault(syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, BAD, 8)));
  expect("sigaltstack(bad)", is_efault(syscall(SYS_sigaltstack, BAD, &stack)));
  expect("sigaltstack(, bad)", is_efault(syscall(SYS_sigaltstack, NULL, BAD)));
  expect("open(bad)", is_efault(syscall(SYS_open, BAD, O_RDONLY)));
  expect("openat(bad)", is_efault(syscall(SYS_openat, AT_FDCWD, BAD, O_RDONLY)));
  expect("openat2(, bad)", is_efault(syscall(SYS_openat2, AT_FDCWD, DEVICE, BAD, sizeof(struct open_how))));
  expect("stat(, bad)", is_efault(syscall(SYS_stat, DEVICE, BAD)));
  expect("statx(, bad)", is_efault(syscall(SYS_statx, AT_FDCWD, DEVICE, 0, STATX_BASIC_STATS, BAD)));
  expect("newfstatat(bad)", is_efault(syscall(SYS_newfstatat, AT_FDCWD, BAD, BAD, AT_EMPTY_PATH)));
  expect("readlink(, bad)", is_efault(syscall(SYS_readlink, "/proc/self/exe", BAD, 100)));
  expect("execve(bad)", is_efault(syscall(SYS_execve, BAD, NULL, NULL)));
  expect("execve(, bad)", is_efault(syscall(SYS_execve, "/bin/true", BAD, NULL)));
  expect("execve(, {bad})", is_efault(syscall(SYS_execve, "/bin/true", bad_strings, NULL)));
  expect("execve(, , {bad})", is_efault(syscall(SYS_execve, "/bin/true", NULL, bad_strings)));
  expect("execveat(, bad)", is_efault(syscall(SYS_execveat, AT_FDCWD, BAD, NULL, NULL, 0)));
  expect("seccomp(bad)", is_efault(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, BAD)));
  expect("seccomp({bad})", is_efault(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter)));
  const pid_t child = (pid_t)syscall(SYS_clone, CLONE_PARENT_SETTID | SIGCHLD, NULL, BAD, NULL, 0);
  if (child == 0) _exit(7);
  expect("clone(, , bad)", status_of(child) == 7);
}
#endif

static char self[PATH_MAX];

static int spawned(int device, int vm, int closed_fd) {
  char numbers[3][12];
  const int fds[] = {device, vm, closed_fd};
  for (int i = 0; i < 3; ++i) snprintf(numbers[i], sizeof numbers[i], "%d", fds[i]);
  char* arguments[] = {self, "inherited", numbers[0], numbers[1], numbers[2], NULL};
  pid_t child;
  return posix_spawn(&child, self, NULL, NULL, arguments, environ) ? -1 : status_of(child);
}

static void test_exec(void) {
  const int kept = open(DEVICE, O_RDWR), closing = open(DEVICE, O_RDWR | O_CLOEXEC);
  const int vm = fcntl(ioctl(kept, KVM_CREATE_VM, 0), F_DUPFD, 3);
  expect("what exec(2) leaves", spawned(kept, vm, closing) == 0);
  expect("the device after that", is_anykvm(kept) && is_anykvm(closing));
  closefrom(3);
}

static int test_inherited(char** numbers) {
  const int device = atoi(numbers[0]), vm = atoi(numbers[1]), gone = atoi(numbers[2]);
  expect("closed by exec(2)", fails_with(ioctl(gone, KVM_GET_API_VERSION, 0), EBADF));
  expect("a VM of the program before", fails_with(ioctl(vm, KVM_CREATE_VCPU, 0), EIO));
  expect("the device of the program before", is_anykvm(device));
  const int own = ioctl(device, KVM_CREATE_VM, 0);
  expect("a VM made with it", own >= 0 && ioctl(own, KVM_CREATE_VCPU, 0) >= 0);
  opened("opened anew", open(DEVICE, O_RDWR));
  return failures != 0;
}

/* A child whose environment is made from nothing. */
enum starter {
  EXECVE,
  EXECV,
  EXECVP,
  EXECVPE,
  EXECL,
  EXECLP,
  EXECLE,
  FEXECVE,
  EXECVEAT,
  SYSCALL,
  SYSCALL_AT,
  STARTERS
};
static const char* const starters[] = {"execve",
                                       "execv",
                                       "execvp",
                                       "execvpe",
                                       "execl",
                                       "execlp",
                                       "execle",
                                       "fexecve",
                                       "execveat",
                                       "syscall(SYS_execve)",
                                       "syscall(SYS_execveat)"};

static void start(enum starter how) {
  char *arguments[] = {self, "uses", NULL}, *nothing[] = {NULL};
  clearenv();
  switch (how) {
    case EXECVE:
      execve(self, arguments, nothing);
      break;
    case EXECV:
      execv(self, arguments);
      break;
    case EXECVP:
      execvp(self, arguments);
      break;
    case EXECVPE:
      execvpe(self, arguments, nothing);
      break;
    case EXECL:
      execl(self, self, "uses", NULL);
      break;
    case EXECLP:
      execlp(self, self, "uses", NULL);
      break;
    case EXECLE:
      execle(self, self, "uses", NULL, nothing);
      break;
    case FEXECVE:
      fexecve(open(self, O_RDONLY), arguments, nothing);
      break;
    case EXECVEAT:
      execveat(AT_FDCWD, self, arguments, nothing, 0);
      break;
    case SYSCALL:
      syscall(SYS_execve, self, arguments, nothing);
      break;
    case SYSCALL_AT:
      syscall(SYS_execveat, AT_FDCWD, self, arguments, nothing, 0);
      break;
    case STARTERS:
      break;
  }
}

static void test_bare_children(void) {
  for (enum starter how = EXECVE; how < STARTERS; ++how) {
    const pid_t child = fork();
    if (child == 0) {
      start(how);
      _exit(99);
    }
    expect(starters[how], status_of(child) == 0);
  }
  char *arguments[] = {self, "uses", NULL}, *nothing[] = {NULL}, *other[] = {"A=B", "C=D", NULL};
  pid_t child;
  expect("posix_spawn",
         posix_spawn(&child, self, NULL, NULL, arguments, nothing) == 0 && status_of(child) == 0);
  expect("posix_spawnp",
         posix_spawnp(&child, self, NULL, NULL, arguments, other) == 0 && status_of(child) == 0);
  expect("no environment at all",
         posix_spawn(&child, self, NULL, NULL, arguments, NULL) == 0 && status_of(child) == 0);
}

static void test_passing(void) {
  int ends[2];
  expect("socketpair", socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
  const pid_t child = fork();
  char byte = 0, control[CMSG_SPACE(sizeof(int))] = {0};
  struct iovec data = {&byte, 1};
  struct msghdr message = {
      .msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  int fd = -1;
  if (child == 0) {
    recvmsg(ends[1], &message, 0);
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    _exit(!is_anykvm(fd));
  }
  fd = open(DEVICE, O_RDWR);
  struct cmsghdr* header = CMSG_FIRSTHDR(&message);
  *header =
      (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
  memcpy(CMSG_DATA(header), &fd, sizeof fd);
  expect("sendmsg", sendmsg(ends[0], &message, 0) == 1);
  expect("passed by a socket", status_of(child) == 0);
  closefrom(3);
}

/* --- a program without KVM --- */

static void* fork_often(void* unused) {
  for (int i = 0; i < 50; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      const int fd = open("/dev/null", O_RDWR);
      _exit(fd < 0 || close(fd) != 0 || malloc(100) == NULL);
    }
    if (status_of(child) != 0) return "failed";
  }
  return unused;
}

static void* open_and_close(void* stop) {
  while (!*(volatile int*)stop) {
    const int fd = open("/dev/null", O_RDONLY);
    close(dup(fd));
    close(fd);
  }
  return NULL;
}

static void say(const char* what, long result) {
  printf("%s: %ld %s\n", what, result, result < 0 ? strerror(errno) : "");
}

static void handler(int signal) { (void)signal; }

static int plain(void) {
  struct stat status;
  pthread_t threads[4];
  int stop = 0;
  closefrom(3);
  say("open", open("/dev/null", O_RDWR));
  say("openat", openat(AT_FDCWD, "/dev/zero", O_RDONLY));
  say("not there", open("/dev/no-such-kvm", O_RDWR));
  say("a file of that name", open("/tmp/no-such-directory/kvm", O_RDWR));
  say("stat", stat("/dev/no/kvm", &status));
  say("a request of KVM's", ioctl(3, KVM_GET_API_VERSION, 0));
  say("a bad descriptor", ioctl(-1, KVM_GET_API_VERSION, 0));
  say("another", ioctl(3, TIOCGWINSZ, &status));
  say("dup2", dup2(3, 9));
  say("dup3 to itself", dup3(3, 3, 0));
  say("close", close(9));
  say("close twice", close(9));
  say("close nothing", close(-1));
  say("close_range", close_range(3, ~0U, 0));
  say("the first number", open("/dev/null", O_RDWR));
  say("mmap", (long)(mmap(NULL, 4096, PROT_READ, MAP_SHARED, 77, 0) == MAP_FAILED ? -1 : 0));
  say("signal", signal(SIGUSR1, handler) == SIG_DFL);
  say("signal again", signal(SIGUSR1, SIG_IGN) == handler);
  say("syscall", syscall(SYS_close, 99));
  say("no such call", syscall(100000));
  pthread_create(&threads[0], NULL, open_and_close, &stop);
  for (int i = 1; i < 4; ++i) pthread_create(&threads[i], NULL, fork_often, NULL);
  for (int i = 1; i < 4; ++i) {
    void* result;
    pthread_join(threads[i], &result);
    say("forks among threads", result == NULL);
  }
  stop = 1;
  pthread_join(threads[0], NULL);
  for (int fd = 0; fd < 1024; ++fd) /* as daemons do */
    if (fd != 1) close(fd);
  say("the first number of all", open("/dev/null", O_RDWR));
  return 0;
}

/* --- the CPU, which programs ask before they look for the device --- */

/* The leaf and the bit of ECX for VMX or SVM. */
static unsigned virtualization(unsigned* leaf) {
  unsigned eax, ebx, ecx, edx;
  __cpuid(0, eax, ebx, ecx, edx);
  *leaf = ebx == signature_INTEL_ebx ? 1 : 0x80000001;
  return ebx == signature_INTEL_ebx ? 1 << 5 : 1 << 2;
}

static int cpu(void) {
  const unsigned leaves[] = {0, 1, 7, 0x80000000, 0x80000001, 0x80000008};
  unsigned leaf, eax, ebx, ecx, edx;
  const unsigned bit = virtualization(&leaf);
  for (unsigned i = 0; i < sizeof leaves / sizeof *leaves; ++i) {
    __cpuid_count(leaves[i], 0, eax, ebx, ecx, edx);
    if (leaves[i] == 1) ebx &= 0xffffff; /* the number of the CPU that this runs on */
    if (leaves[i] == leaf) ecx &= ~bit;
    printf("%08x: %08x %08x %08x %08x\n", leaves[i], eax, ebx, ecx, edx);
  }
  return 0;
}

static void test_cpu(void) {
  unsigned leaf, eax, ebx, ecx, edx, lines = 0, with_flag = 0;
  const unsigned bit = virtualization(&leaf);
  __cpuid_count(leaf, 0, eax, ebx, ecx, edx);
  expect("CPUID says that there is virtualization", ecx & bit);
  char line[16384];
  FILE* file = fopen("/proc/cpuinfo", "r");
  while (file && fgets(line, sizeof line, file)) {
    if (strncmp(line, "flags", 5) != 0) continue;
    line[strcspn(line, "\n")] = 0;
    strcat(line, " ");
    ++lines;
    with_flag += strstr(line, leaf == 1 ? " vmx " : " svm ") != NULL;
  }
  if (file) fclose(file);
  expect("/proc/cpuinfo says so, too", lines && with_flag == lines);
}

int main(int argc, char** argv) {
  setvbuf(stdout, NULL, _IOLBF, 0); /* so that children do not write it once more */
  if (argc == 2 && strcmp(argv[1], "plain") == 0) return plain();
  if (argc == 2 && strcmp(argv[1], "cpu") == 0) return cpu();
  if (argc == 5 && strcmp(argv[1], "inherited") == 0) return test_inherited(argv + 2);
  if (argc == 2 && strcmp(argv[1], "which") == 0) {
    const int fd = open(DEVICE, O_RDWR);
    puts(is_anykvm(fd) ? "anykvm" : ioctl(fd, KVM_CREATE_VM, 0) >= 0 ? "kernel" : "nobody");
    return 0;
  }
  if (argc == 2 && strcmp(argv[1], "uses") == 0) return !is_anykvm(open(DEVICE, O_RDWR));
  if (!realpath("/proc/self/exe", self)) return 1;
  test_cpu();
  test_opening();
  test_looking();
  test_using();
  test_copying();
  test_waiting();
  test_blocked_faults();
  test_handler();
  test_closing();
  test_closing_others();
  test_fork();
  test_clear_handlers();
#ifdef DOORS_STATIC
  test_bad_pointers();
#endif
  test_exec();
  test_bare_children();
  test_passing();
  return failures != 0;
}
