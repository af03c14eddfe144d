/* A virtual machine in thirty lines: the guest writes a greeting to a port, letter by letter, and halts. */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

/* mov si, text; next: lodsb; test al, al; jz end; out 10H, al; jmp next; end: hlt; text: */
static const char guest[] = "\xbe\x0d\x00\xac\x84\xc0\x74\x04\xe6\x10\xeb\xf7\xf4Hello from the guest!\n";

int main(void) {
  int kvm = open("/dev/kvm", O_RDWR), vm = ioctl(kvm, KVM_CREATE_VM, 0), cpu = ioctl(vm, KVM_CREATE_VCPU, 0);
  if (cpu < 0) return perror("no virtual machine"), 1;

  char* memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memcpy(memory, guest, sizeof guest);
  struct kvm_userspace_memory_region region = {.memory_size = 4096, .userspace_addr = (unsigned long)memory};
  ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);

  struct kvm_sregs sregs; /* real mode, the code at address 0 */
  ioctl(cpu, KVM_GET_SREGS, &sregs);
  sregs.cs.base = sregs.cs.selector = 0;
  ioctl(cpu, KVM_SET_SREGS, &sregs);
  struct kvm_regs regs = {.rip = 0, .rflags = 2};
  ioctl(cpu, KVM_SET_REGS, &regs);

  struct kvm_run* run =
      mmap(NULL, (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
  while (ioctl(cpu, KVM_RUN, 0) == 0 && run->exit_reason == KVM_EXIT_IO)
    putchar(((char*)run)[run->io.data_offset]);
  return run->exit_reason == KVM_EXIT_HLT ? 0 : 1;
}
