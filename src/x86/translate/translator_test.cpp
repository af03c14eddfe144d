#include <gtest/gtest.h>

#include "base/optimizations.h"
#include "x86/translate/guest_fixture.h"

namespace anykvm::x86 {
namespace {

TEST(Translator, registers_only_code_runs_as_itself) {
  Guest64 guest;
  guest.code({0xb8, 0x05, 0, 0, 0,        // mov eax, 5
              0x41, 0xba, 0x07, 0, 0, 0,  // mov r10d, 7
              0x4c, 0x01, 0xd0,           // add rax, r10
              0x49, 0x89, 0xc7,           // mov r15, rax
              0xf4});                     // hlt
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kRax], 12u);
  EXPECT_EQ(guest.state().gpr[kR15], 12u);
  EXPECT_EQ(guest.state().rip, Guest64::kCode + 18);
}

TEST(Translator, bsf_of_zero_keeps_a_destination_without_a_host_register) {
  Guest64 guest;
  guest.code({0x31, 0xc9,              // xor ecx, ecx
              0x4c, 0x0f, 0xbc, 0xd9,  // bsf r11, rcx
              0xf4});
  guest.state().gpr[kR11] = 0x123;
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kR11], 0x123u);
}

TEST(Translator, load_and_store_reach_guest_ram) {
  Guest64 guest;
  guest.write<u64>(Guest64::kData, 0x1122334455667788);
  guest.code({0x48, 0x8b, 0x03,        // mov rax, [rbx]
              0x48, 0x89, 0x43, 0x08,  // mov [rbx+8], rax
              0xf4});
  guest.state().gpr[kRbx] = Guest64::kData;
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.read<u64>(Guest64::kData + 8), 0x1122334455667788u);
}

TEST(Translator, loop_with_backward_branch_counts_to_the_end) {
  Guest64 guest;
  guest.code({0x31, 0xc0,                    // xor eax, eax
              0xb9, 0x40, 0x42, 0x0f, 0x00,  // mov ecx, 1000000
              0xff, 0xc0,                    // inc eax
              0xff, 0xc9,                    // dec ecx
              0x75, 0xfa,                    // jnz -6
              0xf4});
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kRax], 1000000u);
}

TEST(Translator, call_and_ret_use_the_guest_stack) {
  Guest64 guest;
  guest.code({0xe8, 0x01, 0, 0, 0,  // call +1
              0xf4,                 // hlt
              0x41, 0x57,           // push r15
              0x41, 0x5a,           // pop r10
              0xc3});               // ret
  guest.state().gpr[kR15] = 0x77;
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kR10], 0x77u);
  EXPECT_EQ(guest.state().gpr[kRsp], Guest64::kStack);
  EXPECT_EQ(guest.read<u64>(Guest64::kStack - 8), Guest64::kCode + 5);
}

TEST(Translator, live_flags_survive_a_memory_access) {
  Guest64 guest;
  guest.code({0xf9,                    // stc
              0x48, 0x8b, 0x03,        // mov rax, [rbx]
              0x48, 0x83, 0xd0, 0x00,  // adc rax, 0
              0xf4});
  guest.write<u64>(Guest64::kData, 41);
  guest.state().gpr[kRbx] = Guest64::kData;
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kRax], 42u);
}

TEST(Translator, access_across_a_page_boundary_reads_both_pages) {
  Guest64 guest;
  guest.write<u64>(Guest64::kData + 0xffc, 0x0102030405060708);
  guest.code({0x48, 0x8b, 0x83, 0xfc, 0x0f, 0, 0,  // mov rax, [rbx+0xffc]
              0x48, 0x01, 0x83, 0xfc, 0x0f, 0, 0,  // add [rbx+0xffc], rax
              0xf4});
  guest.state().gpr[kRbx] = Guest64::kData;
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kRax], 0x0102030405060708u);
  EXPECT_EQ(guest.read<u64>(Guest64::kData + 0xffc), 2 * 0x0102030405060708u);
}

TEST(Translator, mmio_write_leaves_to_the_client_and_the_instruction_completes_afterwards) {
  Guest64 guest;
  guest.code({0x89, 0x03,  // mov [rbx], eax
              0xf4});
  guest.state().gpr[kRbx] = Guest64::kRam + 0x10;
  guest.state().gpr[kRax] = 0xabcd;
  Exit exit = guest.run();
  EXPECT_EQ(exit.reason, Exit::Reason::kMmio);
  EXPECT_TRUE(exit.write);
  EXPECT_EQ(exit.gpa, Guest64::kRam + 0x10);
  EXPECT_EQ(exit.size, 4);
  EXPECT_EQ(guest.state().rip, Guest64::kCode);
  guest.cpu->complete_io(nullptr);
  EXPECT_EQ(guest.cpu->run().reason, Exit::Reason::kHalt);
}

TEST(Translator, vector_state_is_kept_between_blocks_and_runs) {
  Guest64 guest;
  guest.code({0x66, 0x48, 0x0f, 0x6e, 0xc0,  // movq xmm0, rax
              0x66, 0x0f, 0xd4, 0xc0,        // paddq xmm0, xmm0
              0x0f, 0xa2,                    // cpuid: a helper, in C++
              0x66, 0x48, 0x0f, 0x7e, 0xc2,  // movq rdx, xmm0
              0xf4});
  guest.state().gpr[kRax] = 21;
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kRdx], 42u);
}

TEST(Translator, code_that_rewrites_itself_runs_the_new_bytes) {
  Guest64 guest;
  guest.code({0xc6, 0x05, 0x01, 0, 0, 0, 0x2a,  // mov byte [rip+1], 42: the immediate below
              0xb8, 0x07, 0, 0, 0,              // mov eax, 7
              0xf4});
  guest.code({0xc6, 0x05, 0x01, 0, 0, 0, 0x2a, 0xb8, 0x07, 0, 0, 0, 0xf4});
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kRax], 42u);
}

// The next instruction, in the same block. 64-bit code finds the page closed and runs the store alone;
// segments that are not flat take the slow path inside the block, and string instructions are helpers.
TEST(Translator, code_that_rewrites_its_next_instruction_runs_the_new_bytes) {
  Guest64 guest;
  // mov byte [rip + 1], 7; mov al, 0; hlt
  guest.code({0xc6, 0x05, 0x01, 0x00, 0x00, 0x00, 0x07, 0xb0, 0x00, 0xf4});
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kRax] & 0xff, 7u);
}

TEST(Translator, string_store_into_its_next_instruction_runs_the_new_bytes) {
  Guest64 guest;
  guest.state().gpr[kRdi] = Guest64::kCode + 2;
  guest.state().gpr[kRax] = 9;
  guest.code({0xaa, 0xb3, 0x00, 0xf4});  // stosb; mov bl, 0; hlt
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kRbx] & 0xff, 9u);
}

TEST(Translator, real_mode_code_that_rewrites_its_next_instruction_runs_the_new_bytes) {
  Guest64 guest;
  CpuState& state = guest.state();
  state.efer = 0, state.cr0 = kCr0Et, state.cr4 = 0;
  for (Segment& segment : state.segments)
    segment = Segment{.base = Guest64::kCode, .limit = 0xffff, .type = 3, .present = 1, .s = 1};
  state.gpr[kRax] = 0x4321;
  // mov cs:[5], ax; mov bx, 0; add word cs:[14], 0x11; mov cx, 0x100; hlt
  guest.code(
      {0x2e, 0xa3, 0x05, 0x00, 0xbb, 0x00, 0x00, 0x2e, 0x83, 0x06, 0x0e, 0x00, 0x11, 0xb9, 0x00, 0x01, 0xf4});
  EXPECT_EQ(guest.run(0).reason, Exit::Reason::kHalt);
  EXPECT_EQ(state.gpr[kRbx] & 0xffff, 0x4321u);
  EXPECT_EQ(state.gpr[kRcx] & 0xffff, 0x0111u);
  EXPECT_EQ(state.gpr[kRsp], Guest64::kStack);
}

TEST(Translator, high_byte_registers_work_with_memory_operands) {
  Guest64 guest;
  guest.write<u8>(Guest64::kData, 0x5a);
  guest.code({0x8a, 0x23,  // mov ah, [rbx]
              0xf4});
  guest.state().gpr[kRbx] = Guest64::kData;
  guest.state().gpr[kRax] = 0x11;
  guest.state().gpr[kRdi] = 0x99;
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kRax], 0x5a11u);
  EXPECT_EQ(guest.state().gpr[kRdi], 0x99u);
}

// Linux unpacks itself before it turns SSE on.
TEST(Translator, integer_conversions_need_no_sse) {
  Guest64 guest;
  guest.state().cr4 &= ~u64{kCr4Osfxsr | kCr4Osxsave};
  guest.code({0x48, 0x98,  // cdqe
              0x48, 0x99,  // cqo
              0xf4});
  guest.state().gpr[kRax] = 0x80000000;
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kRax], 0xffffffff80000000u);
  EXPECT_EQ(guest.state().gpr[kRdx], ~u64{0});
}

// The pages from kData on, of 4 KiB and in reverse order in the guest's memory.
void reverse_data_pages(Guest64& guest) {
  constexpr u64 kTable = 0x8000, kLast = Guest64::kData + 511 * kPageSize;
  for (u64 i = 0; i < 512; ++i) guest.write<u64>(kTable + 8 * i, (kLast - i * kPageSize) | 7);
  guest.write<u64>(Guest64::kTables + 0x2000 + 8 * (Guest64::kData >> 21), kTable | 7);
}

TEST(Translator, reads_across_pages_that_lie_apart_need_no_slow_form) {
  Guest64 guest;
  reverse_data_pages(guest);
  constexpr u64 kFirst = Guest64::kData + 511 * kPageSize, kSecond = kFirst - kPageSize;
  guest.write<u32>(kFirst + 0xffd, 0x03020100);
  guest.write<u64>(kSecond, 0x0a09080706050403);
  guest.code({0x48, 0x8b, 0x83, 0xfd, 0x0f, 0,    0,        // mov rax, [rbx+0xffd]
              0x48, 0x8b, 0x8c, 0x13, 0xfd, 0x0f, 0,    0,  // mov rcx, [rbx+rdx+0xffd]
              0xf3, 0x0f, 0x6f, 0x83, 0xf5, 0x0f, 0,    0,  // movdqu xmm0, [rbx+0xff5]
              0x66, 0x48, 0x0f, 0x3a, 0x16, 0xc6, 0x01,     // pextrq rsi, xmm0, 1
              0xf4});
  guest.state().gpr[kRbx] = Guest64::kData;
  guest.state().gpr[kRdx] = 0;
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kRax], 0x0706050403020100u);
  EXPECT_EQ(guest.state().gpr[kRcx], 0x0706050403020100u);
  EXPECT_EQ(guest.state().gpr[kRsi], 0x0706050403020100u);
  EXPECT_TRUE(guest.cpu->counts().slow_accesses == 0 || !optimizations().crossings);
}

// A loop of writes across two pages that lie apart: on a copy from the second round on, flags and all.
TEST(Translator, writes_across_pages_that_lie_apart_need_no_slow_form_for_long) {
  Guest64 guest;
  reverse_data_pages(guest);
  constexpr u64 kFirst = Guest64::kData + 511 * kPageSize, kSecond = kFirst - kPageSize;
  guest.code({0x48, 0x89, 0xc8,                                // mov rax, rcx
              0xf9,                                            // stc
              0x48, 0x89, 0x83, 0xfd, 0x0f, 0,    0,           // mov [rbx+0xffd], rax
              0x48, 0x83, 0x94, 0x13, 0xfb, 0x1f, 0, 0, 0x01,  // adc qword [rbx+rdx+0x1ffb], 1
              0xf3, 0x0f, 0x7f, 0x83, 0xf1, 0x2f, 0, 0,        // movdqu [rbx+0x2ff1], xmm0
              0xff, 0xc9,                                      // dec ecx
              0x75, 0xe0,                                      // jnz
              0xf4});
  guest.state().gpr[kRbx] = Guest64::kData;
  guest.state().gpr[kRdx] = 0;
  guest.state().gpr[kRcx] = 1000;
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.read<u32>(kFirst + 0xffd) & 0xffffff, 1u);
  EXPECT_EQ(guest.read<u8>(kSecond), 0);
  EXPECT_EQ(guest.read<u32>(kSecond + 0xffb), 2000u);  // CF was set each time
  EXPECT_TRUE(guest.cpu->counts().slow_accesses < 20 || !optimizations().crossings);
}

// Its copy has the address's alignment.
TEST(Translator, aligned_vector_writes_across_pages_fault) {
  Guest64 guest;
  reverse_data_pages(guest);
  guest.code({0x0f, 0x11, 0x83, 0xf8, 0x0f, 0, 0,  // movups [rbx+0xff8], xmm0
              0x83, 0xe9, 0x01,                    // sub ecx, 1
              0x75, 0xf4,                          // jnz
              0x0f, 0x29, 0x83, 0xf8, 0x0f, 0, 0,  // movaps [rbx+0xff8], xmm0
              0xf4});
  guest.state().gpr[kRbx] = Guest64::kData;
  guest.state().gpr[kRcx] = 10;
  EXPECT_EQ(guest.run().reason, Exit::Reason::kShutdown);  // #GP, no interrupt table
}

// Neither by a store that the slow side of a TLB miss serves, nor (in user code) by one whose slot misses and
// whose page is in the TLB.
TEST(Translator, a_write_across_pages_that_faulted_is_not_made_up_for) {
  constexpr u64 kMark = 0x1122334455667788;
  for (u8 cpl : {0, 3}) {
    Guest64 guest;
    reverse_data_pages(guest);
    guest.state().cpl = cpl;
    auto store_to = [&](u64 address, u64 before) {
      guest.state().gpr[kRbx] = address;
      guest.state().gpr[kRdx] = before;
      guest.state().mp_state = MpState::kRunnable;
      guest.state().events = {};
      guest.state().rip = Guest64::kCode;
      return guest.cpu->run().reason;  // the TLB keeps what it has
    };
    guest.cpu->state_replaced();
    guest.code({0x48, 0x89, 0x02,  // mov [rdx], rax
                0x0f, 0x29, 0x03,  // movaps [rbx], xmm0
                0xf4});
    // #GP, no interrupt table
    EXPECT_EQ(store_to(Guest64::kData + 0xff8, Guest64::kData + 0x5100), Exit::Reason::kShutdown);
    EXPECT_EQ(guest.state().rip, Guest64::kCode + 3);
    constexpr u64 kFirst = Guest64::kData + 511 * kPageSize, kSecond = kFirst - kPageSize;
    guest.write<u64>(kFirst + 0xff8, kMark);
    guest.write<u64>(kSecond, kMark);
    store_to(Guest64::kData + 0x5000, Guest64::kData + 0x5100);
    EXPECT_EQ(guest.state().rip, Guest64::kCode + (cpl ? 6 : 7));  // HLT is #GP for user code
    EXPECT_EQ(guest.read<u64>(kFirst + 0xff8), kMark) << unsigned{cpl};
    EXPECT_EQ(guest.read<u64>(kSecond), kMark) << unsigned{cpl};
  }
}

TEST(Translator, the_second_page_of_a_read_is_the_one_that_faults) {
  Guest64 guest;
  guest.write<u64>(Guest64::kTables + 0x2000 + 8 * ((Guest64::kData >> 21) + 1), 0);
  guest.code({0x48, 0x8b, 0x03, 0xf4});  // mov rax, [rbx]
  guest.state().gpr[kRbx] = Guest64::kData + 0x1ffffe;
  EXPECT_EQ(guest.run().reason, Exit::Reason::kShutdown);  // no interrupt table
  EXPECT_EQ(guest.state().cr2, Guest64::kData + 0x200000);
}

// A loop around an instruction on two pages, to which a jump leads with CF set.
TEST(Translator, jumps_to_an_instruction_on_two_pages_do_without_the_dispatcher) {
  Guest64 guest;
  guest.code({0xf9, 0xeb, 0x0b}, Guest64::kCode + 0xff0);  // stc; jmp 0xffe
  guest.code({0x15, 0x00, 0x00, 0x00, 0x00,                // 0xffe: adc eax, 0
              0xff, 0xc9,                                  // dec ecx
              0x75, 0xe9,                                  // jnz 0xff0
              0xf4},
             Guest64::kCode + 0xffe);
  guest.state().gpr[kRax] = 0;
  guest.state().gpr[kRcx] = 10000;
  EXPECT_EQ(guest.run(Guest64::kCode + 0xff0).reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kRax], 10000u);
  EXPECT_TRUE(guest.cpu->counts().lookups < 100 || !optimizations().jumps);
}

// The second page changes while links lead to the first.
TEST(Translator, an_instruction_on_two_pages_is_the_one_that_is_there_now) {
  Guest64 guest;
  reverse_data_pages(guest);
  constexpr u64 kFirst = Guest64::kData + 511 * kPageSize, kSecond = kFirst - kPageSize,
                kOther = kSecond - kPageSize;
  guest.code({0xff, 0xc9, 0x74, 0x0a}, kFirst + 0xff0);                   // dec ecx; jz 0xffe
  guest.code({0xeb, 0x08}, kFirst + 0xff4);                               // jmp 0xffe
  guest.code({0x05, 0x01}, kFirst + 0xffe);                               // add eax, 0x...01
  guest.code({0x00, 0x00, 0x00, 0x85, 0xc9, 0x75, 0xe7, 0xf4}, kSecond);  // ...; test ecx, ecx; jnz 0xff0
  guest.code({0x01, 0x00, 0x00, 0x85, 0xc9, 0x75, 0xe7, 0xf4}, kOther);   // the same with 0x101
  guest.state().gpr[kRax] = 0;
  guest.state().gpr[kRcx] = 1000;
  EXPECT_EQ(guest.run(Guest64::kData + 0xff0).reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kRax], 1000u);
  guest.write<u64>(0x8008, kOther | 7);
  guest.state().gpr[kRax] = 0;
  guest.state().gpr[kRcx] = 1000;
  EXPECT_EQ(guest.run(Guest64::kData + 0xff0).reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kRax], 0x101u * 1000);
}

}  // namespace
}  // namespace anykvm::x86
