#include "x86/translate/access_groups.h"

#include <gtest/gtest.h>

#include <vector>

#include "x86/translate/guest_fixture.h"

namespace anykvm::x86 {
namespace {

// The groups of straight 64-bit code.
std::vector<GroupPlace> groups_of(const std::vector<u8>& code, bool may_lead = true) {
  std::vector<GroupPlace> places(code.size());
  AccessGroups groups;
  std::size_t at = 0, count = 0;
  for (; at < code.size(); ++count) {
    Decoded d;
    if (decode(code.data() + at, static_cast<unsigned>(code.size() - at), 64, 8, at, &d) != DecodeStatus::kOk)
      break;
    groups.add(d, policy_of(d), may_lead, &places[count]);
    at += d.insn.length;
  }
  EXPECT_EQ(at, code.size());
  groups.finish();
  places.resize(count);
  return places;
}

TEST(AccessGroups, pushes_and_the_call_behind_them_are_checked_at_once) {
  auto places = groups_of({0x55,                    // push rbp
                           0x53,                    // push rbx
                           0x48, 0x83, 0xec, 0x10,  // sub rsp, 16
                           0x48, 0x89, 0x3c, 0x24,  // mov [rsp], rdi
                           0xe8, 0, 0, 0, 0});      // call
  EXPECT_TRUE(places[0].leads);
  EXPECT_EQ(places[0].low, -32);
  EXPECT_EQ(places[0].span, 40);
  for (unsigned i : {1u, 3u, 4u}) EXPECT_TRUE(places[i].follows()) << i;
  EXPECT_EQ(places[2].group, GroupPlace::kNone);
}

TEST(AccessGroups, pops_before_a_return_are_checked_at_once) {
  auto places = groups_of({0x5b, 0x5d, 0xc3});  // pop rbx; pop rbp; ret
  EXPECT_TRUE(places[0].leads);
  EXPECT_EQ(places[0].low, 0);
  EXPECT_EQ(places[0].span, 24);
  EXPECT_TRUE(places[2].follows());
}

TEST(AccessGroups, one_access_is_no_group) {
  auto places = groups_of({0x48, 0x8b, 0x03, 0xc3});  // mov rax, [rbx]; ret
  EXPECT_EQ(places[0].group, GroupPlace::kNone);
  EXPECT_FALSE(places[0].leads);
}

TEST(AccessGroups, a_write_that_is_certain_joins_a_leader_that_reads) {
  auto places = groups_of({0x48, 0x8b, 0x03,          // mov rax, [rbx]
                           0x48, 0x89, 0x43, 0x08,    // mov [rbx+8], rax
                           0x48, 0x8b, 0x4b, 0x10});  // mov rcx, [rbx+16]
  EXPECT_TRUE(places[0].leads);
  EXPECT_TRUE(places[0].writes);
  EXPECT_EQ(places[0].span, 24);
  EXPECT_TRUE(places[1].follows());
  EXPECT_TRUE(places[2].follows());
}

TEST(AccessGroups, a_write_behind_a_branch_needs_a_leader_that_writes) {
  auto places = groups_of({0x48, 0x8b, 0x03,          // mov rax, [rbx]
                           0x74, 0x10,                // je
                           0x48, 0x89, 0x43, 0x08,    // mov [rbx+8], rax
                           0x48, 0x8b, 0x4b, 0x10});  // mov rcx, [rbx+16]
  EXPECT_EQ(places[0].group, GroupPlace::kNone);
  EXPECT_TRUE(places[2].leads);
  EXPECT_TRUE(places[2].writes);
  EXPECT_TRUE(places[3].follows());
}

TEST(AccessGroups, reads_behind_a_branch_join_a_leader_that_reads) {
  auto places = groups_of({0x48, 0x8b, 0x03,          // mov rax, [rbx]
                           0x74, 0x10,                // je
                           0x48, 0x8b, 0x4b, 0x10});  // mov rcx, [rbx+16]
  EXPECT_TRUE(places[0].leads);
  EXPECT_FALSE(places[0].writes);
  EXPECT_TRUE(places[2].follows());
}

TEST(AccessGroups, two_of_one_register_may_take_turns) {
  auto places = groups_of({0x48, 0x8b, 0x03,                      // mov rax, [rbx]
                           0x48, 0x8b, 0x8b, 0,    0x10, 0, 0,    // mov rcx, [rbx+4096]
                           0x48, 0x8b, 0x53, 0x08,                // mov rdx, [rbx+8]
                           0x48, 0x8b, 0xb3, 8,    0x10, 0, 0,    // mov rsi, [rbx+4104]
                           0x48, 0x8b, 0xbb, 0,    0x20, 0, 0,    // mov rdi, [rbx+8192]: one too many
                           0x48, 0x8b, 0x83, 0x10, 0,    0, 0});  // mov rax, [rbx+16]: the first was given up
  EXPECT_TRUE(places[0].leads);
  EXPECT_TRUE(places[1].leads);
  EXPECT_EQ(places[2].group, places[0].group);
  EXPECT_EQ(places[3].group, places[1].group);
  EXPECT_EQ(places[4].group, GroupPlace::kNone);
  EXPECT_EQ(places[5].group, GroupPlace::kNone);
}

TEST(AccessGroups, end_where_the_base_gets_another_value) {
  auto places = groups_of({0x48, 0x8b, 0x1b,          // mov rbx, [rbx]
                           0x48, 0x8b, 0x43, 0x08});  // mov rax, [rbx+8]
  EXPECT_EQ(places[0].group, GroupPlace::kNone);
  EXPECT_EQ(places[1].group, GroupPlace::kNone);
}

TEST(AccessGroups, follow_constants_that_are_added_to_the_base) {
  auto places = groups_of({0x48, 0x8b, 0x03,        // mov rax, [rbx]
                           0x48, 0x8d, 0x5b, 0x40,  // lea rbx, [rbx+64]
                           0x48, 0xff, 0xcb,        // dec rbx
                           0x8b, 0x4b, 0xf0});      // mov ecx, [rbx-16]
  EXPECT_TRUE(places[0].leads);
  EXPECT_EQ(places[0].span, 56);  // 47 to 50 are the last bytes
  EXPECT_TRUE(places[3].follows());
}

TEST(AccessGroups, a_32_bit_addition_is_not_followed) {
  auto places = groups_of({0x48, 0x8b, 0x03,    // mov rax, [rbx]
                           0x83, 0xc3, 0x08,    // add ebx, 8
                           0x48, 0x8b, 0x0b});  // mov rcx, [rbx]
  EXPECT_EQ(places[0].group, GroupPlace::kNone);
}

TEST(AccessGroups, popping_the_stack_pointer_ends_its_group) {
  auto places = groups_of({0x58, 0x5c, 0x59});  // pop rax; pop rsp; pop rcx
  EXPECT_TRUE(places[1].follows());
  EXPECT_EQ(places[2].group, GroupPlace::kNone);
}

TEST(AccessGroups, hidden_results_end_a_group) {
  auto places = groups_of({0x48, 0x8b, 0x0a,    // mov rcx, [rdx]
                           0x48, 0xf7, 0xe3,    // mul rbx: RDX:RAX
                           0x48, 0x8b, 0x0a});  // mov rcx, [rdx]
  EXPECT_EQ(places[0].group, GroupPlace::kNone);
}

TEST(AccessGroups, helpers_end_every_group) {
  auto places = groups_of({0x48, 0x8b, 0x03,    // mov rax, [rbx]
                           0x0f, 0x01, 0x3f,    // invlpg [rdi]
                           0x48, 0x8b, 0x0b});  // mov rcx, [rbx]
  EXPECT_EQ(places[0].group, GroupPlace::kNone);
}

TEST(AccessGroups, are_no_longer_than_a_slot_can_be_asked_for) {
  auto places = groups_of({0x48, 0x8b, 0x03,                   // mov rax, [rbx]
                           0x48, 0x8b, 0x8b, 0xf8, 0, 0, 0,    // mov rcx, [rbx+248]
                           0x48, 0x8b, 0x93, 0xf9, 0, 0, 0});  // mov rdx, [rbx+249]
  EXPECT_EQ(places[0].span, 256);
  EXPECT_TRUE(places[1].follows());
  EXPECT_EQ(places[2].group, GroupPlace::kNone);
}

TEST(AccessGroups, what_may_not_lead_leaves_the_lead_to_the_next) {
  auto places = groups_of({0x5b, 0x5d, 0xc3}, false);
  for (const GroupPlace& place : places) EXPECT_EQ(place.group, GroupPlace::kNone);
}

// --- In a guest whose pages are 4 KiB, at kWindow in linear space ---

class PagedGuest : public Guest64 {
 public:
  static constexpr u64 kWindow = 0x40000000;  // the second GiB
  static constexpr u64 kPageTable = 0x8000, kDirectory = 0x9000;

  PagedGuest() {
    write<u64>(kTables + 0x1000 + 8, kDirectory | 7);
    write<u64>(kDirectory, kPageTable | 7);
  }
  void map(unsigned page, u64 physical, u64 flags = 7) {
    write<u64>(kPageTable + 8 * page, physical | flags);
  }
  void unmap(unsigned page) { write<u64>(kPageTable + 8 * page, 0); }
};

// push rbx; push rcx; pop rdx; pop rsi; hlt
const std::vector<u8> kPushes = {0x53, 0x51, 0x5a, 0x5e, 0xf4};

class GroupsInGuest : public testing::Test {
 protected:
  Exit run_pushes(u64 rsp) {
    guest.code(kPushes);
    guest.state().gpr[kRsp] = rsp;
    guest.state().gpr[kRbx] = 0x1111;
    guest.state().gpr[kRcx] = 0x2222;
    guest.state().gpr[kRdx] = guest.state().gpr[kRsi] = 0;
    return guest.run();
  }
  void expect_pushed() {
    EXPECT_EQ(guest.state().gpr[kRdx], 0x2222u);
    EXPECT_EQ(guest.state().gpr[kRsi], 0x1111u);
  }
  PagedGuest guest;
};

TEST_F(GroupsInGuest, across_two_pages_in_a_row) {
  guest.map(0, 0x400000);
  guest.map(1, 0x401000);
  EXPECT_EQ(run_pushes(PagedGuest::kWindow + 0x1008).reason, Exit::Reason::kHalt);
  expect_pushed();
  EXPECT_EQ(guest.read<u64>(0x401000), 0x1111u);
  EXPECT_EQ(guest.read<u64>(0x400ff8), 0x2222u);
}

TEST_F(GroupsInGuest, across_two_pages_that_lie_apart) {
  guest.map(0, 0x600000);
  guest.map(1, 0x401000);
  EXPECT_EQ(run_pushes(PagedGuest::kWindow + 0x1008).reason, Exit::Reason::kHalt);
  expect_pushed();
  EXPECT_EQ(guest.read<u64>(0x401000), 0x1111u);
  EXPECT_EQ(guest.read<u64>(0x600ff8), 0x2222u);
}

TEST_F(GroupsInGuest, a_loop_over_pages_that_lie_apart_ends) {
  guest.map(0, 0x600000);
  guest.map(1, 0x401000);
  guest.code({0xb8, 0x10, 0x27, 0, 0,  // mov eax, 10000
              0x53, 0x51, 0x5a, 0x5e,  // push rbx; push rcx; pop rdx; pop rsi
              0xff, 0xc8,              // dec eax
              0x75, 0xf8,              // jnz the pushes
              0xf4});
  guest.state().gpr[kRsp] = PagedGuest::kWindow + 0x1008;
  guest.state().gpr[kRbx] = 5;
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kRsi], 5u);
}

// The group's second access faults; the first one has happened by then.
TEST_F(GroupsInGuest, a_missing_page_faults_at_the_access_that_needs_it) {
  guest.map(1, 0x401000);
  EXPECT_EQ(run_pushes(PagedGuest::kWindow + 0x1008).reason, Exit::Reason::kShutdown);  // there is no IDT
  EXPECT_EQ(guest.state().cr2, PagedGuest::kWindow + 0xff8);
  EXPECT_EQ(guest.read<u64>(0x401000), 0x1111u);
  EXPECT_EQ(guest.state().gpr[kRsp], PagedGuest::kWindow + 0x1000);
  EXPECT_EQ(guest.state().rip, Guest64::kCode + 1);
}

TEST_F(GroupsInGuest, pages_that_only_later_accesses_touch_stay_clean) {
  guest.map(0, 0x400000);
  guest.map(1, 0x401000);
  // mov [rbx], rcx; then a jump past what would write to page 0
  guest.code({0x48, 0x89, 0x0b,        // mov [rbx], rcx
              0x48, 0x85, 0xc0,        // test rax, rax
              0x74, 0x04,              // jz to hlt
              0x48, 0x89, 0x4b, 0xf8,  // mov [rbx-8], rcx
              0xf4});
  guest.state().gpr[kRbx] = PagedGuest::kWindow + 0x1000;
  guest.state().gpr[kRax] = 0;
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.read<u64>(PagedGuest::kPageTable) & 0x60, 0u);  // neither accessed nor dirty
  EXPECT_EQ(guest.read<u64>(PagedGuest::kPageTable + 8) & 0x60, 0x60u);
}

TEST_F(GroupsInGuest, members_see_the_page_table_as_invlpg_left_it) {
  guest.map(0, 0x400000);
  guest.write<u64>(0x400000, 1);
  guest.write<u64>(0x400008, 2);
  guest.write<u64>(0x600008, 3);
  guest.code({0x48, 0x8b, 0x03,        // mov rax, [rbx]
              0x48, 0x8b, 0x4b, 0x08,  // mov rcx, [rbx+8]
              0x48, 0x89, 0x37,        // mov [rdi], rsi: the page's entry
              0x0f, 0x01, 0x3b,        // invlpg [rbx]
              0x48, 0x8b, 0x53, 0x08,  // mov rdx, [rbx+8]
              0xf4});
  guest.state().gpr[kRbx] = PagedGuest::kWindow;
  guest.state().gpr[kRdi] = PagedGuest::kPageTable;
  guest.state().gpr[kRsi] = 0x600000 | 7;
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kRcx], 2u);
  EXPECT_EQ(guest.state().gpr[kRdx], 3u);
}

// The pushes overwrite the instruction behind them.
TEST_F(GroupsInGuest, pushes_onto_the_page_of_their_own_code) {
  guest.map(0, 0x400000);
  constexpr u64 kAt = PagedGuest::kWindow + 0x100;
  guest.code({0x53, 0x51,  // push rbx; push rcx
              0xf4, 0xf4, 0xf4, 0xf4},
             0x400100);
  guest.state().gpr[kRbx] = 0xf4f4f4f4f4f4f4f4;
  guest.state().gpr[kRcx] = 0xf490909090909090;  // nops before the hlt
  guest.state().gpr[kRsp] = kAt + 2 + 16;
  EXPECT_EQ(guest.run(kAt).reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().rip, kAt + 2 + 8);
}

TEST_F(GroupsInGuest, at_the_top_of_the_address_space) {
  // PML4 511 -> PDPT 511 -> PD 511: the last 2 MiB.
  guest.write<u64>(Guest64::kTables + 8 * 511, (Guest64::kTables + 0x1000) | 7);
  guest.write<u64>(Guest64::kTables + 0x1000 + 8 * 511, PagedGuest::kDirectory | 7);
  guest.write<u64>(PagedGuest::kDirectory + 8 * 511, 0x600000 | 0x87);
  guest.write<u64>(0x600000 + 0x1ffff8, 77);
  guest.code({0x48, 0x8b, 0x43, 0xf8,  // mov rax, [rbx-8]
              0x48, 0x8b, 0x0b,        // mov rcx, [rbx]
              0xf4});
  guest.write<u64>(0, 88);
  guest.state().gpr[kRbx] = 0;  // the group goes across 2^64
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kRax], 77u);
  EXPECT_EQ(guest.state().gpr[kRcx], 88u);
}

TEST_F(GroupsInGuest, an_address_that_is_not_canonical_faults_at_its_own_instruction) {
  guest.map(0, 0x400000);
  guest.code({0x48, 0x8b, 0x03,        // mov rax, [rbx]
              0x48, 0x8b, 0x4b, 0x08,  // mov rcx, [rbx+8]
              0xf4});
  // The last canonical address below the hole is not mapped: so #PF there, not #GP for what follows.
  guest.state().gpr[kRbx] = 0x00007ffffffffff8;
  guest.state().cr2 = 0;
  EXPECT_EQ(guest.run().reason, Exit::Reason::kShutdown);
  EXPECT_EQ(guest.state().cr2, 0x00007ffffffffff8u);
}

TEST_F(GroupsInGuest, a_leader_that_reads_makes_no_page_dirty) {
  guest.map(0, 0x400000);
  guest.map(1, 0x401000);
  guest.code({0x48, 0x8b, 0x03,        // mov rax, [rbx]
              0x48, 0xf7, 0xf1,        // div rcx: by zero, so nothing else happens
              0x48, 0x89, 0x73, 0x08,  // mov [rbx+8], rsi
              0xf4});
  guest.state().gpr[kRbx] = PagedGuest::kWindow + 0xff8;
  guest.state().gpr[kRcx] = 0;
  EXPECT_EQ(guest.run().reason, Exit::Reason::kShutdown);
  EXPECT_EQ(guest.state().rip, Guest64::kCode + 3);
  EXPECT_EQ(guest.read<u64>(PagedGuest::kPageTable) & 0x60, 0x20u);
  EXPECT_EQ(guest.read<u64>(PagedGuest::kPageTable + 8) & 0x60, 0u);
}

TEST_F(GroupsInGuest, a_page_that_may_only_be_read_faults_at_the_write) {
  guest.map(0, 0x400000, 0x65);  // dirty, from better days
  guest.write<u64>(0x400010, 9);
  guest.code({0x48, 0x8b, 0x43, 0x10,  // mov rax, [rbx+16]
              0x48, 0x89, 0x43, 0x08,  // mov [rbx+8], rax
              0xf4});
  guest.state().gpr[kRbx] = PagedGuest::kWindow;
  EXPECT_EQ(guest.run().reason, Exit::Reason::kShutdown);
  EXPECT_EQ(guest.state().rip, Guest64::kCode + 4);
  EXPECT_EQ(guest.state().cr2, PagedGuest::kWindow + 8);
  EXPECT_EQ(guest.state().gpr[kRax], 9u);
  EXPECT_EQ(guest.read<u64>(0x400008), 0u);
}

// A log that is kept has each page that was written, and none that was read by a leader.
TEST_F(GroupsInGuest, a_dirty_log_has_what_was_written_only) {
  guest.map(0, 0x400000, 0x67);
  guest.map(1, 0x401000, 0x67);
  MemorySlot slot;
  slot.size = Guest64::kRam;
  slot.host = guest.ram;
  slot.dirty_bitmap = std::make_shared<std::vector<std::atomic<u64>>>(Guest64::kRam / kPageSize / 64);
  guest.machine->set_slots({slot});
  guest.code({0xb8, 0x64, 0, 0, 0,     // mov eax, 100
              0x48, 0x8b, 0x0b,        // mov rcx, [rbx]
              0x48, 0x89, 0x4b, 0x08,  // mov [rbx+8], rcx
              0xff, 0xc8,              // dec eax
              0x75, 0xf5,              // jnz mov
              0xf4});
  guest.state().gpr[kRbx] = PagedGuest::kWindow + 0xff8;
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ((*slot.dirty_bitmap)[0x401 / 64].load() >> (0x400 % 64) & 3, 2u);
}

// --- At CPL 3, where accesses have slots ---

class PagedUserGuest : public PagedGuest {
 public:
  PagedUserGuest() {
    CpuState& s = state();
    for (auto& segment : s.segments) segment.dpl = 3, segment.selector |= 3;
    s.cpl = 3;
    s.efer &= ~u64{kEferSce};
  }
};

// Groups across the boundary of two pages, which lie apart in physical memory.
class SplitGroups : public testing::Test {
 protected:
  static constexpr u64 kBoundary = PagedGuest::kWindow + 0x1000;

  SplitGroups() {
    guest.map(0, 0x600000);
    guest.map(1, 0x401000);
    guest.state().gpr[kRbx] = kBoundary;
    guest.state().gpr[kRsp] = kBoundary + 8;
  }
  // The code ends in SYSCALL, which is not permitted.
  void run(const std::vector<u8>& code) {
    guest.code(code);
    EXPECT_EQ(guest.run().reason, Exit::Reason::kShutdown);
    EXPECT_EQ(guest.state().rip, Guest64::kCode + code.size() - 2);
  }
  PagedUserGuest guest;
};

TEST_F(SplitGroups, of_pushes_in_a_loop) {
  guest.state().gpr[kRcx] = 3;
  guest.state().gpr[kRdi] = 0;
  const std::vector<u8> loop = {0xb8, 0x10, 0x27, 0,    0,  // mov eax, 10000
                                0x53, 0x51, 0x5a, 0x5e,     // push rbx; push rcx; pop rdx; pop rsi
                                0x48, 0x01, 0xd7,           // add rdi, rdx
                                0xff, 0xc8,                 // dec eax
                                0x75, 0xf5,                 // jnz the pushes
                                0x0f, 0x05};
  run(loop);
  EXPECT_EQ(guest.state().gpr[kRdi], 30000u);
  EXPECT_EQ(guest.state().gpr[kRsi], kBoundary);
  EXPECT_EQ(guest.read<u64>(0x401000), kBoundary);
  EXPECT_EQ(guest.read<u64>(0x600ff8), 3u);
}

TEST_F(SplitGroups, that_are_in_one_piece_the_next_time) {
  guest.state().gpr[kRcx] = 3;
  const std::vector<u8> loop = {0xb8, 0x10, 0x27, 0,    0,  // mov eax, 10000
                                0x53, 0x51, 0x5a, 0x5e,     // push rbx; push rcx; pop rdx; pop rsi
                                0xff, 0xc8,                 // dec eax
                                0x75, 0xf8,                 // jnz the pushes
                                0x0f, 0x05};
  run(loop);
  guest.map(0, 0x400000);
  guest.state().gpr[kRcx] = 4;
  run(loop);
  EXPECT_EQ(guest.state().gpr[kRdx], 4u);
  EXPECT_EQ(guest.read<u64>(0x400ff8), 4u);
  EXPECT_EQ(guest.read<u64>(0x600ff8), 3u);
}

TEST_F(SplitGroups, in_a_loop_with_lent_registers) {
  guest.write<u64>(0x401000, 3);
  guest.state().gpr[kR15] = 1000;
  guest.state().gpr[kR11] = 5;
  guest.state().gpr[kR14] = 0x1414;
  guest.state().gpr[kR13] = 0x1313;
  run({0x4c, 0x8b, 0x13,        // mov r10, [rbx]
       0x4d, 0x01, 0xd3,        // add r11, r10
       0x4c, 0x89, 0x5b, 0xf8,  // mov [rbx-8], r11
       0x41, 0xff, 0xcf,        // dec r15d
       0x75, 0xf1,              // jnz mov
       0x0f, 0x05});
  EXPECT_EQ(guest.state().gpr[kR11], 3005u);
  EXPECT_EQ(guest.state().gpr[kR10], 3u);
  EXPECT_EQ(guest.state().gpr[kR15], 0u);
  EXPECT_EQ(guest.state().gpr[kR14], 0x1414u);
  EXPECT_EQ(guest.state().gpr[kR13], 0x1313u);
  EXPECT_EQ(guest.read<u64>(0x600ff8), 3005u);
}

TEST_F(SplitGroups, with_flags_that_are_read_behind_them) {
  guest.state().gpr[kRcx] = 500;
  guest.state().gpr[kRsi] = 3;
  guest.state().gpr[kRdi] = 0;
  run({0x83, 0xfe, 0x07,        // cmp esi, 7: carry
       0x4c, 0x8b, 0x03,        // mov r8, [rbx]
       0x4c, 0x8b, 0x4b, 0xf8,  // mov r9, [rbx-8]
       0x48, 0x83, 0xd7, 0x00,  // adc rdi, 0
       0xff, 0xc9,              // dec ecx
       0x75, 0xee,              // jnz cmp
       0x0f, 0x05});
  EXPECT_EQ(guest.state().gpr[kRdi], 500u);
}

// Each round writes to another page: the leader reads, and the write joins it.
TEST_F(SplitGroups, walk_over_all_boundaries) {
  for (unsigned page = 0; page < 64; ++page) guest.map(page, 0x400000 + (63 - page) * kPageSize);
  guest.write<u64>(0x43f000, 1);
  guest.state().gpr[kRbx] = PagedGuest::kWindow;
  guest.state().gpr[kRcx] = 64 * 512 - 1;
  run({0x48, 0x8b, 0x03,        // mov rax, [rbx]
       0x48, 0xff, 0xc0,        // inc rax
       0x48, 0x89, 0x43, 0x08,  // mov [rbx+8], rax
       0x48, 0x83, 0xc3, 0x08,  // add rbx, 8
       0xff, 0xc9,              // dec ecx
       0x75, 0xee,              // jnz mov
       0x0f, 0x05});
  for (u64 i = 0; i < 64 * 512; ++i)
    ASSERT_EQ(guest.read<u64>(0x400000 + (63 - i / 512) * kPageSize + i % 512 * 8), i + 1);
}

TEST_F(SplitGroups, whose_second_page_goes_away_fault_there) {
  guest.state().gpr[kRcx] = 0;
  const std::vector<u8> pushes = {0x53, 0x51, 0x0f, 0x05};  // push rbx; push rcx
  for (unsigned i = 0; i < 40; ++i) {
    guest.state().gpr[kRsp] = kBoundary + 8;
    run(pushes);
  }
  guest.unmap(0);
  guest.state().gpr[kRsp] = kBoundary + 8;
  EXPECT_EQ(guest.run().reason, Exit::Reason::kShutdown);
  EXPECT_EQ(guest.state().rip, Guest64::kCode + 1);
  EXPECT_EQ(guest.state().cr2, kBoundary - 8);
}

// --- Extents ---

class ExtentsInGuest : public testing::Test {
 protected:
  ExtentsInGuest() {
    for (unsigned page = 0; page < 8; ++page) guest.map(page, 0x400000 + page * kPageSize);
    code({});
  }
  // Reads [rbx] and on, seven pages in all, RDI times over, the sum in RDX; then a system call, then `rest`.
  // The second instruction, 35 bytes before the rest, begins another reading.
  void code(std::initializer_list<u8> rest) {
    std::vector<u8> bytes = {0x31, 0xd2,                    // xor edx, edx
                             0x31, 0xc9,                    // xor ecx, ecx
                             0x48, 0x8b, 0x04, 0x0b,        // mov rax, [rbx+rcx]
                             0x48, 0x01, 0xc2,              // add rdx, rax
                             0x81, 0xc1, 0x00, 0x10, 0, 0,  // add ecx, 4096
                             0x81, 0xf9, 0x00, 0x70, 0, 0,  // cmp ecx, 7 * 4096
                             0x72, 0xeb,                    // jb the load
                             0xff, 0xcf,                    // dec edi
                             0x75, 0xe5,                    // jnz xor ecx, ecx
                             0x0f, 0x05};  // syscall: where it is not permitted, the guest stops here
    bytes.insert(bytes.end(), rest);
    guest.code(bytes);
  }
  void read_all() {
    guest.state().gpr[kRbx] = PagedGuest::kWindow + 0xffc;  // each load goes across a page boundary
    guest.state().gpr[kRdi] = 12;
    EXPECT_EQ(guest.run().reason, Exit::Reason::kShutdown);
  }
  PagedUserGuest guest;
};

TEST_F(ExtentsInGuest, loads_across_page_boundaries_see_both_pages) {
  for (u64 page = 1; page < 8; ++page) guest.write<u64>(0x400000 + page * kPageSize - 4, page << 32 | 1);
  read_all();
  EXPECT_EQ(guest.state().gpr[kRdx], 12 * (28ull << 32 | 7));
}

TEST_F(ExtentsInGuest, end_where_physical_memory_does) {
  guest.map(4, 0x600000);
  for (u64 page = 1; page < 8; ++page) guest.write<u64>(0x400000 + page * kPageSize - 4, page << 32 | 1);
  guest.write<u32>(0x600000, 100);  // instead of the 4 at 0x404000
  guest.write<u32>(0x600ffc, 7);    // instead of the 1 at 0x404ffc
  read_all();
  EXPECT_EQ(guest.state().gpr[kRdx], 12 * ((28ull - 4 + 100) << 32 | (7 - 1 + 7)));
}

// The kernel, called with warm extents, moves a page in their middle.
TEST_F(ExtentsInGuest, lose_a_page_that_the_kernel_invalidates) {
  constexpr u64 kKernel = Guest64::kCode + 0x100;
  CpuState& s = guest.state();
  s.efer |= kEferSce;
  s.msrs.lstar = kKernel;
  s.msrs.star = u64{0x23} << 48 | u64{8} << 32;
  code({0xbf, 12, 0, 0, 0,       // mov edi, 12
        0xeb, 0xdc});            // jmp to the second instruction
  guest.code({0x41, 0xff, 0xc8,  // dec r8d
              0x78, 0x09,        // js hlt
              0x4c, 0x89, 0x0e,  // mov [rsi], r9
              0x0f, 0x01, 0x3b,  // invlpg [rbx]
              0x48, 0x0f, 0x07,  // sysretq
              0xf4},
             kKernel);
  for (u64 page = 1; page < 8; ++page) guest.write<u64>(0x400000 + page * kPageSize, page);
  guest.write<u64>(0x601000, 100);
  s.gpr[kRbx] = PagedGuest::kWindow + 0x1000;
  s.gpr[kRdi] = 12;
  s.gpr[kR8] = 1;
  s.gpr[kRsi] = PagedGuest::kPageTable + 8;  // of the page at [rbx]
  s.gpr[kR9] = 0x601000 | 7;
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(s.gpr[kRdx], 12 * 28u + 12 * (28u - 1 + 100));
}

}  // namespace
}  // namespace anykvm::x86
