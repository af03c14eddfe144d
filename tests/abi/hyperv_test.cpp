// Hyper-V's interface to guests (KVM_CAP_HYPERV and its relatives): reference time, synthetic interrupts and
// timers, hypercalls, exits.
#include <sys/eventfd.h>
#include <unistd.h>

#include <cstring>

#include "kvm.h"

namespace anykvm::test {
namespace {

enum Msr : std::uint32_t {
  kGuestOsId = 0x40000000,
  kVpIndex = 0x40000002,
  kReferenceCounter = 0x40000020,
  kReferenceTsc = 0x40000021,
  kSynicControl = 0x40000080,
  kMessagePage = 0x40000083,
  kSint2 = 0x40000092,
  kSint3 = 0x40000093,
  kTimer0Config = 0x400000b0,
  kTimer0Count = 0x400000b1,
  kTimer1Config = 0x400000b2,
  kTimer1Count = 0x400000b3,
  kCrashControl = 0x40000105,
};

// Its CPUID shows the interface instead of KVM's own. `features` false: but no feature of it.
struct HypervGuest : Guest {
  explicit HypervGuest(std::initializer_list<std::uint8_t> code, bool long_mode = false, bool features = true)
      : Guest(code, Chips::kIrqchip) {
    if (long_mode) enter_long_mode();
    show_hyperv(features);
    set_lapic(0xf0, 0x1ff);  // software-enabled
  }

  // An interrupt request with this vector is in the local APIC.
  bool requested(std::uint8_t vector) {
    kvm_lapic_state lapic{};
    EXPECT_EQ(call(vcpu, KVM_GET_LAPIC, &lapic), 0);
    return lapic.regs[0x200 + vector / 32 * 16 + vector % 32 / 8] >> (vector % 8) & 1;
  }
  template <class T>
  T load(std::size_t address) {
    T value;
    std::memcpy(&value, memory.data() + address, sizeof value);
    return value;
  }
  // 64-bit: RIP at the code, which makes the hypercall.
  void set_call(std::uint64_t control, std::uint64_t rdx, std::uint64_t r8) {
    kvm_regs regs = this->regs();
    regs.rip = kCode;
    regs.rcx = control;
    regs.rdx = rdx;
    regs.r8 = r8;
    set_regs(regs);
  }
};

unsigned exit_of(const Guest& guest) { return guest.shared->exit_reason; }

struct ReferencePage {
  std::uint32_t sequence, reserved;
  std::uint64_t scale;
  std::int64_t offset;

  std::uint64_t time_at(std::uint64_t tsc) const {
    const auto product = static_cast<unsigned __int128>(tsc) * scale;
    return static_cast<std::uint64_t>(product >> 64) + static_cast<std::uint64_t>(offset);
  }
};

// --- CPUID ---

TEST(Hyperv, supported_cpuid_needs_room_for_all_of_it) {
  System system;
  SupportedCpuid list{};
  EXPECT_EQ(call(system.fd, KVM_GET_SUPPORTED_HV_CPUID, &list), -E2BIG);
  EXPECT_EQ(call(system.fd, KVM_GET_SUPPORTED_HV_CPUID, kBadPointer), -EFAULT);
  list.header.nent = 256;
  ASSERT_EQ(call(system.fd, KVM_GET_SUPPORTED_HV_CPUID, &list), 0);
  EXPECT_EQ(list.entries[0].function, 0x40000000u);
  EXPECT_EQ(list.entries[1].eax, 0x31237648u);  // "Hv#1"
}

// mov ecx,40000002h; rdmsr; out 11h,al. #GP: out 13h,al.
constexpr std::initializer_list<std::uint8_t> kReadVpIndex = {0x66, 0xb9, 0x02, 0x00, 0x00,
                                                              0x40, 0x0f, 0x32, 0xe6, 0x11};

TEST(Hyperv, client_numbers_virtual_processors) {
  HypervGuest guest(kReadVpIndex);
  EXPECT_EQ(guest.set_msr(kVpIndex, 100'000), 0);
  ASSERT_EQ(guest.set_msr(kVpIndex, 5), 1);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->io.port, 0x11);
  EXPECT_EQ(guest.regs().rax, 5u);
}

TEST(Hyperv, msrs_are_not_there_for_a_guest_without_the_interface) {
  Guest guest(kReadVpIndex);
  guest.set_handler(13, 0x2000, {0xe6, 0x13});
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->io.port, 0x13);
}

TEST(Hyperv, msr_whose_feature_cpuid_lacks_faults_if_enforced) {
  HypervGuest guest(kReadVpIndex, false, false);
  guest.set_handler(13, 0x2000, {0xe6, 0x13});
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->io.port, 0x11);
  ASSERT_EQ(enable_cap(guest.vcpu, KVM_CAP_HYPERV_ENFORCE_CPUID, 1), 0);
  guest.start_at_code();
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->io.port, 0x13);
}

// --- Time ---

TEST(Hyperv, seed_X7_time_from_the_reference_tsc_page_is_that_of_the_counter) {
  HypervGuest guest({0xe6, 0x10});
  ASSERT_EQ(guest.set_msr(kReferenceTsc, 0x4001), 1);
  ASSERT_EQ(guest.run(), 0);
  const auto page = guest.load<ReferencePage>(0x4000);
  EXPECT_NE(page.sequence, 0u);
  const std::uint64_t before = guest.msr(kReferenceCounter);
  const std::uint64_t between = page.time_at(guest.msr(0x10));
  EXPECT_LE(before, between);
  EXPECT_LE(between, guest.msr(kReferenceCounter));
}

TEST(Hyperv, seed_X7_reference_tsc_page_follows_the_clock) {
  HypervGuest guest({0xe6, 0x10});
  ASSERT_EQ(guest.set_msr(kReferenceTsc, 0x4001), 1);
  ASSERT_EQ(guest.run(), 0);
  const auto page = guest.load<ReferencePage>(0x4000);
  kvm_clock_data clock{};
  clock.clock = 1'000'000'000'000;  // ns
  ASSERT_EQ(call(guest.vm, KVM_SET_CLOCK, &clock), 0);
  ASSERT_EQ(guest.run(), 0);
  const auto later = guest.load<ReferencePage>(0x4000);
  EXPECT_NE(later.sequence, page.sequence);
  EXPECT_GE(later.time_at(guest.msr(0x10)), 10'000'000'000u);  // units of 100 ns
}

TEST(Hyperv, seed_X7_reference_tsc_page_outside_memory_leaves_the_counter) {
  HypervGuest guest({0xe6, 0x10});
  ASSERT_EQ(guest.set_msr(kReferenceTsc, 0x40000001), 1);
  ASSERT_EQ(guest.run(), 0);
  const std::uint64_t before = guest.msr(kReferenceCounter);
  EXPECT_LE(before, guest.msr(kReferenceCounter));
}

// --- Synthetic interrupts and timers ---

TEST(Hyperv, synthetic_interrupts_need_a_local_apic_and_the_capability) {
  Guest without;
  EXPECT_EQ(enable_cap(without.vcpu, KVM_CAP_HYPERV_SYNIC, 0), -EINVAL);
  HypervGuest guest({0xe6, 0x10});
  EXPECT_EQ(guest.set_msr(kSint2, 0x40), 0);
  EXPECT_EQ(enable_cap(guest.vcpu, KVM_CAP_HYPERV_SYNIC2, 1), -EINVAL);
  ASSERT_EQ(enable_cap(guest.vcpu, KVM_CAP_HYPERV_SYNIC2, 0), 0);
  EXPECT_EQ(guest.set_msr(kSint2, 0x40), 1);
}

TEST(Hyperv, timer_in_the_past_leaves_a_message_and_interrupts) {
  HypervGuest guest({0xe6, 0x10});
  ASSERT_EQ(enable_cap(guest.vcpu, KVM_CAP_HYPERV_SYNIC2, 0), 0);
  guest.set_msr(kSint2, 0x40);
  guest.set_msr(kMessagePage, 0x5001);
  guest.set_msr(kTimer0Config, 2 << 16 | 1);
  guest.set_msr(kTimer0Count, 1);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.load<std::uint32_t>(0x5200), 0x80000010u);
  EXPECT_EQ(guest.load<std::uint64_t>(0x5200 + 24), 1u);  // when it expired
  EXPECT_TRUE(guest.requested(0x40));
  EXPECT_EQ(guest.msr(kTimer0Config) & 1, 0u);
}

TEST(Hyperv, direct_timer_wakes_a_halted_cpu) {
  HypervGuest guest({0xfb, 0xf4, 0xeb, 0xfd});  // sti; hlt; jmp to hlt
  ASSERT_EQ(enable_cap(guest.vcpu, KVM_CAP_HYPERV_SYNIC2, 0), 0);
  guest.set_handler(0x42, 0x2000, {0xe6, 0x12});
  guest.set_msr(kTimer1Config, 0x42 << 4 | 1 << 12 | 1);
  guest.set_msr(kTimer1Count, guest.msr(kReferenceCounter) + 20'000);  // 2 ms
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->io.port, 0x12);
}

TEST(Hyperv, gsi_routed_to_a_synthetic_interrupt_raises_its_vector) {
  HypervGuest guest({0xe6, 0x10});
  ASSERT_EQ(enable_cap(guest.vcpu, KVM_CAP_HYPERV_SYNIC2, 0), 0);
  guest.set_msr(kSint3, 0x41);
  struct {
    kvm_irq_routing header;
    kvm_irq_routing_entry entry;
  } routing{};
  routing.header.nr = 1;
  routing.entry.gsi = 30;
  routing.entry.type = KVM_IRQ_ROUTING_HV_SINT;
  routing.entry.u.hv_sint = {0, 3};
  ASSERT_EQ(call(guest.vm, KVM_SET_GSI_ROUTING, &routing), 0);
  kvm_irq_level line{{30}, 1};
  ASSERT_EQ(call(guest.vm, KVM_IRQ_LINE, &line), 0);
  EXPECT_TRUE(guest.requested(0x41));
}

// mov ecx,40000080h; mov eax,1; xor edx,edx; wrmsr; out 10h,al
TEST(Hyperv, client_hears_of_the_synic_s_registers) {
  HypervGuest guest({0x66, 0xb9, 0x80, 0x00, 0x00, 0x40, 0x66, 0xb8, 0x01, 0x00, 0x00, 0x00, 0x66, 0x31, 0xd2,
                     0x0f, 0x30, 0xe6, 0x10});
  ASSERT_EQ(enable_cap(guest.vcpu, KVM_CAP_HYPERV_SYNIC2, 0), 0);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_HYPERV));
  EXPECT_EQ(guest.shared->hyperv.type, static_cast<unsigned>(KVM_EXIT_HYPERV_SYNIC));
  EXPECT_EQ(guest.shared->hyperv.u.synic.msr, static_cast<unsigned>(kSynicControl));
  EXPECT_EQ(guest.shared->hyperv.u.synic.control, 1u);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->io.port, 0x10);
}

// mov ecx,40000105h; mov edx,80000000h; wrmsr; out 10h,al
TEST(Hyperv, crash_of_the_guest_is_an_event_for_the_client) {
  HypervGuest guest(
      {0x66, 0xb9, 0x05, 0x01, 0x00, 0x40, 0x66, 0xba, 0x00, 0x00, 0x00, 0x80, 0x0f, 0x30, 0xe6, 0x10});
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_SYSTEM_EVENT));
  EXPECT_EQ(guest.shared->system_event.type, static_cast<unsigned>(KVM_SYSTEM_EVENT_CRASH));
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->io.port, 0x10);
}

TEST(Hyperv, reset_by_the_guest_is_an_event_for_the_client) {
  // mov ecx,40000003h; mov eax,1; xor edx,edx; wrmsr
  HypervGuest guest(
      {0x66, 0xb9, 0x03, 0x00, 0x00, 0x40, 0x66, 0xb8, 0x01, 0x00, 0x00, 0x00, 0x66, 0x31, 0xd2, 0x0f, 0x30});
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_SYSTEM_EVENT));
  EXPECT_EQ(guest.shared->system_event.type, static_cast<unsigned>(KVM_SYSTEM_EVENT_RESET));
}

TEST(Hyperv, client_is_the_kernel_debugger_s_other_end) {
  // mov ecx,400000f1h; mov eax,1; xor edx,edx; wrmsr; mov ecx,400000f2h; rdmsr; hlt
  HypervGuest guest({0x66, 0xb9, 0xf1, 0x00, 0x00, 0x40, 0x66, 0xb8, 0x01, 0x00, 0x00, 0x00, 0x66, 0x31,
                     0xd2, 0x0f, 0x30, 0x66, 0xb9, 0xf2, 0x00, 0x00, 0x40, 0x0f, 0x32, 0xe6, 0x10});
  ASSERT_EQ(guest.set_msr(0x400000f3, 0x5000), 1);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_HYPERV));
  EXPECT_EQ(guest.shared->hyperv.type, static_cast<unsigned>(KVM_EXIT_HYPERV_SYNDBG));
  EXPECT_EQ(guest.shared->hyperv.u.syndbg.msr, 0x400000f1u);
  EXPECT_EQ(guest.shared->hyperv.u.syndbg.control, 1u);
  EXPECT_EQ(guest.shared->hyperv.u.syndbg.send_page, 0x5000u);
  guest.shared->hyperv.u.syndbg.status = 2;
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_IO));
  EXPECT_EQ(guest.regs().rax, 2u);
}

// --- Hypercalls ---

constexpr std::initializer_list<std::uint8_t> kCallAndTell = {0x0f, 0x01, 0xc1, 0xe6, 0x10};  // vmcall; out

std::uint64_t result_of(HypervGuest& guest, std::uint64_t control, std::uint64_t rdx = 0,
                        std::uint64_t r8 = 0) {
  guest.set_call(control, rdx, r8);
  EXPECT_EQ(guest.run(), 0);
  EXPECT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_IO));
  return guest.regs().rax;
}

TEST(Hyperv, hypercall_s_status_is_its_result) {
  HypervGuest guest(kCallAndTell, true);
  ASSERT_EQ(guest.set_msr(kGuestOsId, 1), 1);
  EXPECT_EQ(result_of(guest, 0xbeef), 2u);                               // no such code
  EXPECT_EQ(result_of(guest, 0x0002 | 1u << 27), 3u);                    // reserved bits
  EXPECT_EQ(result_of(guest, 0x0002, 0x4000), 0u);                       // flush; all processors
  EXPECT_EQ(result_of(guest, 0x0002, 0x40000000), 3u);                   // parameters outside memory
  EXPECT_EQ(result_of(guest, 0x0003, 0x4000), 3u);                       // a list of nothing
  EXPECT_EQ(result_of(guest, 0x0003 | 2ull << 32, 0x4000), 2ull << 32);  // both done
  EXPECT_EQ(result_of(guest, 0x000b | 1 << 16, 8, 1), 3u);               // IPI with a vector below 16
}

TEST(Hyperv, fast_ipi_interrupts_the_processors_of_its_mask) {
  HypervGuest guest(kCallAndTell, true);
  guest.set_msr(kGuestOsId, 1);
  EXPECT_EQ(result_of(guest, 0x000b | 1 << 16, 0x45, 2), 0u);
  EXPECT_FALSE(guest.requested(0x45));
  EXPECT_EQ(result_of(guest, 0x000b | 1 << 16, 0x45, 1), 0u);
  EXPECT_TRUE(guest.requested(0x45));
}

TEST(Hyperv, event_signals_the_connection_s_eventfd) {
  HypervGuest guest(kCallAndTell, true);
  guest.set_msr(kGuestOsId, 1);
  const int event = eventfd(0, EFD_NONBLOCK);
  kvm_hyperv_eventfd connection{7, event, 0, {}};
  ASSERT_EQ(call(guest.vm, KVM_HYPERV_EVENTFD, &connection), 0);
  EXPECT_EQ(call(guest.vm, KVM_HYPERV_EVENTFD, &connection), -EEXIST);
  EXPECT_EQ(result_of(guest, 0x005d | 1 << 16, 7), 0u);
  std::uint64_t count = 0;
  EXPECT_EQ(read(event, &count, sizeof count), static_cast<ssize_t>(sizeof count));
  connection.flags = KVM_HYPERV_EVENTFD_DEASSIGN;
  EXPECT_EQ(call(guest.vm, KVM_HYPERV_EVENTFD, &connection), 0);
  EXPECT_EQ(call(guest.vm, KVM_HYPERV_EVENTFD, &connection), -ENOENT);
  connection.conn_id = 1u << 24;
  EXPECT_EQ(call(guest.vm, KVM_HYPERV_EVENTFD, &connection), -EINVAL);
  close(event);
}

TEST(Hyperv, client_answers_messages) {
  HypervGuest guest(kCallAndTell, true);
  guest.set_msr(kGuestOsId, 1);
  EXPECT_EQ(result_of(guest, 0x005c, 0x4000), 3u);  // nobody could answer by a message
  ASSERT_EQ(enable_cap(guest.vcpu, KVM_CAP_HYPERV_SYNIC2, 0), 0);
  guest.set_call(0x005c, 0x4000, 0x4800);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_HYPERV));
  EXPECT_EQ(guest.shared->hyperv.type, static_cast<unsigned>(KVM_EXIT_HYPERV_HCALL));
  EXPECT_EQ(guest.shared->hyperv.u.hcall.input, 0x005cu);
  EXPECT_EQ(guest.shared->hyperv.u.hcall.params[0], 0x4000u);
  EXPECT_EQ(guest.shared->hyperv.u.hcall.params[1], 0x4800u);
  guest.shared->hyperv.u.hcall.result = 0x12;
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_IO));
  EXPECT_EQ(guest.regs().rax, 0x12u);
}

TEST(Hyperv, hypercall_in_real_mode_is_undefined) {
  HypervGuest guest(kCallAndTell);
  guest.set_msr(kGuestOsId, 1);
  guest.set_handler(6, 0x2000, {0xe6, 0x13});
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->io.port, 0x13);
}

}  // namespace
}  // namespace anykvm::test
