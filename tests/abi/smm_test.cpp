// System-management mode: SMIs, the saved state, RSM, and the address space of its own.
#include "kvm.h"

namespace anykvm::test {
namespace {

constexpr std::uint32_t kSmbaseMsr = 0x9e, kSmiCountMsr = 0x34;

constexpr std::uint32_t kSmmSlot = 1 << 16;  // the first of the second address space

// SMRAM in the guest's 64 KiB, which both address spaces have: the handler is at 8000H, the saved state at
// FE00H.
struct SmmGuest : Guest {
  explicit SmmGuest(std::initializer_list<std::uint8_t> handler, Chips chips = Chips::kNone)
      : Guest({0xe6, 0x10, 0xe6, 0x11}, chips) {  // out 10h,al; out 11h,al
    EXPECT_EQ(set_msr(kSmbaseMsr, 0), 1);
    EXPECT_EQ(set_region(kSmmSlot, 0, 0x10000, memory.address()), 0);
    std::copy(handler.begin(), handler.end(), memory.data() + 0x8000);
  }
  // Runs until a port is written; which one.
  int run_to_port() {
    EXPECT_EQ(run(), 0);
    EXPECT_EQ(shared->exit_reason, static_cast<unsigned>(KVM_EXIT_IO));
    return shared->io.port;
  }
  bool in_smm() {
    kvm_vcpu_events events{};
    EXPECT_EQ(call(vcpu, KVM_GET_VCPU_EVENTS, &events), 0);
    return events.smi.smm;
  }
};

// mov al,77h; out 22h,al; rsm
#define HANDLER \
  { 0xb0, 0x77, 0xe6, 0x22, 0x0f, 0xaa }

TEST(Smm, handler_runs_and_rsm_goes_back_to_where_the_smi_came) {
  SmmGuest guest(HANDLER);
  kvm_regs before = guest.regs();
  before.rax = 0x1234;
  guest.set_regs(before);
  ASSERT_EQ(call(guest.vcpu, KVM_SMI), 0);
  ASSERT_EQ(guest.run_to_port(), 0x22);
  EXPECT_TRUE(guest.shared->flags & KVM_RUN_X86_SMM);
  EXPECT_TRUE(guest.in_smm());
  ASSERT_EQ(guest.run_to_port(), 0x10);
  EXPECT_FALSE(guest.shared->flags & KVM_RUN_X86_SMM);
  EXPECT_FALSE(guest.in_smm());
  EXPECT_EQ(guest.regs().rax, 0x1234u);
  EXPECT_EQ(guest.regs().rsp, before.rsp);
  EXPECT_EQ(guest.msr(kSmiCountMsr), 1u);
}

TEST(Smm, smi_between_two_accesses_comes_after_the_first) {
  SmmGuest guest(HANDLER);
  ASSERT_EQ(guest.run_to_port(), 0x10);
  ASSERT_EQ(call(guest.vcpu, KVM_SMI), 0);
  ASSERT_EQ(guest.run_to_port(), 0x22);
  ASSERT_EQ(guest.run_to_port(), 0x11);
}

TEST(Smm, handler_of_a_64_bit_guest_runs_in_real_mode) {
  SmmGuest guest({0x0f, 0x20, 0xc0, 0xe6, 0x22, 0x0f, 0xaa});  // mov eax,cr0; out 22h,al; rsm
  guest.enter_long_mode();
  ASSERT_EQ(call(guest.vcpu, KVM_SMI), 0);
  ASSERT_EQ(guest.run_to_port(), 0x22);
  EXPECT_EQ(guest.regs().rax & 0x80000001, 0u);
  std::uint32_t revision = 0;
  std::uint64_t efer = 0;
  std::memcpy(&revision, guest.memory.data() + 0xfefc, sizeof revision);
  std::memcpy(&efer, guest.memory.data() + 0xfed0, sizeof efer);
  EXPECT_EQ(revision, 0x20064u);
  EXPECT_EQ(efer, 0x500u);
  ASSERT_EQ(guest.run_to_port(), 0x10);
  kvm_sregs sregs{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_SREGS, &sregs), 0);
  EXPECT_EQ(sregs.efer, 0x500u);
  EXPECT_EQ(sregs.cs.l, 1);
  EXPECT_EQ(sregs.cr0 & 0x80000001, 0x80000001u);
}

TEST(Smm, handler_moves_smbase_in_the_saved_state) {
  // mov dword cs:[0fef8h],4000h; out 22h,al; rsm, by the form of a guest without long mode
  SmmGuest guest({0x2e, 0x66, 0xc7, 0x06, 0xf8, 0xfe, 0x00, 0x40, 0x00, 0x00, 0xe6, 0x22, 0x0f, 0xaa});
  ASSERT_EQ(call(guest.vcpu, KVM_SMI), 0);
  ASSERT_EQ(guest.run_to_port(), 0x22);
  ASSERT_EQ(guest.run_to_port(), 0x10);
  EXPECT_EQ(guest.msr(kSmbaseMsr), 0x4000u);
}

// cs: mov al,[8100h]; out 22h,al; mov al,ds:[5000h]; rsm
TEST(Smm, handler_sees_an_address_space_of_its_own) {
  SmmGuest guest({0xf4});  // the first space's SMRAM is not what runs
  Pages smram(0x10000);
  static constexpr std::uint8_t kHandler[] = {0x2e, 0xa0, 0x00, 0x81, 0xe6, 0x22,
                                              0xa0, 0x00, 0x50, 0x0f, 0xaa};
  std::memcpy(smram.data() + 0x8000, kHandler, sizeof kHandler);
  smram.data()[0x8100] = 0x5a;
  guest.memory.data()[0x8100] = 0xa5;
  ASSERT_EQ(guest.set_region(kSmmSlot, 0, 0, 0), 0);
  ASSERT_EQ(guest.set_region(kSmmSlot, 0x20000, 0x10000, smram.address()), 0);
  ASSERT_EQ(guest.set_msr(kSmbaseMsr, 0x20000), 1);
  ASSERT_EQ(call(guest.vcpu, KVM_SMI), 0);
  ASSERT_EQ(guest.run_to_port(), 0x22);
  EXPECT_EQ(guest.regs().rax & 0xff, 0x5au);
  ASSERT_EQ(guest.run(), 0);  // the second space has no memory there
  ASSERT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_MMIO));
  EXPECT_EQ(guest.shared->mmio.phys_addr, 0x5000u);
  ASSERT_EQ(guest.run_to_port(), 0x10);
  EXPECT_EQ(guest.memory.data()[0xfefe], 0);  // nothing was saved in the first
}

TEST(Smm, memory_that_both_spaces_share_is_one) {
  SmmGuest guest(
      {0xc6, 0x06, 0x00, 0x50, 0x5a, 0xe6, 0x22, 0x0f, 0xaa});  // mov byte [5000h],5ah; out 22h,al; rsm
  ASSERT_EQ(call(guest.vcpu, KVM_SMI), 0);
  ASSERT_EQ(guest.run_to_port(), 0x22);
  EXPECT_EQ(guest.memory.data()[0x5000], 0x5a);
  ASSERT_EQ(guest.run_to_port(), 0x10);
}

// Firmware moves on to its own code so: mov ebp,cs:[8010h]; sub ebp,20000h; jmp ebp
TEST(Smm, code_of_16_bits_goes_on_above_64_kib) {
  SmmGuest guest({0xf4});
  Pages smram(0x20000);
  static constexpr std::uint8_t kHandler[] = {0x2e, 0x66, 0x8b, 0x2e, 0x10, 0x80, 0x66, 0x81, 0xed, 0x00,
                                              0x00, 0x02, 0x00, 0x66, 0xff, 0xe5, 0x00, 0x80, 0x03, 0x00};
  static constexpr std::uint8_t kFarAway[] = {0x90, 0xe6, 0x22, 0x0f, 0xaa};  // nop; out 22h,al; rsm
  std::memcpy(smram.data() + 0x8000, kHandler, sizeof kHandler);
  std::memcpy(smram.data() + 0x18000, kFarAway, sizeof kFarAway);
  ASSERT_EQ(guest.set_region(kSmmSlot, 0, 0, 0), 0);
  ASSERT_EQ(guest.set_region(kSmmSlot, 0x20000, 0x20000, smram.address()), 0);
  ASSERT_EQ(guest.set_msr(kSmbaseMsr, 0x20000), 1);
  ASSERT_EQ(call(guest.vcpu, KVM_SMI), 0);
  ASSERT_EQ(guest.run_to_port(), 0x22);
  ASSERT_EQ(guest.run_to_port(), 0x10);
}

TEST(Smm, memory_of_the_second_space_has_a_log_of_its_own) {
  SmmGuest guest({0xf4});
  Pages smram(0x10000);
  static constexpr std::uint8_t kHandler[] = {0x2e, 0xc6, 0x06, 0x00, 0x20, 0x5a, 0xe6, 0x22, 0x0f, 0xaa};
  std::memcpy(smram.data() + 0x8000, kHandler, sizeof kHandler);  // mov byte cs:[2000h],5ah; out 22h,al; rsm
  ASSERT_EQ(guest.set_region(kSmmSlot, 0, 0, 0), 0);
  ASSERT_EQ(guest.set_region(kSmmSlot, 0x20000, 0x10000, smram.address(), KVM_MEM_LOG_DIRTY_PAGES), 0);
  ASSERT_EQ(guest.set_msr(kSmbaseMsr, 0x20000), 1);
  ASSERT_EQ(call(guest.vcpu, KVM_SMI), 0);
  ASSERT_EQ(guest.run_to_port(), 0x22);
  std::uint64_t bits = 0;
  kvm_dirty_log log{};
  log.slot = kSmmSlot;
  log.dirty_bitmap = &bits;
  ASSERT_EQ(call(guest.vm, KVM_GET_DIRTY_LOG, &log), 0);
  EXPECT_EQ(bits, 1u << 2 | 1u << 15);  // what the handler wrote, and the saved state
}

TEST(Smm, slots_of_unknown_address_spaces_are_einval) {
  Vm vm;
  Pages pages(0x1000);
  EXPECT_EQ(vm.set_region(2 << 16, 0, 0x1000, pages.address()), -EINVAL);
  EXPECT_EQ(vm.set_region(1 << 16, std::uint64_t{1} << 52, 0x1000, pages.address()), -EINVAL);
  EXPECT_EQ(vm.set_region(1 << 16, 0, 0x1000, pages.address()), 0);
  EXPECT_EQ(vm.set_region(0, 0, 0x1000, pages.address()), 0);
  EXPECT_EQ(vm.set_region(1 << 16 | 1, 0, 0x1000, pages.address()), -EEXIST);
}

TEST(Smm, rsm_outside_the_mode_is_undefined) {
  Guest guest({0x0f, 0xaa});
  guest.set_handler(6, 0x2000, {0xe6, 0x13});  // out 13h,al
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->io.port, 0x13);
}

TEST(Smm, saved_state_that_no_cpu_can_be_in_shuts_it_down) {
  // mov dword cs:[0fffch],80000000h (CR0: paging without protection); rsm
  SmmGuest guest({0x2e, 0x66, 0xc7, 0x06, 0xfc, 0xff, 0x00, 0x00, 0x00, 0x80, 0x0f, 0xaa});
  ASSERT_EQ(call(guest.vcpu, KVM_SMI), 0);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_SHUTDOWN));
}

TEST(Smm, client_sets_pending_smis_and_the_mode_itself) {
  SmmGuest guest(HANDLER);
  kvm_vcpu_events events{};
  events.flags = KVM_VCPUEVENT_VALID_SMM;
  events.smi.pending = 1;
  ASSERT_EQ(call(guest.vcpu, KVM_SET_VCPU_EVENTS, &events), 0);
  ASSERT_EQ(guest.run_to_port(), 0x22);
  ASSERT_EQ(call(guest.vcpu, KVM_GET_VCPU_EVENTS, &events), 0);
  EXPECT_EQ(events.smi.smm, 1);
  EXPECT_EQ(events.nmi.masked, 1);
  events.smi.smm = 0;
  ASSERT_EQ(call(guest.vcpu, KVM_SET_VCPU_EVENTS, &events), 0);
  EXPECT_FALSE(guest.in_smm());
}

TEST(Smm, local_apic_sends_smis) {
  SmmGuest guest(HANDLER, Guest::Chips::kIrqchip);
  kvm_sregs sregs{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_SREGS, &sregs), 0);
  sregs.apic_base |= 0xc00;  // x2APIC mode
  ASSERT_EQ(call(guest.vcpu, KVM_SET_SREGS, &sregs), 0);
  guest.set_code({0x66, 0xb9, 0x30, 0x08, 0x00, 0x00,          // mov ecx,830h: ICR
                  0x66, 0xb8, 0x00, 0x42, 0x04, 0x00,          // mov eax,44200h: SMI to itself
                  0x66, 0x31, 0xd2, 0x0f, 0x30, 0xeb, 0xfe});  // xor edx,edx; wrmsr; jmp $
  ASSERT_EQ(guest.run_to_port(), 0x22);
}

TEST(Smm, halted_cpu_halts_again_behind_the_handler) {
  SmmGuest guest(HANDLER, Guest::Chips::kIrqchip);
  kvm_mp_state halted{KVM_MP_STATE_HALTED};
  ASSERT_EQ(call(guest.vcpu, KVM_SET_MP_STATE, &halted), 0);
  ASSERT_EQ(call(guest.vcpu, KVM_SMI), 0);
  ASSERT_EQ(guest.run_to_port(), 0x22);
  EXPECT_EQ(guest.run_until_kicked(), -EINTR);
  EXPECT_FALSE(guest.in_smm());
  ASSERT_EQ(call(guest.vcpu, KVM_GET_MP_STATE, &halted), 0);
  EXPECT_EQ(halted.mp_state, static_cast<unsigned>(KVM_MP_STATE_HALTED));
}

}  // namespace
}  // namespace anykvm::test
