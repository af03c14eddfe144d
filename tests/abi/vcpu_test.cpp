// The vCPU descriptor: registers and other state, without running anything.
#include "kvm.h"

namespace anykvm::test {
namespace {

struct CpuidList {
  std::uint32_t nent = 0, padding = 0;
  kvm_cpuid_entry2 entries[16]{};
};

struct MsrRequest {
  std::uint32_t nmsrs = 0, pad = 0;
  kvm_msr_entry entries[8]{};
};

kvm_cpuid_entry2 cpuid_entry(std::uint32_t function, std::uint32_t index, std::uint32_t eax) {
  kvm_cpuid_entry2 entry{};
  entry.function = function;
  entry.index = index;
  entry.flags = index ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0;
  entry.eax = eax;
  entry.ebx = 0x11;
  entry.ecx = 0x22;
  entry.edx = 0x33;
  return entry;
}

TEST(VcpuFd, unknown_request_is_einval) {
  Guest guest;
  EXPECT_EQ(call(guest.vcpu, _IO(KVMIO, 0xff)), -EINVAL);
  EXPECT_EQ(call(guest.vcpu, KVM_CREATE_IRQCHIP), -EINVAL);
}

TEST(VcpuFd, bad_pointers_are_efault) {
  Guest guest;
  for (unsigned long request : std::initializer_list<unsigned long>{
           KVM_GET_REGS,     KVM_SET_REGS,        KVM_GET_SREGS,       KVM_SET_SREGS,     KVM_GET_FPU,
           KVM_SET_FPU,      KVM_GET_MSRS,        KVM_SET_MSRS,        KVM_GET_XSAVE,     KVM_SET_XSAVE,
           KVM_GET_XCRS,     KVM_SET_XCRS,        KVM_GET_DEBUGREGS,   KVM_SET_DEBUGREGS, KVM_GET_MP_STATE,
           KVM_SET_MP_STATE, KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, KVM_SET_CPUID2,    KVM_TRANSLATE,
           KVM_INTERRUPT,    KVM_SET_SIGNAL_MASK, KVM_GET_SREGS2,      KVM_SET_SREGS2})
    EXPECT_EQ(call(guest.vcpu, request, kBadPointer), -EFAULT) << std::hex << request;
}

TEST(VcpuFd, general_registers_read_back) {
  Guest guest;
  kvm_regs regs{};
  regs.rax = 1;
  regs.rbx = 2;
  regs.rcx = 3;
  regs.rdx = 4;
  regs.rsi = 5;
  regs.rdi = 6;
  regs.rsp = 7;
  regs.rbp = 8;
  regs.r8 = 9;
  regs.r15 = 16;
  regs.rip = 0x1234;
  regs.rflags = 0x246;
  guest.set_regs(regs);
  kvm_regs seen = guest.regs();
  EXPECT_EQ(memcmp(&seen, &regs, sizeof regs), 0);
}

TEST(VcpuFd, reset_state_is_the_manuals) {
  Vm vm;
  Handle vcpu(call(vm.vm, KVM_CREATE_VCPU));
  kvm_regs regs{};
  kvm_sregs sregs{};
  ASSERT_EQ(call(vcpu, KVM_GET_REGS, &regs), 0);
  ASSERT_EQ(call(vcpu, KVM_GET_SREGS, &sregs), 0);
  EXPECT_EQ(regs.rip, 0xfff0u);
  EXPECT_EQ(regs.rflags, 2u);
  EXPECT_EQ(sregs.cs.base, 0xffff0000u);
  EXPECT_EQ(sregs.cs.selector, 0xf000);
  EXPECT_EQ(sregs.cr0, 0x60000010u);
  EXPECT_EQ(sregs.apic_base, 0xfee00900u);
}

TEST(VcpuFd, impossible_system_registers_are_einval) {
  Guest guest;
  kvm_sregs sregs{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_SREGS, &sregs), 0);
  kvm_sregs paging_without_protection = sregs;
  paging_without_protection.cr0 |= 1u << 31;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_SREGS, &paging_without_protection), -EINVAL);
  kvm_sregs long_mode_without_pae = sregs;
  long_mode_without_pae.cr0 |= (1u << 31) | 1;
  long_mode_without_pae.efer = 0x500;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_SREGS, &long_mode_without_pae), -EINVAL);
  kvm_sregs reserved_cr4 = sregs;
  reserved_cr4.cr4 |= 1ull << 40;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_SREGS, &reserved_cr4), -EINVAL);
}

TEST(VcpuFd, sregs2_reads_as_sregs) {
  Guest guest;
  kvm_sregs sregs{};
  kvm_sregs2 sregs2{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_SREGS, &sregs), 0);
  ASSERT_EQ(call(guest.vcpu, KVM_GET_SREGS2, &sregs2), 0);
  EXPECT_EQ(memcmp(&sregs.cs, &sregs2.cs, offsetof(kvm_sregs2, flags)), 0);
  EXPECT_EQ(call(guest.vcpu, KVM_SET_SREGS2, &sregs2), 0);
  sregs2.flags = 0x80;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_SREGS2, &sregs2), -EINVAL);
}

// --- CPUID ---

TEST(Cpuid, seed_X1_entries_read_back_exactly) {
  Guest guest;
  CpuidList list;
  list.nent = 3;
  list.entries[0] = cpuid_entry(0, 0, 0xd);
  list.entries[1] = cpuid_entry(0x40000123, 0, 0xabcdef);
  list.entries[2] = cpuid_entry(7, 1, 0x5);
  ASSERT_EQ(call(guest.vcpu, KVM_SET_CPUID2, &list), 0);
  CpuidList seen;
  seen.nent = 16;
  ASSERT_EQ(call(guest.vcpu, KVM_GET_CPUID2, &seen), 0);
  EXPECT_EQ(seen.nent, 3u);
  EXPECT_EQ(seen.entries[1].function, 0x40000123u);
  EXPECT_EQ(seen.entries[1].eax, 0xabcdefu);
  EXPECT_EQ(seen.entries[2].index, 1u);
}

TEST(Cpuid, entries_show_what_the_guest_switched_on) {
  Guest guest({0xf4});
  CpuidList list, seen;
  list.nent = 1;
  list.entries[0] = cpuid_entry(1, 0, 0x123);
  list.entries[0].ecx = 1u << 26;  // XSAVE
  ASSERT_EQ(call(guest.vcpu, KVM_SET_CPUID2, &list), 0);
  kvm_sregs sregs{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_SREGS, &sregs), 0);
  sregs.cr4 |= 1u << 18;  // OSXSAVE
  ASSERT_EQ(call(guest.vcpu, KVM_SET_SREGS, &sregs), 0);
  seen.nent = 16;
  ASSERT_EQ(call(guest.vcpu, KVM_GET_CPUID2, &seen), 0);
  EXPECT_EQ(seen.entries[0].ecx, 3u << 26);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(call(guest.vcpu, KVM_SET_CPUID2, &seen), 0);
  EXPECT_EQ(call(guest.vcpu, KVM_SET_CPUID2, &list), 0);
  seen.entries[0].eax ^= 1;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_CPUID2, &seen), -EINVAL);
}

TEST(Cpuid, seed_X1_short_buffer_is_e2big) {
  Guest guest;
  CpuidList list;
  list.nent = 2;
  list.entries[0] = cpuid_entry(0, 0, 1);
  list.entries[1] = cpuid_entry(1, 0, 0);
  ASSERT_EQ(call(guest.vcpu, KVM_SET_CPUID2, &list), 0);
  CpuidList seen;
  seen.nent = 1;
  EXPECT_EQ(call(guest.vcpu, KVM_GET_CPUID2, &seen), -E2BIG);
}

TEST(Cpuid, seed_X1_short_buffer_gets_the_needed_count) {
  if (on_real_kvm()) GTEST_SKIP() << "kernels differ";
  Guest guest;
  CpuidList list;
  list.nent = 2;
  list.entries[0] = cpuid_entry(0, 0, 1);
  list.entries[1] = cpuid_entry(1, 0, 0);
  ASSERT_EQ(call(guest.vcpu, KVM_SET_CPUID2, &list), 0);
  CpuidList seen;
  EXPECT_EQ(call(guest.vcpu, KVM_GET_CPUID2, &seen), -E2BIG);
  EXPECT_EQ(seen.nent, 2u);
}

TEST(Cpuid, seed_X1_no_entries_reads_back_as_none) {
  Guest guest;
  CpuidList list;
  ASSERT_EQ(call(guest.vcpu, KVM_SET_CPUID2, &list), 0);
  list.nent = 16;
  ASSERT_EQ(call(guest.vcpu, KVM_GET_CPUID2, &list), 0);
  EXPECT_EQ(list.nent, 0u);
}

TEST(Cpuid, too_many_entries_is_e2big) {
  Guest guest;
  CpuidList list;
  list.nent = 100000;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_CPUID2, &list), -E2BIG);
}

// --- MSRs ---

TEST(Msrs, list_stops_at_the_first_unknown_msr) {
  Guest guest;
  MsrRequest request;
  request.nmsrs = 3;
  request.entries[0].index = 0x174;  // IA32_SYSENTER_CS
  request.entries[1].index = 0xdeadbeef;
  request.entries[2].index = 0x175;
  EXPECT_EQ(call(guest.vcpu, KVM_GET_MSRS, &request), 1);
  EXPECT_EQ(call(guest.vcpu, KVM_SET_MSRS, &request), 1);
}

TEST(Msrs, value_reads_back) {
  Guest guest;
  MsrRequest request;
  request.nmsrs = 1;
  request.entries[0].index = 0x175;  // IA32_SYSENTER_ESP
  request.entries[0].data = 0x12345678;
  ASSERT_EQ(call(guest.vcpu, KVM_SET_MSRS, &request), 1);
  request.entries[0].data = 0;
  ASSERT_EQ(call(guest.vcpu, KVM_GET_MSRS, &request), 1);
  EXPECT_EQ(request.entries[0].data, 0x12345678u);
}

TEST(Msrs, sysenter_addresses_have_32_bits_on_amd_cpus) {
  Guest guest;
  CpuidList list;
  list.nent = 1;
  list.entries[0] = {0, 0, 0, 1, 0x68747541, 0x444d4163, 0x69746e65, {}};  // AuthenticAMD
  ASSERT_EQ(call(guest.vcpu, KVM_SET_CPUID2, &list), 0);
  MsrRequest request;
  request.nmsrs = 2;
  request.entries[0] = {0x175, 0, 0x123456789000};
  request.entries[1] = {0x176, 0, 0x8000000000000001};
  ASSERT_EQ(call(guest.vcpu, KVM_SET_MSRS, &request), 2);
  ASSERT_EQ(call(guest.vcpu, KVM_GET_MSRS, &request), 2);
  EXPECT_EQ(request.entries[0].data, 0x56789000u);
  EXPECT_EQ(request.entries[1].data, 1u);
}

TEST(Msrs, too_long_list_is_e2big) {
  Guest guest;
  MsrRequest request;
  request.nmsrs = 100000;
  EXPECT_EQ(call(guest.vcpu, KVM_GET_MSRS, &request), -E2BIG);
}

// --- Vector state ---

TEST(VectorState, fpu_reads_back) {
  Guest guest;
  kvm_fpu fpu{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_FPU, &fpu), 0);
  fpu.fcw = 0x27f;
  fpu.xmm[5][3] = 0x5a;
  ASSERT_EQ(call(guest.vcpu, KVM_SET_FPU, &fpu), 0);
  kvm_fpu seen{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_FPU, &seen), 0);
  EXPECT_EQ(memcmp(&seen, &fpu, sizeof fpu), 0);
}

TEST(VectorState, fpu_shows_in_xsave) {
  if (on_real_kvm()) GTEST_SKIP() << "the kernel shows it only after the guest ran";
  Guest guest;
  kvm_fpu fpu{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_FPU, &fpu), 0);
  fpu.xmm[5][3] = 0x5a;
  fpu.fpr[2][7] = 0xa5;
  ASSERT_EQ(call(guest.vcpu, KVM_SET_FPU, &fpu), 0);
  std::array<std::uint8_t, 4096> xsave{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_XSAVE, xsave.data()), 0);
  EXPECT_EQ(xsave[160 + 5 * 16 + 3], 0x5a);
  EXPECT_EQ(xsave[32 + 2 * 16 + 7], 0xa5);
}

TEST(VectorState, xsave_image_reads_back) {
  Guest guest;
  alignas(64) std::array<std::uint8_t, 4096> image{}, seen{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_XSAVE, image.data()), 0);
  image[160] = 0x77;
  image[512] |= 3;
  ASSERT_EQ(call(guest.vcpu, KVM_SET_XSAVE, image.data()), 0);
  ASSERT_EQ(call(guest.vcpu, KVM_GET_XSAVE, seen.data()), 0);
  EXPECT_EQ(seen[160], 0x77);
}

TEST(VectorState, impossible_xsave_images_are_einval) {
  Guest guest;
  std::array<std::uint8_t, 4096> image{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_XSAVE, image.data()), 0);
  auto unknown_component = image, compacted = image, reserved_mxcsr = image;
  unknown_component[512 + 7] |= 0x40;
  compacted[520 + 7] |= 0x80;
  reserved_mxcsr[512] |= 3;
  reserved_mxcsr[27] = 0xff;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_XSAVE, unknown_component.data()), -EINVAL);
  EXPECT_EQ(call(guest.vcpu, KVM_SET_XSAVE, compacted.data()), -EINVAL);
  EXPECT_EQ(call(guest.vcpu, KVM_SET_XSAVE, reserved_mxcsr.data()), -EINVAL);
}

TEST(VectorState, xcr0_without_x87_is_einval) {
  Guest guest;
  kvm_xcrs xcrs{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_XCRS, &xcrs), 0);
  EXPECT_EQ(xcrs.nr_xcrs, 1u);
  EXPECT_EQ(xcrs.xcrs[0].value, 1u);
  EXPECT_EQ(call(guest.vcpu, KVM_SET_XCRS, &xcrs), 0);
  xcrs.xcrs[0].value = 2;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_XCRS, &xcrs), -EINVAL);
  xcrs.nr_xcrs = 100;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_XCRS, &xcrs), -EINVAL);
}

// --- Events, debug registers, multiprocessing state ---

TEST(VcpuEvents, state_reads_back) {
  Guest guest;
  kvm_vcpu_events events{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_VCPU_EVENTS, &events), 0);
  events.nmi.masked = 1;
  events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING;
  events.nmi.pending = 1;
  ASSERT_EQ(call(guest.vcpu, KVM_SET_VCPU_EVENTS, &events), 0);
  kvm_vcpu_events seen{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_VCPU_EVENTS, &seen), 0);
  EXPECT_EQ(seen.nmi.masked, 1);
  EXPECT_EQ(seen.nmi.pending, 1);
}

TEST(VcpuEvents, wrong_flags_and_vectors_are_einval) {
  Guest guest;
  kvm_vcpu_events flags{}, vector{};
  flags.flags = 1u << 20;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_VCPU_EVENTS, &flags), -EINVAL);
  vector.exception.injected = 1;
  vector.exception.nr = 40;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_VCPU_EVENTS, &vector), -EINVAL);
}

TEST(DebugRegisters, read_back_and_refuse_wide_values) {
  Guest guest;
  kvm_debugregs regs{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_DEBUGREGS, &regs), 0);
  EXPECT_EQ(regs.dr6, 0xffff0ff0u);
  EXPECT_EQ(regs.dr7, 0x400u);
  regs.db[1] = 0x1234;
  ASSERT_EQ(call(guest.vcpu, KVM_SET_DEBUGREGS, &regs), 0);
  kvm_debugregs seen{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_DEBUGREGS, &seen), 0);
  EXPECT_EQ(seen.db[1], 0x1234u);
  regs.dr7 = 1ull << 40;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_DEBUGREGS, &regs), -EINVAL);
  regs.dr7 = 0x400;
  regs.flags = 1;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_DEBUGREGS, &regs), -EINVAL);
}

TEST(MpState, without_a_local_apic_only_runnable_is_possible) {
  Guest guest;
  kvm_mp_state state{KVM_MP_STATE_HALTED};
  EXPECT_EQ(call(guest.vcpu, KVM_SET_MP_STATE, &state), -EINVAL);
  state.mp_state = KVM_MP_STATE_RUNNABLE;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_MP_STATE, &state), 0);
}

TEST(MpState, second_cpu_starts_uninitialized) {
  Vm vm;
  ASSERT_EQ(call(vm.vm, KVM_CREATE_IRQCHIP), 0);
  Handle first(call(vm.vm, KVM_CREATE_VCPU, 0ul)), second(call(vm.vm, KVM_CREATE_VCPU, 1ul));
  kvm_mp_state state{};
  ASSERT_EQ(call(first, KVM_GET_MP_STATE, &state), 0);
  EXPECT_EQ(state.mp_state, static_cast<unsigned>(KVM_MP_STATE_RUNNABLE));
  ASSERT_EQ(call(second, KVM_GET_MP_STATE, &state), 0);
  EXPECT_EQ(state.mp_state, static_cast<unsigned>(KVM_MP_STATE_UNINITIALIZED));
}

TEST(Lapic, without_an_irqchip_is_einval_and_with_one_reads_its_id) {
  Guest without, with({0xf4}, Guest::Chips::kIrqchip);
  kvm_lapic_state state{};
  EXPECT_EQ(call(without.vcpu, KVM_GET_LAPIC, &state), -EINVAL);
  ASSERT_EQ(call(with.vcpu, KVM_GET_LAPIC, &state), 0);
  EXPECT_EQ(state.regs[0x30], 0x14);
  EXPECT_EQ(call(with.vcpu, KVM_SET_LAPIC, &state), 0);
}

TEST(Interrupt, is_enxio_with_an_irqchip_and_einval_above_255) {
  Guest without, with({0xf4}, Guest::Chips::kIrqchip);
  kvm_interrupt interrupt{32};
  EXPECT_EQ(call(with.vcpu, KVM_INTERRUPT, &interrupt), -ENXIO);
  EXPECT_EQ(call(without.vcpu, KVM_INTERRUPT, &interrupt), 0);
  interrupt.irq = 256;
  EXPECT_EQ(call(without.vcpu, KVM_INTERRUPT, &interrupt), -EINVAL);
}

TEST(TscKhz, rate_is_known) {
  Guest guest;
  EXPECT_GT(call(guest.vcpu, KVM_GET_TSC_KHZ), 100'000);
}

TEST(TscKhz, rate_of_a_cpu_and_of_those_to_come_can_be_set) {
  Vm vm;
  ASSERT_EQ(call(vm.vm, KVM_SET_TSC_KHZ, 1'500'000ul), 0);
  Handle vcpu(call(vm.vm, KVM_CREATE_VCPU));
  EXPECT_EQ(call(vcpu, KVM_GET_TSC_KHZ), 1'500'000);
  EXPECT_EQ(call(vm.vm, KVM_SET_TSC_KHZ, 1'000'000ul), -EINVAL);  // there are vCPUs
  ASSERT_EQ(call(vcpu, KVM_SET_TSC_KHZ, 1'000'000ul), 0);
  EXPECT_EQ(call(vcpu, KVM_GET_TSC_KHZ), 1'000'000);
}

TEST(Cpuid, old_request_has_leaves_without_index) {
  Guest guest;
  struct {
    kvm_cpuid header;
    kvm_cpuid_entry entries[2];
  } old{};
  old.header.nent = 2;
  old.entries[0] = {0, 1, 2, 3, 4, 0};
  old.entries[1] = {1, 5, 6, 7, 8, 0};
  ASSERT_EQ(call(guest.vcpu, KVM_SET_CPUID, &old), 0);
  struct {
    kvm_cpuid2 header;
    kvm_cpuid_entry2 entries[2];
  } now{};
  now.header.nent = 2;
  ASSERT_EQ(call(guest.vcpu, KVM_GET_CPUID2, &now), 0);
  EXPECT_EQ(now.entries[1].function, 1u);
  EXPECT_EQ(now.entries[1].edx, 8u);
  old.header.nent = 1000;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_CPUID, &old), -E2BIG);
  EXPECT_EQ(call(guest.vcpu, KVM_SET_CPUID, kBadPointer), -EFAULT);
}

TEST(VectorState, large_image_has_all_that_the_capability_says) {
  Guest guest;
  const long size = call(guest.vm, KVM_CHECK_EXTENSION, static_cast<unsigned long>(KVM_CAP_XSAVE2));
  ASSERT_GE(size, 4096);
  std::vector<std::uint8_t> image(static_cast<std::size_t>(size), 0xff);
  ASSERT_EQ(call(guest.vcpu, KVM_GET_XSAVE2, image.data()), 0);
  ASSERT_EQ(call(guest.vcpu, KVM_SET_XSAVE, image.data()), 0);
  EXPECT_EQ(call(guest.vcpu, KVM_GET_XSAVE2, kBadPointer), -EFAULT);
}

TEST(Translate, without_paging_is_the_identity) {
  Guest guest;
  kvm_translation translation{};
  translation.linear_address = 0x5678;
  ASSERT_EQ(call(guest.vcpu, KVM_TRANSLATE, &translation), 0);
  EXPECT_EQ(translation.valid, 1);
  EXPECT_EQ(translation.physical_address, 0x5678u);
}

TEST(Translate, all_ones_is_no_address) {
  Guest guest;
  kvm_translation translation{};
  translation.linear_address = ~0ull;
  ASSERT_EQ(call(guest.vcpu, KVM_TRANSLATE, &translation), 0);
  EXPECT_EQ(translation.valid, 0);
}

TEST(SignalMask, wrong_length_is_einval_and_null_clears) {
  Guest guest;
  struct {
    std::uint32_t length = 16;
    std::uint8_t set[16]{};
  } mask;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_SIGNAL_MASK, &mask), -EINVAL);
  mask.length = 8;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_SIGNAL_MASK, &mask), 0);
  EXPECT_EQ(call(guest.vcpu, KVM_SET_SIGNAL_MASK, 0ul), 0);
}

// --- More of the events, where the client has asked for it ---

kvm_vcpu_events events_of(const Guest& guest) {
  kvm_vcpu_events events{};
  EXPECT_EQ(call(guest.vcpu, KVM_GET_VCPU_EVENTS, &events), 0);
  return events;
}

TEST(VcpuEvents, triple_fault_is_set_and_shown_if_enabled) {
  Guest guest;
  kvm_vcpu_events events = events_of(guest);
  EXPECT_FALSE(events.flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT);
  events.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
  events.triple_fault.pending = 1;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_VCPU_EVENTS, &events), -EINVAL);
  ASSERT_EQ(enable_cap(guest.vm, KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1), 0);
  ASSERT_EQ(call(guest.vcpu, KVM_SET_VCPU_EVENTS, &events), 0);
  EXPECT_EQ(events_of(guest).triple_fault.pending, 1);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_SHUTDOWN));
  EXPECT_EQ(events_of(guest).triple_fault.pending, 0);
}

TEST(VcpuEvents, pending_exception_has_its_payload_if_enabled) {
  Guest guest({0xf4});
  kvm_vcpu_events events = events_of(guest);
  events.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
  events.exception.pending = 1;
  events.exception.nr = 1;
  events.exception_has_payload = 1;
  events.exception_payload = 1 << 14;  // DR6.BS
  EXPECT_EQ(call(guest.vcpu, KVM_SET_VCPU_EVENTS, &events), -EINVAL);
  ASSERT_EQ(enable_cap(guest.vm, KVM_CAP_EXCEPTION_PAYLOAD, 1), 0);
  ASSERT_EQ(call(guest.vcpu, KVM_SET_VCPU_EVENTS, &events), 0);
  EXPECT_EQ(events_of(guest).exception.pending, 1);
  EXPECT_EQ(events_of(guest).exception_payload, 1u << 14);
  guest.set_handler(1, 0x2000, {0xe6, 0x11});
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->io.port, 0x11);
  kvm_debugregs debug{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_DEBUGREGS, &debug), 0);
  EXPECT_EQ(debug.dr6 & 1 << 14, 1u << 14);
}

}  // namespace
}  // namespace anykvm::test
