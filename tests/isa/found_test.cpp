// What fuzz/isa found: one test for each bug, on the host CPU and translated.
#include "agreement.h"

namespace anykvm::isa {
namespace {

constexpr u64 kTrapFlag = 0x100, kAlignmentFlag = 0x40000;
constexpr unsigned kRaxNumber = 0, kRspNumber = 4, kRbpNumber = 5, kRsiNumber = 6, kRdiNumber = 7;

class Found : public Agreement {
 protected:
  void agree32(const std::vector<u8>& bytes, const Prepare& prepare = {}) { agree(bytes, prepare, 32); }

  static void point_at_data(UserState& s) {
    s.gpr[kRsiNumber] = kDataBase + 0x100;
    s.gpr[kRdiNumber] = kDataBase + 0x440;
  }
  // PUSH of the flags with `more` set, POPF.
  static std::vector<u8> with_flags(u64 more, const std::vector<u8>& then) {
    std::vector<u8> bytes = {0x9c, 0x81, 0x0c, 0x24};  // PUSHF; OR dword [rSP], imm32
    for (unsigned i = 0; i < 4; ++i) bytes.push_back(static_cast<u8>(more >> (8 * i)));
    bytes.push_back(0x9d);
    bytes.insert(bytes.end(), then.begin(), then.end());
    return bytes;
  }

  Differential differential;
};

TEST_F(Found, a_borrowed_register_is_not_the_base_of_the_memory_operand) {
  agree({0xc4, 0x62, 0x28, 0xf2, 0x3f}, point_at_data);  // ANDN R15D, R10D, [RDI]
}

TEST_F(Found, prefetchw_of_a_register_is_what_the_host_has) { agree({0x0f, 0x0d, 0xc5}); }

TEST_F(Found, opcodes_of_memory_protection_extensions_are_nops) {
  agree({0x0f, 0x1b, 0x46, 0x10}, point_at_data);
}

TEST_F(Found, sysexit_in_user_mode_is_a_protection_fault) { agree({0x0f, 0x35}); }

TEST_F(Found, sixteen_bytes_are_a_protection_fault_though_lock_does_not_go_with_the_opcode) {
  agree({0x48, 0x3e, 0x65, 0x2e, 0x36, 0x65, 0xf2, 0x36, 0xf0, 0x67, 0x4e, 0x0f, 0xec, 0x9f, 0xf2, 0, 0, 0});
}

TEST_F(Found, sixteen_bytes_are_a_protection_fault_though_the_prefixes_exclude_each_other) {
  agree32({0x64, 0xf2, 0xf2, 0xf2, 0x2e, 0x64, 0x64, 0x67, 0x26, 0x2e, 0x26, 0x66, 0x0f, 0xc6, 0xf2, 0x01});
}

TEST_F(Found, avx_vnni_runs) { agree({0xc4, 0x02, 0x7d, 0x50, 0xe4}); }

TEST_F(Found, a_prefetch_with_a_vex_prefix_is_undefined) {
  agree({0xc4, 0xe1, 0xf8, 0x18, 0x1e}, point_at_data);
}

TEST_F(Found, pause_with_rex_b_is_an_exchange) { agree({0xf3, 0x49, 0x90}); }

TEST_F(Found, frstor_with_rex_w_has_the_long_form) { agree({0x66, 0x48, 0xdd, 0x26}, point_at_data); }

TEST_F(Found, an_access_by_rbp_to_the_page_of_empty_slots_is_a_stack_fault) {
  agree({0xd8, 0x55, 0x13}, [](UserState& s) { s.gpr[kRbpNumber] = 0x7fffffffffffffff; });
}

TEST_F(Found, a_segment_override_behind_a_void_rex_prefix_counts) {
  agree({0x48, 0x65, 0xa4}, [](UserState& s) {
    s.gs_base = 0x40;
    point_at_data(s);
  });
}

TEST_F(Found, fxrstor_fixes_reserved_bits_and_the_summary_of_the_status_word) {
  agree({0x0f, 0xae, 0x4f, 0x40}, point_at_data);
}

TEST_F(Found, vpcmpestrm_ignores_w_outside_64_bit_mode) { agree32({0xc4, 0xe3, 0xf9, 0x60, 0xd6, 0x6d}); }

TEST_F(Found, into_that_is_not_taken_leaves_the_single_step_trap) {
  agree32(with_flags(kTrapFlag, {0xce, 0x90, 0x90}), [](UserState& s) { s.rflags &= ~u64{0x800}; });
}

TEST_F(Found, clwb_of_no_page_faults) {
  agree({0x66, 0x0f, 0xae, 0x37}, [](UserState& s) { s.gpr[kRdiNumber] = kDataEnd + 0x123; });
}

TEST_F(Found, clflushopt_touches_one_byte) {
  agree({0x66, 0x0f, 0xae, 0x3f}, [](UserState& s) { s.gpr[kRdiNumber] = kDataEnd - 1; });
}

TEST_F(Found, string_instructions_check_alignment) {
  agree(with_flags(kAlignmentFlag, {0xa7}), [](UserState& s) {
    point_at_data(s);
    s.gpr[kRdiNumber] += 1;
  });
}

TEST_F(Found, lock_mov_of_cr0_is_privileged) { agree({0xf0, 0x0f, 0x20, 0xc0}); }

TEST_F(Found, maskmovq_needs_its_whole_operand) {
  agree({0x0f, 0xef, 0xe4, 0x0f, 0xf7, 0xe4}, [](UserState& s) {  // PXOR MM4, MM4; MASKMOVQ MM4, MM4
    s.gpr[kRdiNumber] = kDataEnd + 0x10;
    s.gpr[kRaxNumber] = 0;
  });
}

TEST_F(Found, far_pointers_and_what_far_calls_push_are_checked_for_alignment) {
  auto at = [](u64 offset) {
    return [=](UserState& s) {
      s.gpr[kRsiNumber] = kDataBase + offset;
      s.gpr[kRspNumber] = kDataBase + 0x800;
    };
  };
  const std::vector<u8> lfs = with_flags(kAlignmentFlag, {0x0f, 0xb4, 0x06});  // LFS EAX, [rSI]
  agree32(lfs, at(0x102));
  agree32(lfs, at(0xffd));
  agree32(with_flags(kAlignmentFlag, {0xff, 0x1e}), at(0x101));    // CALL FAR [ESI]
  const std::vector<u8> call = {0x44, 0x9a, 0, 0, 0, 0, 0x23, 0};  // INC ESP; CALL 23H:0
  agree32(with_flags(kAlignmentFlag, call), at(0x100));
  agree32(with_flags(kAlignmentFlag, {0x44, 0xcb}), at(0x100));  // INC ESP; RETF
}

TEST_F(Found, gathers_and_masked_moves_do_not_check_alignment) {
  if (!__builtin_cpu_supports("avx2")) GTEST_SKIP() << "no AVX2";
  auto prepare = [](UserState& s) {
    point_at_data(s);
    s.gpr[kRsiNumber] += 1;
    s.zmm[0].fill(0xff);
    s.zmm[1] = {};
  };
  const std::vector<u8> gather = {0xc4, 0xe2, 0x7d, 0x92, 0x14, 0x0e};  // VGATHERDPS YMM2, [rSI + YMM1], YMM0
  const std::vector<u8> load = {0xc4, 0xe2, 0x79, 0x2c, 0x16};          // VMASKMOVPS XMM2, XMM0, [rSI]
  agree(with_flags(kAlignmentFlag, gather), prepare);
  agree32(with_flags(kAlignmentFlag, load), prepare);
}

TEST_F(Found, slow_accesses_in_a_loop_leave_no_vector_state_in_place) {
  if (!__builtin_cpu_supports("avx512vl")) GTEST_SKIP() << "no AVX-512VL";
  const std::vector<u8> loop = {
      0xb9, 0x04, 0x00, 0x00, 0x00,              // MOV ECX, 4
      0x0f, 0xfd, 0x63, 0x4b,                    // 1: PADDW MM4, [EBX + 4BH]
      0x62, 0xf1, 0xfe, 0x0a, 0x7f, 0x66, 0x04,  // VMOVDQU64 [ESI + 40H] {K2}, XMM4
      0xff, 0xc9,                                // DEC ECX
      0x0f, 0x85, 0xed, 0xff, 0xff, 0xff,        // JNZ 1b
  };
  agree32(loop, [](UserState& s) {
    point_at_data(s);
    s.gpr[3] = kDataBase + 0x200;  // EBX
  });
}

TEST_F(Found, xrstor_of_the_standard_form_ignores_the_end_of_the_header) {
  // XSAVE [RSI]; MOV dword [RSI + 230H], 1: bytes 63:24 of the header; XRSTOR [RSI], all of it x87 state
  const std::vector<u8> code = {0xb8, 1, 0, 0, 0, 0x31, 0xd2, 0xc7, 0x86, 0x00,
                                0x02, 0, 0, 0, 0, 0,    0,    0xc7, 0x86, 0x30,
                                0x02, 0, 0, 1, 0, 0,    0,    0x0f, 0xae, 0x2e};
  agree(code, [](UserState& s) { s.gpr[kRsiNumber] = kDataBase + 0x400; });
}

// Elements that are not selected do not count.
TEST_F(Found, masked_moves_behind_4_gib_are_beyond_the_segments_limit) {
  for (unsigned selected = 0; selected < 8; ++selected)
    agree32({0xc4, 0xe2, 0x45, 0x8c, 0x4d, 0x00}, [&](UserState& s) {  // VPMASKMOVD YMM1, YMM7, [EBP]
      s.gpr[kRbpNumber] = 0xffffffe4 + selected;
      s.zmm[7].fill(0);
      s.zmm[7][4 * selected + 3] = 0x80;
    });
}

// EVEX.R', .B, .V' and the highest bit of .vvvv; the host has sixteen and thirty-two registers.
TEST_F(Found, evex_bits_for_more_registers_mean_nothing_outside_64_bit_mode) {
  agree32({0x62, 0xe1, 0x8d, 0xda, 0x5d, 0x67, 0xc1},
          [](UserState& s) {  // VMINPD ZMM4 {K2} {Z}, ZMM6, [EDI - 1F8H]
            s.gpr[kRdiNumber] = kDataBase + 0x400;
          });
  agree32({0x62, 0xd1, 0x4d, 0x48, 0xfe, 0xcb});  // VPADDD ZMM1, ZMM6, ZMM3, with B
  agree32({0x62, 0xf1, 0x0d, 0x48, 0xfe, 0xcb});  // with vvvv 1110
}

// VEX.B, and the highest bit of VEX.vvvv where that is a mask.
TEST_F(Found, vex_bits_for_more_registers_mean_nothing_outside_64_bit_mode) {
  agree32({0xc4, 0xc1, 0x51, 0xf8, 0xea});                    // VPSUBB XMM5, XMM5, XMM2, with B
  agree32({0xc4, 0xe2, 0x05, 0x8e, 0x26}, [](UserState& s) {  // VPMASKMOVD [ESI], YMM0, YMM4, vvvv 0000
    s.gpr[kRsiNumber] = kReadOnlyBase - 0x10;
  });
}

TEST_F(Found, enter_copies_frame_pointers_that_it_has_pushed_itself) {
  for (u64 distance = 0; distance < 60; distance += 5) {
    auto prepare = [&](UserState& s) { s.gpr[kRbpNumber] = s.gpr[kRspNumber] + distance; };
    agree32({0xc8, 0x10, 0x00, 0x0c}, prepare);        // ENTER 10H, 12
    agree({0xc8, 0x10, 0x00, 0x0c}, prepare);          // and with 64-bit items
    agree32({0x66, 0xc8, 0x10, 0x00, 0x1f}, prepare);  // with 16-bit items
  }
}

TEST_F(Found, fxsave_clears_the_reserved_bytes_of_x87_registers) {
  auto prepare = [](UserState& s) {
    s.gpr[kRsiNumber] = kDataBase + 0x100;
    s.gpr[kRdiNumber] = kDataBase + 0xf00;  // across pages: by C++
  };
  // MOV dword [RSI + 18H], 0: MXCSR; FXRSTOR [RSI]; FXSAVE [RDI]; XOR EAX, EAX; the pointers: MOV [RDI + 6],
  // EAX and so on
  agree({0xc7, 0x46, 0x18, 0,    0,    0,    0,    0x0f, 0xae, 0x0e, 0x0f, 0xae, 0x07, 0x31, 0xc0,
         0x89, 0x47, 0x06, 0x89, 0x47, 0x0a, 0x89, 0x47, 0x0e, 0x89, 0x47, 0x12, 0x89, 0x47, 0x14},
        prepare);
}

TEST_F(Found, maskmovq_behind_4_gib_is_beyond_the_segments_limit) {
  agree32({0x0f, 0xf7, 0xc6}, [](UserState& s) { s.gpr[kRdiNumber] = 0xffffffff; });
}

TEST_F(Found, bounds_are_aligned_each_by_itself) {
  for (u64 offset = 0; offset < 8; ++offset) {
    auto prepare = [&](UserState& s) { s.gpr[kRsiNumber] = kDataBase + 0x100 + offset; };
    agree32(with_flags(kAlignmentFlag, {0x62, 0x06}), prepare);        // BOUND EAX, [ESI]
    agree32(with_flags(kAlignmentFlag, {0x66, 0x62, 0x06}), prepare);  // BOUND AX, [ESI]
  }
}

TEST_F(Found, first_of_two_bounds_is_checked_before_the_second) {
  for (u64 offset = 0; offset < 10; ++offset) {
    auto prepare = [&](UserState& s) { s.gpr[kRsiNumber] = 0xfffffff6 + offset; };
    agree32(with_flags(kAlignmentFlag, {0x62, 0x06}), prepare);        // BOUND EAX, [ESI]
    agree32(with_flags(kAlignmentFlag, {0x66, 0x62, 0x06}), prepare);  // BOUND AX, [ESI]
  }
}

TEST_F(Found, parts_of_far_pointers_behind_4_gib) {
  for (u64 offset = 0; offset < 10; ++offset) {
    auto prepare = [&](UserState& s) { s.gpr[kRsiNumber] = 0xfffffff6 + offset; };
    agree32(with_flags(kAlignmentFlag, {0xc4, 0x06}), prepare);        // LES EAX, [ESI]
    agree32(with_flags(kAlignmentFlag, {0x66, 0xc4, 0x06}), prepare);  // LES AX, [ESI]
  }
}

TEST_F(Found, parts_of_far_pointers_are_aligned_each_by_itself) {
  for (u64 offset = 0; offset < 8; ++offset)
    agree(with_flags(kAlignmentFlag, {0x66, 0x0f, 0xb4, 0x06}), [&](UserState& s) {  // LFS AX, [RSI]
      s.gpr[kRsiNumber] = kReadOnlyBase + 0x80 + offset;
    });
}

}  // namespace
}  // namespace anykvm::isa
