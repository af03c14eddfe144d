#include <sys/syscall.h>

#include "resident/call.h"
#include "resident/signals.h"

namespace anykvm::resident {

Answer call_on_signals(const Call& call) {
  switch (call.number) {
    case SYS_rt_sigaction:
      return change_action(static_cast<int>(call.a), reinterpret_cast<const void*>(call.b),
                           reinterpret_cast<void*>(call.c), static_cast<std::size_t>(call.d));
    case SYS_rt_sigprocmask:
      return change_mask(call.context, static_cast<int>(call.a), reinterpret_cast<const u64*>(call.b),
                         reinterpret_cast<u64*>(call.c), static_cast<std::size_t>(call.d));
    case SYS_sigaltstack:
      return change_signal_stack(call.context, reinterpret_cast<const stack_t*>(call.a),
                                 reinterpret_cast<stack_t*>(call.b));
    default:
      return std::nullopt;
  }
}

}  // namespace anykvm::resident
