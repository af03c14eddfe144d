/*
 * A device in a process of its own: what the guest writes to its register comes back squared. Guest accesses
 * reach the server by ioregionfd, without a return from KVM_RUN (docs/ioregionfd.md). On a KVM that has no
 * such thing, this program forwards them itself: the server is the same.
 */
#include <anykvm/ioregion.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define DEVICE 0x20000 /* the register's address */

/* ds = 2000H; for bx = 1 to 5: write bx to [0], read [0], tell port 10H; hlt */
static const unsigned char guest[] = {
    0xb8, 0x00, 0x20, 0x8e, 0xd8,                   /* mov ax, 2000H; mov ds, ax */
    0xbb, 0x01, 0x00,                               /* mov bx, 1 */
    0x89, 0x1e, 0x00, 0x00, 0xa1, 0x00, 0x00,       /* again: mov [0], bx; mov ax, [0] */
    0xe7, 0x10, 0x43, 0x83, 0xfb, 0x05, 0x76, 0xf1, /* out 10H, ax; inc bx; cmp bx, 5; jbe again */
    0xf4,                                           /* hlt */
};

/* The server knows nothing of KVM: it reads commands and writes responses until the other end is closed. */
static int serve(int fd) {
  struct ioregionfd_cmd command;
  unsigned long long value = 0;
  while (recv(fd, &command, sizeof command, MSG_WAITALL) == sizeof command) {
    struct ioregionfd_resp response = {0};
    if (command.cmd == IOREGIONFD_CMD_WRITE)
      value = command.data;
    else
      response.data = value * value;
    if (command.resp && send(fd, &response, sizeof response, MSG_NOSIGNAL) != sizeof response) return 1;
  }
  return 0;
}

/* What ioregionfd saves us: an exit for each access, and two system calls. */
static void forward(int fd, struct kvm_run* run) {
  struct ioregionfd_cmd command = {
      .cmd = run->mmio.is_write ? IOREGIONFD_CMD_WRITE : IOREGIONFD_CMD_READ,
      .size_exponent = run->mmio.len == 2 ? IOREGIONFD_SIZE_16BIT : IOREGIONFD_SIZE_8BIT,
      .resp = 1,
      .offset = run->mmio.phys_addr - DEVICE};
  struct ioregionfd_resp response = {0};
  if (run->mmio.is_write) memcpy(&command.data, run->mmio.data, run->mmio.len);
  if (send(fd, &command, sizeof command, MSG_NOSIGNAL) != sizeof command ||
      recv(fd, &response, sizeof response, MSG_WAITALL) != sizeof response)
    fprintf(stderr, "the server is gone\n");
  if (!run->mmio.is_write) memcpy(run->mmio.data, &response.data, run->mmio.len);
}

int main(int argc, char* argv[]) {
  const int by_exits = argc > 1 && strcmp(argv[1], "by-exits") == 0;
  int ends[2], status = 1;
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) return perror("socketpair"), 1;
  if (fork() == 0) return close(ends[0]), serve(ends[1]);
  close(ends[1]);

  int kvm = open("/dev/kvm", O_RDWR), vm = ioctl(kvm, KVM_CREATE_VM, 0), cpu = ioctl(vm, KVM_CREATE_VCPU, 0);
  if (cpu < 0) return perror("no virtual machine"), 1;
  unsigned char* memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memcpy(memory, guest, sizeof guest);
  struct kvm_userspace_memory_region slot = {.memory_size = 4096, .userspace_addr = (unsigned long)memory};
  ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot);

  struct kvm_ioregion region = {
      .guest_paddr = DEVICE, .memory_size = 2, .read_fd = ends[0], .write_fd = ends[0]};
  const int direct = !by_exits && ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_ANYKVM_IOREGIONFD) > 0;
  if (direct && ioctl(vm, KVM_SET_IOREGION, &region)) return perror("KVM_SET_IOREGION"), 1;

  struct kvm_sregs sregs;
  ioctl(cpu, KVM_GET_SREGS, &sregs);
  sregs.cs.base = sregs.cs.selector = 0;
  ioctl(cpu, KVM_SET_SREGS, &sregs);
  struct kvm_regs regs = {.rip = 0, .rflags = 2};
  ioctl(cpu, KVM_SET_REGS, &regs);
  struct kvm_run* run =
      mmap(NULL, (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
  unsigned forwarded = 0;
  while (ioctl(cpu, KVM_RUN, 0) == 0 && run->exit_reason != KVM_EXIT_HLT) {
    unsigned short value;
    if (run->exit_reason == KVM_EXIT_MMIO) {
      forward(ends[0], run), ++forwarded;
      continue;
    }
    memcpy(&value, (char*)run + run->io.data_offset, sizeof value);
    printf("the guest read %d\n", value);
  }
  printf("%s, %u accesses forwarded\n", direct ? "by ioregionfd" : "by exits", forwarded);
  shutdown(ends[0], SHUT_RDWR); /* KVM has a reference of its own, so a close() would not tell the server */
  wait(&status);
  return status;
}
