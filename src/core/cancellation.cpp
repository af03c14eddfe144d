#include "core/cancellation.h"

#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <mutex>

#include "base/helper_thread.h"
#include "core/run_signals.h"

namespace anykvm::core {
namespace {

// glibc's signal for cancellation, which sigaction(3) does not show.
constexpr int kCancelSignal = 32;

// struct sigaction as rt_sigaction(2) has it.
struct KernelAction {
  void (*handler)(int, siginfo_t*, void*);
  unsigned long flags;
  void (*restorer)();
  SignalSet mask;
};

// SAFETY: touched by the handler on the same thread only; initial-exec TLS needs no allocation there.
[[gnu::tls_model("initial-exec")]] thread_local constinit SignalListener* t_listener = nullptr;
[[gnu::tls_model("initial-exec")]] thread_local constinit bool t_postponed = false;

std::atomic<void (*)(int, siginfo_t*, void*)> g_next{nullptr};

void cancel_handler(int signal, siginfo_t* info, void* context) {
  if (!t_listener) return g_next.load()(signal, info, context);
  t_postponed = true;
  t_listener->signal_arrived();
}

void* wait_forever(void*) {
  for (;;) pause();
}

// glibc installs its handler at the first pthread_cancel() of the process, and never again.
void make_glibc_install_its_handler() {
  BlockSignals blocked;
  pthread_t thread;
  if (pthread_create(&thread, nullptr, wait_forever, nullptr) != 0) return;
  pthread_cancel(thread);
  pthread_join(thread, nullptr);
}

void hook_handler() {
  make_glibc_install_its_handler();
  KernelAction action{};
  if (syscall(SYS_rt_sigaction, kCancelSignal, nullptr, &action, sizeof(SignalSet)) != 0) return;
  // Another C library, or another use of the signal.
  if (!action.handler || !(action.flags & SA_SIGINFO)) return;
  g_next.store(action.handler);
  action.handler = cancel_handler;
  syscall(SYS_rt_sigaction, kCancelSignal, &action, nullptr, sizeof(SignalSet));
}

}  // namespace

void prepare_for_cancellation() {
  int type = PTHREAD_CANCEL_DEFERRED;
  pthread_setcanceltype(PTHREAD_CANCEL_DEFERRED, &type);
  if (type != PTHREAD_CANCEL_ASYNCHRONOUS) return;
  static std::once_flag hooked;
  std::call_once(hooked, hook_handler);
  pthread_setcanceltype(type, nullptr);
}

void cancel_if_postponed() {
  if (!t_postponed) return;
  t_postponed = false;
  // As pthread_cancel() sent it.
  syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), kCancelSignal);
}

PostponedCancellation::PostponedCancellation(SignalListener& listener) { t_listener = &listener; }
PostponedCancellation::~PostponedCancellation() { t_listener = nullptr; }

}  // namespace anykvm::core
