// Hooks of the functions that change what a signal does. The engine must keep the handlers of faults, which
// translated code raises, and must know of new handlers, since a signal ends KVM_RUN (core/run_signals.h).
#include <errno.h>
#include <signal.h>
#include <string.h>

#include "preload/engine.h"
#include "preload/real.h"

namespace anykvm::preload {
namespace {

using Handler = void (*)(int);

constinit Real<int(int, const struct sigaction*, struct sigaction*)> real_sigaction{"sigaction"};

int change_action(int signal, const struct sigaction* action, struct sigaction* old) {
  const Engine* loaded = engine();
  if (loaded && loaded->sigaction(signal, action, old)) return 0;
  const int result = real_sigaction(signal, action, old);
  // Once more, since a KVM_RUN may have looked before the handler was there.
  if (loaded && action) loaded->sigaction(signal, action, nullptr);
  return result;
}

// signal(3): BSD semantics restart system calls, System V's reset the handler.
Handler set_handler(int signal, Handler handler, int flags) {
  struct sigaction action {
  }, old{};
  action.sa_handler = handler;
  action.sa_flags = flags;
  sigemptyset(&action.sa_mask);
  if (!(flags & SA_NODEFER)) sigaddset(&action.sa_mask, signal);
  return change_action(signal, &action, &old) == 0 ? old.sa_handler : SIG_ERR;
}

}  // namespace

int hook_sigaction(int, const struct sigaction*, struct sigaction*) ANYKVM_HOOK(sigaction);
int hook_sigaction(int signal, const struct sigaction* action, struct sigaction* old) {
  return change_action(signal, action, old);
}

#define ANYKVM_SIGNAL_HOOK(symbol, flags)                              \
  static constinit Real<Handler(int, Handler)> real_##symbol{#symbol}; \
  Handler hook_##symbol(int, Handler) ANYKVM_HOOK(symbol);             \
  Handler hook_##symbol(int signal, Handler handler) {                 \
    if (!engine()) return real_##symbol(signal, handler);              \
    return set_handler(signal, handler, flags);                        \
  }

ANYKVM_SIGNAL_HOOK(signal, SA_RESTART)
ANYKVM_SIGNAL_HOOK(bsd_signal, SA_RESTART)
ANYKVM_SIGNAL_HOOK(ssignal, SA_RESTART)
ANYKVM_SIGNAL_HOOK(sysv_signal, static_cast<int>(SA_RESETHAND | SA_NODEFER))
ANYKVM_SIGNAL_HOOK(__sysv_signal, static_cast<int>(SA_RESETHAND | SA_NODEFER))

}  // namespace anykvm::preload
