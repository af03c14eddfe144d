// Guests of a guest that knows Hyper-V's interface (TLFS: nested virtualization): the enlightened MSR
// permission map, and flushes that the hypervisor does not hear of.
#include "hypervisor.h"

namespace anykvm::test {
namespace {

using u8 = std::uint8_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;

constexpr u32 kGuestOsId = 0x40000000, kVpAssistPage = 0x40000073;
constexpr u32 kFlushCalls = 1, kMsrMap = 2;  // of the enlightenments' first word
constexpr u32 kClean = 1u << 31;
constexpr u64 kExitEnlightenment = 0xf0000000, kTrapAfterFlush = 1;
constexpr u64 kExitHlt = u64{kExitIntercept} + vmcb::kHlt;

struct Enlightened : Hypervisor {
  static constexpr u64 kAssistPage = 0x4000, kPartitionAssistPage = 0x5000;

  explicit Enlightened(Code code, bool features = true) : Hypervisor(code) {
    show_hyperv(features);
    EXPECT_EQ(set_msr(kGuestOsId, 1), 1);
    intercept(vmcb::kMsr);
    intercept(vmcb::kHlt);
  }
  void enlighten(u32 control) { set(vmcb::kSoftware, control); }
  void identify(u64 vm, u32 vp) {
    set(vmcb::kSoftware + 4, vp);
    set(vmcb::kSoftware + 8, vm);
  }
  // Everything that direct flushes need.
  void permit_flushes() {
    enlighten(kFlushCalls);
    identify(7, 0);
    set(vmcb::kSoftware + 16, kPartitionAssistPage);
    EXPECT_EQ(set_msr(kVpAssistPage, kAssistPage | 1), 1);
    put(kAssistPage + 0x20, u32{1});
  }
  u64 exit_from_the_begin() {
    set(vmcb::kRip, kGuestCode);
    return exit();
  }
};

// --- The MSR permission map ---

#define READ_EFER \
  { 0xb9, 0x80, 0, 0, 0xc0, 0x0f, 0x32, 0x0f, 0x01, 0xd9 }  // mov ecx,EFER; rdmsr; vmmcall
constexpr u64 kEferInMap = Hypervisor::kMsrpm + 0x800 + 0x80 / 4;

TEST(HypervNested, msr_map_is_as_it_was_while_its_hypervisor_says_so) {
  Enlightened hypervisor(READ_EFER);
  hypervisor.enlighten(kMsrMap);
  EXPECT_EQ(hypervisor.exit(), kExitVmmcall);
  hypervisor.put(kEferInMap, u8{1});
  hypervisor.set(vmcb::kClean, kClean);
  EXPECT_EQ(hypervisor.exit_from_the_begin(), kExitVmmcall);
  hypervisor.set(vmcb::kClean, u32{0});
  EXPECT_EQ(hypervisor.exit_from_the_begin(), kExitMsr);
  hypervisor.put(kEferInMap, u8{0});
  hypervisor.set(vmcb::kClean, kClean);
  EXPECT_EQ(hypervisor.exit_from_the_begin(), kExitMsr);
}

TEST(HypervNested, clean_bit_is_about_enlightened_maps_only) {
  Enlightened hypervisor(READ_EFER);
  hypervisor.set(vmcb::kClean, kClean);
  EXPECT_EQ(hypervisor.exit(), kExitVmmcall);
  hypervisor.put(kEferInMap, u8{1});
  EXPECT_EQ(hypervisor.exit_from_the_begin(), kExitMsr);
}

TEST(HypervNested, msr_map_is_in_memory_where_cpuid_shows_nothing_else) {
  Enlightened hypervisor(READ_EFER, false);
  hypervisor.enlighten(kMsrMap);
  EXPECT_EQ(hypervisor.exit(), kExitVmmcall);
  hypervisor.put(kEferInMap, u8{1});
  hypervisor.set(vmcb::kClean, kClean);
  EXPECT_EQ(hypervisor.exit_from_the_begin(), kExitMsr);
}

TEST(HypervNested, msr_map_of_another_vmcb_is_its_own) {
  constexpr u64 kOther = Hypervisor::kFar + 0xf000,
                kItsAddress = Guest::kCode + 5;  // in the hypervisor's code
  Enlightened hypervisor(READ_EFER);
  hypervisor.enlighten(kMsrMap);
  EXPECT_EQ(hypervisor.exit(), kExitVmmcall);
  hypervisor.put(kEferInMap, u8{1});
  hypervisor.set(vmcb::kClean, kClean);
  hypervisor.set(vmcb::kRip, Hypervisor::kGuestCode);
  hypervisor.put(kOther, hypervisor.at<std::array<u8, 0x1000>>(Hypervisor::kVmcb));
  hypervisor.put(kItsAddress, static_cast<u32>(kOther));
  EXPECT_EQ(hypervisor.run_to_port(), Hypervisor::kExitPort);
  EXPECT_EQ(hypervisor.at<u64>(kOther + vmcb::kExitCode), kExitMsr);
}

// Of a vCPU whose guest runs, or not.
void reload_nested_state(const Hypervisor& hypervisor) {
  struct {
    kvm_nested_state state;
    u8 data[KVM_STATE_NESTED_SVM_VMCB_SIZE];
  } room{};
  room.state.size = sizeof room;
  ASSERT_EQ(call(hypervisor.vcpu, KVM_GET_NESTED_STATE, &room), 0);
  ASSERT_EQ(call(hypervisor.vcpu, KVM_SET_NESTED_STATE, &room), 0);
}

TEST(HypervNested, msr_map_is_taken_anew_after_its_state_was_loaded) {
  Enlightened hypervisor(READ_EFER);
  hypervisor.enlighten(kMsrMap);
  EXPECT_EQ(hypervisor.exit(), kExitVmmcall);
  hypervisor.put(kEferInMap, u8{1});
  hypervisor.set(vmcb::kClean, kClean);
  reload_nested_state(hypervisor);
  EXPECT_EQ(hypervisor.exit_from_the_begin(), kExitMsr);
}

TEST(HypervNested, msr_map_of_a_running_guest_is_taken_anew_after_its_state_was_loaded) {
  // mov ecx,EFER; out 20h,al; rdmsr; vmmcall
  Enlightened hypervisor({0xb9, 0x80, 0, 0, 0xc0, 0xe6, 0x20, 0x0f, 0x32, 0x0f, 0x01, 0xd9});
  hypervisor.enlighten(kMsrMap);
  ASSERT_EQ(hypervisor.run_to_port(), 0x20);
  hypervisor.put(kEferInMap, u8{1});
  EXPECT_EQ(hypervisor.exit(), kExitVmmcall);
  hypervisor.put(kEferInMap, u8{0});
  hypervisor.set(vmcb::kRip, Hypervisor::kGuestCode);
  ASSERT_EQ(hypervisor.run_to_port(), 0x20);
  hypervisor.put(kEferInMap, u8{1});
  reload_nested_state(hypervisor);
  EXPECT_EQ(hypervisor.exit(), kExitMsr);
}

// --- Direct flushes ---

// mov ecx,10002h; xor edx,edx; mov r8d,3; vmmcall: a fast call to flush all spaces on all processors
#define FLUSH 0xb9, 0x02, 0, 1, 0, 0x31, 0xd2, 0x41, 0xb8, 3, 0, 0, 0, 0x0f, 0x01, 0xd9
constexpr unsigned kFlushLength = 16;
constexpr u64 kSomething = 0x55;

TEST(HypervNested, flush_is_no_exit) {
  Enlightened hypervisor({FLUSH, 0xf4});
  hypervisor.permit_flushes();
  hypervisor.set(vmcb::kRax, kSomething);
  ASSERT_EQ(hypervisor.exit(), kExitHlt);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kRax), 0u);
}

TEST(HypervNested, flush_is_an_exit_unless_the_hypervisor_permits_it) {
  Enlightened hypervisor({FLUSH, 0xf4});
  hypervisor.permit_flushes();
  hypervisor.put(Enlightened::kAssistPage + 0x20, u32{0});
  EXPECT_EQ(hypervisor.exit_from_the_begin(), kExitVmmcall);
  hypervisor.permit_flushes();
  hypervisor.enlighten(kMsrMap);
  EXPECT_EQ(hypervisor.exit_from_the_begin(), kExitVmmcall);
  hypervisor.permit_flushes();
  hypervisor.set_msr(kVpAssistPage, Enlightened::kAssistPage);
  EXPECT_EQ(hypervisor.exit_from_the_begin(), kExitVmmcall);
  hypervisor.permit_flushes();
  EXPECT_EQ(hypervisor.exit_from_the_begin(), kExitHlt);
}

TEST(HypervNested, flush_is_an_exit_where_cpuid_does_not_show_it) {
  Enlightened hypervisor({FLUSH, 0xf4}, false);
  hypervisor.permit_flushes();
  EXPECT_EQ(hypervisor.exit(), kExitVmmcall);
}

TEST(HypervNested, other_calls_are_exits) {
  Enlightened hypervisor({0xb9, 0x08, 0, 1, 0, 0x0f, 0x01, 0xd9});  // a long spin wait
  hypervisor.permit_flushes();
  EXPECT_EQ(hypervisor.exit(), kExitVmmcall);
}

TEST(HypervNested, hypervisor_that_locks_hears_of_the_flush_when_it_is_done) {
  Enlightened hypervisor({FLUSH, 0xf4});
  hypervisor.permit_flushes();
  hypervisor.set(vmcb::kRax, kSomething);
  hypervisor.put(Enlightened::kPartitionAssistPage, u32{2});
  ASSERT_EQ(hypervisor.exit(), kExitEnlightenment);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kExitInfo1), kTrapAfterFlush);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kExitInfo2), 0u);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kRip), Hypervisor::kGuestCode + kFlushLength);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kRax), 0u);
  EXPECT_EQ(hypervisor.exit(), kExitHlt);
}

TEST(HypervNested, flush_fails_without_a_partition_assist_page) {
  Enlightened hypervisor({FLUSH, 0xf4});
  hypervisor.permit_flushes();
  hypervisor.set(vmcb::kSoftware + 16, u64{0x40000000});
  ASSERT_EQ(hypervisor.exit(), kExitHlt);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kRax), 3u);
}

// mov ecx,13h; mov edx,3ff0h; vmmcall; hlt: a flush on a set of processors, whose input is in memory
#define FLUSH_SET \
  { 0xb9, 0x13, 0, 0, 0, 0xba, 0xf0, 0x3f, 0, 0, 0x0f, 0x01, 0xd9, 0xf4 }

TEST(HypervNested, input_of_a_flush_is_where_the_guest_sees_it) {
  Enlightened hypervisor(FLUSH_SET);
  hypervisor.permit_flushes();
  hypervisor.use_nested_paging();
  hypervisor.set_nested_page(0x3000, 0xe007);
  hypervisor.set_nested_page(0x4000, 0xf007);
  hypervisor.put(0x4008, ~u64{0});                   // banks that the call does not bring
  hypervisor.put(0xf000, std::array<u64, 2>{1, 0});  // everybody
  ASSERT_EQ(hypervisor.exit(), kExitHlt);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kRax), 0u);
  hypervisor.set_nested_page(0x4000, 0x4007);
  hypervisor.set(vmcb::kAsid, u32{2});
  ASSERT_EQ(hypervisor.exit_from_the_begin(), kExitHlt);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kRax), 3u);
}

TEST(HypervNested, input_that_the_hypervisor_does_not_map_is_bad_input) {
  Enlightened hypervisor(FLUSH_SET);
  hypervisor.permit_flushes();
  hypervisor.use_nested_paging();
  hypervisor.set_nested_page(0x3000, 0);
  ASSERT_EQ(hypervisor.exit(), kExitHlt);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kRax), 3u);
}

constexpr u32 kBefore = 0x11, kAfter = 0x22;

// The page at kSpare is going to be another.
void map_before(Enlightened& hypervisor) {
  hypervisor.use_nested_paging();
  hypervisor.put(0xe000, kBefore);
  hypervisor.put(0xf000, kAfter);
  hypervisor.set_nested_page(Hypervisor::kSpare, 0xe007);
}

TEST(HypervNested, flush_shows_what_is_mapped_now) {
  // mov eax,[3000h]; out 20h,al; (flush); mov eax,[3000h]; hlt
  Enlightened hypervisor(
      {0x8b, 0x04, 0x25, 0, 0x30, 0, 0, 0xe6, 0x20, FLUSH, 0x8b, 0x04, 0x25, 0, 0x30, 0, 0, 0xf4});
  hypervisor.permit_flushes();
  map_before(hypervisor);
  ASSERT_EQ(hypervisor.run_to_port(), 0x20);
  EXPECT_EQ(hypervisor.written(), kBefore);
  hypervisor.set_nested_page(Hypervisor::kSpare, 0xf007);
  ASSERT_EQ(hypervisor.exit(), kExitHlt);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kRax), kAfter);
}

// A second vCPU, which runs another processor of the same nested guest.
struct SecondProcessor {
  static constexpr u64 kVmcb = Hypervisor::kFar + 0xf000, kCode = 0x1800, kGuestCode = 0x2800;

  explicit SecondProcessor(Enlightened& first) : m_first(first) {
    SupportedCpuid cpuid{};
    cpuid.header.nent = 256;
    EXPECT_EQ(call(first.vcpu, KVM_GET_CPUID2, &cpuid), 0);
    EXPECT_EQ(call(m_vcpu, KVM_SET_CPUID2, &cpuid), 0);
    kvm_sregs sregs{};
    EXPECT_EQ(call(first.vcpu, KVM_GET_SREGS, &sregs), 0);
    EXPECT_EQ(call(m_vcpu, KVM_SET_SREGS, &sregs), 0);
    kvm_mp_state running{KVM_MP_STATE_RUNNABLE};
    EXPECT_EQ(call(m_vcpu, KVM_SET_MP_STATE, &running), 0);
    // again: mov eax,10f000h; vmrun; out 10h,al; jmp again
    first.set_guest_code({0xb8, 0x00, 0xf0, 0x10, 0x00, 0x0f, 0x01, 0xd8, 0xe6, 0x10, 0xeb, 0xf4}, kCode);
    first.set_guest_code({0x8b, 0x04, 0x25, 0, 0x30, 0, 0, 0xf4}, kGuestCode);  // mov eax,[3000h]; hlt
    kvm_regs regs{};
    regs.rip = kCode;
    regs.rflags = 2;
    EXPECT_EQ(call(m_vcpu, KVM_SET_REGS, &regs), 0);
  }
  // What it sees at kSpare.
  u64 run() {
    m_first.put(kVmcb + vmcb::kRip, kGuestCode);
    EXPECT_EQ(call(m_vcpu, KVM_RUN), 0);
    EXPECT_EQ(m_first.at<u64>(kVmcb + vmcb::kExitCode), kExitHlt);
    return m_first.at<u64>(kVmcb + vmcb::kRax);
  }

 private:
  Enlightened& m_first;
  Handle m_vcpu{call(m_first.vm, KVM_CREATE_VCPU, 1ul)};
};

TEST(HypervNested, flush_reaches_the_processors_of_the_nested_guest_by_their_own_numbers) {
  // mov ecx,2; mov edx,8000h; vmmcall; hlt
  Enlightened hypervisor({0xb9, 0x02, 0, 0, 0, 0xba, 0, 0x80, 0, 0, 0x0f, 0x01, 0xd9, 0xf4});
  hypervisor.permit_flushes();
  map_before(hypervisor);
  hypervisor.put(0x8000, std::array<u64, 3>{0, 0, 1u << 5});
  hypervisor.put(SecondProcessor::kVmcb, hypervisor.at<std::array<u8, 0x1000>>(Hypervisor::kVmcb));
  hypervisor.put(SecondProcessor::kVmcb + vmcb::kSoftware + 4, u32{5});
  SecondProcessor second(hypervisor);
  EXPECT_EQ(second.run(), kBefore);
  hypervisor.set_nested_page(Hypervisor::kSpare, 0xf007);
  ASSERT_EQ(hypervisor.exit(), kExitHlt);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kRax), 0u);
  EXPECT_EQ(second.run(), kAfter);
}

}  // namespace
}  // namespace anykvm::test
