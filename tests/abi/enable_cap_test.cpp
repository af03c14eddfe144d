// KVM_ENABLE_CAP and what it switches on; debugging, statistics, MSR filters, pre-faulting.
#include <unistd.h>

#include "kvm.h"

namespace anykvm::test {
namespace {

TEST(EnableCap, flags_unknown_capabilities_and_bad_pointers_fail) {
  Vm vm;
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_MAX_VCPU_ID, 2, 1), -EINVAL);
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_USER_MEMORY, 0), -EINVAL);
  EXPECT_EQ(call(vm.vm, KVM_ENABLE_CAP, kBadPointer), -EFAULT);
}

TEST(EnableCap, max_vcpu_id_limits_ids_and_is_set_once) {
  Vm vm;
  const long most = call(vm.vm, KVM_CHECK_EXTENSION, static_cast<unsigned long>(KVM_CAP_MAX_VCPU_ID));
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_MAX_VCPU_ID, static_cast<std::uint64_t>(most) + 1), -EINVAL);
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_MAX_VCPU_ID, 2), 0);
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_MAX_VCPU_ID, 3), -EINVAL);
  EXPECT_EQ(call(vm.vm, KVM_CREATE_VCPU, 2ul), -EINVAL);
}

TEST(EnableCap, unknown_bits_are_einval) {
  Vm vm;
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_X2APIC_API, 1u << 30), -EINVAL);
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_X86_USER_SPACE_MSR, 1u << 30), -EINVAL);
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_DISABLE_QUIRKS2, 1u << 30), -EINVAL);
}

TEST(EnableCap, apic_bus_cycle_needs_an_apic_and_comes_before_vcpus) {
  Vm without, with;
  EXPECT_EQ(enable_cap(without.vm, KVM_CAP_X86_APIC_BUS_CYCLES_NS, 40), -ENXIO);
  ASSERT_EQ(call(with.vm, KVM_CREATE_IRQCHIP), 0);
  EXPECT_EQ(enable_cap(with.vm, KVM_CAP_X86_APIC_BUS_CYCLES_NS, 0), -EINVAL);
  EXPECT_EQ(call(with.vm, KVM_CHECK_EXTENSION, static_cast<unsigned long>(KVM_CAP_X86_APIC_BUS_CYCLES_NS)),
            1);
  EXPECT_EQ(enable_cap(with.vm, KVM_CAP_X86_APIC_BUS_CYCLES_NS, 40), 0);
  EXPECT_EQ(call(with.vm, KVM_CHECK_EXTENSION, static_cast<unsigned long>(KVM_CAP_X86_APIC_BUS_CYCLES_NS)),
            40);
  Handle vcpu(call(with.vm, KVM_CREATE_VCPU));
  EXPECT_EQ(enable_cap(with.vm, KVM_CAP_X86_APIC_BUS_CYCLES_NS, 40), -EINVAL);
}

TEST(EmulationFailure, tells_the_instruction_if_asked_to) {
  Guest guest;
  Pages page(4096);
  page.data()[0] = 0x90;
  ASSERT_EQ(guest.set_region(1, 0x10000, 4096, page.address()), 0);
  kvm_regs regs = guest.regs();
  regs.rip = 0x20000;  // no slot
  kvm_sregs sregs{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_SREGS, &sregs), 0);
  sregs.cs.limit = 0xffffffff;
  sregs.cs.g = 1;
  ASSERT_EQ(call(guest.vcpu, KVM_SET_SREGS, &sregs), 0);
  guest.set_regs(regs);
  EXPECT_EQ(enable_cap(guest.vm, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 2), -EINVAL);
  ASSERT_EQ(enable_cap(guest.vm, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1), 0);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_INTERNAL_ERROR));
  EXPECT_EQ(guest.shared->emulation_failure.suberror, static_cast<unsigned>(KVM_INTERNAL_ERROR_EMULATION));
  EXPECT_EQ(guest.shared->emulation_failure.flags, 0u);  // there is nothing to show
}

TEST(Quirks, foreign_hypercall_is_replaced) {
  Guest guest({0x0f, 0x01, 0xc1, 0x0f, 0x01, 0xd9, 0xf4});  // vmcall; vmmcall; hlt
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
}

TEST(HaltPoll, limit_has_32_bits) {
  Vm vm;
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_HALT_POLL, 0), 0);
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_HALT_POLL, 0xffffffff), 0);
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_HALT_POLL, 0x100000000), -EINVAL);
}

// --- MSR exits ---

constexpr std::uint32_t kUnknownMsr = 0x12345678;

TEST(MsrExits, unknown_msr_read_is_the_clients_to_answer) {
  Guest guest({0x66, 0xb9, 0x78, 0x56, 0x34, 0x12, 0x0f, 0x32, 0xf4});  // mov ecx,12345678h; rdmsr; hlt
  ASSERT_EQ(enable_cap(guest.vm, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_UNKNOWN), 0);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_X86_RDMSR));
  EXPECT_EQ(guest.shared->msr.index, kUnknownMsr);
  EXPECT_EQ(guest.shared->msr.reason, static_cast<unsigned>(KVM_MSR_EXIT_REASON_UNKNOWN));
  guest.shared->msr.data = 0x1122334455667788;
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
  EXPECT_EQ(guest.regs().rax, 0x55667788u);
  EXPECT_EQ(guest.regs().rdx, 0x11223344u);
}

TEST(MsrExits, filtered_write_is_the_clients_to_see) {
  Guest guest({0x66, 0xb9, 0x82, 0x00, 0x00, 0xc0, 0x0f, 0x30, 0xf4});  // mov ecx,c0000082h; wrmsr; hlt
  std::uint8_t deny[8] = {};
  kvm_msr_filter filter{};
  filter.ranges[0] = {KVM_MSR_FILTER_WRITE, 1, 0xc0000082, deny};
  ASSERT_EQ(call(guest.vm, KVM_X86_SET_MSR_FILTER, &filter), 0);
  ASSERT_EQ(enable_cap(guest.vm, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER), 0);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_X86_WRMSR));
  EXPECT_EQ(guest.shared->msr.reason, static_cast<unsigned>(KVM_MSR_EXIT_REASON_FILTER));
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
}

TEST(MsrExits, answer_counts_although_the_filter_was_lifted_meanwhile) {
  Guest guest({0x66, 0xb9, 0x01, 0x01, 0x00, 0xc0, 0x0f, 0x32, 0xf4});  // mov ecx,c0000101h; rdmsr; hlt
  std::uint8_t deny[8] = {};
  kvm_msr_filter filter{}, none{};
  filter.ranges[0] = {KVM_MSR_FILTER_READ, 1, 0xc0000101, deny};
  ASSERT_EQ(call(guest.vm, KVM_X86_SET_MSR_FILTER, &filter), 0);
  ASSERT_EQ(enable_cap(guest.vm, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER), 0);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_X86_RDMSR));
  guest.shared->msr.data = 0x1234;
  ASSERT_EQ(call(guest.vm, KVM_X86_SET_MSR_FILTER, &none), 0);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.regs().rax, 0x1234u);
}

TEST(MsrExits, answered_write_is_done_although_exits_were_switched_off_meanwhile) {
  Guest guest({0x66, 0xb9, 0x78, 0x56, 0x34, 0x12, 0x0f, 0x30, 0xf4});  // mov ecx,12345678h; wrmsr; hlt
  ASSERT_EQ(enable_cap(guest.vm, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_UNKNOWN), 0);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_X86_WRMSR));
  ASSERT_EQ(enable_cap(guest.vm, KVM_CAP_X86_USER_SPACE_MSR, 0), 0);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
  EXPECT_EQ(guest.regs().rip, Guest::kCode + 9u);
}

TEST(MsrExits, bad_filters_are_refused) {
  Vm vm;
  kvm_msr_filter flags{}, all{}, bitmap{};
  flags.flags = 1u << 31;
  all.flags = KVM_MSR_FILTER_DEFAULT_DENY;
  bitmap.ranges[0] = {KVM_MSR_FILTER_READ, 8, 0, static_cast<std::uint8_t*>(kBadPointer)};
  EXPECT_EQ(call(vm.vm, KVM_X86_SET_MSR_FILTER, &flags), -EINVAL);
  EXPECT_EQ(call(vm.vm, KVM_X86_SET_MSR_FILTER, &all), -EINVAL);
  EXPECT_EQ(call(vm.vm, KVM_X86_SET_MSR_FILTER, &bitmap), -EFAULT);
}

// --- KVM_SET_GUEST_DEBUG ---

TEST(GuestDebug, single_step_exits_after_one_instruction) {
  Guest guest({0x90, 0x90, 0xf4});
  kvm_guest_debug debug{};
  debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
  ASSERT_EQ(call(guest.vcpu, KVM_SET_GUEST_DEBUG, &debug), 0);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_DEBUG));
  EXPECT_EQ(guest.shared->debug.arch.exception, 1u);
  EXPECT_EQ(guest.shared->debug.arch.pc, Guest::kCode + 1);
}

TEST(GuestDebug, single_step_does_not_show_in_the_guests_flags) {
  Guest guest({0x9c, 0xf4});  // pushf; hlt
  kvm_guest_debug debug{};
  debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
  EXPECT_EQ(call(guest.vm, KVM_CHECK_EXTENSION, static_cast<unsigned long>(KVM_CAP_X86_ROBUST_SINGLESTEP)),
            1);
  ASSERT_EQ(call(guest.vcpu, KVM_SET_GUEST_DEBUG, &debug), 0);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.regs().rsp, 0x7ffeu);
  EXPECT_EQ(guest.memory.data()[0x7fff] & 1, 0);  // TF
}

TEST(GuestDebug, software_breakpoint_exits_at_the_int3) {
  Guest guest({0x90, 0xcc, 0xf4});
  kvm_guest_debug debug{};
  debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP;
  ASSERT_EQ(call(guest.vcpu, KVM_SET_GUEST_DEBUG, &debug), 0);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_DEBUG));
  EXPECT_EQ(guest.shared->debug.arch.exception, 3u);
  EXPECT_EQ(guest.shared->debug.arch.pc, Guest::kCode + 1);
}

// nop; mov byte [5000h],1; hlt, with the client's debug registers.
struct WithBreakpoint : Guest {
  WithBreakpoint(std::uint64_t address, std::uint64_t control)
      : Guest({0x90, 0xc6, 0x06, 0x00, 0x50, 0x01, 0xf4}) {
    kvm_guest_debug debug{};
    debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
    debug.arch.debugreg[1] = address;
    debug.arch.debugreg[7] = control;
    EXPECT_EQ(call(vcpu, KVM_SET_GUEST_DEBUG, &debug), 0);
  }
};

TEST(GuestDebug, hardware_breakpoint_exits_before_the_instruction) {
  WithBreakpoint guest(Guest::kCode + 1, 0x404);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_DEBUG));
  EXPECT_EQ(guest.shared->debug.arch.exception, 1u);
  EXPECT_EQ(guest.shared->debug.arch.pc, Guest::kCode + 1);
  EXPECT_EQ(guest.shared->debug.arch.dr6 & 0xf, 2u);
}

TEST(GuestDebug, write_watchpoint_exits_after_the_write_and_shows_the_clients_dr7) {
  constexpr std::uint64_t kWriteByte1 = 1u << 20;
  WithBreakpoint guest(0x5000, 0x404 | kWriteByte1);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_DEBUG));
  EXPECT_EQ(guest.shared->debug.arch.dr6 & 0xf, 2u);
  EXPECT_EQ(guest.shared->debug.arch.dr7, 0x404 | kWriteByte1);
  EXPECT_EQ(guest.memory.data()[0x5000], 1);
  EXPECT_EQ(guest.regs().rip, Guest::kCode + 6);
}

TEST(GuestDebug, second_injected_exception_is_ebusy) {
  Guest guest;
  kvm_guest_debug debug{};
  debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_DB;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_GUEST_DEBUG, &debug), 0);
  EXPECT_EQ(call(guest.vcpu, KVM_SET_GUEST_DEBUG, &debug), -EBUSY);
  EXPECT_EQ(call(guest.vcpu, KVM_SET_GUEST_DEBUG, kBadPointer), -EFAULT);
}

// --- Port strings ---

TEST(PortStrings, repeated_ins_asks_for_all_items_at_once) {
  // mov di,2000h; mov cx,4; mov dx,80h; cld; rep insb; hlt
  Guest guest({0xbf, 0x00, 0x20, 0xb9, 0x04, 0x00, 0xba, 0x80, 0x00, 0xfc, 0xf3, 0x6c, 0xf4});
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_IO));
  EXPECT_EQ(guest.shared->io.count, 4u);
  std::memcpy(reinterpret_cast<char*>(guest.shared) + guest.shared->io.data_offset, "abcd", 4);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
  EXPECT_EQ(std::memcmp(guest.memory.data() + 0x2000, "abcd", 4), 0);
}

// --- Attributes, statistics, pre-faulting ---

TEST(VcpuAttributes, tsc_offset_is_kept) {
  Guest guest;
  std::uint64_t offset = 0x123456789abc;
  kvm_device_attr attribute{};
  attribute.group = KVM_VCPU_TSC_CTRL;
  attribute.attr = KVM_VCPU_TSC_OFFSET;
  attribute.addr = reinterpret_cast<std::uint64_t>(&offset);
  EXPECT_EQ(call(guest.vcpu, KVM_HAS_DEVICE_ATTR, &attribute), 0);
  ASSERT_EQ(call(guest.vcpu, KVM_SET_DEVICE_ATTR, &attribute), 0);
  offset = 0;
  ASSERT_EQ(call(guest.vcpu, KVM_GET_DEVICE_ATTR, &attribute), 0);
  EXPECT_EQ(offset, 0x123456789abcu);
}

TEST(VcpuAttributes, unknown_attribute_is_enxio_and_a_bad_address_efault) {
  Guest guest;
  kvm_device_attr attribute{};
  attribute.attr = KVM_VCPU_TSC_OFFSET;
  attribute.addr = 8;
  EXPECT_EQ(call(guest.vcpu, KVM_GET_DEVICE_ATTR, &attribute), -EFAULT);
  EXPECT_EQ(call(guest.vcpu, KVM_SET_DEVICE_ATTR, &attribute), -EFAULT);
  attribute.group = 77;
  EXPECT_EQ(call(guest.vcpu, KVM_HAS_DEVICE_ATTR, &attribute), -ENXIO);
}

TEST(Statistics, counts_grow_in_a_descriptor_that_was_opened_before) {
  Guest guest({0xe4, 0x60, 0xe4, 0x60, 0xf4});  // in al,60h, twice; hlt
  Handle stats(call(guest.vcpu, KVM_GET_STATS_FD));
  ASSERT_GE(static_cast<int>(stats), 0);
  kvm_stats_header header{};
  ASSERT_EQ(pread(stats, &header, sizeof header, 0), static_cast<ssize_t>(sizeof header));
  std::uint64_t before = 0, after = 0;
  ASSERT_EQ(pread(stats, &before, sizeof before, header.data_offset), 8);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(pread(stats, &after, sizeof after, header.data_offset), 8);
  EXPECT_GT(after, before);
}

TEST(PreFault, part_in_a_slot_is_done_and_the_rest_is_left) {
  Guest guest;
  kvm_pre_fault_memory range{0xf000, 0x2000, 0, {}};
  EXPECT_EQ(call(guest.vcpu, KVM_PRE_FAULT_MEMORY, &range), 0);
  EXPECT_EQ(range.gpa, 0x10000u);
  EXPECT_EQ(range.size, 0x1000u);
  EXPECT_EQ(call(guest.vcpu, KVM_PRE_FAULT_MEMORY, &range), -ENOENT);
  EXPECT_EQ(range.size, 0x1000u);
}

TEST(PreFault, bad_ranges_and_flags_are_einval) {
  Guest guest;
  kvm_pre_fault_memory odd{0x1001, 0x1000, 0, {}}, empty{0x1000, 0, 0, {}}, flags{0x1000, 0x1000, 1, {}};
  EXPECT_EQ(call(guest.vcpu, KVM_PRE_FAULT_MEMORY, &odd), -EINVAL);
  EXPECT_EQ(call(guest.vcpu, KVM_PRE_FAULT_MEMORY, &empty), -EINVAL);
  EXPECT_EQ(call(guest.vcpu, KVM_PRE_FAULT_MEMORY, &flags), -EINVAL);
}

}  // namespace
}  // namespace anykvm::test
