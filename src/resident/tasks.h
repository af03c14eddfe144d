#pragma once
// The threads of the resident program, and of its children until they start another program.
// Owner: the process. Each record is its thread's own, found by the thread's number: what libc calls
// thread-local is the program's here.

#include <signal.h>

#include <atomic>

#include "base/types.h"

namespace anykvm::resident {

class Companion;

struct Task {
  std::atomic<int> id{0};  // 0: free
  // What the kernel looks at at each system call outside the area: see code_area.h.
  volatile u8 selector = 0;
  u8* stack = nullptr;  // for traps, where the program's own signal stack is none or too small
  stack_t program_stack{nullptr, SS_DISABLE, 0};  // what the program set with sigaltstack(2)
  Companion* companion = nullptr;
};

constexpr std::size_t kTrapStackSize = 128 << 10;
// From this size on, the program's own signal stack has room for traps too.
constexpr std::size_t kEnoughStack = 32 << 10;

// SS_AUTODISARM, which all signal stacks have in the kernel: who is on one is not seen to be, so it can be
// exchanged when a trap returns. What a signal interrupts there goes on below.
constexpr int kLeftWhileUsed = static_cast<int>(1u << 31);

// The calling thread's, or null: a thread of the engine.
Task* this_task();

// Makes one for the calling thread, with a stack for traps; from here on, its system calls trap. False: no
// memory or no such kernel.
bool begin_task();

// The same for the only thread of a child of fork(2), whose memory is a copy.
bool begin_copied_task();

// The calling thread's goes. Its companion and its stack are the caller's business.
void end_task(Task& task);

// The calling thread is the engine's: a record under its number is a child's that is gone.
void forget_record();

// A thread is about to be started; one is about to end: true if it is the process's last.
void count_thread();
bool is_last_thread();

// The process whose memory this is; a child after vfork(2) has our memory, but is not it.
bool in_this_process();
// In the child of a fork(2).
void note_process();

}  // namespace anykvm::resident
