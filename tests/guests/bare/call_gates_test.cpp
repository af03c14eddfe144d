// Call gates (SDM 3A 5.8.3 to 5.8.5): those of 64-bit mode, and 32-bit ones, which copy parameters.

#include "legacy.h"
#include "memory.h"
#include "report.h"
#include "traps.h"

namespace bare {

extern "C" {
void gate_target_stops();
void gate_target_returns();
void gate_target_32();
void user_calls_gate();
void user_jumps_to_gate();
extern const u8 user_called_gate[], user_far_pointer[];
extern const u8 user_calls_gate_32[], user_called_gate_32[];
}

asm(R"(
gate_target_stops:
  int $0x80
gate_target_returns:
  lretq
  .code32
gate_target_32:
  mov 8(%esp), %ecx
  mov 12(%esp), %edx
  lret $8
  .code64
  .pushsection .user, "awx"
user_calls_gate:
  lcall *user_far_pointer
user_called_gate:
  int $0x80
user_jumps_to_gate:
  ljmp *user_far_pointer
  int $0x80
user_far_pointer:
  .long 0
  .word 0
  .code32
user_calls_gate_32:
  pushl $0x1111
  pushl $0x2222
  lcall *user_far_pointer
user_called_gate_32:
  int $0x80
  .code64
  .popsection
)");

namespace {

constexpr u8 kCallGate = 12;

struct CallGate {
  void (*target)() = gate_target_stops;
  u16 selector = SEL_CODE64;
  u8 type = kCallGate, dpl = 3;
  bool present = true;
  u64 high = 0;  // what is wrong with its upper half
};

void put_gate(const CallGate& g) {
  const u64 offset = reinterpret_cast<u64>(g.target);
  descriptor(SEL_SPARE) = (offset & 0xffff) | u64{g.selector} << 16 | u64{g.type} << 40 | u64{g.dpl} << 45 |
                          u64{g.present} << 47 | (offset >> 16 & 0xffff) << 48;
  descriptor(SEL_SPARE + 8) = offset >> 32 | g.high;
}

void point_at(u16 selector) {
  auto* pointer = reinterpret_cast<volatile u8*>(const_cast<u8*>(user_far_pointer));
  // The offset is ignored.
  for (unsigned i = 0; i < 4; ++i) pointer[i] = 0x77;
  *reinterpret_cast<volatile u16*>(pointer + 4) = selector;
}

Caught user_calls(const CallGate& g, u16 rpl = 3) {
  put_gate(g);
  point_at(SEL_SPARE | rpl);
  return run_user(user_calls_gate);
}

Caught kernel_calls(const CallGate& g, u16 rpl = 0) {
  put_gate(g);
  point_at(SEL_SPARE | rpl);
  return catch_trap([] {
    asm volatile("mov %%rsp, %%rax; lcall *user_far_pointer; int $0x80" : : : "rax", "memory");
  });
}

void check_refused(const Caught& caught, unsigned vector, u64 error) {
  CHECK_EQ(caught.vector, vector);
  CHECK_EQ(caught.error, error);
}

}  // namespace

BARE_TEST(call_gates, to_the_same_level_push_the_return_address) {
  Caught caught = kernel_calls({});
  CHECK_EQ(caught.vector, kDone);
  CHECK_EQ(caught.cs, SEL_CODE64);
  CHECK_EQ(caught.rip, reinterpret_cast<u64>(gate_target_stops) + 2);
  CHECK_EQ(caught.rsp, caught.rax - 16);
  CHECK_EQ(at_physical(caught.rsp)[1], SEL_CODE64);
  caught = kernel_calls({.target = gate_target_returns});
  CHECK_EQ(caught.vector, kDone);
  CHECK_EQ(caught.rsp, caught.rax);
}

BARE_TEST(call_gates, to_ring_0_change_stacks) {
  Caught caught = user_calls({});
  CHECK_EQ(caught.vector, kDone);
  CHECK_EQ(caught.cs, SEL_CODE64);
  CHECK_EQ(caught.ss, 0);
  CHECK_EQ(caught.rsp, boot_tss().rsp[0] - 32);
  const u64* frame = at_physical(caught.rsp);
  CHECK_EQ(frame[0], reinterpret_cast<u64>(user_called_gate));
  CHECK_EQ(frame[1], SEL_USER_CODE64);
  CHECK_EQ(frame[2], user_stack_top() - 64);
  CHECK_EQ(frame[3], SEL_USER_DATA);
}

BARE_TEST(call_gates, far_return_goes_back_to_ring_3) {
  Caught caught = user_calls({.target = gate_target_returns});
  CHECK_EQ(caught.vector, kDone);
  CHECK_EQ(caught.cs, SEL_USER_CODE64);
  CHECK_EQ(caught.ss, SEL_USER_DATA);
  CHECK_EQ(caught.rip, reinterpret_cast<u64>(user_called_gate) + 2);
  CHECK_EQ(caught.rsp, user_stack_top() - 64);
}

BARE_TEST(call_gates, privilege_of_the_gate_is_checked) {
  check_refused(user_calls({.dpl = 0}), kGp, SEL_SPARE);
  check_refused(kernel_calls({.dpl = 0}, 3), kGp, SEL_SPARE);
  CHECK_EQ(kernel_calls({.dpl = 0}).vector, kDone);
}

BARE_TEST(call_gates, gates_are_checked) {
  check_refused(user_calls({.present = false}), kNp, SEL_SPARE);
  check_refused(user_calls({.type = 4}), kGp, SEL_SPARE);
  check_refused(user_calls({.high = u64{1} << 40}), kGp, SEL_SPARE);
  check_refused(user_calls({.high = 0xffff}), kGp, 0);  // a target that is not canonical
}

BARE_TEST(call_gates, targets_are_checked) {
  check_refused(user_calls({.selector = 0}), kGp, 0);
  check_refused(user_calls({.selector = SEL_DATA}), kGp, SEL_DATA);
  check_refused(user_calls({.selector = SEL_CODE32}), kGp, SEL_CODE32);
  check_refused(user_calls({.selector = GDT_ENTRIES * 8}), kGp, GDT_ENTRIES * 8);
  check_refused(kernel_calls({.selector = SEL_USER_CODE64}), kGp, SEL_USER_CODE64 & ~3u);
  descriptor(SEL_SPARE + 16) = descriptor(SEL_CODE64) & ~bit(47);
  check_refused(user_calls({.selector = SEL_SPARE + 16}), kNp, SEL_SPARE + 16);
}

BARE_TEST(call_gates, jumps_do_not_change_the_level) {
  put_gate({});
  point_at(SEL_SPARE | 3);
  check_refused(run_user(user_jumps_to_gate), kGp, SEL_CODE64);
  // A conforming target leaves the level as it is.
  descriptor(SEL_SPARE + 16) = descriptor(SEL_CODE64) | bit(42);
  put_gate({.target = reinterpret_cast<void (*)()>(reinterpret_cast<u64>(user_called_gate)),
            .selector = SEL_SPARE + 16});
  Caught caught = run_user(user_jumps_to_gate);
  CHECK_EQ(caught.vector, kDone);
  CHECK_EQ(caught.cs, SEL_SPARE + 16 + 3);
}

BARE_TEST(call_gates, of_32_bits_copy_parameters) {
  const u32 target = static_cast<u32>(reinterpret_cast<u64>(gate_target_32));
  descriptor(SEL_SPARE) = make_gate32(target, SEL_CODE32, kCallGate, 3) | u64{2} << 32;
  point_at(SEL_SPARE | 3);
  LegacyRun run;
  run.eip = static_cast<u32>(reinterpret_cast<u64>(user_calls_gate_32));
  run.cs = SEL_USER_CODE32;
  run.ss = SEL_USER_DATA;
  run.esp = static_cast<u32>(user_stack_top()) - 64;
  run_legacy(run);
  CHECK_EQ(run.vector, kDone);
  CHECK_EQ(run.out_eip, static_cast<u32>(reinterpret_cast<u64>(user_called_gate_32)) + 2);
  CHECK_EQ(run.out_ecx, 0x2222u);
  CHECK_EQ(run.out_edx, 0x1111u);
  CHECK_EQ(run.out_esp, run.esp);
  CHECK_EQ(run.out_cs, SEL_USER_CODE32);
}

}  // namespace bare
