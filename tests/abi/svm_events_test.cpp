// Interrupts and exceptions of nested guests: injected by the hypervisor, virtual, and those of the machine
// (APM 2 15.17 to 15.21).
#include "hypervisor.h"

namespace anykvm::test {
namespace {

using u8 = std::uint8_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;

constexpr u64 kValid = u64{1} << 31, kHasError = 1 << 11, kNmiType = 2 << 8, kExceptionType = 3 << 8;

// --- EVENTINJ, APM 2 15.20 ---

TEST(SvmEvents, injected_exception_is_delivered_before_the_first_instruction) {
  Hypervisor hypervisor({0xe6, 0x77});
  hypervisor.set(vmcb::kEventInjection, u64{0x18} << 32 | kValid | kHasError | kExceptionType | 13);
  ASSERT_EQ(hypervisor.run_to_port(), Hypervisor::kGuestVectorPort);
  EXPECT_EQ(hypervisor.written(), 13);
  ASSERT_EQ(hypervisor.exit(), kExitVmmcall);
  const u64 stack = hypervisor.get<u64>(vmcb::kRsp);
  EXPECT_EQ(hypervisor.at<u64>(stack), 0x18u);
  EXPECT_EQ(hypervisor.at<u64>(stack + 8), Hypervisor::kGuestCode);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kEventInjection) & kValid, 0u);
}

TEST(SvmEvents, injected_interrupt_does_not_ask_for_the_interrupt_flag) {
  Hypervisor hypervisor;
  hypervisor.set(vmcb::kEventInjection, kValid | 0x40);
  ASSERT_EQ(hypervisor.run_to_port(), Hypervisor::kGuestVectorPort);
  EXPECT_EQ(hypervisor.written(), 0x40);
}

TEST(SvmEvents, injected_nmi_uses_vector_2) {
  Hypervisor hypervisor;
  hypervisor.set(vmcb::kEventInjection, kValid | kNmiType | 2);
  ASSERT_EQ(hypervisor.run_to_port(), Hypervisor::kGuestVectorPort);
  EXPECT_EQ(hypervisor.written(), 2);
}

TEST(SvmEvents, injected_exception_is_not_intercepted) {
  Hypervisor hypervisor;
  hypervisor.intercept_exception(6);
  hypervisor.set(vmcb::kEventInjection, kValid | kExceptionType | 6);
  ASSERT_EQ(hypervisor.run_to_port(), Hypervisor::kGuestVectorPort);
  EXPECT_EQ(hypervisor.written(), 6);
}

TEST(SvmEvents, exit_in_the_middle_of_a_delivery_tells_what_was_delivered) {
  Hypervisor hypervisor({0x0f, 0x0b});  // ud2
  hypervisor.set(vmcb::kIdtr + 8, Hypervisor::kUnmapped);
  hypervisor.intercept_exception(14);
  ASSERT_EQ(hypervisor.exit(), kExitException + 14);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kExitIntInfo) & 0xffffffff, kValid | kExceptionType | 6);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kRip), Hypervisor::kGuestCode);
}

TEST(SvmEvents, injected_event_whose_delivery_exits_is_told_again) {
  Hypervisor hypervisor;
  hypervisor.set(vmcb::kIdtr + 8, Hypervisor::kUnmapped);
  hypervisor.intercept_exception(14);
  hypervisor.set(vmcb::kEventInjection, kValid | 0x40);
  ASSERT_EQ(hypervisor.exit(), kExitException + 14);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kExitIntInfo) & 0xffffffff, kValid | 0x40);
}

// --- Virtual interrupts, APM 2 15.21.4 ---

constexpr u64 kVIrq = 1 << 8, kVIgnoreTpr = 1 << 20, kVIntrMasking = 1 << 24, kPriority4 = 4 << 16;
constexpr u64 kInterruptFlag = 0x202;

struct VirtualInterrupt : Hypervisor {
  explicit VirtualInterrupt(u32 control, Code code = {0x0f, 0x01, 0xd9}) : Hypervisor(code) {
    set(vmcb::kIntControl, control);
    set(vmcb::kIntVector, u32{0x41});
  }
};

TEST(SvmEvents, virtual_interrupt_is_delivered_and_gone) {
  VirtualInterrupt hypervisor(kVIrq | kPriority4 | kVIntrMasking);
  hypervisor.set(vmcb::kRflags, kInterruptFlag);
  ASSERT_EQ(hypervisor.run_to_port(), Hypervisor::kGuestVectorPort);
  EXPECT_EQ(hypervisor.written(), 0x41);
  ASSERT_EQ(hypervisor.exit(), kExitVmmcall);
  EXPECT_EQ(hypervisor.get<u32>(vmcb::kIntControl) & kVIrq, 0u);
}

TEST(SvmEvents, virtual_interrupt_waits_for_the_guests_interrupt_flag) {
  VirtualInterrupt hypervisor(kVIrq | kPriority4 | kVIntrMasking);
  ASSERT_EQ(hypervisor.exit(), kExitVmmcall);
  EXPECT_EQ(hypervisor.get<u32>(vmcb::kIntControl) & kVIrq, kVIrq);
}

TEST(SvmEvents, virtual_interrupt_waits_for_the_virtual_task_priority) {
  VirtualInterrupt hypervisor(kVIrq | kPriority4 | kVIntrMasking | 4);
  hypervisor.set(vmcb::kRflags, kInterruptFlag);
  EXPECT_EQ(hypervisor.exit(), kExitVmmcall);
}

TEST(SvmEvents, virtual_interrupt_may_ignore_the_virtual_task_priority) {
  VirtualInterrupt hypervisor(kVIrq | kPriority4 | kVIntrMasking | kVIgnoreTpr | 4);
  hypervisor.set(vmcb::kRflags, kInterruptFlag);
  EXPECT_EQ(hypervisor.run_to_port(), Hypervisor::kGuestVectorPort);
}

TEST(SvmEvents, guest_that_lowers_its_task_priority_takes_the_virtual_interrupt) {
  // xor eax,eax; mov cr8,rax; vmmcall
  VirtualInterrupt hypervisor(kVIrq | kPriority4 | kVIntrMasking | 5,
                              {0x31, 0xc0, 0x44, 0x0f, 0x22, 0xc0, 0x0f, 0x01, 0xd9});
  hypervisor.set(vmcb::kRflags, kInterruptFlag);
  ASSERT_EQ(hypervisor.run_to_port(), Hypervisor::kGuestVectorPort);
  EXPECT_EQ(hypervisor.written(), 0x41);
  ASSERT_EQ(hypervisor.exit(), kExitVmmcall);
  EXPECT_EQ(hypervisor.get<u32>(vmcb::kIntControl) & 0xff, 0u);
}

TEST(SvmEvents, intercepted_virtual_interrupt_exits_when_it_could_be_taken) {
  VirtualInterrupt hypervisor(kVIrq | kPriority4 | kVIntrMasking,
                              {0x90, 0xfb, 0x90, 0x90, 0x0f, 0x01, 0xd9});  // nop; sti; nop
  hypervisor.intercept(vmcb::kVintr);
  ASSERT_EQ(hypervisor.exit(), kExitVintr);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kRip), Hypervisor::kGuestCode + 3);
  EXPECT_EQ(hypervisor.get<u32>(vmcb::kIntControl) & kVIrq, kVIrq);
}

TEST(SvmEvents, interrupt_shadow_of_the_vmcb_holds_a_virtual_interrupt_back) {
  VirtualInterrupt hypervisor(kVIrq | kPriority4 | kVIntrMasking);
  hypervisor.set(vmcb::kRflags, kInterruptFlag);
  hypervisor.set(vmcb::kIntState, u32{1});
  EXPECT_EQ(hypervisor.exit(), kExitVmmcall);
}

// --- The machine's own interrupts ---

TEST(SvmEvents, intercepted_interrupt_exits_and_stays_pending) {
  Hypervisor hypervisor({0xeb, 0xfe}, Guest::Chips::kIrqchip);  // jmp $
  hypervisor.intercept(vmcb::kIntr);
  hypervisor.set(vmcb::kIntControl, u32{kVIntrMasking});
  hypervisor.send(0x51);
  ASSERT_EQ(hypervisor.exit(), kExitIntr);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kRip), Hypervisor::kGuestCode);
  EXPECT_EQ(hypervisor.exit(), kExitIntr);  // GIF has held it back since
}

TEST(SvmEvents, interrupt_that_nobody_intercepts_is_the_guests) {
  Hypervisor hypervisor({0xfb, 0xeb, 0xfe}, Guest::Chips::kIrqchip);  // sti; jmp $
  hypervisor.send(0x51);
  ASSERT_EQ(hypervisor.run_to_port(), Hypervisor::kGuestVectorPort);
  EXPECT_EQ(hypervisor.written(), 0x51);
}

TEST(SvmEvents, guest_masks_interrupts_where_its_hypervisor_lets_it) {
  Hypervisor hypervisor({0x90, 0x0f, 0x01, 0xd9}, Guest::Chips::kIrqchip);
  hypervisor.intercept(vmcb::kIntr);
  hypervisor.send(0x51);
  EXPECT_EQ(hypervisor.exit(), kExitVmmcall);  // without V_INTR_MASKING, IF of the guest counts
}

TEST(SvmEvents, intercepted_nmi_exits) {
  Hypervisor hypervisor({0xe6, 0x77, 0xeb, 0xfe}, Guest::Chips::kIrqchip);  // out 77h,al; jmp $
  hypervisor.intercept(vmcb::kNmi);
  ASSERT_EQ(hypervisor.run_to_port(), 0x77);
  ASSERT_EQ(call(hypervisor.vcpu, KVM_NMI), 0);
  EXPECT_EQ(hypervisor.exit(), kExitNmi);
}

TEST(SvmEvents, interrupt_ends_the_halt_of_a_guest) {
  Hypervisor hypervisor({0xe6, 0x77, 0xf4, 0xeb, 0xfe}, Guest::Chips::kIrqchip);  // out 77h,al; hlt; jmp $
  hypervisor.intercept(vmcb::kIntr);
  hypervisor.set(vmcb::kIntControl, u32{kVIntrMasking});
  ASSERT_EQ(hypervisor.run_to_port(), 0x77);
  EXPECT_EQ(hypervisor.run_until_kicked(), -EINTR);
  hypervisor.send(0x51);
  ASSERT_EQ(hypervisor.exit(), kExitIntr);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kRip), Hypervisor::kGuestCode + 3);
}

// --- The global interrupt flag, APM 2 15.17 ---

TEST(SvmEvents, clear_gif_holds_interrupts_back_until_stgi) {
  Hypervisor hypervisor({}, Guest::Chips::kIrqchip);
  // clgi; sti; out 11h,al; nop; out 12h,al; stgi; nop; jmp $
  hypervisor.set_code(
      {0x0f, 0x01, 0xdd, 0xfb, 0xe6, 0x11, 0x90, 0xe6, 0x12, 0x0f, 0x01, 0xdc, 0x90, 0xeb, 0xfe});
  ASSERT_EQ(hypervisor.run_to_port(), 0x11);
  hypervisor.send(0x51);
  ASSERT_EQ(hypervisor.run_to_port(), 0x12);
  ASSERT_EQ(hypervisor.run_to_port(), Hypervisor::kHypervisorVectorPort);
  EXPECT_EQ(hypervisor.written(), 0x51);
}

TEST(SvmEvents, clear_gif_holds_nmis_back_until_stgi) {
  Hypervisor hypervisor({}, Guest::Chips::kIrqchip);
  hypervisor.set_code({0x0f, 0x01, 0xdd, 0xe6, 0x11, 0x90, 0xe6, 0x12, 0x0f, 0x01, 0xdc, 0x90, 0xeb, 0xfe});
  ASSERT_EQ(hypervisor.run_to_port(), 0x11);
  ASSERT_EQ(call(hypervisor.vcpu, KVM_NMI), 0);
  ASSERT_EQ(hypervisor.run_to_port(), 0x12);
  ASSERT_EQ(hypervisor.run_to_port(), Hypervisor::kHypervisorVectorPort);
  EXPECT_EQ(hypervisor.written(), 2);
}

TEST(SvmEvents, clear_gif_does_not_hold_exceptions_back) {
  Hypervisor hypervisor;
  hypervisor.set_code({0x0f, 0x01, 0xdd, 0x0f, 0x0b});  // clgi; ud2
  ASSERT_EQ(hypervisor.run_to_port(), Hypervisor::kHypervisorVectorPort);
  EXPECT_EQ(hypervisor.written(), 6);
}

TEST(SvmEvents, single_step_of_vmrun_comes_after_the_exit) {
  Hypervisor hypervisor({0xe6, 0x77, 0x0f, 0x01, 0xd9});
  // clgi; mov eax,100000h; push 102h; popf; vmrun; nop
  hypervisor.set_code({0x0f, 0x01, 0xdd, 0xb8, 0x00, 0x00, 0x10, 0x00, 0x68, 0x02, 0x01, 0x00, 0x00, 0x9d,
                       0x0f, 0x01, 0xd8, 0x90, 0x90});
  ASSERT_EQ(hypervisor.run_to_port(), 0x77);  // the guest itself is not stepped
  ASSERT_EQ(hypervisor.run_to_port(), Hypervisor::kHypervisorVectorPort);
  EXPECT_EQ(hypervisor.written(), 1);
  EXPECT_EQ(hypervisor.at<u64>(hypervisor.regs().rsp), Guest::kCode + 17);
}

}  // namespace
}  // namespace anykvm::test
