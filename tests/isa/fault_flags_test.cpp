// What a fault shows of arithmetic flags that the code behind it overwrites unread
// (docs/decisions/translated-flags.md), on the host CPU and translated.
#include "agreement.h"

namespace anykvm::isa {
namespace {

constexpr unsigned kRcx = 1, kRbx = 3, kRsp = 4, kRsi = 6, kRdi = 7;

class FaultFlags : public Agreement {
 protected:
  // `writer`, a load from RBX, where nothing is, and an instruction that writes all flags.
  void faults_behind(std::vector<u8> writer, unsigned code_bits = 64) {
    const u8 load_and_compare[] = {0x8b, 0x13, 0x39, 0xd2};  // MOV EDX, [rBX]; CMP EDX, EDX
    writer.insert(writer.end(), std::begin(load_and_compare), std::end(load_and_compare));
    agree(
        writer, [](UserState& s) { s.gpr[kRbx] = kDataEnd; }, code_bits);
  }
};

TEST_F(FaultFlags, are_those_of_comparisons) {
  for (unsigned bits : {32u, 64u}) {
    faults_behind({0x39, 0xc8}, bits);              // CMP EAX, ECX
    faults_behind({0x38, 0xc8}, bits);              // CMP AL, CL
    faults_behind({0x66, 0x3d, 0x01, 0x80}, bits);  // CMP AX, 8001H
    faults_behind({0x83, 0xf8, 0xff}, bits);        // CMP EAX, -1
    faults_behind({0x85, 0xc8}, bits);              // TEST EAX, ECX
    faults_behind({0xa8, 0x81}, bits);              // TEST AL, 81H
    faults_behind({0x3b, 0x06}, bits);              // CMP EAX, [rSI], which may fault, too
    faults_behind({0x38, 0xe0}, bits);              // CMP AL, AH
  }
  faults_behind({0x4d, 0x39, 0xd3});                          // CMP R11, R10
  faults_behind({0x48, 0x81, 0xf8, 0x00, 0x00, 0x00, 0x80});  // CMP RAX, -80000000H
}

TEST_F(FaultFlags, are_those_of_arithmetic) {
  faults_behind({0x01, 0xc8});                    // ADD EAX, ECX
  faults_behind({0x01, 0xc0});                    // ADD EAX, EAX
  faults_behind({0x66, 0x29, 0xc8});              // SUB AX, CX
  faults_behind({0x29, 0xc0});                    // SUB EAX, EAX
  faults_behind({0x4c, 0x29, 0xf8});              // SUB RAX, R15
  faults_behind({0x21, 0xc8});                    // AND EAX, ECX
  faults_behind({0x41, 0x81, 0xf3, 1, 2, 3, 4});  // XOR R11D, 04030201H
  faults_behind({0xf7, 0xd8});                    // NEG EAX
  faults_behind({0x19, 0xc0});                    // SBB EAX, EAX
  faults_behind({0x0f, 0xaf, 0xc1});              // IMUL EAX, ECX
  for (u8 reg : {0xe0, 0xe8, 0xf8}) {
    faults_behind({0xc1, reg, 0x05});  // SHL, SHR, SAR EAX, 5
    faults_behind({0xd1, reg});        // by 1
    faults_behind({0xd3, reg});        // by CL
  }
}

TEST_F(FaultFlags, of_several_instructions_are_put_together) {
  faults_behind({0x39, 0xc8, 0xff, 0xc6});                    // CMP EAX, ECX; INC ESI
  faults_behind({0x39, 0xc8, 0xff, 0xc9});                    // CMP EAX, ECX; DEC ECX
  faults_behind({0xf9, 0xff, 0xc9});                          // STC; DEC ECX
  faults_behind({0x29, 0xc8, 0xc1, 0xc6, 0x07});              // SUB EAX, ECX; ROL ESI, 7
  faults_behind({0x29, 0xc8, 0x48, 0xd1, 0xce, 0xff, 0xc0});  // SUB EAX, ECX; ROR RSI, 1; INC EAX
  faults_behind({0x39, 0xc8, 0x0f, 0xa3, 0xc8});              // CMP EAX, ECX; BT EAX, ECX
}

TEST_F(FaultFlags, do_not_depend_on_registers_that_got_other_values) {
  faults_behind({0x39, 0xc8, 0x89, 0xd0});              // CMP EAX, ECX; MOV EAX, EDX
  faults_behind({0x39, 0xc8, 0x89, 0xd0, 0x89, 0xd1});  // CMP EAX, ECX; MOV EAX, EDX; MOV ECX, EDX
  faults_behind({0x4d, 0x39, 0xd3, 0x49, 0x89, 0xc3});  // CMP R11, R10; MOV R11, RAX
  faults_behind({0x01, 0xc8, 0x48, 0x8d, 0x04, 0x86});  // ADD EAX, ECX; LEA RAX, [RSI + RAX * 4]
  faults_behind({0xff, 0xc0, 0x0f, 0xc8});              // INC EAX; BSWAP EAX
}

TEST_F(FaultFlags, of_a_block_are_seen_in_the_next) {
  // The jump back makes what it leads to a block of its own.
  const std::vector<u8> code = {0xbe, 0x02, 0x00, 0x00, 0x00,  // MOV ESI, 2
                                0x39, 0xc8,                    // CMP EAX, ECX
                                0x8b, 0x13,                    // 1: MOV EDX, [RBX]
                                0x48, 0x89, 0xfb,              // MOV RBX, RDI
                                0x29, 0xd0,                    // SUB EAX, EDX
                                0x83, 0xee, 0x01,              // SUB ESI, 1
                                0x75, 0xf2};                   // JNZ 1b
  agree(code, [](UserState& s) { s.gpr[kRbx] = kDataBase, s.gpr[kRdi] = kDataEnd; });
  agree(code, [](UserState& s) { s.gpr[kRbx] = kDataEnd; });
}

// Each runs up to the end of memory: first rounds, later rounds, rounds behind a visit to the dispatcher.
TEST_F(FaultFlags, of_a_round_are_seen_in_the_next) {
  auto start_at = [](u64 before_end) {
    return [before_end](UserState& s) { s.gpr[kRsi] = kDataEnd - before_end, s.gpr[kRcx] = 1000; };
  };
  // With a register that counts, and without; flags that go by a register, and such as do not.
  const std::vector<u8> counts = {0x8b, 0x06,                      // 1: MOV EAX, [RSI]
                                  0x48, 0x83, 0xc6, 0x04,          // ADD RSI, 4
                                  0x01, 0xc3,                      // ADD EBX, EAX
                                  0x39, 0xd3,                      // CMP EBX, EDX
                                  0x75, 0xf4};                     // JNZ 1b
  const std::vector<u8> does_not = {0x8b, 0x06,                    // 1: MOV EAX, [RSI]
                                    0x48, 0x8d, 0x74, 0x4e, 0x04,  // LEA RSI, [RSI + RCX * 2 + 4]
                                    0x29, 0xc3,                    // SUB EBX, EAX
                                    0xff, 0xc9,                    // DEC ECX
                                    0x75, 0xf3};                   // JNZ 1b
  const std::vector<u8> of_memory = {0x8b, 0x06,                   // 1: MOV EAX, [RSI]
                                     0x48, 0x83, 0xc6, 0x04,       // ADD RSI, 4
                                     0x3b, 0x46, 0xf8,             // CMP EAX, [RSI - 8]
                                     0x75, 0xf5};                  // JNZ 1b
  const std::vector<u8> high_registers = {0x44, 0x8b, 0x1e,        // 1: MOV R11D, [RSI]
                                          0x48, 0x83, 0xc6, 0x04,  // ADD RSI, 4
                                          0x45, 0x01, 0xda,        // ADD R10D, R11D
                                          0x75, 0xf4};             // JNZ 1b
  for (u64 before_end : {0u, 4u, 8u, 200u, 0x1200u}) {
    for (const auto& code : {counts, does_not, of_memory, high_registers}) agree(code, start_at(before_end));
  }
}

TEST_F(FaultFlags, of_vector_code_are_exact_too) {
  faults_behind({0x39, 0xc8, 0x0f, 0x28, 0x06});  // CMP EAX, ECX; MOVAPS XMM0, [RSI]
}

}  // namespace
}  // namespace anykvm::isa
