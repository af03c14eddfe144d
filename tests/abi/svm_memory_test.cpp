// Nested paging: the guest's physical addresses through the hypervisor's tables (APM 2 15.25), and the TLB
// (15.16).
#include "hypervisor.h"

namespace anykvm::test {
namespace {

using u32 = std::uint32_t;
using u64 = std::uint64_t;

constexpr u64 kFinal = u64{1} << 32, kTableWalk = u64{1} << 33;
constexpr u64 kPresent = 1, kWrite = 2, kUser = 4, kReserved = 8, kFetch = 16;  // of an error code
constexpr u64 kAccessed = 0x20, kDirty = 0x40, kNoExecute = u64{1} << 63, kEferNxe = 0x800;

struct NestedPaging : Hypervisor {
  explicit NestedPaging(Code code) : Hypervisor(code) { use_nested_paging(); }
};

#define LOAD \
  { 0x8b, 0x04, 0x25, 0x00, 0x30, 0x00, 0x00, 0x0f, 0x01, 0xd9 }  // mov eax,[3000h]; vmmcall
#define STORE \
  { 0x89, 0x04, 0x25, 0x08, 0x30, 0x00, 0x00, 0x0f, 0x01, 0xd9 }  // mov [3008h],eax; vmmcall

TEST(SvmMemory, guest_sees_the_page_that_its_hypervisor_maps) {
  NestedPaging hypervisor(LOAD);
  hypervisor.put(0x4000, u32{0x2468});
  hypervisor.set_nested_page(Hypervisor::kSpare, 0x4007);
  ASSERT_EQ(hypervisor.exit(), kExitVmmcall);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kRax), 0x2468u);
}

TEST(SvmMemory, reads_set_accessed_and_writes_set_dirty_in_the_nested_tables) {
  NestedPaging hypervisor(
      {0x8b, 0x04, 0x25, 0x00, 0x30, 0x00, 0x00, 0x89, 0x04, 0x25, 0x00, 0x40, 0x00, 0x00, 0x0f, 0x01, 0xd9});
  ASSERT_EQ(hypervisor.exit(), kExitVmmcall);
  EXPECT_EQ(hypervisor.at<u64>(Hypervisor::kLastNestedTable + 3 * 8), 0x3007 | kAccessed);
  EXPECT_EQ(hypervisor.at<u64>(Hypervisor::kLastNestedTable + 4 * 8), 0x4007 | kAccessed | kDirty);
  EXPECT_EQ(hypervisor.at<u64>(Hypervisor::kLastNestedTable + 5 * 8), 0x5007u);
}

TEST(SvmMemory, missing_page_is_a_nested_page_fault) {
  NestedPaging hypervisor(LOAD);
  hypervisor.set_nested_page(Hypervisor::kSpare, 0);
  ASSERT_EQ(hypervisor.exit(), kExitNpf);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kExitInfo1), kFinal | kUser);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kExitInfo2), Hypervisor::kSpare);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kRip), Hypervisor::kGuestCode);
}

TEST(SvmMemory, guest_goes_on_when_its_hypervisor_has_mapped_the_page) {
  NestedPaging hypervisor(LOAD);
  hypervisor.set_nested_page(Hypervisor::kSpare, 0);
  ASSERT_EQ(hypervisor.exit(), kExitNpf);
  hypervisor.put(0x5000, u32{0x99});
  hypervisor.set_nested_page(Hypervisor::kSpare, 0x5007);
  ASSERT_EQ(hypervisor.exit(), kExitVmmcall);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kRax), 0x99u);
}

TEST(SvmMemory, write_to_a_read_only_page_is_a_nested_page_fault) {
  NestedPaging hypervisor(STORE);
  hypervisor.set_nested_page(Hypervisor::kSpare, 0x3005);
  ASSERT_EQ(hypervisor.exit(), kExitNpf);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kExitInfo1), kFinal | kUser | kWrite | kPresent);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kExitInfo2), Hypervisor::kSpare + 8);
}

TEST(SvmMemory, supervisor_page_of_the_nested_tables_is_a_nested_page_fault) {
  NestedPaging hypervisor(LOAD);
  hypervisor.set_nested_page(Hypervisor::kSpare, 0x3003);
  ASSERT_EQ(hypervisor.exit(), kExitNpf);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kExitInfo1), kFinal | kUser | kPresent);
}

TEST(SvmMemory, fetch_from_a_page_without_execution_is_a_nested_page_fault) {
  NestedPaging hypervisor(LOAD);
  hypervisor.add_efer(kEferNxe);
  hypervisor.set_nested_page(Hypervisor::kGuestCode, 0x2007 | kNoExecute);
  ASSERT_EQ(hypervisor.exit(), kExitNpf);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kExitInfo1), kFinal | kUser | kPresent | kFetch);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kExitInfo2), Hypervisor::kGuestCode);
}

TEST(SvmMemory, reserved_bit_in_the_nested_tables_is_a_nested_page_fault) {
  NestedPaging hypervisor(LOAD);
  hypervisor.set_nested_page(Hypervisor::kSpare, 0x3007 | kNoExecute);  // EFER.NXE is clear
  ASSERT_EQ(hypervisor.exit(), kExitNpf);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kExitInfo1), kFinal | kUser | kPresent | kReserved);
}

TEST(SvmMemory, missing_page_of_the_guests_own_tables_is_told_apart) {
  NestedPaging hypervisor(LOAD);
  hypervisor.set_nested_page(0xa000, 0);  // its second level
  ASSERT_EQ(hypervisor.exit(), kExitNpf);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kExitInfo1), kTableWalk | kUser | kWrite);  // walks count as writes
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kExitInfo2), 0xa000u);
}

TEST(SvmMemory, fault_of_the_guests_own_tables_is_the_guests) {
  NestedPaging hypervisor({0x8b, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00});  // mov eax,[200000h]
  ASSERT_EQ(hypervisor.run_to_port(), Hypervisor::kGuestVectorPort);
  EXPECT_EQ(hypervisor.written(), 14);
}

TEST(SvmMemory, page_of_no_memory_is_the_clients_device) {
  NestedPaging hypervisor(LOAD);
  hypervisor.set_nested_page(Hypervisor::kSpare, 0x80000007);
  ASSERT_EQ(hypervisor.run(), 0);
  ASSERT_EQ(hypervisor.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_MMIO));
  EXPECT_EQ(hypervisor.shared->mmio.phys_addr, 0x80000000u);
  const u32 answer = 0x4711;
  std::memcpy(hypervisor.shared->mmio.data, &answer, sizeof answer);
  ASSERT_EQ(hypervisor.exit(), kExitVmmcall);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kRax), answer);
}

TEST(SvmMemory, guest_that_changes_its_code_runs_the_new_code) {
  // mov byte [2010h],9; jmp 200fh; at 200fh: mov al,1; vmmcall
  Hypervisor hypervisor({0xc6, 0x04, 0x25, 0x10, 0x20, 0x00, 0x00, 0x09, 0xeb, 0x05,
                         0,    0,    0,    0,    0,    0xb0, 0x01, 0x0f, 0x01, 0xd9});
  hypervisor.use_nested_paging();
  ASSERT_EQ(hypervisor.exit(), kExitVmmcall);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kRax) & 0xff, 9u);
}

TEST(SvmMemory, flush_that_the_hypervisor_asks_for_drops_old_translations) {
  NestedPaging hypervisor(LOAD);
  hypervisor.put(0x3000, u32{1});
  hypervisor.put(0x4000, u32{2});
  ASSERT_EQ(hypervisor.exit(), kExitVmmcall);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kRax), 1u);
  hypervisor.set_nested_page(Hypervisor::kSpare, 0x4007);
  hypervisor.set(vmcb::kRip, Hypervisor::kGuestCode);
  hypervisor.set<std::uint8_t>(vmcb::kAsid + 4, 1);
  ASSERT_EQ(hypervisor.exit(), kExitVmmcall);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kRax), 2u);
}

TEST(SvmMemory, guests_of_two_asids_have_their_own_translations) {
  NestedPaging hypervisor(LOAD);
  hypervisor.put(0x3000, u32{1});
  hypervisor.put(0x4000, u32{2});
  ASSERT_EQ(hypervisor.exit(), kExitVmmcall);
  hypervisor.set_nested_page(Hypervisor::kSpare, 0x4007);
  hypervisor.set(vmcb::kRip, Hypervisor::kGuestCode);
  hypervisor.set(vmcb::kAsid, u32{2});
  ASSERT_EQ(hypervisor.exit(), kExitVmmcall);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kRax), 2u);
}

TEST(SvmMemory, guest_without_paging_goes_through_the_nested_tables) {
  Hypervisor hypervisor({0xa1, 0x00, 0x30, 0x0f, 0x01, 0xd9});  // mov ax,[3000h]; vmmcall, in 16 bits
  hypervisor.use_nested_paging();
  hypervisor.put(0x4000, u32{0x2468});
  hypervisor.set_nested_page(Hypervisor::kSpare, 0x4007);
  hypervisor.set(vmcb::kEfer, Hypervisor::kSvme);
  hypervisor.set(vmcb::kCr0, u64{0x10});
  hypervisor.set(vmcb::kCr4, u64{0});
  hypervisor.set(vmcb::kCs, u64{0xffff} << 32 | 0x9bu << 16);
  hypervisor.set(vmcb::kDs, u64{0xffff} << 32 | 0x93u << 16);
  hypervisor.set(vmcb::kSs, u64{0xffff} << 32 | 0x93u << 16);
  ASSERT_EQ(hypervisor.exit(), kExitVmmcall);
  EXPECT_EQ(hypervisor.get<u64>(vmcb::kRax) & 0xffff, 0x2468u);
}

TEST(SvmMemory, pages_that_a_guest_writes_are_in_the_dirty_log) {
  NestedPaging hypervisor(STORE);
  ASSERT_EQ(hypervisor.set_region(0, 0, hypervisor.memory.size(), hypervisor.memory.address(),
                                  KVM_MEM_LOG_DIRTY_PAGES),
            0);
  hypervisor.set_nested_page(Hypervisor::kSpare, 0x4007);
  ASSERT_EQ(hypervisor.exit(), kExitVmmcall);
  u64 bits = 0;
  kvm_dirty_log log{};
  log.dirty_bitmap = &bits;
  ASSERT_EQ(call(hypervisor.vm, KVM_GET_DIRTY_LOG, &log), 0);
  EXPECT_EQ(bits & 0x1f, 1u << 4);
}

}  // namespace
}  // namespace anykvm::test
