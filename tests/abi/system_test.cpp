// The system descriptor.
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <thread>

#include "anykvm/anykvm.h"
#include "anykvm/ioregion.h"
#include "kvm.h"

namespace anykvm::test {
namespace {

// A list of variable length with `room` entries.
template <class Header, class Item>
class List {
 public:
  explicit List(std::uint32_t room) : m_bytes(sizeof(std::uint64_t) + room * sizeof(Item)) {
    header()->*count() = room;
  }
  Header* header() { return reinterpret_cast<Header*>(m_bytes.data()); }
  std::uint32_t size() { return header()->*count(); }

 private:
  static constexpr auto count() {
    if constexpr (requires { &Header::nent; })
      return &Header::nent;
    else
      return &Header::nmsrs;
  }
  std::vector<std::uint8_t> m_bytes;
};
using Cpuid = List<kvm_cpuid2, kvm_cpuid_entry2>;
using MsrIndices = List<kvm_msr_list, std::uint32_t>;

TEST(SystemFd, tests_run_on_what_they_claim) {
  System system;
  EXPECT_EQ(call(system.fd, KVM_CHECK_EXTENSION, KVM_CAP_ANYKVM), on_real_kvm() ? 0 : 1);
}

TEST(SystemFd, api_version_is_12) {
  System system;
  EXPECT_EQ(call(system.fd, KVM_GET_API_VERSION), 12);
  EXPECT_EQ(call(system.fd, KVM_GET_API_VERSION, 1ul), -EINVAL);
}

TEST(SystemFd, mmap_size_has_room_for_run_port_and_ring_pages) {
  System system;
  EXPECT_GE(call(system.fd, KVM_GET_VCPU_MMAP_SIZE), 3 * 4096);
  EXPECT_EQ(call(system.fd, KVM_GET_VCPU_MMAP_SIZE, 1ul), -EINVAL);
}

TEST(SystemFd, unknown_vm_type_is_einval) {
  System system;
  EXPECT_EQ(call(system.fd, KVM_CREATE_VM, 0x7fffffful), -EINVAL);
}

TEST(SystemFd, unknown_request_is_einval) {
  System system;
  EXPECT_EQ(call(system.fd, _IO(KVMIO, 0xff)), -EINVAL);
}

TEST(SystemFd, requests_of_other_descriptors_are_einval) {
  System system;
  EXPECT_EQ(call(system.fd, KVM_RUN), -EINVAL);
  EXPECT_EQ(call(system.fd, KVM_CREATE_VCPU), -EINVAL);
}

TEST(SystemFd, unknown_capability_is_0) {
  System system;
  EXPECT_EQ(call(system.fd, KVM_CHECK_EXTENSION, 0x7ffffffful), 0);
}

TEST(SystemFd, capabilities_that_vmms_need_are_there) {
  System system;
  for (unsigned long capability :
       {KVM_CAP_USER_MEMORY, KVM_CAP_IRQCHIP, KVM_CAP_HLT, KVM_CAP_IRQFD, KVM_CAP_IOEVENTFD, KVM_CAP_PIT2,
        KVM_CAP_IRQ_ROUTING, KVM_CAP_SIGNAL_MSI, KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_XSAVE, KVM_CAP_READONLY_MEM,
        KVM_CAP_EXT_CPUID, KVM_CAP_SET_TSS_ADDR, KVM_CAP_MP_STATE, KVM_CAP_TSC_DEADLINE_TIMER})
    EXPECT_GE(call(system.fd, KVM_CHECK_EXTENSION, capability), 1) << capability;
}

TEST(SystemFd, supported_cpuid_fits_and_too_short_list_is_e2big) {
  System system;
  Cpuid list(256);
  ASSERT_EQ(call(system.fd, KVM_GET_SUPPORTED_CPUID, list.header()), 0);
  EXPECT_GT(list.size(), 1u);
  EXPECT_LT(list.size(), 256u);
  Cpuid short_list(1);
  EXPECT_EQ(call(system.fd, KVM_GET_SUPPORTED_CPUID, short_list.header()), -E2BIG);
}

TEST(SystemFd, too_short_msr_list_gets_the_count_and_e2big) {
  System system;
  MsrIndices none(0);
  ASSERT_EQ(call(system.fd, KVM_GET_MSR_INDEX_LIST, none.header()), -E2BIG);
  MsrIndices list(none.size());
  EXPECT_EQ(call(system.fd, KVM_GET_MSR_INDEX_LIST, list.header()), 0);
  EXPECT_EQ(list.size(), none.size());
}

TEST(SystemFd, every_feature_msr_can_be_read) {
  System system;
  MsrIndices list(256);
  ASSERT_EQ(call(system.fd, KVM_GET_MSR_FEATURE_INDEX_LIST, list.header()), 0);
  std::vector<kvm_msr_entry> request(1 + list.size());
  auto* msrs = reinterpret_cast<kvm_msrs*>(request.data());
  msrs->nmsrs = list.size();
  auto* entries = reinterpret_cast<kvm_msr_entry*>(reinterpret_cast<char*>(msrs) + 8);
  for (std::uint32_t i = 0; i < list.size(); ++i) entries[i].index = list.header()->indices[i];
  EXPECT_EQ(call(system.fd, KVM_GET_MSRS, msrs), static_cast<long>(list.size()));
}

TEST(SystemFd, bad_pointers_are_efault) {
  System system;
  EXPECT_EQ(call(system.fd, KVM_GET_SUPPORTED_CPUID, kBadPointer), -EFAULT);
  EXPECT_EQ(call(system.fd, KVM_GET_MSR_INDEX_LIST, kBadPointer), -EFAULT);
  EXPECT_EQ(call(system.fd, KVM_GET_MSRS, kBadPointer), -EFAULT);
}

TEST(Descriptors, foreign_and_closed_descriptors_are_refused) {
  EXPECT_EQ(call(99999, KVM_GET_API_VERSION), -EBADF);
  Handle null(open("/dev/null", O_RDWR));
  EXPECT_EQ(call(null, KVM_GET_API_VERSION), -ENOTTY);
}

TEST(Descriptors, opening_another_path_is_enoent) {
  EXPECT_EQ(anykvm_open("/dev/other", 0), -1);
  EXPECT_EQ(errno, ENOENT);
}

TEST(Descriptors, duplicate_works_and_keeps_the_vm_alive) {
  Guest guest;
  Handle copy(dup(guest.vcpu));
  guest.vcpu.reset();
  kvm_regs regs{};
  EXPECT_EQ(call(copy, KVM_GET_REGS, &regs), 0);
  EXPECT_EQ(regs.rip, Guest::kCode);
}

TEST(Descriptors, vcpu_outlives_the_vm_descriptor) {
  Guest guest;
  guest.vm.reset();
  EXPECT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
}

TEST(Descriptors, number_reused_for_a_new_vm_is_the_new_vm) {
  System system;
  Handle first(call(system.fd, KVM_CREATE_VM));
  int number = first;
  first.reset();
  Handle second(call(system.fd, KVM_CREATE_VM));
  ASSERT_EQ(static_cast<int>(second), number);
  Handle vcpu(call(second, KVM_CREATE_VCPU));
  EXPECT_GE(static_cast<int>(vcpu), 0);
}

// Files of statistics, which live as long as the VM that was asked for one.
long files_of_statistics() {
  long count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    count += std::filesystem::read_symlink(entry, gone).string().starts_with("/memfd:anykvm-stats");
  }
  return count;
}

// Whoever looks a duplicate up while another thread closes it must not remember it: the VM would stay.
TEST(Descriptors, duplicate_that_is_closed_while_in_use_does_not_keep_the_vm) {
  constexpr int kRounds = 3000;
  const long before = files_of_statistics();
  System system;
  for (int vm_number = 0; vm_number < 20; ++vm_number) {
    Handle vm(call(system.fd, KVM_CREATE_VM));
    ASSERT_GE(Handle(call(vm, KVM_GET_STATS_FD)), 0);
    const int number = dup(vm);
    ASSERT_EQ(kvm_close(number), 0);
    std::atomic<bool> ends = false;
    std::thread user([&] {
      while (!ends) call(number, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY);
    });
    for (int i = 0; i < kRounds; ++i) EXPECT_EQ(kvm_close(dup(vm)), 0);
    ends = true;
    user.join();
  }
  EXPECT_EQ(files_of_statistics(), before);
}

// The engine's own copy of a handle, which a client gave it for something else, is no handle. The kernel has
// no such request, and no such files.
TEST(Descriptors, handle_that_serves_as_a_channel_is_closed_with_its_last_descriptor) {
  const long before = files_of_statistics();
  Guest guest;
  {
    System system;
    Handle channel(call(system.fd, KVM_CREATE_VM));
    ASSERT_GE(Handle(call(channel, KVM_GET_STATS_FD)), 0);
    EXPECT_EQ(files_of_statistics(), before + (on_real_kvm() ? 0 : 1));
    kvm_ioregion region{};
    region.guest_paddr = 0xd0000000;
    region.memory_size = 16;
    region.read_fd = region.write_fd = channel;
    ASSERT_EQ(call(guest.vm, KVM_SET_IOREGION, &region), on_real_kvm() ? -ENOTTY : 0);
  }
  EXPECT_EQ(files_of_statistics(), before);
}

// By a system call of the client's own, which nobody tells the engine of.
TEST(Descriptors, duplicate_that_was_closed_past_the_engine_does_not_keep_the_vm) {
  const long before = files_of_statistics();
  System system;
  Handle vm(call(system.fd, KVM_CREATE_VM));
  ASSERT_GE(Handle(call(vm, KVM_GET_STATS_FD)), 0);
  const int duplicate = dup(vm);
  ASSERT_GE(call(duplicate, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY), 1);
  ASSERT_EQ(close(duplicate), 0);
  vm.reset();
  EXPECT_EQ(files_of_statistics(), before);
}

// --- Attributes and emulated features ---

TEST(SystemFd, supported_components_are_an_attribute) {
  System system;
  std::uint64_t components = 0;
  kvm_device_attr attribute{};
  attribute.attr = KVM_X86_XCOMP_GUEST_SUPP;
  attribute.addr = reinterpret_cast<std::uint64_t>(&components);
  EXPECT_EQ(call(system.fd, KVM_HAS_DEVICE_ATTR, &attribute), 0);
  ASSERT_EQ(call(system.fd, KVM_GET_DEVICE_ATTR, &attribute), 0);
  EXPECT_EQ(components & 3, 3u);  // x87, SSE
  attribute.addr = reinterpret_cast<std::uint64_t>(kBadPointer);
  EXPECT_EQ(call(system.fd, KVM_GET_DEVICE_ATTR, &attribute), -EFAULT);
  attribute.attr = 99;
  EXPECT_EQ(call(system.fd, KVM_HAS_DEVICE_ATTR, &attribute), -ENXIO);
  attribute.attr = 0;
  attribute.group = 1;
  EXPECT_EQ(call(system.fd, KVM_GET_DEVICE_ATTR, &attribute), -ENXIO);
}

TEST(SystemFd, emulated_cpuid_has_leaves_0_1_and_7) {
  System system;
  struct {
    kvm_cpuid2 header;
    kvm_cpuid_entry2 entries[8];
  } list{};
  list.header.nent = 1;
  EXPECT_EQ(call(system.fd, KVM_GET_EMULATED_CPUID, &list), -E2BIG);
  list.header.nent = 8;
  ASSERT_EQ(call(system.fd, KVM_GET_EMULATED_CPUID, &list), 0);
  ASSERT_EQ(list.header.nent, 3u);
  EXPECT_EQ(list.entries[0].eax, 7u);
  EXPECT_EQ(list.entries[1].function, 1u);
  EXPECT_EQ(list.entries[2].function, 7u);
}

}  // namespace
}  // namespace anykvm::test
