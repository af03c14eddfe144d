#pragma once
// The only code from which a thread of the resident program makes system calls without a trap (Linux's
// syscall user dispatch lets one range of addresses through): a few functions of ours, and behind them a way
// round for each SYSCALL instruction of the program. Owner: the process. Any thread; usable with the
// program's thread-local storage in place of ours.

#include "base/expected.h"
#include "base/types.h"

namespace anykvm::resident {

// To be called once, before the program starts.
Result<> make_code_area();

struct CodeRange {
  u64 begin, size;
};
CodeRange code_area();     // all of it
CodeRange our_own_code();  // without the ways round

// As raw_syscall(), from the area.
long system_call(long number, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0, long f = 0);

// What a signal handler returns to (sa_restorer).
u64 signal_restorer();
// rt_sigreturn(2) with this stack pointer.
[[noreturn]] void return_from_signal(u64 stack_pointer);
// Ends this thread, without a stack at last.
[[noreturn]] void unmap_and_exit(void* stack, std::size_t size, int code);

// How a new task of a clone(2) goes on: not at all, or with begin_task() (tasks.h) before it is the
// program's.
enum class Child : u8 { kNone, kSharesMemory, kHasCopy };

// Code that does the system call whose instruction ends at `next`, and goes on there. 0: no room is left.
u64 way_round(u64 next, Child child);

}  // namespace anykvm::resident
