// The VM descriptor: wrong order, bad arguments, memory slots, chips.
#include <sys/eventfd.h>
#include <unistd.h>

#include "kvm.h"

namespace anykvm::test {
namespace {

constexpr std::uint64_t kMiB = 1 << 20;

TEST(VmFd, unknown_request_is_enotty) {
  Vm vm;
  EXPECT_EQ(call(vm.vm, _IO(KVMIO, 0xff)), -ENOTTY);
  EXPECT_EQ(call(vm.vm, KVM_RUN), -ENOTTY);
}

TEST(VmFd, capabilities_can_be_asked_here_too) {
  Vm vm;
  EXPECT_EQ(call(vm.vm, KVM_CHECK_EXTENSION, static_cast<unsigned long>(KVM_CAP_USER_MEMORY)), 1);
}

TEST(VmFd, bad_pointers_are_efault) {
  Vm vm;
  for (unsigned long request : {KVM_SET_USER_MEMORY_REGION, KVM_GET_DIRTY_LOG, KVM_IRQ_LINE, KVM_IRQFD,
                                KVM_IOEVENTFD, KVM_SET_GSI_ROUTING, KVM_SIGNAL_MSI, KVM_CREATE_PIT2,
                                KVM_SET_CLOCK, KVM_GET_CLOCK, KVM_REGISTER_COALESCED_MMIO})
    EXPECT_EQ(call(vm.vm, request, kBadPointer), -EFAULT) << std::hex << request;
}

TEST(VmFd, same_vcpu_twice_is_eexist_and_a_huge_id_einval) {
  Vm vm;
  Handle vcpu(call(vm.vm, KVM_CREATE_VCPU, 3ul));
  ASSERT_GE(static_cast<int>(vcpu), 0);
  EXPECT_EQ(call(vm.vm, KVM_CREATE_VCPU, 3ul), -EEXIST);
  EXPECT_EQ(call(vm.vm, KVM_CREATE_VCPU, 0x100000ul), -EINVAL);
}

TEST(VmFd, closed_vcpu_still_owns_its_id) {
  Vm vm;
  Handle vcpu(call(vm.vm, KVM_CREATE_VCPU, 0ul));
  vcpu.reset();
  EXPECT_EQ(call(vm.vm, KVM_CREATE_VCPU, 0ul), -EEXIST);
}

TEST(VmFd, irqchip_after_vcpu_is_einval_and_twice_is_eexist) {
  Vm with_vcpu, twice;
  Handle vcpu(call(with_vcpu.vm, KVM_CREATE_VCPU));
  EXPECT_EQ(call(with_vcpu.vm, KVM_CREATE_IRQCHIP), -EINVAL);
  EXPECT_EQ(call(twice.vm, KVM_CREATE_IRQCHIP), 0);
  EXPECT_EQ(call(twice.vm, KVM_CREATE_IRQCHIP), -EEXIST);
}

TEST(VmFd, chip_requests_without_a_chip_fail_as_documented) {
  Vm vm;
  kvm_irqchip chip{};
  kvm_irq_level level{};
  kvm_msi msi{};
  kvm_pit_config config{};
  kvm_pit_state2 pit{};
  EXPECT_EQ(call(vm.vm, KVM_GET_IRQCHIP, &chip), -ENXIO);
  EXPECT_EQ(call(vm.vm, KVM_SET_IRQCHIP, &chip), -ENXIO);
  EXPECT_EQ(call(vm.vm, KVM_IRQ_LINE, &level), -ENXIO);
  EXPECT_EQ(call(vm.vm, KVM_SIGNAL_MSI, &msi), -EINVAL);
  EXPECT_EQ(call(vm.vm, KVM_CREATE_PIT2, &config), -ENOENT);
  EXPECT_EQ(call(vm.vm, KVM_GET_PIT2, &pit), -ENXIO);
  EXPECT_EQ(call(vm.vm, KVM_SET_PIT2, &pit), -ENXIO);
}

TEST(VmFd, unknown_chip_id_is_einval) {
  Vm vm;
  ASSERT_EQ(call(vm.vm, KVM_CREATE_IRQCHIP), 0);
  kvm_irqchip chip{};
  chip.chip_id = 7;
  EXPECT_EQ(call(vm.vm, KVM_GET_IRQCHIP, &chip), -EINVAL);
}

TEST(VmFd, memory_region2_makes_and_deletes_a_slot) {
  Vm vm;
  Pages pages(kMiB);
  kvm_userspace_memory_region2 region{};
  region.memory_size = kMiB;
  region.userspace_addr = pages.address();
  EXPECT_EQ(call(vm.fd, KVM_CHECK_EXTENSION, static_cast<unsigned long>(KVM_CAP_USER_MEMORY2)), 1);
  EXPECT_EQ(call(vm.vm, KVM_SET_USER_MEMORY_REGION2, &region), 0);
  EXPECT_EQ(vm.set_region(1, 0, kMiB, pages.address()), -EEXIST);
  region.memory_size = 0;
  EXPECT_EQ(call(vm.vm, KVM_SET_USER_MEMORY_REGION2, &region), 0);
  EXPECT_EQ(vm.set_region(1, 0, kMiB, pages.address()), 0);
}

TEST(VmFd, memory_region2_with_unknown_flags_is_einval_and_a_bad_pointer_efault) {
  Vm vm;
  Pages pages(kMiB);
  kvm_userspace_memory_region2 region{};
  region.memory_size = kMiB;
  region.userspace_addr = pages.address();
  region.flags = 1u << 31;
  EXPECT_EQ(call(vm.vm, KVM_SET_USER_MEMORY_REGION2, &region), -EINVAL);
  EXPECT_EQ(call(vm.vm, KVM_SET_USER_MEMORY_REGION2, kBadPointer), -EFAULT);
}

TEST(VmFd, second_pit_is_eexist) {
  Vm vm;
  ASSERT_EQ(call(vm.vm, KVM_CREATE_IRQCHIP), 0);
  kvm_pit_config config{};
  EXPECT_EQ(call(vm.vm, KVM_CREATE_PIT2, &config), 0);
  EXPECT_EQ(call(vm.vm, KVM_CREATE_PIT2, &config), -EEXIST);
}

TEST(VmFd, boot_cpu_can_be_chosen_before_vcpus_only) {
  Vm vm;
  EXPECT_EQ(call(vm.vm, KVM_SET_BOOT_CPU_ID, 1ul), 0);
  Handle vcpu(call(vm.vm, KVM_CREATE_VCPU));
  EXPECT_EQ(call(vm.vm, KVM_SET_BOOT_CPU_ID, 0ul), -EBUSY);
}

TEST(VmFd, tss_address_beyond_32_bits_is_einval) {
  Vm vm;
  EXPECT_EQ(call(vm.vm, KVM_SET_TSS_ADDR, 0xfffbd000ul), 0);
  EXPECT_EQ(call(vm.vm, KVM_SET_TSS_ADDR, 0xfffff000ul), -EINVAL);
}

TEST(VmFd, identity_map_address_after_a_vcpu_is_einval) {
  Vm vm;
  std::uint64_t address = 0xfffbc000;
  EXPECT_EQ(call(vm.vm, KVM_SET_IDENTITY_MAP_ADDR, &address), 0);
  Handle vcpu(call(vm.vm, KVM_CREATE_VCPU));
  EXPECT_EQ(call(vm.vm, KVM_SET_IDENTITY_MAP_ADDR, &address), -EINVAL);
}

TEST(VmFd, clock_is_set_and_read) {
  Vm vm;
  kvm_clock_data data{};
  data.clock = 1'000'000'000'000;
  ASSERT_EQ(call(vm.vm, KVM_SET_CLOCK, &data), 0);
  ASSERT_EQ(call(vm.vm, KVM_GET_CLOCK, &data), 0);
  EXPECT_GE(data.clock, 1'000'000'000'000u);
  data.flags = 1u << 30;
  EXPECT_EQ(call(vm.vm, KVM_SET_CLOCK, &data), -EINVAL);
}

// --- Memory slots (SEEDS G5) ---

TEST(MemoryRegion, seed_G5_overlapping_slot_is_eexist) {
  Vm vm;
  Pages pages(2 * kMiB);
  ASSERT_EQ(vm.set_region(0, 0, kMiB, pages.address()), 0);
  EXPECT_EQ(vm.set_region(1, kMiB - 4096, kMiB, pages.address()), -EEXIST);
}

TEST(MemoryRegion, unaligned_and_unknown_arguments_are_einval) {
  Vm vm;
  Pages pages(kMiB);
  EXPECT_EQ(vm.set_region(0, 1, kMiB, pages.address()), -EINVAL);
  EXPECT_EQ(vm.set_region(0, 0, kMiB - 1, pages.address()), -EINVAL);
  EXPECT_EQ(vm.set_region(0, 0, kMiB - 4096, pages.address() + 1), -EINVAL);
  EXPECT_EQ(vm.set_region(0, 0, kMiB, pages.address(), 1u << 20), -EINVAL);
  EXPECT_EQ(vm.set_region(0xffff, 0, kMiB, pages.address()), -EINVAL);
}

TEST(MemoryRegion, resizing_and_read_only_change_are_einval) {
  Vm vm;
  Pages pages(2 * kMiB);
  ASSERT_EQ(vm.set_region(0, 0, kMiB, pages.address()), 0);
  EXPECT_EQ(vm.set_region(0, 0, 2 * kMiB, pages.address()), -EINVAL);
  EXPECT_EQ(vm.set_region(0, 0, kMiB, pages.address(), KVM_MEM_READONLY), -EINVAL);
}

TEST(MemoryRegion, deleting_nothing_is_einval_and_a_slot_can_come_back) {
  Vm vm;
  Pages pages(kMiB);
  EXPECT_EQ(vm.set_region(0, 0, 0, 0), -EINVAL);
  ASSERT_EQ(vm.set_region(0, 0, kMiB, pages.address()), 0);
  EXPECT_EQ(vm.set_region(0, 0, 0, 0), 0);
  EXPECT_EQ(vm.set_region(5, 0, kMiB, pages.address()), 0);
}

TEST(MemoryRegion, slot_can_move) {
  Vm vm;
  Pages pages(kMiB);
  ASSERT_EQ(vm.set_region(0, 0, kMiB, pages.address()), 0);
  EXPECT_EQ(vm.set_region(0, 16 * kMiB, kMiB, pages.address()), 0);
  EXPECT_EQ(vm.set_region(1, 0, kMiB, pages.address()), 0);
}

TEST(DirtyLog, slot_without_log_is_enoent_and_unknown_slot_fails) {
  Vm vm;
  Pages pages(kMiB);
  ASSERT_EQ(vm.set_region(0, 0, kMiB, pages.address()), 0);
  std::array<std::uint64_t, 4> bitmap{};
  kvm_dirty_log log{};
  log.dirty_bitmap = bitmap.data();
  EXPECT_EQ(call(vm.vm, KVM_GET_DIRTY_LOG, &log), -ENOENT);
  log.slot = 9;
  EXPECT_EQ(call(vm.vm, KVM_GET_DIRTY_LOG, &log), -ENOENT);
  log.slot = 0xffff;
  EXPECT_EQ(call(vm.vm, KVM_GET_DIRTY_LOG, &log), -EINVAL);
}

// --- eventfds (SEEDS G2) ---

TEST(IrqFd, seed_G2_wrong_arguments_are_refused) {
  Vm without, with;
  ASSERT_EQ(call(with.vm, KVM_CREATE_IRQCHIP), 0);
  Handle event(eventfd(0, EFD_CLOEXEC));
  kvm_irqfd request{};
  request.fd = static_cast<std::uint32_t>(static_cast<int>(event));
  EXPECT_EQ(call(without.vm, KVM_IRQFD, &request), -EINVAL);
  EXPECT_EQ(call(with.vm, KVM_IRQFD, &request), 0);
  EXPECT_EQ(call(with.vm, KVM_IRQFD, &request), -EBUSY);
  request.flags = 1u << 10;
  EXPECT_EQ(call(with.vm, KVM_IRQFD, &request), -EINVAL);
  request.flags = 0;
  request.fd = 99999;
  EXPECT_EQ(call(with.vm, KVM_IRQFD, &request), -EBADF);
}

TEST(IrqFd, eventfd_belongs_to_one_vm_at_a_time) {
  Vm first, second;
  ASSERT_EQ(call(first.vm, KVM_CREATE_IRQCHIP), 0);
  ASSERT_EQ(call(second.vm, KVM_CREATE_IRQCHIP), 0);
  Handle event(eventfd(0, EFD_CLOEXEC));
  kvm_irqfd request{};
  request.fd = static_cast<std::uint32_t>(static_cast<int>(event));
  ASSERT_EQ(call(first.vm, KVM_IRQFD, &request), 0);
  EXPECT_EQ(call(second.vm, KVM_IRQFD, &request), -EBUSY);
  request.flags = KVM_IRQFD_FLAG_DEASSIGN;
  EXPECT_EQ(call(second.vm, KVM_IRQFD, &request), 0);
  request.flags = 0;
  EXPECT_EQ(call(second.vm, KVM_IRQFD, &request), -EBUSY);
  first.vm = Handle();
  EXPECT_EQ(call(second.vm, KVM_IRQFD, &request), 0);
}

TEST(IrqFd, seed_G2_deassigned_eventfd_can_be_assigned_again) {
  Vm vm;
  ASSERT_EQ(call(vm.vm, KVM_CREATE_IRQCHIP), 0);
  Handle event(eventfd(0, EFD_CLOEXEC));
  kvm_irqfd request{};
  request.fd = static_cast<std::uint32_t>(static_cast<int>(event));
  request.gsi = 5;
  ASSERT_EQ(call(vm.vm, KVM_IRQFD, &request), 0);
  request.flags = KVM_IRQFD_FLAG_DEASSIGN;
  EXPECT_EQ(call(vm.vm, KVM_IRQFD, &request), 0);
  EXPECT_EQ(call(vm.vm, KVM_IRQFD, &request), 0);
  request.flags = 0;
  EXPECT_EQ(call(vm.vm, KVM_IRQFD, &request), 0);
}

TEST(IrqFd, seed_G2_event_reaches_the_pic) {
  Vm vm;
  ASSERT_EQ(call(vm.vm, KVM_CREATE_IRQCHIP), 0);
  kvm_irqchip chip{};
  ASSERT_EQ(call(vm.vm, KVM_GET_IRQCHIP, &chip), 0);
  chip.chip.pic.imr = 0;
  ASSERT_EQ(call(vm.vm, KVM_SET_IRQCHIP, &chip), 0);
  Handle event(eventfd(0, EFD_CLOEXEC));
  kvm_irqfd request{};
  request.fd = static_cast<std::uint32_t>(static_cast<int>(event));
  request.gsi = 5;
  ASSERT_EQ(call(vm.vm, KVM_IRQFD, &request), 0);
  ASSERT_EQ(eventfd_write(event, 1), 0);
  // The helper thread needs a moment.
  for (int tries = 0; tries < 1000 && !(chip.chip.pic.irr & (1 << 5)); ++tries) {
    usleep(1000);
    ASSERT_EQ(call(vm.vm, KVM_GET_IRQCHIP, &chip), 0);
  }
  EXPECT_TRUE(chip.chip.pic.irr & (1 << 5));
}

TEST(GsiRouting, bad_tables_are_einval) {
  Vm without, with;
  ASSERT_EQ(call(with.vm, KVM_CREATE_IRQCHIP), 0);
  struct {
    std::uint32_t count = 0, flags = 0;
    kvm_irq_routing_entry entry{};
  } table;
  EXPECT_EQ(call(without.vm, KVM_SET_GSI_ROUTING, &table), -EINVAL);
  EXPECT_EQ(call(with.vm, KVM_SET_GSI_ROUTING, &table), 0);
  table.flags = 1;
  EXPECT_EQ(call(with.vm, KVM_SET_GSI_ROUTING, &table), -EINVAL);
  table.flags = 0;
  table.count = 5000;
  EXPECT_EQ(call(with.vm, KVM_SET_GSI_ROUTING, &table), -EINVAL);
}

// --- What old clients use ---

TEST(VmFd, kinds_of_devices_are_enodev) {
  Vm vm;
  kvm_create_device device{};
  device.type = KVM_DEV_TYPE_VFIO;
  device.flags = KVM_CREATE_DEVICE_TEST;
  EXPECT_EQ(call(vm.vm, KVM_CREATE_DEVICE, &device), -ENODEV);
  EXPECT_EQ(call(vm.vm, KVM_CREATE_DEVICE, kBadPointer), -EFAULT);
}

TEST(VmFd, number_of_mmu_pages_is_kept) {
  Vm vm;
  EXPECT_EQ(call(vm.vm, KVM_SET_NR_MMU_PAGES, 10ul), -EINVAL);
  ASSERT_EQ(call(vm.vm, KVM_SET_NR_MMU_PAGES, 1000ul), 0);
  EXPECT_EQ(call(vm.vm, KVM_GET_NR_MMU_PAGES), 1000);
}

TEST(Pit, old_requests_carry_the_channels) {
  Vm vm;
  ASSERT_EQ(call(vm.vm, KVM_CREATE_IRQCHIP), 0);
  kvm_pit_state state{};
  EXPECT_EQ(call(vm.vm, KVM_GET_PIT, &state), -ENXIO);
  ASSERT_EQ(call(vm.vm, KVM_CREATE_PIT), 0);
  ASSERT_EQ(call(vm.vm, KVM_GET_PIT, &state), 0);
  state.channels[2].mode = 3;
  state.channels[2].count = 0x1234;
  ASSERT_EQ(call(vm.vm, KVM_SET_PIT, &state), 0);
  state = {};
  ASSERT_EQ(call(vm.vm, KVM_GET_PIT, &state), 0);
  EXPECT_EQ(state.channels[2].mode, 3);
  EXPECT_EQ(state.channels[2].count, 0x1234u);
}

TEST(Pit, reinjection_can_be_chosen_once_there_is_one) {
  Vm vm;
  ASSERT_EQ(call(vm.vm, KVM_CREATE_IRQCHIP), 0);
  kvm_reinject_control control{};
  EXPECT_EQ(call(vm.vm, KVM_REINJECT_CONTROL, &control), -ENXIO);
  kvm_pit_config config{};
  ASSERT_EQ(call(vm.vm, KVM_CREATE_PIT2, &config), 0);
  EXPECT_EQ(call(vm.vm, KVM_REINJECT_CONTROL, &control), 0);
  EXPECT_EQ(call(vm.vm, KVM_REINJECT_CONTROL, kBadPointer), -EFAULT);
}

TEST(IrqLine, status_says_whether_the_edge_was_taken) {
  Vm vm;
  kvm_irq_level line{{5}, 1};
  EXPECT_EQ(call(vm.vm, KVM_IRQ_LINE_STATUS, &line), -ENXIO);
  ASSERT_EQ(call(vm.vm, KVM_CREATE_IRQCHIP), 0);
  line = {{5}, 1};
  ASSERT_EQ(call(vm.vm, KVM_IRQ_LINE_STATUS, &line), 0);
  EXPECT_NE(static_cast<std::int32_t>(line.status), 0);
  line = {{5}, 0};
  ASSERT_EQ(call(vm.vm, KVM_IRQ_LINE_STATUS, &line), 0);
  line = {{5}, 1};
  ASSERT_EQ(call(vm.vm, KVM_IRQ_LINE_STATUS, &line), 0);
  EXPECT_EQ(static_cast<std::int32_t>(line.status), 0);  // merged with the one that waits
}

}  // namespace
}  // namespace anykvm::test
