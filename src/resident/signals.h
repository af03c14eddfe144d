#pragma once
// Signals of the resident program. SIGSYS is ours, and is never blocked in a thread of the program's, since a
// trap would end it then; from the engine's first use on, so are the signals of faults. What the program
// wants done about these is kept here. All: in a trap, on a thread of the program's.

#include <signal.h>
#include <ucontext.h>

#include "base/types.h"

namespace anykvm::resident {

// The system calls. The result is theirs: minus an errno.
long change_action(int signal, const void* action, void* old, std::size_t set_size);
long change_mask(ucontext_t& context, int how, const u64* set, u64* old, std::size_t set_size);
long change_signal_stack(ucontext_t& context, const stack_t* stack, stack_t* old);

// The mask that the program has; traps block everything.
inline u64& program_mask(ucontext_t& context) { return *reinterpret_cast<u64*>(&context.uc_sigmask); }

// Has the program's action carried out, for a signal that came to us.
void pass_to_program(int signal, siginfo_t* info, ucontext_t& context);

// Before the engine's first use, on a thread of ours.
void take_faults_over();

// The handler of traps.
void install_trap_handler(void (*handler)(int, siginfo_t*, void*));

}  // namespace anykvm::resident
