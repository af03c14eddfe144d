#pragma once
// Faults that translated code raises in the host: they become exceptions of the guest (DESIGN D8).
// Owner: the process. Handlers run on vCPU threads only for faults in translated code; all others go to
// whoever handled them before.

#include <csignal>

#include "x86/translate/context.h"

namespace anykvm::x86 {

// Installs the handlers for SIGSEGV, SIGBUS, SIGFPE and SIGILL where they are not, or no longer. Those of the
// client are called for signals that are not ours.
void install_host_signal_handlers();

// The client's sigaction(2). True if it was carried out here: the signal is one of these, whose handler stays
// ours and passes on to the client's.
bool change_fault_action(int signal, const struct sigaction* action, struct sigaction* old);

// Asked first about each fault that is not at one of our guarded accesses: true if it was another's, who has
// dealt with it. It may be on a thread whose thread-local storage is not ours.
void set_fault_filter(bool (*filter)(int signal, siginfo_t* info, void* ucontext));

// The context whose translated code this thread runs, for the handlers; null outside Cpu::run().
void set_current_context(Context* context, const u8* leave_by_signal, const u8* code_begin,
                         const u8* code_end);

}  // namespace anykvm::x86
