/*
 * Runs a command as if the machine's own /dev/kvm were absent, working, or there but unable to make virtual
 * CPUs. What the command and its children ask the kernel about /dev/kvm comes here (seccomp_unotify(2)); each
 * such call is a line of the log. So a test sees what got past anykvm, on every machine and without rights.
 * Usage: host_kvm absent|works|broken LOG COMMAND...; exit code 77: this kernel or container does not allow
 * it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define KVM_CAP_ANYKVM 0x616b766d

enum mode { ABSENT, WORKS, BROKEN };
static enum mode mode;
static FILE* log_file;

/* Calls with a path, and in which argument it is. */
static const struct {
  int number, path;
  const char* name;
} path_calls[] = {
    {SYS_open, 0, "open"},           {SYS_openat, 1, "openat"},
    {SYS_openat2, 1, "openat2"},     {SYS_stat, 0, "stat"},
    {SYS_lstat, 0, "lstat"},         {SYS_newfstatat, 1, "newfstatat"},
    {SYS_statx, 1, "statx"},         {SYS_access, 0, "access"},
    {SYS_faccessat, 1, "faccessat"}, {SYS_faccessat2, 1, "faccessat2"},
    {SYS_readlink, 0, "readlink"},   {SYS_readlinkat, 1, "readlinkat"},
};
enum { PATH_CALLS = sizeof path_calls / sizeof *path_calls };

static int install_filter(void) {
  struct sock_filter code[PATH_CALLS + 12];
  unsigned n = 0, notify;
#define LOAD(field) code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, field)
#define JUMP(op, k, yes, no) code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | op | BPF_K, k, yes, no)
#define RETURN(value) code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, value)
  notify = PATH_CALLS + 9; /* the index of the last instruction */
  LOAD(offsetof(struct seccomp_data, arch));
  JUMP(BPF_JEQ, AUDIT_ARCH_X86_64, 1, 0);
  RETURN(SECCOMP_RET_ALLOW);
  LOAD(offsetof(struct seccomp_data, nr));
  for (unsigned i = 0; i < PATH_CALLS; ++i) {
    const unsigned char distance = (unsigned char)(notify - n - 1);
    JUMP(BPF_JEQ, (unsigned)path_calls[i].number, distance, 0);
  }
  JUMP(BPF_JEQ, SYS_ioctl, 0, 3);
  LOAD(offsetof(struct seccomp_data, args[1]));
  code[n++] = (struct sock_filter)BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xff00);
  JUMP(BPF_JEQ, KVMIO << 8, 1, 0);
  RETURN(SECCOMP_RET_ALLOW);
  RETURN(SECCOMP_RET_USER_NOTIF);
  struct sock_fprog program = {(unsigned short)n, code};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return -1;
  return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
}

static void send_number(int socket, int fd) {
  char byte = 0, control[CMSG_SPACE(sizeof fd)] = {0};
  struct iovec data = {&byte, 1};
  struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
  if (fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    struct cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
  }
  if (sendmsg(socket, &message, 0) != 1) _exit(77);
}

static int receive_number(int socket) {
  char byte, control[CMSG_SPACE(sizeof(int))];
  struct iovec data = {&byte, 1};
  struct msghdr message = {
      .msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  if (recvmsg(socket, &message, 0) != 1) return -1;
  struct cmsghdr* header = CMSG_FIRSTHDR(&message);
  int fd = -1;
  if (header) memcpy(&fd, CMSG_DATA(header), sizeof fd);
  return fd;
}

static int is_device(pid_t process, unsigned long long address) {
  char path[16] = {0};
  struct iovec to = {path, sizeof "/dev/kvm"}, from = {(void*)address, sizeof "/dev/kvm"};
  return process_vm_readv(process, &to, 1, &from, 1, 0) == sizeof "/dev/kvm" && strcmp(path, "/dev/kvm") == 0;
}

/* A descriptor that came from here. Requests on other files are none of KVM's, whatever their number. */
static int is_ours(pid_t process, unsigned long long fd) {
  char path[64], target[64] = {0};
  snprintf(path, sizeof path, "/proc/%d/fd/%llu", (int)process, fd);
  return readlink(path, target, sizeof target - 1) > 0 && strncmp(target, "/memfd:host-kvm", 15) == 0;
}

static void answer_with_file(int listener, const struct seccomp_notif* call) {
  struct seccomp_notif_addfd add = {.id = call->id, .flags = SECCOMP_ADDFD_FLAG_SEND};
  const int file = memfd_create("host-kvm", MFD_CLOEXEC);
  add.srcfd = (unsigned)file;
  ioctl(listener, SECCOMP_IOCTL_NOTIF_ADDFD, &add);
  close(file);
}

/* The kernel's KVM. Returns 1 if the answer has been given. */
static int answer_ioctl(int listener, const struct seccomp_notif* call, struct seccomp_notif_resp* answer) {
  switch ((unsigned)call->data.args[1]) {
    case KVM_GET_API_VERSION:
      answer->val = KVM_API_VERSION;
      return 0;
    case KVM_CHECK_EXTENSION:
      answer->val = call->data.args[2] != KVM_CAP_ANYKVM;
      return 0;
    case KVM_CREATE_VCPU:
      if (mode == BROKEN) return answer->error = -EIO, 0;
      /* fallthrough */
    case KVM_CREATE_VM:
      return answer_with_file(listener, call), 1;
    default:
      return answer->error = -EINVAL, 0;
  }
}

static void handle_call(int listener) {
  struct seccomp_notif call = {0};
  struct seccomp_notif_resp answer = {0};
  if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call)) return;
  answer.id = call.id;
  if (call.data.nr == SYS_ioctl) {
    answer.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
    if (is_ours((pid_t)call.pid, call.data.args[0])) {
      fprintf(log_file, "ioctl %#llx\n", call.data.args[1]);
      answer.flags = 0;
      if (answer_ioctl(listener, &call, &answer)) return;
    }
  } else {
    unsigned i = 0;
    while (path_calls[i].number != call.data.nr) ++i;
    answer.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
    if (is_device((pid_t)call.pid, call.data.args[path_calls[i].path])) {
      fprintf(log_file, "%s\n", path_calls[i].name);
      answer.flags = 0;
      if (mode == ABSENT)
        answer.error = -ENOENT;
      else if (strncmp(path_calls[i].name, "open", 4) == 0) {
        answer_with_file(listener, &call);
        return;
      }
    }
  }
  ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
}

static void run_command(int socket, char** command) {
  const int listener = install_filter();
  send_number(socket, listener);
  if (listener < 0) _exit(77);
  close(listener);
  close(socket);
  execvp(command[0], command);
  perror(command[0]);
  _exit(127);
}

int main(int argc, char** argv) {
  int sockets[2];
  if (argc < 4) return 2;
  mode = strcmp(argv[1], "absent") == 0 ? ABSENT : strcmp(argv[1], "works") == 0 ? WORKS : BROKEN;
  if (!(log_file = fopen(argv[2], "we"))) return perror(argv[2]), 2;
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets)) return perror("socketpair"), 2;
  const pid_t child = fork();
  if (child == 0) run_command(sockets[1], argv + 3);
  const int listener = receive_number(sockets[0]);
  struct pollfd waits[2] = {{listener, POLLIN, 0}, {(int)syscall(SYS_pidfd_open, child, 0), POLLIN, 0}};
  while (listener >= 0 && !waits[1].revents) {
    poll(waits, 2, -1);
    if (waits[0].revents & POLLIN) handle_call(listener);
  }
  int status = 0;
  waitpid(child, &status, 0);
  fclose(log_file);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
