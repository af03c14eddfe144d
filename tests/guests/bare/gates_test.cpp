// Delivery through gates, stacks and the way back (SDM 3A 6.12 to 6.15; SDM 2A INT n, IRET), in 64-bit mode.

#include "memory.h"
#include "report.h"
#include "traps.h"

namespace bare {

extern "C" {
void user_int_40();
void user_int3();
extern const u8 branch_jmp[], branch_call[], branch_ret[], branch_ret_16[];
}

asm(R"(
  .pushsection .user, "awx"
user_int_40:
  int $0x40
  int $0x80
user_int3:
  int3
  int $0x80
  .popsection
)");

namespace {

constexpr u8 kVector = 0x40;
constexpr u64 kIdtBit = 2, kExtBit = 1;

// Intel's CPUs set EXT in what a fault while delivering an exception says, AMD's for interrupts alone (SDM
// 3A 6.13, APM 2 8.4.1).
bool exceptions_are_external() { return cpuid(0).ebx == 0x756e6547; }  // "Genu"

void nothing() {}

// Puts a gate back at the end.
class ChangedGate {
 public:
  ChangedGate(unsigned vector, Gate changed) : m_vector(vector), m_before(gate(vector)) {
    gate(vector) = changed;
  }
  ~ChangedGate() { gate(m_vector) = m_before; }

 private:
  unsigned m_vector;
  Gate m_before;
};

Gate with_low_bits(Gate g, u64 set, u64 clear = 0) {
  g.low = (g.low & ~clear) | set;
  return g;
}

Caught int_40() {
  return catch_trap([] { asm volatile("int $0x40" : : : "memory"); });
}

u64 s_seen_rsp;
u64 s_seen_cs;
void note_stack(Trap& t) {
  s_seen_rsp = reinterpret_cast<u64>(&t + 1);
  s_seen_cs = t.cs;
}

// What IRETQ with this frame raises; kNone if it arrives at a RET.
struct Frame {
  u64 rip, cs, rflags, rsp, ss;
};
Caught iret_with(Frame frame) {
  return catch_trap([=] {
    asm volatile(
        "mov %%rsp, %%rbx\n\t"
        "pushq %[ss]\n\t"
        "pushq %[rsp]\n\t"
        "pushq %[flags]\n\t"
        "pushq %[cs]\n\t"
        "pushq %[rip]\n\t"
        "iretq\n\t"
        :
        : [ss] "r"(frame.ss), [rsp] "r"(frame.rsp), [flags] "r"(frame.rflags), [cs] "r"(frame.cs),
          [rip] "r"(frame.rip)
        : "rbx", "memory");
  });
}
// Arrives at INT 80H in ring 0.
extern "C" void done_here();
asm("done_here: int $0x80");
Frame good_frame() {
  return {reinterpret_cast<u64>(done_here), SEL_CODE64, 2, spare_stack_top() - 64, SEL_DATA};
}

}  // namespace

BARE_TEST(gates, absent_gate_is_segment_not_present) {
  ChangedGate changed(kVector, with_low_bits(gate(kVector), 0, bit(47)));
  Caught caught = int_40();
  CHECK_EQ(caught.vector, kNp);
  CHECK_EQ(caught.error, kVector * 8u | kIdtBit);
}

BARE_TEST(gates, software_interrupts_check_the_gates_privilege) {
  Caught caught = run_user(user_int_40);
  CHECK_EQ(caught.vector, kGp);
  CHECK_EQ(caught.error, kVector * 8u | kIdtBit);
  CHECK_EQ(caught.rip, reinterpret_cast<u64>(user_int_40));  // a fault: RIP at the instruction
  ChangedGate open(kVector, with_low_bits(gate(kVector), u64{3} << 45));
  caught = run_user(user_int_40);
  CHECK_EQ(caught.vector, kVector);
  CHECK_EQ(caught.rip, reinterpret_cast<u64>(user_int_40) + 2);
}

BARE_TEST(gates, int3_checks_privilege_too) {
  Caught caught = run_user(user_int3);
  CHECK_EQ(caught.vector, kGp);
  CHECK_EQ(caught.error, kBp * 8u | kIdtBit);
}

BARE_TEST(gates, other_types_are_general_protection) {
  for (unsigned type : {0, 1, 2, 4, 5, 6, 7, 8, 9, 11, 12, 13}) {
    ChangedGate changed(kVector, with_low_bits(gate(kVector), u64{type} << 40, u64{15} << 40));
    Caught caught = int_40();
    CHECK_EQ(caught.vector, kGp);
    CHECK_EQ(caught.error, kVector * 8u | kIdtBit);
  }
}

BARE_TEST(gates, handlers_must_be_64_bit_code) {
  for (u16 selector : {SEL_DATA, SEL_CODE32, SEL_TSS}) {
    ChangedGate changed(kVector, make_gate(nothing, selector, kInterruptGate));
    Caught caught = int_40();
    CHECK_EQ(caught.vector, kGp);
    CHECK_EQ(caught.error, selector);
  }
  ChangedGate null(kVector, make_gate(nothing, 0, kInterruptGate));
  Caught caught = int_40();
  CHECK_EQ(caught.vector, kGp);
  CHECK_EQ(caught.error, 0);
}

BARE_TEST(gates, absent_code_segment_is_named) {
  descriptor(SEL_SPARE) = descriptor(SEL_CODE64) & ~bit(47);
  ChangedGate changed(kVector, make_gate(nothing, SEL_SPARE, kInterruptGate));
  Caught caught = int_40();
  CHECK_EQ(caught.vector, kNp);
  CHECK_EQ(caught.error, SEL_SPARE);
}

BARE_TEST(gates, beyond_the_idts_limit_is_general_protection) {
  TablePointer before, short_table;
  asm volatile("sidt %0" : "=m"(before));
  short_table = before;
  short_table.limit = kVector * 16 + 14;
  asm volatile("lidt %0" : : "m"(short_table));
  Caught caught = int_40();
  asm volatile("lidt %0" : : "m"(before));
  CHECK_EQ(caught.vector, kGp);
  CHECK_EQ(caught.error, kVector * 8u | kIdtBit);
}

BARE_TEST(gates, interrupt_gates_clear_if_and_trap_gates_do_not) {
  static u64 seen;
  set_handler(kVector, [](Trap&) { seen = read_flags(); });
  sti();
  asm volatile("int $0x40");
  CHECK_EQ(seen & kFlagIf, 0);
  ChangedGate changed(kVector, with_low_bits(gate(kVector), bit(40)));
  asm volatile("int $0x40");
  CHECK_EQ(seen & kFlagIf, kFlagIf);
  cli();
  set_handler(kVector, nullptr);
}

BARE_TEST(gates, the_stack_is_aligned_to_16) {
  set_handler(kVector, note_stack);
  for (u64 misalignment : {0, 1, 5, 8, 15}) {
    asm volatile("mov %%rsp, %%rbx; mov %0, %%rsp; int $0x40; mov %%rbx, %%rsp"
                 :
                 : "r"(spare_stack_top() - 64 - misalignment)
                 : "rbx", "memory");
    CHECK_EQ(s_seen_rsp & 15, 0);
  }
  set_handler(kVector, nullptr);
}

BARE_TEST(gates, interrupt_stack_table_is_used_at_any_privilege) {
  boot_tss().ist[3] = spare_stack_top();
  ChangedGate changed(kVector, with_low_bits(gate(kVector), u64{4} << 32 | u64{3} << 45));
  set_handler(kVector, note_stack);
  asm volatile("int $0x40" : : : "memory");
  CHECK_EQ(s_seen_rsp, spare_stack_top());
  CHECK_EQ(s_seen_cs, SEL_CODE64);
  run_user(user_int_40);
  CHECK_EQ(s_seen_rsp, spare_stack_top());
  CHECK_EQ(s_seen_cs, SEL_USER_CODE64);
  set_handler(kVector, nullptr);
}

BARE_TEST(gates, a_bad_stack_in_the_tss_is_a_stack_fault) {
  boot_tss().ist[3] = bit(60);
  ChangedGate changed(kVector, with_low_bits(gate(kVector), u64{4} << 32));
  CHECK_EQ(int_40().vector, kSs);
}

BARE_TEST(faults, a_fault_while_delivering_a_contributory_one_is_double) {
  ChangedGate changed(kGp, with_low_bits(gate(kGp), 0, bit(47)));
  Caught caught = int_40().vector == kNone ? Caught{} : catch_trap([] { wrmsr(0x12345678, 0); });
  CHECK_EQ(caught.vector, kDf);
  CHECK_EQ(caught.error, 0);
}

BARE_TEST(faults, a_page_fault_while_delivering_a_page_fault_is_double) {
  AddressSpace space;
  space.enter();
  boot_tss().ist[3] = bit(40);  // nothing is mapped there
  ChangedGate changed(kPf, with_low_bits(gate(kPf), u64{4} << 32));
  Caught caught = catch_trap([] { asm volatile("mov (%0), %%rax" : : "r"(bit(41)) : "rax"); });
  AddressSpace::leave();
  CHECK_EQ(caught.vector, kDf);
  CHECK_EQ(caught.cr2, bit(40) - 8);
}

BARE_TEST(faults, a_fault_while_delivering_a_benign_one_is_itself) {
  ChangedGate changed(kUd, with_low_bits(gate(kUd), 0, bit(47)));
  Caught caught = catch_trap([] { asm volatile("ud2"); });
  CHECK_EQ(caught.vector, kNp);
  CHECK_EQ(caught.error, kUd * 8u | kIdtBit | (exceptions_are_external() ? kExtBit : 0u));
}

BARE_TEST(iret, a_good_frame_arrives) {
  Caught caught = iret_with(good_frame());
  CHECK_EQ(caught.vector, kDone);
  CHECK_EQ(caught.rsp, spare_stack_top() - 64);
}
BARE_TEST(iret, nested_task_is_refused_in_long_mode) {
  Caught caught = catch_trap([] {
    write_flags(read_flags() | kFlagNt);
    asm volatile("iretq");
  });
  CHECK_EQ(caught.vector, kGp);
  CHECK_EQ(caught.error, 0);
}
BARE_TEST(iret, selectors_are_checked) {
  Frame frame = good_frame();
  frame.cs = 0;
  CHECK_EQ(iret_with(frame).vector, kGp);
  frame.cs = SEL_DATA;
  CHECK_EQ(iret_with(frame).error, SEL_DATA);
  frame.cs = GDT_ENTRIES * 8;
  CHECK_EQ(iret_with(frame).error, GDT_ENTRIES * 8);
  frame = good_frame();
  frame.ss = SEL_USER_DATA;  // not this privilege level
  CHECK_EQ(iret_with(frame).error, SEL_USER_DATA & ~3u);
  frame.ss = SEL_CODE64;
  CHECK_EQ(iret_with(frame).error, SEL_CODE64);
}
BARE_TEST(iret, null_stack_selector_is_good_below_ring_3_only) {
  Frame frame = good_frame();
  frame.ss = 0;
  CHECK_EQ(iret_with(frame).vector, kDone);
  frame.cs = SEL_USER_CODE64;
  frame.ss = 3;
  Caught caught = iret_with(frame);
  CHECK_EQ(caught.vector, kGp);
  CHECK_EQ(caught.error, 0);
}
BARE_TEST(iret, a_target_that_is_not_canonical_is_refused) {
  Frame frame = good_frame();
  frame.rip = bit(60);
  Caught caught = iret_with(frame);
  CHECK_EQ(caught.vector, kGp);
  CHECK_EQ(caught.cs, SEL_CODE64);
}
BARE_TEST(iret, reserved_flags_do_not_stick) {
  Frame frame = good_frame();
  frame.rflags = ~u64{0} & ~(kFlagTf | kFlagVm | kFlagNt | kFlagIf | kFlagRf | bit(19) | bit(20));
  Caught caught = iret_with(frame);
  CHECK_EQ(caught.vector, kDone);
  CHECK_EQ(caught.rflags & ~u64{0x3fffff}, 0);
  CHECK_EQ(caught.rflags & 0x802a, 2);
}
BARE_TEST(iret, to_ring_3_drops_privileged_data_segments) {
  const u16 data = SEL_DATA;
  asm volatile("mov %0, %%es" : : "r"(data));
  run_user(user_int_40);
  u16 es;
  asm volatile("mov %%es, %0" : "=r"(es));
  CHECK_EQ(es, 0);
  asm volatile("mov %0, %%es; mov %0, %%ds" : : "r"(data));
}

// SDM 2A IRET: the descriptor becomes invalid, which 64-bit mode does not look at.
BARE_TEST(iret, to_ring_3_keeps_the_base_of_a_dropped_segment) {
  asm volatile("mov %0, %%gs" : : "r"(u16{SEL_DATA}));
  wrmsr(kMsrGsBase, 0x12345678);
  run_user(user_int_40);
  u16 gs;
  asm volatile("mov %%gs, %0" : "=r"(gs));
  CHECK_EQ(gs, 0);
  CHECK_EQ(rdmsr(kMsrGsBase), 0x12345678);
  wrmsr(kMsrGsBase, 0);
}

// They are faults of the branch: RIP is its, and the stack as before.
BARE_TEST(branches, to_an_address_that_is_not_canonical_fault_themselves) {
  static u64 target;
  target = bit(62);
  Caught caught = catch_trap([] {
    asm volatile("mov %%rsp, %%rbx; branch_jmp: jmp *%0" : : "m"(target) : "rbx");
  });
  CHECK_EQ(caught.vector, kGp);
  CHECK_EQ(caught.rip, reinterpret_cast<u64>(branch_jmp));
  caught = catch_trap([] {
    asm volatile("mov %%rsp, %%rax; branch_call: call *%0" : : "m"(target) : "rax");
  });
  CHECK_EQ(caught.vector, kGp);
  CHECK_EQ(caught.rip, reinterpret_cast<u64>(branch_call));
  CHECK_EQ(caught.rsp, caught.rax);
  caught = catch_trap([] {
    asm volatile("push %0; mov %%rsp, %%rax; branch_ret: ret" : : "m"(target) : "rax");
  });
  CHECK_EQ(caught.vector, kGp);
  CHECK_EQ(caught.rip, reinterpret_cast<u64>(branch_ret));
  CHECK_EQ(caught.rsp, caught.rax);
  caught = catch_trap([] {
    asm volatile("push %0; mov %%rsp, %%rax; branch_ret_16: ret $16" : : "m"(target) : "rax");
  });
  CHECK_EQ(caught.rip, reinterpret_cast<u64>(branch_ret_16));
  CHECK_EQ(caught.rsp, caught.rax);
}

}  // namespace bare
