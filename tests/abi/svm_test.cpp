// Nested guests by AMD's SVM: VMRUN and #VMEXIT, intercepts, what VMRUN refuses, moving to another VM (APM
// 2 15.5 to 15.13).
#include "hypervisor.h"

namespace anykvm::test {
namespace {

using u8 = std::uint8_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;

constexpr u32 kTscRatioMsr = 0xc0000104, kTscMsr = 0x10, kLstarMsr = 0xc0000082, kFsBaseMsr = 0xc0000100,
              kKernelGsBaseMsr = 0xc0000102;

// --- The world switch ---

TEST(Svm, guest_goes_on_where_its_hypervisor_says) {
  Hypervisor hypervisor(
      {0x0f, 0x01, 0xd9, 0xb8, 0x07, 0x00, 0x00, 0x00, 0x0f, 0x01, 0xd9});  // vmmcall; mov eax,7; vmmcall
  ASSERT_EQ(hypervisor.exit(), kExitVmmcall);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kRip), Hypervisor::kGuestCode);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kNextRip), Hypervisor::kGuestCode + 3);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kExitIntInfo) >> 31 & 1, 0u);
  hypervisor.set(vmcb::kRip, hypervisor.get<u64>(vmcb::kNextRip));
  ASSERT_EQ(hypervisor.exit(), kExitVmmcall);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kRax), 7u);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kRip), Hypervisor::kGuestCode + 8);
}

TEST(Svm, exit_brings_the_hypervisors_registers_back) {
  // xor esp,esp; mov ds,sp; mov ebx,5; vmmcall
  Hypervisor hypervisor({0x31, 0xe4, 0x8e, 0xdc, 0xbb, 0x05, 0x00, 0x00, 0x00, 0x0f, 0x01, 0xd9});
  ASSERT_EQ(hypervisor.exit(), kExitVmmcall);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kRsp), 0u);
  kvm_sregs sregs{};
  ASSERT_EQ(call(hypervisor.vcpu, KVM_GET_SREGS, &sregs), 0);
  EXPECT_EQ(hypervisor.regs().rsp, 0x8000u);
  EXPECT_EQ(hypervisor.regs().rax, Hypervisor::kVmcb);
  EXPECT_EQ(hypervisor.regs().rbx, 5u);  // the others are not exchanged
  EXPECT_EQ(hypervisor.regs().rflags & 0x200, 0x200u);
  EXPECT_EQ(sregs.idt.base, Hypervisor::kIdt);
  EXPECT_EQ(sregs.ds.present, 1);
}

TEST(Svm, exits_to_the_client_do_not_involve_the_hypervisor) {
  Hypervisor hypervisor({0xe6, 0x77, 0x0f, 0x01, 0xd9});  // out 77h,al; vmmcall
  ASSERT_EQ(hypervisor.run_to_port(), 0x77);
  kvm_sregs sregs{};
  ASSERT_EQ(call(hypervisor.vcpu, KVM_GET_SREGS, &sregs), 0);
  EXPECT_EQ(sregs.idt.base, Hypervisor::kGuestIdt);
  EXPECT_EQ(hypervisor.exit(), kExitVmmcall);
}

TEST(Svm, instructions_are_undefined_without_svme) {
  auto vector_of = [](Hypervisor::Code code) {
    Hypervisor hypervisor;
    hypervisor.set_code(code);
    kvm_sregs sregs{};
    EXPECT_EQ(call(hypervisor.vcpu, KVM_GET_SREGS, &sregs), 0);
    sregs.efer &= ~Hypervisor::kSvme;
    EXPECT_EQ(call(hypervisor.vcpu, KVM_SET_SREGS, &sregs), 0);
    EXPECT_EQ(hypervisor.run_to_port(), Hypervisor::kHypervisorVectorPort);
    return hypervisor.written();
  };
  EXPECT_EQ(vector_of({0x0f, 0x01, 0xd8}), 6);  // VMRUN
  EXPECT_EQ(vector_of({0x0f, 0x01, 0xda}), 6);  // VMLOAD
  EXPECT_EQ(vector_of({0x0f, 0x01, 0xdb}), 6);  // VMSAVE
  EXPECT_EQ(vector_of({0x0f, 0x01, 0xdc}), 6);  // STGI
  EXPECT_EQ(vector_of({0x0f, 0x01, 0xdd}), 6);  // CLGI
  EXPECT_EQ(vector_of({0x0f, 0x01, 0xdf}), 6);  // INVLPGA
}

TEST(Svm, address_of_no_vmcb_is_a_general_protection_fault) {
  auto vector_of = [](u64 address, u8 instruction) {
    Hypervisor hypervisor;
    hypervisor.set_code({0x0f, 0x01, instruction});
    kvm_regs regs = hypervisor.regs();
    regs.rax = address;
    hypervisor.set_regs(regs);
    EXPECT_EQ(hypervisor.run_to_port(), Hypervisor::kHypervisorVectorPort);
    return hypervisor.written();
  };
  EXPECT_EQ(vector_of(Hypervisor::kVmcb + 1, 0xd8), 13);      // VMRUN
  EXPECT_EQ(vector_of(Hypervisor::kVmcb + 8, 0xda), 13);      // VMLOAD
  EXPECT_EQ(vector_of(Hypervisor::kVmcb + 0x800, 0xdb), 13);  // VMSAVE
  EXPECT_EQ(vector_of(u64{1} << 52, 0xd8), 13);
}

TEST(Svm, vmsave_and_vmload_move_the_registers_that_vmrun_leaves_alone) {
  Hypervisor hypervisor;
  // mov eax,100000h; vmsave; out 10h,al; vmload; out 10h,al
  hypervisor.set_code(
      {0xb8, 0x00, 0x00, 0x10, 0x00, 0x0f, 0x01, 0xdb, 0xe6, 0x10, 0x0f, 0x01, 0xda, 0xe6, 0x10});
  EXPECT_EQ(hypervisor.set_msr(kKernelGsBaseMsr, 0x1234), 1);
  EXPECT_EQ(hypervisor.set_msr(kLstarMsr, 0x5678), 1);
  ASSERT_EQ(hypervisor.run_to_port(), Hypervisor::kExitPort);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kKernelGsBase), 0x1234u);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kLstar), 0x5678u);
  hypervisor.set(vmcb::kKernelGsBase, u64{0x4321});
  hypervisor.set(vmcb::kFs + 8, u64{0x8765});
  ASSERT_EQ(hypervisor.run_to_port(), Hypervisor::kExitPort);
  EXPECT_EQ(hypervisor.msr(kKernelGsBaseMsr), 0x4321u);
  EXPECT_EQ(hypervisor.msr(kFsBaseMsr), 0x8765u);
}

TEST(Svm, time_stamp_counter_has_its_offset_in_the_guest_only) {
  Hypervisor hypervisor({0x0f, 0x31, 0x0f, 0x01, 0xd9});  // rdtsc; vmmcall
  hypervisor.set(vmcb::kTscOffset, u64{1} << 50);
  ASSERT_EQ(hypervisor.exit(), kExitVmmcall);
  EXPECT_GE(hypervisor.regs().rdx, 1u << 18);
  EXPECT_LT(hypervisor.msr(kTscMsr), u64{1} << 50);
}

TEST(Svm, time_stamp_counter_has_its_ratio_in_the_guest_only) {
  Hypervisor hypervisor({0x0f, 0x31, 0x0f, 0x01, 0xd9});  // rdtsc; vmmcall
  EXPECT_EQ(hypervisor.set_msr(kTscRatioMsr, u64{1} << 40), 0);
  ASSERT_EQ(hypervisor.set_msr(kTscRatioMsr, u64{128} << 32), 1);
  ASSERT_EQ(hypervisor.set_msr(kTscMsr, u64{1} << 40), 1);
  ASSERT_EQ(hypervisor.exit(), kExitVmmcall);
  EXPECT_GE(hypervisor.regs().rdx, 128u << 8);  // bits 63:32
  EXPECT_LT(hypervisor.msr(kTscMsr), u64{2} << 40);
}

TEST(Svm, vmcb_without_memory_is_told_to_the_client) {
  for (const u8 instruction : {0xd8, 0xda, 0xdb}) {  // VMRUN, VMLOAD, VMSAVE
    Hypervisor hypervisor;
    hypervisor.set_code({0x0f, 0x01, instruction});
    kvm_regs regs = hypervisor.regs();
    regs.rax = 0xd0000000;
    hypervisor.set_regs(regs);
    ASSERT_EQ(hypervisor.run(), 0);
    EXPECT_EQ(hypervisor.shared->exit_reason, static_cast<u32>(KVM_EXIT_INTERNAL_ERROR));
    EXPECT_EQ(hypervisor.shared->internal.suberror, static_cast<u32>(KVM_INTERNAL_ERROR_EMULATION));
  }
}

// --- Intercepts ---

TEST(Svm, intercepted_instructions_exit) {
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kRdtsc, {0x0f, 0x31}), 0x6eu);
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kRdpmc, {0x0f, 0x33}), 0x6fu);
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kPushf, {0x9c}), 0x70u);
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kPopf, {0x9d}), 0x71u);
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kCpuid, {0x0f, 0xa2}), 0x72u);
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kRsm, {0x0f, 0xaa}), 0x73u);
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kIret, {0x48, 0xcf}), 0x74u);
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kIntN, {0xcd, 0x40}), 0x75u);
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kInvd, {0x0f, 0x08}), 0x76u);
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kPause, {0xf3, 0x90}), 0x77u);
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kHlt, {0xf4}), 0x78u);
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kInvlpg, {0x0f, 0x01, 0x38}), 0x79u);
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kRdtscp, {0x0f, 0x01, 0xf9}), 0x87u);
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kIcebp, {0xf1}), 0x88u);
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kWbinvd, {0x0f, 0x09}), 0x89u);
}

TEST(Svm, intercepted_svm_instructions_exit) {
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kVmrun, {0x0f, 0x01, 0xd8}), 0x80u);
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kVmload, {0x0f, 0x01, 0xda}), 0x82u);
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kVmsave, {0x0f, 0x01, 0xdb}), 0x83u);
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kStgi, {0x0f, 0x01, 0xdc}), 0x84u);
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kClgi, {0x0f, 0x01, 0xdd}), 0x85u);
}

TEST(Svm, intercepted_accesses_to_system_registers_exit) {
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kSidt, {0x0f, 0x01, 0x0c, 0x24}), 0x66u);  // of [rsp]
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kSgdt, {0x0f, 0x01, 0x04, 0x24}), 0x67u);
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kSldt, {0x0f, 0x00, 0xc0}), 0x68u);
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kStr, {0x0f, 0x00, 0xc8}), 0x69u);
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kLidt, {0x0f, 0x01, 0x1c, 0x24}), 0x6au);
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kLgdt, {0x0f, 0x01, 0x14, 0x24}), 0x6bu);
}

TEST(Svm, exit_of_invpcid_tells_its_operands) {
  // mov eax,2; invpcid rax,[3000h]
  Hypervisor hypervisor(
      {0xb8, 0x02, 0x00, 0x00, 0x00, 0x66, 0x0f, 0x38, 0x82, 0x04, 0x25, 0x00, 0x30, 0x00, 0x00});
  hypervisor.intercept(vmcb::kInvpcid);
  ASSERT_EQ(hypervisor.exit(), 0xa2u);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kExitInfo1), Hypervisor::kSpare);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kExitInfo2), 2u);
}

TEST(Svm, instructions_that_nobody_intercepts_are_carried_out) {
  Hypervisor hypervisor({0x0f, 0xa2, 0x0f, 0x31, 0x9c, 0x9d, 0xf3, 0x90, 0x0f, 0x01, 0xd9});
  ASSERT_EQ(hypervisor.exit(), kExitVmmcall);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kRip), Hypervisor::kGuestCode + 8);
}

TEST(Svm, accesses_to_control_and_debug_registers_exit_by_number) {
  auto exit_of = [](unsigned offset, unsigned number, Hypervisor::Code code) {
    Hypervisor hypervisor(code);
    hypervisor.set(offset, static_cast<std::uint16_t>(1u << number));
    return hypervisor.exit();
  };
  EXPECT_EQ(exit_of(vmcb::kCrReads, 0, {0x0f, 0x20, 0xc0}), 0x00u);
  EXPECT_EQ(exit_of(vmcb::kCrReads, 3, {0x0f, 0x20, 0xd8}), 0x03u);
  EXPECT_EQ(exit_of(vmcb::kCrWrites, 0, {0x0f, 0x22, 0xc0}), 0x10u);
  EXPECT_EQ(exit_of(vmcb::kCrWrites, 4, {0x0f, 0x22, 0xe0}), 0x14u);
  EXPECT_EQ(exit_of(vmcb::kCrWrites, 8, {0x44, 0x0f, 0x22, 0xc0}), 0x18u);
  EXPECT_EQ(exit_of(vmcb::kDrReads, 7, {0x0f, 0x21, 0xf8}), 0x27u);
  EXPECT_EQ(exit_of(vmcb::kDrReads, 4, {0x0f, 0x21, 0xe0}), 0x24u);
  EXPECT_EQ(exit_of(vmcb::kDrWrites, 3, {0x0f, 0x23, 0xd8}), 0x33u);
  EXPECT_EQ(exit_of(vmcb::kDrWrites, 4, {0x0f, 0x23, 0xe0}), 0x34u);
}

// mov rax,cr0; bts eax,BIT; mov cr0,rax; vmmcall
#define SET_CR0_BIT(bit) \
  { 0x0f, 0x20, 0xc0, 0x0f, 0xba, 0xe8, bit, 0x0f, 0x22, 0xc0, 0x0f, 0x01, 0xd9 }

TEST(Svm, selective_intercept_of_cr0_leaves_ts_and_mp_alone) {
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kCr0Selective, SET_CR0_BIT(30)), 0x65u);
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kCr0Selective, SET_CR0_BIT(3)), kExitVmmcall);
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kCr0Selective, SET_CR0_BIT(1)), kExitVmmcall);
}

TEST(Svm, selective_intercept_of_cr0_is_for_every_lmsw) {
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kCr0Selective, {0xb0, 0x13, 0x0f, 0x01, 0xf0}),
            0x65u);  // mov al,13h; lmsw ax
}

TEST(Svm, port_is_intercepted_by_the_permission_map) {
  Hypervisor hypervisor({0xe4, 0x40, 0xe6, 0x41, 0x0f, 0x01, 0xd9});  // in al,40h; out 41h,al; vmmcall
  hypervisor.intercept(vmcb::kIoio);
  hypervisor.put(Hypervisor::kIopm + 0x40 / 8, u8{1});
  ASSERT_EQ(hypervisor.exit(), kExitIoio);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kExitInfo1), 0x400211u);  // a byte, 64-bit addresses, in
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kExitInfo2), Hypervisor::kGuestCode + 2);
  hypervisor.set(vmcb::kRip, Hypervisor::kGuestCode + 2);
  EXPECT_EQ(hypervisor.run_to_port(), 0x41);
  EXPECT_EQ(hypervisor.exit(), kExitVmmcall);
}

TEST(Svm, wide_access_exits_if_one_of_its_ports_is_intercepted) {
  Hypervisor hypervisor({0xe7, 0x3e});  // out 3eh,eax
  hypervisor.intercept(vmcb::kIoio);
  hypervisor.put(Hypervisor::kIopm + 0x40 / 8, u8{2});  // 41H
  ASSERT_EQ(hypervisor.exit(), kExitIoio);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kExitInfo1), 0x3e0240u);
}

TEST(Svm, string_io_exits_with_nothing_done) {
  // mov edx,40h; mov ecx,3; mov esi,3000h; rep outsb
  Hypervisor hypervisor({0xba, 0x40, 0, 0, 0, 0xb9, 3, 0, 0, 0, 0xbe, 0, 0x30, 0, 0, 0xf3, 0x6e});
  hypervisor.intercept(vmcb::kIoio);
  hypervisor.put(Hypervisor::kIopm + 0x40 / 8, u8{1});
  ASSERT_EQ(hypervisor.exit(), kExitIoio);
  constexpr u64 kSegment = 7 << 10;  // told by CPUs with decode assists
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kExitInfo1) & ~kSegment, 0x40021cu);
  EXPECT_EQ(hypervisor.regs().rcx, 3u);
  EXPECT_EQ(hypervisor.regs().rsi, Hypervisor::kSpare);
}

constexpr u64 kEferInMap = Hypervisor::kMsrpm + 0x800 + 0x80 / 4;

TEST(Svm, model_specific_register_is_intercepted_by_the_permission_map) {
  Hypervisor hypervisor({0xb9, 0x80, 0, 0, 0xc0, 0x0f, 0x32, 0x0f, 0x30});  // mov ecx,EFER; rdmsr; wrmsr
  hypervisor.intercept(vmcb::kMsr);
  hypervisor.put(kEferInMap, u8{2});  // writing
  ASSERT_EQ(hypervisor.exit(), kExitMsr);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kExitInfo1), 1u);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kNextRip), Hypervisor::kGuestCode + 9);
  hypervisor.put(kEferInMap, u8{1});  // reading
  hypervisor.set(vmcb::kRip, Hypervisor::kGuestCode);
  ASSERT_EQ(hypervisor.exit(), kExitMsr);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kExitInfo1), 0u);
}

TEST(Svm, model_specific_register_that_is_in_no_map_is_always_intercepted) {
  EXPECT_EQ(Hypervisor::exit_of(vmcb::kMsr, {0xb9, 0x01, 0x4d, 0x56, 0x4b, 0x0f, 0x32}),
            kExitMsr);  // 4B564D01H
}

TEST(Svm, intercepted_exception_exits_before_it_is_delivered) {
  Hypervisor hypervisor({0x90, 0x0f, 0x0b});  // nop; ud2
  hypervisor.intercept_exception(6);
  ASSERT_EQ(hypervisor.exit(), kExitException + 6);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kRip), Hypervisor::kGuestCode + 1);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kRsp), Hypervisor::kGuestStack);
}

TEST(Svm, intercepted_page_fault_tells_its_error_and_leaves_cr2_alone) {
  Hypervisor hypervisor({0x89, 0x04, 0x25, 0x10, 0x00, 0x20, 0x00});  // mov [200010h],eax
  hypervisor.intercept_exception(14);
  hypervisor.set(vmcb::kCr2, u64{0x1234});
  ASSERT_EQ(hypervisor.exit(), kExitException + 14);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kExitInfo1), 2u);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kExitInfo2), Hypervisor::kUnmapped + 0x10);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kCr2), 0x1234u);
}

TEST(Svm, exception_that_nobody_intercepts_is_the_guests) {
  Hypervisor hypervisor({0x8b, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00});  // mov eax,[200000h]
  ASSERT_EQ(hypervisor.run_to_port(), Hypervisor::kGuestVectorPort);
  EXPECT_EQ(hypervisor.written(), 14);
  ASSERT_EQ(hypervisor.exit(), kExitVmmcall);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kCr2), Hypervisor::kUnmapped);
}

TEST(Svm, shutdown_is_the_hypervisors_if_it_wants) {
  Hypervisor hypervisor({0x0f, 0x0b});
  hypervisor.intercept(vmcb::kShutdown);
  hypervisor.set(vmcb::kIdtr + 4, u32{0});  // the limit
  EXPECT_EQ(hypervisor.exit(), kExitShutdown);
}

TEST(Svm, shutdown_that_nobody_intercepts_is_the_clients) {
  Hypervisor hypervisor({0x0f, 0x0b});
  hypervisor.set(vmcb::kIdtr + 4, u32{0});
  ASSERT_EQ(hypervisor.run(), 0);
  EXPECT_EQ(hypervisor.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_SHUTDOWN));
}

// --- What VMRUN refuses (APM 2 15.5.1) ---

TEST(Svm, vmrun_refuses_registers_that_no_guest_can_have) {
  Hypervisor hypervisor;
  constexpr u64 kCr0 = 0x80000011, kHigh = u64{1} << 32;
  EXPECT_EQ(hypervisor.exit_with(vmcb::kEfer, u64{0x500}), kExitInvalid);  // no SVME
  EXPECT_EQ(hypervisor.exit_with(vmcb::kEfer, Hypervisor::kSvme | 0x500 | 1u << 20), kExitInvalid);
  EXPECT_EQ(hypervisor.exit_with(vmcb::kCr0, kCr0 | 1u << 29), kExitInvalid);  // NW without CD
  EXPECT_EQ(hypervisor.exit_with(vmcb::kCr0, kCr0 | kHigh), kExitInvalid);
  EXPECT_EQ(hypervisor.exit_with(vmcb::kCr0, kCr0 & ~u64{1}), kExitInvalid);  // long mode without PE
  EXPECT_EQ(hypervisor.exit_with(vmcb::kCr4, u64{0}), kExitInvalid);          // and without PAE
  EXPECT_EQ(hypervisor.exit_with(vmcb::kCr4, 0x20 | kHigh), kExitInvalid);
  EXPECT_EQ(hypervisor.exit_with(vmcb::kCr3, 0x9000 | u64{1} << 52), kExitInvalid);
  EXPECT_EQ(hypervisor.exit_with(vmcb::kDr6, 0xffff0ff0 | kHigh), kExitInvalid);
  EXPECT_EQ(hypervisor.exit_with(vmcb::kDr7, 0x400 | kHigh), kExitInvalid);
  EXPECT_EQ(hypervisor.exit_with(vmcb::kCs + 2, std::uint16_t{0xe9b}), kExitInvalid);  // L and D
  EXPECT_EQ(hypervisor.exit(), kExitVmmcall);
}

TEST(Svm, vmrun_refuses_reserved_bits_of_cr3_outside_long_mode_too) {
  Hypervisor hypervisor;
  hypervisor.set(vmcb::kEfer, Hypervisor::kSvme);
  EXPECT_EQ(hypervisor.exit_with(vmcb::kCr3, 0x9000 | u64{1} << 60), kExitInvalid);
}

TEST(Svm, vmrun_refuses_controls_that_make_no_sense) {
  Hypervisor hypervisor;
  EXPECT_EQ(hypervisor.exit_with(vmcb::kAsid, u32{0}), kExitInvalid);
  EXPECT_EQ(hypervisor.exit_with(vmcb::kIntercepts2, u32{2}), kExitInvalid);  // VMRUN is not intercepted
  EXPECT_EQ(hypervisor.exit_with(vmcb::kIopm, ~u64{0}), kExitInvalid);
  EXPECT_EQ(hypervisor.exit_with(vmcb::kMsrpm, ~u64{0}), kExitInvalid);
  EXPECT_EQ(hypervisor.exit(), kExitVmmcall);
}

TEST(Svm, vmrun_refuses_events_that_there_are_not) {
  Hypervisor hypervisor;
  constexpr u64 kValid = u64{1} << 31;
  EXPECT_EQ(hypervisor.exit_with(vmcb::kEventInjection, kValid | 1 << 8 | 0x40),
            kExitInvalid);  // reserved type
  EXPECT_EQ(hypervisor.exit_with(vmcb::kEventInjection, kValid | 3 << 8 | 2),
            kExitInvalid);  // vector 2 as an exception
  EXPECT_EQ(hypervisor.exit_with(vmcb::kEventInjection, kValid | 3 << 8 | 32), kExitInvalid);
}

TEST(Svm, refused_guest_has_not_run) {
  Hypervisor hypervisor({0xe6, 0x77});
  EXPECT_EQ(hypervisor.exit_with(vmcb::kAsid, u32{0}), kExitInvalid);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kRip), Hypervisor::kGuestCode);
  EXPECT_EQ(hypervisor.regs().rsp, 0x8000u);
}

// --- Moving a hypervisor with its guest ---

struct NestedState {
  kvm_nested_state header{};
  u8 data[KVM_STATE_NESTED_SVM_VMCB_SIZE] = {};
};

NestedState nested_state_of(const Hypervisor& from) {
  NestedState state;
  state.header.size = sizeof state;
  EXPECT_EQ(call(from.vcpu, KVM_GET_NESTED_STATE, &state), 0);
  return state;
}

void finish_exit(Hypervisor& hypervisor) {
  hypervisor.shared->immediate_exit = 1;
  EXPECT_EQ(hypervisor.run(), -EINTR);
  hypervisor.shared->immediate_exit = 0;
}

// In the order of the API's document: CPUID, MSRs, special registers, then the nested state.
void move(Hypervisor& from, Hypervisor& to) {
  finish_exit(from);
  std::memcpy(to.memory.data(), from.memory.data(), from.memory.size());
  std::memcpy(to.far.data(), from.far.data(), from.far.size());
  kvm_sregs sregs{};
  EXPECT_EQ(call(from.vcpu, KVM_GET_SREGS, &sregs), 0);
  EXPECT_EQ(call(to.vcpu, KVM_SET_SREGS, &sregs), 0);
  EXPECT_EQ(to.set_msr(kHostSaveMsr, from.msr(kHostSaveMsr)), 1);
  to.set_regs(from.regs());
  NestedState state = nested_state_of(from);
  EXPECT_EQ(call(to.vcpu, KVM_SET_NESTED_STATE, &state), 0);
}

TEST(Svm, guest_that_runs_goes_on_in_another_vm) {
  Hypervisor from(
      {0xe6, 0x77, 0xb8, 0x09, 0x00, 0x00, 0x00, 0x0f, 0x01, 0xd9});  // out 77h,al; mov eax,9; vmmcall
  ASSERT_EQ(from.run_to_port(), 0x77);
  Hypervisor to({}, Guest::Chips::kNone, Hypervisor::State::kBlank);
  move(from, to);
  ASSERT_EQ(to.exit(), kExitVmmcall);
  EXPECT_EQ(to.get<u64>(vmcb::kRax), 9u);
  EXPECT_EQ(to.get<u64>(vmcb::kRip), Hypervisor::kGuestCode + 7);
  EXPECT_EQ(to.regs().rsp, 0x8000u);
}

TEST(Svm, guest_with_nested_paging_goes_on_in_another_vm) {
  Hypervisor from({0xe6, 0x77, 0x8b, 0x04, 0x25, 0x00, 0x30, 0x00, 0x00, 0x0f, 0x01,
                   0xd9});  // out; mov eax,[3000h]; vmmcall
  from.use_nested_paging();
  from.set_nested_page(Hypervisor::kSpare, 0x4007);
  from.put(0x4000, u32{0x1357});
  ASSERT_EQ(from.run_to_port(), 0x77);
  Hypervisor to({}, Guest::Chips::kNone, Hypervisor::State::kBlank);
  move(from, to);
  ASSERT_EQ(to.exit(), kExitVmmcall);
  EXPECT_EQ(to.get<u64>(vmcb::kRax), 0x1357u);
}

TEST(Svm, state_tells_of_the_guest_while_it_runs) {
  Hypervisor hypervisor({0xe6, 0x77, 0x0f, 0x01, 0xd9});
  ASSERT_EQ(hypervisor.run_to_port(), 0x77);
  const NestedState inside = nested_state_of(hypervisor);
  EXPECT_EQ(inside.header.flags & ~KVM_STATE_NESTED_RUN_PENDING,
            KVM_STATE_NESTED_GUEST_MODE | KVM_STATE_NESTED_GIF_SET);
  EXPECT_EQ(inside.header.format, KVM_STATE_NESTED_FORMAT_SVM);
  EXPECT_EQ(inside.header.size, sizeof inside);
  EXPECT_EQ(inside.header.hdr.svm.vmcb_pa, Hypervisor::kVmcb);
  ASSERT_EQ(hypervisor.exit(), kExitVmmcall);
  const NestedState outside = nested_state_of(hypervisor);
  EXPECT_EQ(outside.header.flags, 0);  // GIF is clear after an exit
}

}  // namespace
}  // namespace anykvm::test
