// KVM_X86_SETUP_MCE and KVM_X86_SET_MCE: banks, interrupts, #MC, shutdown.
#include "kvm.h"

namespace anykvm::test {
namespace {

constexpr std::uint64_t kCtlP = 1u << 8, kCmciP = 1u << 10;
constexpr std::uint64_t kValid = 1ull << 63, kUncorrected = 1ull << 61, kEnabled = 1ull << 60,
                        kSignalled = 1ull << 56;

long set_up(const Guest& guest, std::uint64_t capabilities) {
  return call(guest.vcpu, KVM_X86_SETUP_MCE, &capabilities);
}

long report(const Guest& guest, std::uint8_t bank, std::uint64_t status, std::uint64_t mcg_status = 0) {
  kvm_x86_mce mce{};
  mce.bank = bank;
  mce.status = status;
  mce.addr = 0x1234000;
  mce.mcg_status = mcg_status;
  return call(guest.vcpu, KVM_X86_SET_MCE, &mce);
}

TEST(MachineCheck, capabilities_and_banks_are_checked) {
  Guest guest;
  std::uint64_t supported = 0;
  ASSERT_EQ(call(guest.fd, KVM_X86_GET_MCE_CAP_SUPPORTED, &supported), 0);
  EXPECT_TRUE(supported & kCtlP);
  const long banks = call(guest.fd, KVM_CHECK_EXTENSION, static_cast<unsigned long>(KVM_CAP_MCE));
  ASSERT_GT(banks, 0);
  EXPECT_EQ(set_up(guest, kCtlP), -EINVAL);
  EXPECT_EQ(set_up(guest, kCtlP | static_cast<std::uint64_t>(banks + 1)), -EINVAL);
  EXPECT_EQ(set_up(guest, (1ull << 40) | 4), -EINVAL);
  EXPECT_EQ(set_up(guest, kCtlP | 4), 0);
  EXPECT_EQ(guest.msr(0x179), kCtlP | 4);
  EXPECT_EQ(report(guest, 4, kValid), -EINVAL);
  EXPECT_EQ(report(guest, 0, kUncorrected), -EINVAL);
  EXPECT_EQ(call(guest.vcpu, KVM_X86_SETUP_MCE, kBadPointer), -EFAULT);
  EXPECT_EQ(call(guest.vcpu, KVM_X86_SET_MCE, kBadPointer), -EFAULT);
}

TEST(MachineCheck, corrected_error_is_recorded_and_a_second_one_overflows) {
  Guest guest;
  ASSERT_EQ(set_up(guest, kCtlP | 4), 0);
  ASSERT_EQ(report(guest, 2, kValid | 0x11), 0);
  EXPECT_EQ(guest.msr(0x409), kValid | 0x11);
  EXPECT_EQ(guest.msr(0x40a), 0x1234000u);
  ASSERT_EQ(report(guest, 2, kValid | 0x12), 0);
  EXPECT_EQ(guest.msr(0x409), kValid | 1ull << 62 | 0x12);
}

TEST(MachineCheck, error_while_cr4_mce_is_clear_shuts_down) {
  Guest guest;
  ASSERT_EQ(set_up(guest, kCtlP | 4), 0);
  ASSERT_EQ(report(guest, 0, kValid | kUncorrected | kEnabled | kSignalled, 4), 0);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_SHUTDOWN));
}

TEST(MachineCheck, error_raises_vector_18) {
  Guest guest({0x90, 0xf4});
  guest.memory.data()[18 * 4 + 1] = 0x20;  // IVT entry: 0:2000H
  guest.memory.data()[0x2000] = 0xe6;      // out 33h,al
  guest.memory.data()[0x2001] = 0x33;
  kvm_sregs sregs{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_SREGS, &sregs), 0);
  sregs.cr4 |= 1u << 6;
  ASSERT_EQ(call(guest.vcpu, KVM_SET_SREGS, &sregs), 0);
  ASSERT_EQ(set_up(guest, kCtlP | 4), 0);
  ASSERT_EQ(report(guest, 1, kValid | kUncorrected | kEnabled | kSignalled, 5), 0);
  EXPECT_EQ(guest.msr(0x17a), 5u);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_IO));
  EXPECT_EQ(guest.shared->io.port, 0x33);
}

TEST(MachineCheck, lapic_has_the_cmci_entry_after_setup) {
  Guest guest({0xf4}, Guest::Chips::kIrqchip);
  std::uint64_t supported = 0;
  ASSERT_EQ(call(guest.fd, KVM_X86_GET_MCE_CAP_SUPPORTED, &supported), 0);
  if (on_real_kvm() && !(supported & kCmciP)) GTEST_SKIP() << "this KVM offers no CMCI";
  ASSERT_TRUE(supported & kCmciP);
  ASSERT_EQ(set_up(guest, kCtlP | kCmciP | 4), 0);
  kvm_lapic_state state{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_LAPIC, &state), 0);
  EXPECT_EQ(state.regs[0x32], 6);
  EXPECT_EQ(state.regs[0x2f2], 1);  // masked
}

}  // namespace
}  // namespace anykvm::test
