#pragma once
// Exceptions and interrupts: handlers, and code whose fault is what a test wants to see. Handlers are shared
// by all CPUs; catch_trap() is for the CPU that runs main().

#include "cpu.h"

namespace bare {

enum Vector : unsigned {
  kDe = 0,
  kDb = 1,
  kNmi = 2,
  kBp = 3,
  kOf = 4,
  kBr = 5,
  kUd = 6,
  kNm = 7,
  kDf = 8,
  kTs = 10,
  kNp = 11,
  kSs = 12,
  kGp = 13,
  kPf = 14,
  kMf = 16,
  kAc = 17,
  kXm = 19,
  kDone = VECTOR_DONE,  // user code has come to its end
  kNone = 256,
};

// What enter_trap in start.S pushes.
struct Trap {
  u64 r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
  u64 vector, error;
  u64 rip, cs, rflags, rsp, ss;
};

// Builds GDT's TSS, the IDT and this CPU's part of both.
void init_traps(unsigned cpu);

// Called for `vector` instead of catching it; null: caught again.
using Handler = void (*)(Trap&);
void set_handler(unsigned vector, Handler handler);

// The IDT's gate, to be changed and put back by tests.
struct Gate {
  u64 low, high;
  bool operator==(const Gate&) const = default;
};
Gate& gate(unsigned vector);
Gate make_gate(void (*entry)(), u16 selector, u8 type, u8 dpl = 0, u8 ist = 0);
inline constexpr u8 kInterruptGate = 14, kTrapGate = 15;

// The descriptor at `selector`, to be changed by tests.
u64& descriptor(u16 selector);

// The 64-bit TSS of CPU 0.
struct [[gnu::packed]] Tss {
  u32 reserved0;
  u64 rsp[3];
  u64 reserved1;
  u64 ist[7];
  u64 reserved2;
  u16 reserved3, io_map;
};
Tss& boot_tss();
// Makes SEL_TSS the TSS of this CPU: all load their task registers from the one descriptor, in turn.
void describe_tss(unsigned cpu);
// An address that no other stack uses: the top of 4 KiB.
u64 spare_stack_top();

// What ended a piece of code.
struct Caught {
  unsigned vector = kNone;  // kNone: nothing, it returned
  u64 error = 0, rip = 0, rflags = 0, rsp = 0, cs = 0, ss = 0, cr2 = 0;
  u64 rax = 0;
};

Caught call_catching(void (*function)(void*), void* argument);
// The trap that ends `body`, which must have no destructors to run.
template <class Body>
Caught catch_trap(Body body) {
  return call_catching([](void* b) { (*static_cast<Body*>(b))(); }, &body);
}

// Runs code of the .user section in ring 3 with `argument` in RDI: kDone is its regular end.
Caught run_user(void (*code)(), u64 argument = 0, u16 cs = SEL_USER_CODE64);
// The top of the user stack.
u64 user_stack_top();

}  // namespace bare
