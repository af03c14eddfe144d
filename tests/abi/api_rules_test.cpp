// Rules of the kernel's KVM document that show only at the edges: what is refused, ignored, rounded, and in
// which order. By the document's sections.
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kvm.h"

namespace anykvm::test {
namespace {

constexpr std::uint64_t kPae = 1u << 5, kPaging = 1u << 31 | 1;  // CR4.PAE; CR0.PG and PE
constexpr std::uint32_t kPresent = 1;

// A guest whose CR3 names a table of page-directory pointers at 2000H: those of `first`, then zeros.
struct PaeGuest : Guest {
  explicit PaeGuest(std::uint64_t first = 0x3000 | kPresent) {
    set_pointer(0x2000, first);
    EXPECT_EQ(call(vcpu, KVM_GET_SREGS2, &sregs), 0);
    sregs.cr0 |= kPaging;
    sregs.cr4 |= kPae;
    sregs.cr3 = 0x2000;
    sregs.cs.base = sregs.cs.selector = 0;
  }
  void set_pointer(std::uint64_t at, std::uint64_t value) {
    std::memcpy(memory.data() + at, &value, sizeof value);
  }
  long translate(std::uint64_t linear) {
    kvm_translation translation{};
    translation.linear_address = linear;
    EXPECT_EQ(call(vcpu, KVM_TRANSLATE, &translation), 0);
    return translation.valid ? static_cast<long>(translation.physical_address) : -1;
  }

  kvm_sregs2 sregs{};
};

// --- 4.131, 4.132 ---

TEST(Sregs2, page_directory_pointers_are_shown_with_pae_paging) {
  PaeGuest guest;
  ASSERT_EQ(call(guest.vcpu, KVM_SET_SREGS2, &guest.sregs), 0);
  kvm_sregs2 seen{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_SREGS2, &seen), 0);
  EXPECT_EQ(seen.flags, static_cast<std::uint64_t>(KVM_SREGS2_FLAGS_PDPTRS_VALID));
  EXPECT_EQ(seen.pdptrs[0], 0x3001u);
  EXPECT_EQ(seen.pdptrs[1], 0u);
}

TEST(Sregs2, page_directory_pointers_of_the_client_count_instead_of_memory) {
  PaeGuest guest;
  guest.set_pointer(0x4000, 0x83);            // 2 MiB at 0
  guest.set_pointer(0x4008, 0x83);            // again
  guest.sregs.pdptrs[0] = 0x4000 | kPresent;  // in memory: 3000H, with nothing there
  guest.sregs.flags = KVM_SREGS2_FLAGS_PDPTRS_VALID;
  ASSERT_EQ(call(guest.vcpu, KVM_SET_SREGS2, &guest.sregs), 0);
  EXPECT_EQ(guest.translate(0x200123), 0x123);
  kvm_sregs2 seen{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_SREGS2, &seen), 0);
  EXPECT_EQ(seen.pdptrs[0], 0x4001u);
}

TEST(Sregs2, page_directory_pointers_do_not_outlive_the_next_sregs) {
  PaeGuest guest;
  guest.set_pointer(0x3000, 0x83);
  guest.sregs.flags = KVM_SREGS2_FLAGS_PDPTRS_VALID;  // all of them 0
  ASSERT_EQ(call(guest.vcpu, KVM_SET_SREGS2, &guest.sregs), 0);
  EXPECT_EQ(guest.translate(0x123), -1);
  kvm_sregs sregs{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_SREGS, &sregs), 0);
  ASSERT_EQ(call(guest.vcpu, KVM_SET_SREGS, &sregs), 0);
  EXPECT_EQ(guest.translate(0x123), 0x123);
}

TEST(Sregs2, page_directory_pointers_without_pae_paging_are_einval) {
  Guest guest;
  kvm_sregs2 sregs{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_SREGS2, &sregs), 0);
  EXPECT_EQ(sregs.flags, 0u);
  sregs.flags = KVM_SREGS2_FLAGS_PDPTRS_VALID;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_SREGS2, &sregs), -EINVAL);
}

TEST(Sregs, cr8_above_15_is_not_taken_over) {
  Guest guest;
  kvm_sregs sregs{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_SREGS, &sregs), 0);
  sregs.cr8 = 5;
  ASSERT_EQ(call(guest.vcpu, KVM_SET_SREGS, &sregs), 0);
  sregs.cr8 = 16;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_SREGS, &sregs), 0);
  ASSERT_EQ(call(guest.vcpu, KVM_GET_SREGS, &sregs), 0);
  EXPECT_EQ(sregs.cr8, 5u);
}

// --- 4.20 ---

struct OneLeaf {
  std::uint32_t nent = 1, padding = 0;
  kvm_cpuid_entry2 entry{};
};

TEST(Cpuid, linear_addresses_have_48_or_57_bits) {
  Guest guest;
  OneLeaf list;
  list.entry.function = 0x80000008;
  list.entry.eax = 40 << 8 | 40;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_CPUID2, &list), -EINVAL);
  list.entry.eax = 57 << 8 | 40;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_CPUID2, &list), 0);
  list.entry.eax = 40;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_CPUID2, &list), 0);
}

// --- 4.88 ---

TEST(SystemFd, emulated_cpuid_wants_clean_padding) {
  System system;
  SupportedCpuid list{};
  list.header.nent = 256;
  list.entries[200].padding[2] = 1;
  EXPECT_EQ(call(system.fd, KVM_GET_EMULATED_CPUID, &list), -EINVAL);
  list.header.nent = 200;
  EXPECT_EQ(call(system.fd, KVM_GET_EMULATED_CPUID, &list), 0);
  list.header.nent = 0;
  EXPECT_EQ(call(system.fd, KVM_GET_EMULATED_CPUID, &list), -E2BIG);
}

// --- 4.19 ---

TEST(Msrs, what_says_which_cpu_it_is_stays_once_the_cpu_has_run) {
  constexpr std::uint32_t kArchCapabilities = 0x10a;
  Guest guest;
  const std::uint64_t offered = guest.msr(kArchCapabilities);
  EXPECT_EQ(guest.set_msr(kArchCapabilities, 0), 1);
  EXPECT_EQ(guest.set_msr(kArchCapabilities, offered), 1);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.set_msr(kArchCapabilities, offered), 1);
  EXPECT_EQ(guest.set_msr(kArchCapabilities, offered ^ 1), 0);
}

// --- 4.32, 4.38, 4.39 ---

struct TwoCpus : Guest {
  explicit TwoCpus(std::initializer_list<std::uint8_t> code = {0xf4}) : Guest(code, Chips::kIrqchip) {}
  std::uint32_t state_of(int fd) {
    kvm_mp_state state{};
    EXPECT_EQ(call(fd, KVM_GET_MP_STATE, &state), 0);
    return state.mp_state;
  }
  // The local APIC of the first sends.
  void send(std::uint32_t low) {
    set_msr(0x1b, 0xfee00d00);  // x2APIC mode
    EXPECT_EQ(set_msr(0x830, std::uint64_t{1} << 32 | low), 1);
  }

  Handle second{call(vm, KVM_CREATE_VCPU, 1ul)};
};

TEST(MpState, init_and_sipi_show_before_the_cpu_has_run) {
  TwoCpus guest;
  guest.send(0x4500);
  EXPECT_EQ(guest.state_of(guest.second), static_cast<unsigned>(KVM_MP_STATE_INIT_RECEIVED));
  guest.send(0x4612);
  EXPECT_EQ(guest.state_of(guest.second), static_cast<unsigned>(KVM_MP_STATE_RUNNABLE));
  kvm_sregs sregs{};
  ASSERT_EQ(call(guest.second, KVM_GET_SREGS, &sregs), 0);
  EXPECT_EQ(sregs.cs.selector, 0x1200);
}

TEST(MpState, sipi_that_the_client_sets_has_started_the_cpu) {
  TwoCpus guest;
  kvm_vcpu_events events{};
  events.flags = KVM_VCPUEVENT_VALID_SIPI_VECTOR;
  events.sipi_vector = 0x34;
  ASSERT_EQ(call(guest.second, KVM_SET_VCPU_EVENTS, &events), 0);
  kvm_mp_state state{KVM_MP_STATE_SIPI_RECEIVED};
  ASSERT_EQ(call(guest.second, KVM_SET_MP_STATE, &state), 0);
  EXPECT_EQ(guest.state_of(guest.second), static_cast<unsigned>(KVM_MP_STATE_RUNNABLE));
  kvm_sregs sregs{};
  ASSERT_EQ(call(guest.second, KVM_GET_SREGS, &sregs), 0);
  EXPECT_EQ(sregs.cs.base, 0x34000u);
}

TEST(MpState, init_in_system_management_mode_is_einval) {
  TwoCpus guest;
  kvm_vcpu_events events{};
  events.flags = KVM_VCPUEVENT_VALID_SMM;
  events.smi.smm = 1;
  ASSERT_EQ(call(guest.vcpu, KVM_SET_VCPU_EVENTS, &events), 0);
  kvm_mp_state received{KVM_MP_STATE_INIT_RECEIVED}, started{KVM_MP_STATE_SIPI_RECEIVED},
      halted{KVM_MP_STATE_HALTED};
  EXPECT_EQ(call(guest.vcpu, KVM_SET_MP_STATE, &received), -EINVAL);
  EXPECT_EQ(call(guest.vcpu, KVM_SET_MP_STATE, &started), -EINVAL);
  EXPECT_EQ(call(guest.vcpu, KVM_SET_MP_STATE, &halted), 0);
}

TEST(VcpuEvents, system_management_mode_after_init_is_einval) {
  TwoCpus guest;
  kvm_mp_state received{KVM_MP_STATE_INIT_RECEIVED};
  ASSERT_EQ(call(guest.vcpu, KVM_SET_MP_STATE, &received), 0);
  kvm_vcpu_events events{};
  events.flags = KVM_VCPUEVENT_VALID_SMM;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_VCPU_EVENTS, &events), 0);
  events.smi.pending = 1;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_VCPU_EVENTS, &events), -EINVAL);
}

TEST(VcpuEvents, shadow_is_kept_and_left_alone_without_its_flag) {
  Guest guest;
  kvm_vcpu_events events{}, seen{};
  events.flags = KVM_VCPUEVENT_VALID_SHADOW;
  events.interrupt.shadow = KVM_X86_SHADOW_INT_STI;
  ASSERT_EQ(call(guest.vcpu, KVM_SET_VCPU_EVENTS, &events), 0);
  events.flags = 0;
  events.interrupt.shadow = 0;
  ASSERT_EQ(call(guest.vcpu, KVM_SET_VCPU_EVENTS, &events), 0);
  ASSERT_EQ(call(guest.vcpu, KVM_GET_VCPU_EVENTS, &seen), 0);
  EXPECT_EQ(seen.interrupt.shadow, KVM_X86_SHADOW_INT_STI);
  EXPECT_TRUE(seen.flags & KVM_VCPUEVENT_VALID_SHADOW);
}

// --- 4.29 ---

TEST(Clock, its_value_comes_with_the_hosts_tsc_and_time) {
  Vm vm;
  kvm_clock_data first{}, second{};
  ASSERT_EQ(call(vm.vm, KVM_GET_CLOCK, &first), 0);
  ASSERT_EQ(call(vm.vm, KVM_GET_CLOCK, &second), 0);
  EXPECT_EQ(first.flags, KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC);
  EXPECT_GT(second.host_tsc, first.host_tsc);
  EXPECT_GE(second.clock, first.clock);
  EXPECT_GT(first.realtime, 1'000'000'000'000'000'000u);  // later than 2001
  second.flags |= 1u << 31;
  EXPECT_EQ(call(vm.vm, KVM_SET_CLOCK, &second), -EINVAL);
}

// --- 4.71, 4.72 ---

TEST(Pit, speaker_shows_in_its_state) {
  Guest guest({0xb0, 0x02, 0xe6, 0x61, 0xe6, 0x10},
              Guest::Chips::kIrqchip);  // mov al,2; out 61h,al; out 10h,al
  kvm_pit_config config{};
  config.flags = KVM_PIT_SPEAKER_DUMMY;
  ASSERT_EQ(call(guest.vm, KVM_CREATE_PIT2, &config), 0);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->io.port, 0x10);
  kvm_pit_state2 state{};
  ASSERT_EQ(call(guest.vm, KVM_GET_PIT2, &state), 0);
  EXPECT_EQ(state.flags, static_cast<std::uint32_t>(KVM_PIT_FLAGS_SPEAKER_DATA_ON));
}

// --- 4.87 ---

TEST(GuestDebug, interrupts_are_held_back_if_the_client_wants) {
  Guest guest({0xfb, 0x90, 0x90, 0xf4});  // sti; nop; nop; hlt
  guest.set_handler(0x20, 0x2000, {0xe6, 0x12});
  kvm_guest_debug debug{};
  debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_BLOCKIRQ;
  ASSERT_EQ(call(guest.vcpu, KVM_SET_GUEST_DEBUG, &debug), 0);
  ASSERT_EQ(call(guest.vcpu, KVM_NMI), 0);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
  EXPECT_EQ(guest.regs().rip, Guest::kCode + 4);
}

// --- 4.97, 7.21 ---

// mov ecx,1bh; mov eax,0ffffffffh; mov edx,eax; wrmsr: no APIC base has such bits
#define BAD_APIC_BASE                                                                                     \
  {                                                                                                       \
    0x66, 0xb9, 0x1b, 0x00, 0x00, 0x00, 0x66, 0xb8, 0xff, 0xff, 0xff, 0xff, 0x66, 0x89, 0xc2, 0x0f, 0x30, \
        0xf4                                                                                              \
  }

TEST(MsrExits, invalid_write_is_the_clients_if_it_asks_for_them) {
  Guest guest(BAD_APIC_BASE);
  ASSERT_EQ(enable_cap(guest.vm, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_INVAL), 0);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_X86_WRMSR));
  EXPECT_EQ(guest.shared->msr.reason, static_cast<unsigned>(KVM_MSR_EXIT_REASON_INVAL));
  EXPECT_EQ(guest.shared->msr.index, 0x1bu);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
}

TEST(MsrExits, invalid_write_faults_if_only_unknown_ones_are_wanted) {
  Guest guest(BAD_APIC_BASE);
  guest.set_handler(13, 0x2000, {0xe6, 0x13});
  ASSERT_EQ(enable_cap(guest.vm, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_UNKNOWN), 0);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_IO));
  EXPECT_EQ(guest.shared->io.port, 0x13);
}

TEST(MsrExits, filter_without_ranges_allows_and_must_not_deny) {
  Guest guest({0x66, 0xb9, 0x1b, 0x00, 0x00, 0x00, 0x0f, 0x32, 0xf4});  // mov ecx,1bh; rdmsr; hlt
  kvm_msr_filter filter{};
  filter.flags = KVM_MSR_FILTER_DEFAULT_DENY;
  EXPECT_EQ(call(guest.vm, KVM_X86_SET_MSR_FILTER, &filter), -EINVAL);
  filter.flags = KVM_MSR_FILTER_DEFAULT_ALLOW;
  EXPECT_EQ(call(guest.vm, KVM_X86_SET_MSR_FILTER, &filter), 0);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
}

// --- 7.7 ---

TEST(EnableCap, wide_apic_ids_count_in_messages_and_in_the_state) {
  TwoCpus guest;
  ASSERT_EQ(enable_cap(guest.vm, KVM_CAP_X2APIC_API, KVM_X2APIC_API_USE_32BIT_IDS), 0);
  kvm_msi msi{};
  msi.address_lo = 0xfee00000;
  msi.address_hi = 1;
  EXPECT_EQ(call(guest.vm, KVM_SIGNAL_MSI, &msi), -EINVAL);
  msi.address_hi = 0x100;  // CPU 256
  EXPECT_EQ(call(guest.vm, KVM_SIGNAL_MSI, &msi), -EPERM);
  SupportedCpuid cpuid = guest.supported_cpuid();
  ASSERT_EQ(call(guest.second, KVM_SET_CPUID2, &cpuid), 0);
  struct {
    std::uint32_t nmsrs = 1, pad = 0;
    kvm_msr_entry entry{0x1b, 0, 0xfee00c00};
  } base;
  ASSERT_EQ(call(guest.second, KVM_SET_MSRS, &base), 1);
  kvm_lapic_state state{};
  ASSERT_EQ(call(guest.second, KVM_GET_LAPIC, &state), 0);
  EXPECT_EQ(state.regs[0x20], 1);  // not in the uppermost byte
  state.regs[0x20] = 2;
  EXPECT_EQ(call(guest.second, KVM_SET_LAPIC, &state), -EINVAL);
}

// --- Requests that need no look at their argument ---

TEST(VcpuFd, without_a_local_apic_bad_pointers_are_not_looked_at) {
  Guest guest;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_LAPIC, kBadPointer), -EINVAL);
  EXPECT_EQ(call(guest.vcpu, KVM_SET_VAPIC_ADDR, kBadPointer), -EINVAL);
  EXPECT_EQ(call(guest.vm, KVM_SET_IDENTITY_MAP_ADDR, kBadPointer), -EINVAL);
}

TEST(VcpuAttributes, flags_are_ignored) {
  Guest guest;
  kvm_device_attr attribute{};
  attribute.flags = ~0u;
  attribute.group = KVM_VCPU_TSC_CTRL;
  attribute.attr = KVM_VCPU_TSC_OFFSET;
  EXPECT_EQ(call(guest.vcpu, KVM_HAS_DEVICE_ATTR, &attribute), 0);
}

TEST(TscKhz, rates_have_31_bits) {
  Guest guest;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_TSC_KHZ, 0x7ffffffful), -EINVAL);
  EXPECT_EQ(call(guest.vcpu, KVM_SET_TSC_KHZ, 1'000'000ul | 1ul << 32),
            0);  // the upper half is not looked at
  EXPECT_EQ(call(guest.vcpu, KVM_GET_TSC_KHZ), 1'000'000);
}

TEST(GuestDebug, of_two_injected_exceptions_db_comes) {
  Guest guest;
  ASSERT_EQ(enable_cap(guest.vm, KVM_CAP_EXCEPTION_PAYLOAD, 1), 0);
  kvm_guest_debug debug{};
  debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP;
  ASSERT_EQ(call(guest.vcpu, KVM_SET_GUEST_DEBUG, &debug), 0);
  kvm_vcpu_events events{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_VCPU_EVENTS, &events), 0);
  EXPECT_EQ(events.exception.nr, 1);
}

// --- 4.52, 4.59, 4.71, 4.75, 4.117, 4.120 ---

TEST(IoEventFd, taking_away_what_cannot_be_there_is_enoent) {
  Vm vm;
  Handle event(eventfd(0, EFD_CLOEXEC));
  kvm_ioeventfd request{};
  request.len = 3;
  request.fd = event;
  EXPECT_EQ(call(vm.vm, KVM_IOEVENTFD, &request), -EINVAL);
  request.flags = KVM_IOEVENTFD_FLAG_DEASSIGN;
  EXPECT_EQ(call(vm.vm, KVM_IOEVENTFD, &request), -ENOENT);
}

TEST(IrqFd, taking_away_needs_no_irqchip) {
  Vm vm;
  Handle event(eventfd(0, EFD_CLOEXEC));
  kvm_irqfd request{};
  request.fd = static_cast<std::uint32_t>(static_cast<int>(event));
  EXPECT_EQ(call(vm.vm, KVM_IRQFD, &request), -EINVAL);
  request.flags = KVM_IRQFD_FLAG_DEASSIGN;
  EXPECT_EQ(call(vm.vm, KVM_IRQFD, &request), 0);
  request.fd = ~0u;
  EXPECT_EQ(call(vm.vm, KVM_IRQFD, &request), -EBADF);
}

TEST(SignalMsi, device_id_is_ignored) {
  TwoCpus guest;
  kvm_msi msi{};
  msi.address_lo = 0xfee00000;
  msi.data = 0x40;
  msi.flags = KVM_MSI_VALID_DEVID;
  EXPECT_EQ(call(guest.vm, KVM_SIGNAL_MSI, &msi), 0);  // the local APIC is off by software
  msi.flags = KVM_MSI_VALID_DEVID << 1;
  EXPECT_EQ(call(guest.vm, KVM_SIGNAL_MSI, &msi), -EINVAL);
}

TEST(SignalMsi, nobody_there_is_eperm) {
  TwoCpus guest;
  kvm_msi msi{};
  msi.address_lo = 0xfee00000 | 7 << 12;
  msi.data = 0x40;
  EXPECT_EQ(call(guest.vm, KVM_SIGNAL_MSI, &msi), -EPERM);
}

TEST(DirtyLog, clearing_looks_at_the_first_page_before_the_slot) {
  Vm vm;
  kvm_clear_dirty_log log{};
  log.slot = 3;
  EXPECT_EQ(call(vm.vm, KVM_CLEAR_DIRTY_LOG, &log), -ENOENT);
  log.first_page = 1;
  EXPECT_EQ(call(vm.vm, KVM_CLEAR_DIRTY_LOG, &log), -EINVAL);
}

TEST(PerformanceCounters, action_of_a_filter_is_looked_at_before_its_length) {
  Vm vm;
  kvm_pmu_event_filter filter{};
  filter.nevents = 301;
  EXPECT_EQ(call(vm.vm, KVM_SET_PMU_EVENT_FILTER, &filter), -E2BIG);
  filter.action = 2;
  EXPECT_EQ(call(vm.vm, KVM_SET_PMU_EVENT_FILTER, &filter), -EINVAL);
}

// --- 4.143 ---

TEST(PreFault, leaves_private_copies_of_a_file_unmade) {
  Guest guest;
  Handle file(memfd_create("prefault", MFD_CLOEXEC));
  ASSERT_EQ(ftruncate(file, 0x1000), 0);
  auto* page = static_cast<volatile std::uint8_t*>(
      mmap(nullptr, 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0));
  ASSERT_EQ(guest.set_region(1, 0x100000, 0x1000, reinterpret_cast<std::uint64_t>(page)), 0);
  kvm_pre_fault_memory range{0x100000, 0x1000, 0, {}};
  ASSERT_EQ(call(guest.vcpu, KVM_PRE_FAULT_MEMORY, &range), 0);
  EXPECT_EQ(range.size, 0u);
  // A page that is still the file's shows what is written to the file.
  const std::uint8_t byte = 0x5a;
  ASSERT_EQ(pwrite(file, &byte, 1, 0), 1);
  EXPECT_EQ(page[0], 0x5a);
}

// --- 7.31, 7.32, 7.35 ---

TEST(VmFd, boot_cpu_cannot_be_chosen_late_whatever_its_number) {
  Vm vm;
  EXPECT_EQ(call(vm.vm, KVM_SET_BOOT_CPU_ID, 1ul << 40), -EINVAL);
  Handle vcpu(call(vm.vm, KVM_CREATE_VCPU));
  EXPECT_EQ(call(vm.vm, KVM_SET_BOOT_CPU_ID, 1ul << 40), -EBUSY);
}

TEST(EnableCap, quirks_that_are_off_stay_off) {
  Guest guest({0xf4}, Guest::Chips::kIrqchip);
  ASSERT_EQ(enable_cap(guest.vm, KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_LINT0_REENABLED), 0);
  ASSERT_EQ(enable_cap(guest.vm, KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_LAPIC_MMIO_HOLE), 0);
  ASSERT_EQ(enable_cap(guest.vm, KVM_CAP_DISABLE_QUIRKS, 0), 0);
  Handle second(call(guest.vm, KVM_CREATE_VCPU, 1ul));
  kvm_lapic_state state{};
  ASSERT_EQ(call(second, KVM_GET_LAPIC, &state), 0);
  std::uint32_t lint0 = 0;
  std::memcpy(&lint0, state.regs + 0x350, sizeof lint0);
  EXPECT_EQ(lint0, 0x10000u);
}

TEST(Quirks, rip_is_behind_an_out_to_port_7e) {
  Guest guest({0xe6, 0x7e, 0xe6, 0x7f, 0xf4});  // out 7eh,al; out 7fh,al; hlt
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_IO));
  EXPECT_EQ(guest.shared->io.port, 0x7e);
  EXPECT_EQ(guest.regs().rip, Guest::kCode + 2);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->io.port, 0x7f);
  EXPECT_EQ(guest.regs().rip, Guest::kCode + 2);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
}

TEST(Quirks, rip_is_at_an_out_to_port_7e_if_the_quirk_is_off) {
  Guest guest({0xe6, 0x7e, 0xf4});
  ASSERT_EQ(enable_cap(guest.vm, KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_OUT_7E_INC_RIP), 0);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->io.port, 0x7e);
  EXPECT_EQ(guest.regs().rip, Guest::kCode);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
}

TEST(Quirks, foreign_hypercall_is_undefined_if_the_quirk_is_off) {
  Guest guest({0x0f, 0x01, 0xc1, 0x0f, 0x01, 0xd9, 0xf4});  // vmcall; vmmcall; hlt: one of them is foreign
  guest.set_handler(6, 0x2000, {0xe6, 0x13});
  SupportedCpuid cpuid = guest.supported_cpuid();
  ASSERT_EQ(call(guest.vcpu, KVM_SET_CPUID2, &cpuid), 0);
  ASSERT_EQ(enable_cap(guest.vm, KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_FIX_HYPERCALL_INSN), 0);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_IO));
  EXPECT_EQ(guest.shared->io.port, 0x13);
}

TEST(EnableCap, max_vcpu_id_of_0_settles_nothing) {
  Vm vm;
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_MAX_VCPU_ID, 0), 0);
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_MAX_VCPU_ID, 2), 0);
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_MAX_VCPU_ID, 0), -EINVAL);
}

TEST(EnableCap, max_vcpu_id_is_settled_by_the_first_vcpu) {
  Vm vm;
  const long most = call(vm.vm, KVM_CHECK_EXTENSION, static_cast<unsigned long>(KVM_CAP_MAX_VCPU_ID));
  Handle vcpu(call(vm.vm, KVM_CREATE_VCPU));
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_MAX_VCPU_ID, 2), -EINVAL);
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_MAX_VCPU_ID, static_cast<std::uint64_t>(most)), 0);
}

TEST(EnableCap, apic_bus_cycle_is_looked_at_before_the_irqchip) {
  Vm vm;
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_X86_APIC_BUS_CYCLES_NS, 0), -EINVAL);
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_X86_APIC_BUS_CYCLES_NS, (1u << 25) + 1), -EINVAL);
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_X86_APIC_BUS_CYCLES_NS, 1u << 25), -ENXIO);
}

}  // namespace
}  // namespace anykvm::test
