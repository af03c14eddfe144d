// VMs with private pages: KVM_CREATE_GUEST_MEMFD, KVM_SET_MEMORY_ATTRIBUTES, memory-fault exits.
#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "anykvm/anykvm.h"
#include "kvm.h"

namespace anykvm::test {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kData = 0x10000;  // guest address of the slot that is tested

// One vCPU in real mode; its code and stack are in slot 0, slot 1 is two pages at kData.
struct PrivateVm {
  PrivateVm() : vm(call(fd, KVM_CREATE_VM, static_cast<unsigned long>(KVM_X86_SW_PROTECTED_VM))) {
    kvm_userspace_memory_region code{0, 0, 0, low.size(), low.address()};
    EXPECT_EQ(call(vm, KVM_SET_USER_MEMORY_REGION, &code), 0);
    vcpu = Handle(call(vm, KVM_CREATE_VCPU));
    const auto size = static_cast<std::size_t>(call(fd, KVM_GET_VCPU_MMAP_SIZE));
    shared = static_cast<kvm_run*>(kvm_mmap(size, vcpu));
    mapped = size;
  }
  ~PrivateVm() { munmap(shared, mapped); }

  long create_memory(std::uint64_t size, std::uint64_t flags = 0) {
    kvm_create_guest_memfd request{size, flags, {}};
    return call(vm, KVM_CREATE_GUEST_MEMFD, &request);
  }
  long set_slot(long memory, std::uint64_t size = 2 * kPage, std::uint32_t slot = 1, std::uint64_t offset = 0,
                std::uint32_t flags = KVM_MEM_GUEST_MEMFD) {
    kvm_userspace_memory_region2 region{};
    region.slot = slot;
    region.flags = flags;
    region.guest_phys_addr = kData;
    region.memory_size = size;
    region.userspace_addr = data.address();
    region.guest_memfd = static_cast<std::uint32_t>(memory);
    region.guest_memfd_offset = offset;
    return call(vm, KVM_SET_USER_MEMORY_REGION2, &region);
  }
  long set_attributes(std::uint64_t first, std::uint64_t size, std::uint64_t attributes) {
    kvm_memory_attributes request{first, size, attributes, 0};
    return call(vm, KVM_SET_MEMORY_ATTRIBUTES, &request);
  }
  // inc byte [kData]; hlt: what is there then, in AL.
  long touch() {
    const std::uint8_t code[] = {0xb8, 0x00, 0x10, 0x8e, 0xd8, 0xfe, 0x06,
                                 0x00, 0x00, 0xa0, 0x00, 0x00, 0xf4};
    memcpy(low.data() + 0x1000, code, sizeof code);
    kvm_sregs sregs{};
    EXPECT_EQ(call(vcpu, KVM_GET_SREGS, &sregs), 0);
    sregs.cs.base = sregs.cs.selector = 0;
    EXPECT_EQ(call(vcpu, KVM_SET_SREGS, &sregs), 0);
    kvm_regs regs{};
    regs.rip = 0x1000;
    regs.rflags = 2;
    EXPECT_EQ(call(vcpu, KVM_SET_REGS, &regs), 0);
    return call(vcpu, KVM_RUN);
  }
  unsigned al() {
    kvm_regs regs{};
    EXPECT_EQ(call(vcpu, KVM_GET_REGS, &regs), 0);
    return regs.rax & 0xff;
  }

  Handle fd{kvm_open()};
  Handle vm;
  Pages low{0x8000}, data{2 * kPage};
  Handle vcpu;
  kvm_run* shared = nullptr;
  std::size_t mapped = 0;
};

TEST(PrivateMemory, capabilities_depend_on_the_vm_type) {
  Vm ordinary;
  PrivateVm vm;
  constexpr unsigned long kMemfd = KVM_CAP_GUEST_MEMFD, kAttributes = KVM_CAP_MEMORY_ATTRIBUTES;
  EXPECT_EQ(call(vm.fd, KVM_CHECK_EXTENSION, static_cast<unsigned long>(KVM_CAP_VM_TYPES)) & 3, 3);
  EXPECT_EQ(call(ordinary.vm, KVM_CHECK_EXTENSION, kMemfd), 0);
  EXPECT_EQ(call(vm.vm, KVM_CHECK_EXTENSION, kMemfd), 1);
  EXPECT_EQ(call(vm.vm, KVM_CHECK_EXTENSION, kAttributes), static_cast<long>(KVM_MEMORY_ATTRIBUTE_PRIVATE));
  EXPECT_EQ(call(vm.fd, KVM_CREATE_VM, 9ul), -EINVAL);
  kvm_memory_attributes request{0, kPage, KVM_MEMORY_ATTRIBUTE_PRIVATE, 0};
  EXPECT_EQ(call(ordinary.vm, KVM_SET_MEMORY_ATTRIBUTES, &request), -EINVAL);
}

TEST(PrivateMemory, arguments_are_checked) {
  PrivateVm vm;
  EXPECT_EQ(vm.create_memory(0), -EINVAL);
  EXPECT_EQ(vm.create_memory(kPage + 1), -EINVAL);
  EXPECT_EQ(vm.create_memory(kPage, 1), -EINVAL);
  EXPECT_EQ(call(vm.vm, KVM_CREATE_GUEST_MEMFD, kBadPointer), -EFAULT);
  EXPECT_EQ(call(vm.vm, KVM_SET_MEMORY_ATTRIBUTES, kBadPointer), -EFAULT);
  EXPECT_EQ(vm.set_attributes(kData, kPage, 1), -EINVAL);
  EXPECT_EQ(vm.set_attributes(kData, 0, 0), -EINVAL);
  EXPECT_EQ(vm.set_attributes(kData + 1, kPage, 0), -EINVAL);
  EXPECT_EQ(vm.set_attributes(~std::uint64_t{0xfff}, 2 * kPage, 0), -EINVAL);
}

// Nothing is written back, so the descriptor does not get lost on the way.
TEST(PrivateMemory, request_may_lie_in_memory_that_can_only_be_read) {
  PrivateVm vm;
  Pages page(kPage);
  const kvm_create_guest_memfd request{kPage, 0, {}};
  std::memcpy(page.data(), &request, sizeof request);
  ASSERT_EQ(mprotect(page.data(), page.size(), PROT_READ), 0);
  Handle memory(call(vm.vm, KVM_CREATE_GUEST_MEMFD, page.data()));
  EXPECT_GE(static_cast<int>(memory), 0);
}

TEST(PrivateMemory, slots_check_what_they_are_bound_to) {
  PrivateVm vm, other;
  Handle memory(vm.create_memory(2 * kPage)), foreign(other.create_memory(2 * kPage));
  EXPECT_EQ(vm.set_slot(vm.vm), -EINVAL);
  EXPECT_EQ(vm.set_slot(foreign), -EINVAL);
  EXPECT_EQ(vm.set_slot(memory, 2 * kPage, 1, kPage), -EINVAL);
  EXPECT_EQ(vm.set_slot(memory, 2 * kPage, 1, 0, KVM_MEM_GUEST_MEMFD | KVM_MEM_LOG_DIRTY_PAGES), -EINVAL);
  EXPECT_EQ(vm.set_slot(memory), 0);
  EXPECT_EQ(vm.set_slot(memory), -EINVAL);            // cannot change
  EXPECT_EQ(vm.set_slot(memory, kPage, 2), -EINVAL);  // bound already
  EXPECT_EQ(vm.set_slot(memory, 0), 0);
  EXPECT_EQ(vm.set_slot(memory), 0);
}

TEST(PrivateMemory, descriptor_gives_the_client_no_access) {
  PrivateVm vm;
  Handle memory(vm.create_memory(2 * kPage));
  char byte = 1;
  EXPECT_LT(read(memory, &byte, 1), 0);
  EXPECT_LT(write(memory, &byte, 1), 0);
  EXPECT_LT(pwrite(memory, &byte, 1, 0), 0);
  EXPECT_EQ(kvm_mmap(kPage, memory), MAP_FAILED);
}

TEST(PrivateMemory, private_and_shared_pages_are_different_memory) {
  PrivateVm vm;
  Handle memory(vm.create_memory(2 * kPage));
  ASSERT_EQ(vm.set_slot(memory), 0);
  vm.data.data()[0] = 10;
  ASSERT_EQ(vm.touch(), 0);
  EXPECT_EQ(vm.al(), 11u);
  ASSERT_EQ(vm.set_attributes(kData, kPage, KVM_MEMORY_ATTRIBUTE_PRIVATE), 0);
  ASSERT_EQ(vm.touch(), 0);
  EXPECT_EQ(vm.al(), 1u);
  EXPECT_EQ(vm.data.data()[0], 11);
  ASSERT_EQ(vm.set_attributes(0, 0x100000, 0), 0);
  ASSERT_EQ(vm.touch(), 0);
  EXPECT_EQ(vm.al(), 12u);
}

TEST(PrivateMemory, punched_hole_reads_as_zero) {
  PrivateVm vm;
  Handle memory(vm.create_memory(2 * kPage));
  ASSERT_EQ(vm.set_slot(memory), 0);
  ASSERT_EQ(vm.set_attributes(kData, kPage, KVM_MEMORY_ATTRIBUTE_PRIVATE), 0);
  ASSERT_EQ(vm.touch(), 0);
  ASSERT_EQ(vm.touch(), 0);
  EXPECT_EQ(vm.al(), 2u);
  constexpr int kPunch = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE;
  EXPECT_EQ(anykvm_fallocate(memory, kPunch, 1, kPage), -1);
  EXPECT_EQ(anykvm_fallocate(memory, FALLOC_FL_KEEP_SIZE, 2 * kPage, kPage), -1);
  ASSERT_EQ(anykvm_fallocate(memory, kPunch, 0, kPage), 0);
  ASSERT_EQ(vm.touch(), 0);
  EXPECT_EQ(vm.al(), 1u);
}

TEST(PrivateMemory, private_page_without_memory_is_a_memory_fault_until_it_is_shared) {
  PrivateVm vm;
  ASSERT_EQ(vm.set_slot(-1, 2 * kPage, 1, 0, 0), 0);
  ASSERT_EQ(vm.set_attributes(kData, kPage, KVM_MEMORY_ATTRIBUTE_PRIVATE), 0);
  ASSERT_EQ(vm.touch(), -EFAULT);
  ASSERT_EQ(vm.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_MEMORY_FAULT));
  std::uint64_t fault[3];
  memcpy(fault, vm.shared->padding, sizeof fault);
  EXPECT_EQ(fault[0], KVM_MEMORY_EXIT_FLAG_PRIVATE);
  EXPECT_EQ(fault[1], kData);
  EXPECT_EQ(fault[2], kPage);
  vm.data.data()[0] = 41;
  ASSERT_EQ(vm.set_attributes(kData, kPage, 0), 0);
  ASSERT_EQ(call(vm.vcpu, KVM_RUN), 0);  // the same instruction again
  EXPECT_EQ(vm.al(), 42u);
}

TEST(PrivateMemory, dirty_log_survives_changes_of_attributes) {
  PrivateVm vm;
  ASSERT_EQ(vm.set_slot(-1, 2 * kPage, 1, 0, KVM_MEM_LOG_DIRTY_PAGES), 0);
  ASSERT_EQ(vm.set_attributes(kData + kPage, kPage, KVM_MEMORY_ATTRIBUTE_PRIVATE), 0);
  ASSERT_EQ(vm.touch(), 0);
  ASSERT_EQ(vm.set_attributes(kData + kPage, kPage, 0), 0);
  std::uint64_t bitmap = 0;
  kvm_dirty_log log{};
  log.slot = 1;
  log.dirty_bitmap = &bitmap;
  ASSERT_EQ(call(vm.vm, KVM_GET_DIRTY_LOG, &log), 0);
  EXPECT_EQ(bitmap, 1u);
}

}  // namespace
}  // namespace anykvm::test
