// Hooks of the functions by which a thread blocks signals. The signals of faults must be open in KVM_RUN;
// while nobody reports a change, the engine does not ask the kernel at each run (core/run_signals.h).
#include <signal.h>

#include "preload/engine.h"
#include "preload/real.h"

namespace anykvm::preload {
namespace {

using Handler = void (*)(int);

constinit Real<int(int, const sigset_t*, sigset_t*)> real_pthread_sigmask{"pthread_sigmask"};
constinit Real<int(int, const sigset_t*, sigset_t*)> real_sigprocmask{"sigprocmask"};
constinit Real<int(int)> real_sigblock{"sigblock"};
constinit Real<int(int)> real_sigsetmask{"sigsetmask"};
constinit Real<int(int)> real_sighold{"sighold"};
constinit Real<Handler(int, Handler)> real_sigset{"sigset"};

template <class Result>
Result reported(Result result) {
  if (const Engine* loaded = engine()) loaded->sigmask_changed();
  return result;
}

}  // namespace

int hook_pthread_sigmask(int, const sigset_t*, sigset_t*) ANYKVM_HOOK(pthread_sigmask);
int hook_pthread_sigmask(int how, const sigset_t* set, sigset_t* old) {
  return reported(real_pthread_sigmask(how, set, old));
}

int hook_sigprocmask(int, const sigset_t*, sigset_t*) ANYKVM_HOOK(sigprocmask);
int hook_sigprocmask(int how, const sigset_t* set, sigset_t* old) {
  return reported(real_sigprocmask(how, set, old));
}

int hook_sigblock(int) ANYKVM_HOOK(sigblock);
int hook_sigblock(int mask) { return reported(real_sigblock(mask)); }

int hook_sigsetmask(int) ANYKVM_HOOK(sigsetmask);
int hook_sigsetmask(int mask) { return reported(real_sigsetmask(mask)); }

int hook_sighold(int) ANYKVM_HOOK(sighold);
int hook_sighold(int signal) { return reported(real_sighold(signal)); }

// With SIG_HOLD it blocks the signal.
Handler hook_sigset(int, Handler) ANYKVM_HOOK(sigset);
Handler hook_sigset(int signal, Handler handler) { return reported(real_sigset(signal, handler)); }

}  // namespace anykvm::preload
