// What KVM offers to its guests beside hardware: hypercalls, steal time, features that the client enforces,
// exits that the client switches off.
#include <linux/kvm_para.h>
#include <unistd.h>

#include <cstring>
#include <ctime>
#include <thread>

#include "kvm.h"

namespace anykvm::test {
namespace {

constexpr std::uint32_t kStealTimeMsr = 0x4b564d03;

unsigned exit_of(const Guest& guest) { return guest.shared->exit_reason; }

void set_call(Guest& guest, std::uint64_t number, std::uint64_t rbx = 0, std::uint64_t rcx = 0,
              std::uint64_t rdx = 0, std::uint64_t rsi = 0) {
  kvm_regs regs = guest.regs();
  regs.rip = Guest::kCode;
  regs.rax = number;
  regs.rbx = rbx;
  regs.rcx = rcx;
  regs.rdx = rdx;
  regs.rsi = rsi;
  guest.set_regs(regs);
}

std::int32_t eax(Guest& guest) { return static_cast<std::int32_t>(guest.regs().rax); }

// --- Hypercalls ---

TEST(Hypercall, unknown_number_is_enosys) {
  Guest guest({0x0f, 0x01, 0xc1, 0xf4});  // vmcall; hlt
  set_call(guest, 999);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(eax(guest), -KVM_ENOSYS);
}

TEST(Hypercall, client_answers_map_gpa_range_when_it_asked_for_it) {
  Guest guest({0x0f, 0x01, 0xc1, 0xf4});
  set_call(guest, KVM_HC_MAP_GPA_RANGE, 0x1000, 1, 0);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(eax(guest), -KVM_ENOSYS);
  EXPECT_EQ(enable_cap(guest.vm, KVM_CAP_EXIT_HYPERCALL, 1), -EINVAL);
  ASSERT_EQ(enable_cap(guest.vm, KVM_CAP_EXIT_HYPERCALL, 1u << KVM_HC_MAP_GPA_RANGE), 0);
  set_call(guest, KVM_HC_MAP_GPA_RANGE, 0x1000, 2, 3);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_HYPERCALL));
  EXPECT_EQ(guest.shared->hypercall.nr, static_cast<unsigned>(KVM_HC_MAP_GPA_RANGE));
  EXPECT_EQ(guest.shared->hypercall.args[0], 0x1000u);
  EXPECT_EQ(guest.shared->hypercall.args[1], 2u);
  EXPECT_EQ(guest.shared->hypercall.args[2], 3u);
  EXPECT_EQ(guest.shared->hypercall.longmode, 0u);  // KVM_EXIT_HYPERCALL_LONG_MODE
  guest.shared->hypercall.ret = 42;
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_HLT));
  EXPECT_EQ(eax(guest), 42);
}

TEST(Hypercall, map_gpa_range_checks_its_range_first) {
  Guest guest({0x0f, 0x01, 0xc1, 0xf4});
  ASSERT_EQ(enable_cap(guest.vm, KVM_CAP_EXIT_HYPERCALL, 1u << KVM_HC_MAP_GPA_RANGE), 0);
  set_call(guest, KVM_HC_MAP_GPA_RANGE, 0x1001, 1, 0);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(eax(guest), -KVM_EINVAL);
}

TEST(Hypercall, vapic_poll_is_there_and_does_nothing) {
  Guest guest({0x0f, 0x01, 0xc1, 0xf4});
  set_call(guest, KVM_HC_VAPIC_POLL_IRQ);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(eax(guest), 0);
}

TEST(Hypercall, clock_pairing_gives_the_hosts_time_and_the_guests_tsc) {
  Guest guest({0x0f, 0x01, 0xc1, 0xf4});
  set_call(guest, KVM_HC_CLOCK_PAIRING, 0x5000, KVM_CLOCK_PAIRING_WALLCLOCK);
  const std::time_t before = std::time(nullptr);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(eax(guest), 0);
  kvm_clock_pairing pair{};
  std::memcpy(&pair, guest.memory.data() + 0x5000, sizeof pair);
  EXPECT_GE(pair.sec, before);
  EXPECT_LE(pair.sec, std::time(nullptr));
  EXPECT_GT(pair.tsc, 0u);
  set_call(guest, KVM_HC_CLOCK_PAIRING, 0x5000, 1);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(eax(guest), -KVM_EOPNOTSUPP);
  set_call(guest, KVM_HC_CLOCK_PAIRING, 0x10000000, KVM_CLOCK_PAIRING_WALLCLOCK);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(eax(guest), -KVM_EFAULT);
}

TEST(Hypercall, send_ipi_reaches_the_cpus_of_the_bitmap) {
  Guest guest({0x0f, 0x01, 0xc1, 0xe6, 0x10}, Guest::Chips::kIrqchip);  // vmcall; out 10h,al
  Handle second(call(guest.vm, KVM_CREATE_VCPU, 1ul));
  kvm_lapic_state state{};
  ASSERT_EQ(call(second, KVM_GET_LAPIC, &state), 0);
  state.regs[0xf1] = 1;  // software-enabled
  ASSERT_EQ(call(second, KVM_SET_LAPIC, &state), 0);
  set_call(guest, KVM_HC_SEND_IPI, 2, 0, 0, 0x45);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_IO));
  EXPECT_EQ(eax(guest), 1);
  ASSERT_EQ(call(second, KVM_GET_LAPIC, &state), 0);
  EXPECT_EQ(state.regs[0x220] & 0x20, 0x20);  // IRR, vector 45H
}

TEST(Hypercall, kick_ends_a_halt_without_interrupts) {
  Guest guest({0x0f, 0x01, 0xc1, 0xe6, 0x10}, Guest::Chips::kIrqchip);
  Handle second(call(guest.vm, KVM_CREATE_VCPU, 1ul));
  auto* shared = static_cast<kvm_run*>(kvm_mmap(guest.shared_size, second));
  guest.memory.data()[0x4000] = 0xe6;  // out 11h,al
  guest.memory.data()[0x4001] = 0x11;
  kvm_sregs sregs{};
  ASSERT_EQ(call(second, KVM_GET_SREGS, &sregs), 0);
  sregs.cs.base = sregs.cs.selector = 0;
  ASSERT_EQ(call(second, KVM_SET_SREGS, &sregs), 0);
  kvm_regs regs{};
  regs.rip = 0x4000;
  regs.rflags = 2;
  ASSERT_EQ(call(second, KVM_SET_REGS, &regs), 0);
  kvm_mp_state halted{KVM_MP_STATE_HALTED};
  ASSERT_EQ(call(second, KVM_SET_MP_STATE, &halted), 0);
  std::thread waiter([&] { EXPECT_EQ(call(second, KVM_RUN), 0); });
  usleep(10'000);
  set_call(guest, KVM_HC_KICK_CPU, 0, 1);
  EXPECT_EQ(guest.run(), 0);
  waiter.join();
  EXPECT_EQ(shared->exit_reason, static_cast<unsigned>(KVM_EXIT_IO));
  EXPECT_EQ(shared->io.port, 0x11);
  munmap(shared, guest.shared_size);
}

// --- The clock ---

TEST(KvmClock, guest_learns_that_it_was_stopped) {
  Guest guest({0xe6, 0x10});
  EXPECT_EQ(call(guest.vcpu, KVM_KVMCLOCK_CTRL), -EINVAL);
  ASSERT_EQ(guest.set_msr(0x4b564d01, 0x4001), 1);
  ASSERT_EQ(call(guest.vcpu, KVM_KVMCLOCK_CTRL), 0);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.memory.data()[0x4000 + 29] & 2, 2);  // PVCLOCK_GUEST_STOPPED
}

// --- Features that the client enforces ---

// mov ecx,4b564d01h; rdmsr; hlt. Vector 13: out 13h,al.
TEST(PvFeatures, msr_of_a_feature_that_cpuid_lacks_faults_if_enforced) {
  Guest guest({0x66, 0xb9, 0x01, 0x4d, 0x56, 0x4b, 0x0f, 0x32, 0xf4});
  guest.memory.data()[13 * 4 + 1] = 0x20;
  guest.memory.data()[0x2000] = 0xe6;
  guest.memory.data()[0x2001] = 0x13;
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_HLT));
  ASSERT_EQ(enable_cap(guest.vcpu, KVM_CAP_ENFORCE_PV_FEATURE_CPUID, 1), 0);
  guest.start_at_code();
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_IO));
}

TEST(PvFeatures, call_of_a_feature_that_cpuid_lacks_is_enosys_if_enforced) {
  Guest guest({0x0f, 0x01, 0xc1, 0xf4});
  ASSERT_EQ(enable_cap(guest.vcpu, KVM_CAP_ENFORCE_PV_FEATURE_CPUID, 1), 0);
  set_call(guest, KVM_HC_SCHED_YIELD);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(eax(guest), -KVM_ENOSYS);
}

TEST(EnableCapVcpu, unknown_capabilities_and_bad_pointers_fail) {
  Guest guest;
  EXPECT_EQ(enable_cap(guest.vcpu, KVM_CAP_USER_MEMORY, 1), -EINVAL);
  EXPECT_EQ(call(guest.vcpu, KVM_ENABLE_CAP, kBadPointer), -EFAULT);
}

// --- Steal time ---

TEST(StealTime, record_is_kept_while_the_cpu_runs_and_says_when_it_does_not) {
  Guest guest({0xe6, 0x10, 0xe6, 0x10});  // out 10h,al, twice
  EXPECT_EQ(guest.set_msr(kStealTimeMsr, 0x5000 | 0x3f), 0);
  ASSERT_EQ(guest.set_msr(kStealTimeMsr, 0x5000 | 1), 1);
  ASSERT_EQ(guest.run(), 0);
  std::uint32_t version = 0, after = 0;
  memcpy(&version, guest.memory.data() + 0x5008, sizeof version);
  EXPECT_NE(version, 0u);
  EXPECT_EQ(version % 2, 0u);
  usleep(2'000);
  ASSERT_EQ(guest.run(), 0);
  memcpy(&after, guest.memory.data() + 0x5008, sizeof after);
  EXPECT_GT(after, version);
  EXPECT_EQ(guest.memory.data()[0x5010] & 1, 1);  // it does not run now
}

TEST(StealTime, flush_asked_for_while_the_cpu_was_away_is_done_when_it_comes_back) {
  // mov al,[203000h]; out 10h,al, twice
  Guest guest(
      {0xa0, 0x00, 0x30, 0x20, 0, 0, 0, 0, 0, 0xe6, 0x10, 0xa0, 0x00, 0x30, 0x20, 0, 0, 0, 0, 0, 0xe6, 0x10});
  guest.enter_long_mode();
  Pages other(0x10000);
  ASSERT_EQ(guest.set_region(1, 0x400000, other.size(), other.address()), 0);
  guest.memory.data()[0x3000] = 1;
  other.data()[0x3000] = 2;
  const auto map_second_large_page = [&](std::uint64_t entry) {
    memcpy(guest.memory.data() + 0xb008, &entry, sizeof entry);
  };
  map_second_large_page(0x83);
  ASSERT_EQ(guest.set_msr(kStealTimeMsr, 0x5000 | 1), 1);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.regs().rax & 0xff, 1u);
  map_second_large_page(0x400083);
  guest.memory.data()[0x5010] |= 2;  // KVM_VCPU_FLUSH_TLB, as another CPU of the guest would
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.regs().rax & 0xff, 2u);
  EXPECT_EQ(guest.memory.data()[0x5010], 1);
}

// --- Ends of interrupts in memory ---

constexpr std::uint32_t kPvEoiMsr = 0x4b564d04;
constexpr std::uint8_t kVector = 0x50;

// sti; hlt. Vector 50H: lock btr word [4000h],0; setc al; out 10h,al.
struct PvEoiGuest : Guest {
  PvEoiGuest() : Guest({0xfb, 0xf4}, Chips::kIrqchip) {
    set_lapic(0xf0, 0x1ff);     // software-enabled
    set_lapic(0x350, 0x10000);  // nothing from the PIC
    set_handler(kVector, 0x2000, {0xf0, 0x0f, 0xba, 0x36, 0x00, 0x40, 0x00, 0x0f, 0x92, 0xc0, 0xe6, 0x10});
    EXPECT_EQ(set_msr(kPvEoiMsr, 0x4001), 1);
  }
  long send(std::uint8_t vector) {
    kvm_msi msi{};
    msi.address_lo = 0xfee00000;
    msi.data = vector;
    return call(vm, KVM_SIGNAL_MSI, &msi);
  }
  bool in_service(std::uint8_t vector) {
    kvm_lapic_state state{};
    EXPECT_EQ(call(vcpu, KVM_GET_LAPIC, &state), 0);
    return state.regs[0x100 + vector / 32 * 0x10 + vector % 32 / 8] & 1 << vector % 8;
  }
};

TEST(PvEoi, guest_that_clears_the_bit_has_ended_the_interrupt) {
  PvEoiGuest guest;
  ASSERT_EQ(guest.send(kVector), 1);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(guest.shared->io.port, 0x10);
  EXPECT_EQ(eax(guest) & 0xff, 1);
  EXPECT_FALSE(guest.in_service(kVector));
}

TEST(PvEoi, bit_is_taken_back_when_the_client_looks) {
  PvEoiGuest guest;
  guest.set_handler(kVector, 0x2000, {0xe6, 0x11});  // out 11h,al
  ASSERT_EQ(guest.send(kVector), 1);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(guest.shared->io.port, 0x11);
  EXPECT_EQ(guest.memory.data()[0x4000], 0);
  EXPECT_TRUE(guest.in_service(kVector));
}

// The IOAPIC's level-triggered pins, the PIT and resampling irqfds wait for the EOI.
TEST(PvEoi, bit_stays_clear_for_an_interrupt_of_the_ioapic) {
  PvEoiGuest guest;
  kvm_irqchip chip{};
  chip.chip_id = KVM_IRQCHIP_IOAPIC;
  ASSERT_EQ(call(guest.vm, KVM_GET_IRQCHIP, &chip), 0);
  chip.chip.ioapic.redirtbl[5].bits = kVector;
  ASSERT_EQ(call(guest.vm, KVM_SET_IRQCHIP, &chip), 0);
  kvm_irq_level line{{5}, 1};
  ASSERT_EQ(call(guest.vm, KVM_IRQ_LINE, &line), 0);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(guest.shared->io.port, 0x10);
  EXPECT_EQ(eax(guest) & 0xff, 0);
  EXPECT_TRUE(guest.in_service(kVector));
}

// Vector 50H asks for 60H, ends itself as it was told to, and returns; 60H says that it came.
TEST(PvEoi, next_interrupt_comes_whichever_way_the_last_one_ended) {
  PvEoiGuest guest;
  kvm_sregs sregs{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_SREGS, &sregs), 0);
  sregs.apic_base |= 0xc00;  // x2APIC mode
  ASSERT_EQ(call(guest.vcpu, KVM_SET_SREGS, &sregs), 0);
  guest.set_handler(kVector, 0x2000,
                    {0x66, 0xb9, 0x3f, 0x08, 0x00, 0x00,                    // mov ecx,83fh: self-IPI
                     0x66, 0xb8, 0x60, 0x00, 0x00, 0x00,                    // mov eax,60h
                     0x66, 0x31, 0xd2, 0x0f, 0x30,                          // xor edx,edx; wrmsr
                     0xf0, 0x0f, 0xba, 0x36, 0x00, 0x40, 0x00, 0x72, 0x0b,  // lock btr word [4000h],0; jc +11
                     0x66, 0xb9, 0x0b, 0x08, 0x00, 0x00,                    // mov ecx,80bh: EOI
                     0x66, 0x31, 0xc0, 0x0f, 0x30,                          // xor eax,eax; wrmsr
                     0xcf});                                                // iret
  guest.set_handler(0x60, 0x3000, {0xe6, 0x12});                            // out 12h,al
  ASSERT_EQ(guest.send(kVector), 1);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_IO));
  EXPECT_EQ(guest.shared->io.port, 0x12);
  EXPECT_FALSE(guest.in_service(kVector));
  EXPECT_TRUE(guest.in_service(0x60));
}

TEST(PvEoi, address_must_be_aligned_and_in_guest_memory) {
  Guest guest({0xf4}, Guest::Chips::kIrqchip);
  EXPECT_EQ(guest.set_msr(kPvEoiMsr, 0x4003), 0);
  EXPECT_EQ(guest.set_msr(kPvEoiMsr, 0x10000001), 0);
  EXPECT_EQ(guest.set_msr(kPvEoiMsr, 0x10000000), 1);
}

// --- Exits that are switched off ---

TEST(DisableExits, halt_inside_waits_for_a_signal_or_an_interrupt) {
  Guest guest;  // hlt
  EXPECT_EQ(enable_cap(guest.vm, KVM_CAP_X86_DISABLE_EXITS, 1u << 20), -EINVAL);
  ASSERT_EQ(enable_cap(guest.vm, KVM_CAP_X86_DISABLE_EXITS, KVM_X86_DISABLE_EXITS_HLT), 0);
  EXPECT_EQ(guest.run_until_kicked(), -EINTR);
  guest.memory.data()[0x80 * 4 + 1] = 0x20;  // vector 80H: out 20h,al
  guest.memory.data()[0x2000] = 0xe6;
  guest.memory.data()[0x2001] = 0x20;
  kvm_interrupt interrupt{0x80};
  ASSERT_EQ(call(guest.vcpu, KVM_INTERRUPT, &interrupt), 0);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_IO));
  EXPECT_EQ(guest.shared->io.port, 0x20);
}

}  // namespace
}  // namespace anykvm::test
