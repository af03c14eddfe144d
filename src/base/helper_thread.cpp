#include "base/helper_thread.h"

#include <pthread.h>
#include <signal.h>

namespace anykvm {

BlockSignals::BlockSignals() {
  static_assert(sizeof(sigset_t) <= sizeof m_saved);
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, reinterpret_cast<sigset_t*>(m_saved));
}

BlockSignals::~BlockSignals() { pthread_sigmask(SIG_SETMASK, reinterpret_cast<sigset_t*>(m_saved), nullptr); }

void name_this_thread(const char* name) { pthread_setname_np(pthread_self(), name); }

}  // namespace anykvm
