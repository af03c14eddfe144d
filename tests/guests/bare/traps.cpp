#include "traps.h"

#include "report.h"

namespace bare {

extern "C" {
extern u64 gdt[];
extern const u8 trap_entries[];
bool call_until_trap(void (*function)(void*), void* argument, u64* stack);
void after_trap();
void enter_user(u64 rip, u64 rsp, u64 cs, u64 argument);
void trap(Trap& trap);
}

namespace {

struct Stack {
  alignas(4096) u8 bytes[4096];
  u64 top() const { return reinterpret_cast<u64>(bytes + sizeof bytes); }
};

Gate s_idt[256];
Handler s_handlers[256];
Tss s_tss[MAX_CPUS];
Stack s_ring0_stacks[MAX_CPUS], s_fault_stacks[MAX_CPUS], s_spare_stack;
[[gnu::section(".user")]] alignas(4096) Stack s_user_stack{};

// CPU 0's catching.
bool s_catching = false;
u64 s_return_stack;
Caught s_caught;

constexpr size_t kEntrySize = 16;
constexpr u8 kFaultIst = 1;  // for double faults

void print_item(const char* name, u64 value) {
  print(name);
  print_hex(value);
}

[[noreturn]] void fatal(const Trap& t) {
  print("FAILED unexpected trap: vector ");
  print_decimal(t.vector);
  print_item(" error ", t.error);
  print_item(" at ", t.rip);
  print_item(" cs ", t.cs);
  print_item(" rsp ", t.rsp);
  print_item(" cr2 ", read_cr2());
  print("\n");
  shut_down();
}

void go_on_after(Trap& t) {
  t.rip = reinterpret_cast<u64>(after_trap);
  t.rsp = s_return_stack;
  t.cs = SEL_CODE64;
  t.ss = SEL_DATA;
  t.rflags = 2;
}

void init_idt() {
  for (unsigned v = 0; v < 256; ++v) {
    u64 entry = reinterpret_cast<u64>(trap_entries) + v * kEntrySize;
    s_idt[v] = make_gate(reinterpret_cast<void (*)()>(entry), SEL_CODE64, kInterruptGate, v == kDone ? 3 : 0,
                         v == kDf ? kFaultIst : 0);
  }
}

void load_tss(unsigned cpu) {
  Tss& tss = s_tss[cpu];
  tss.rsp[0] = s_ring0_stacks[cpu].top();
  tss.ist[kFaultIst - 1] = s_fault_stacks[cpu].top();
  tss.io_map = sizeof tss;
  describe_tss(cpu);
  asm volatile("ltr %w0" : : "r"(SEL_TSS) : "memory");
}

}  // namespace

void describe_tss(unsigned cpu) {
  const u64 base = reinterpret_cast<u64>(&s_tss[cpu]);
  descriptor(SEL_TSS) =
      (sizeof(Tss) - 1) | (base & 0xffffff) << 16 | u64{0x89} << 40 | (base >> 24 & 0xff) << 56;
  descriptor(SEL_TSS + 8) = base >> 32;
}

void trap(Trap& t) {
  if (Handler handler = s_handlers[t.vector]) return handler(t);
  if (!s_catching) fatal(t);
  s_catching = false;
  s_caught = {
      static_cast<unsigned>(t.vector), t.error, t.rip, t.rflags, t.rsp, t.cs, t.ss, read_cr2(), t.rax};
  go_on_after(t);
}

void init_traps(unsigned cpu) {
  if (cpu == 0) init_idt();
  TablePointer idt{sizeof s_idt - 1, reinterpret_cast<u64>(s_idt)};
  asm volatile("lidt %0" : : "m"(idt));
  load_tss(cpu);
}

void set_handler(unsigned vector, Handler handler) { s_handlers[vector] = handler; }

Gate& gate(unsigned vector) { return s_idt[vector]; }

Gate make_gate(void (*entry)(), u16 selector, u8 type, u8 dpl, u8 ist) {
  u64 offset = reinterpret_cast<u64>(entry);
  u64 low = (offset & 0xffff) | u64{selector} << 16 | u64{ist} << 32 | u64{type} << 40 | u64{dpl} << 45 |
            bit(47) | (offset >> 16 & 0xffff) << 48;
  return {low, offset >> 32};
}

u64& descriptor(u16 selector) { return gdt[selector >> 3]; }
Tss& boot_tss() { return s_tss[0]; }
u64 spare_stack_top() { return s_spare_stack.top(); }
u64 user_stack_top() { return s_user_stack.top(); }

Caught call_catching(void (*function)(void*), void* argument) {
  s_caught = {};
  s_catching = true;
  call_until_trap(function, argument, &s_return_stack);
  s_catching = false;
  return s_caught;
}

Caught run_user(void (*code)(), u64 argument, u16 cs) {
  u64 rip = reinterpret_cast<u64>(code);
  return catch_trap([=] { enter_user(rip, s_user_stack.top() - 64, cs, argument); });
}

}  // namespace bare
