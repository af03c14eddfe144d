#include "core/run_signals.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>

#include "base/counters.h"
#include "base/fork.h"
#include "base/helper_thread.h"
#include "base/raw_syscall.h"
#include "base/trace.h"
#include "core/host_tsc.h"

extern "C" {
// run_signals_restorer.S: what the kernel returns to after a client's handler; tells us, then
// rt_sigreturn(2).
void anykvm_signal_restorer();
void anykvm_signal_returned(void* user_context);
}

namespace anykvm::core {
namespace {

constexpr int kSignals = 64;
constexpr unsigned long kSaRestorer = 0x04000000;  // x86: the kernel insists on a restorer

// struct sigaction as rt_sigaction(2) has it.
struct KernelAction {
  void* handler;
  unsigned long flags;
  void (*restorer)();
  SignalSet mask;

  bool operator==(const KernelAction&) const = default;
  bool handled() const {
    return handler != reinterpret_cast<void*>(SIG_DFL) && handler != reinterpret_cast<void*>(SIG_IGN);
  }
};

// Raised by faults of the code that runs: translated code may fault, so these are never blocked in KVM_RUN,
// and they are the translator's business.
constexpr SignalSet kFaults =
    signal_bit(SIGSEGV) | signal_bit(SIGBUS) | signal_bit(SIGFPE) | signal_bit(SIGILL) | signal_bit(SIGTRAP);
// Neither can these have handlers that concern us: uncatchable, or glibc's own (cancellation, set*id).
constexpr SignalSet kIgnored = kFaults | signal_bit(SIGKILL) | signal_bit(SIGSTOP) | signal_bit(SIGSYS) |
                               signal_bit(32) | signal_bit(33);

// A handler installed without our knowledge is found at most this much later.
constexpr u64 kScanIntervalUs = 2000;
// The first runs of a thread always scan: clients install their handlers around them.
constexpr unsigned kEagerScans = 64;

// SAFETY: read from signal handlers on the same thread only; initial-exec TLS needs no allocation there.
[[gnu::tls_model("initial-exec")]] thread_local constinit RunSignals* t_running = nullptr;
[[gnu::tls_model("initial-exec")]] thread_local constinit unsigned t_scans = 0;

// signal_arrives_with_next_run() was called.
[[gnu::tls_model("initial-exec")]] thread_local constinit bool t_arrives_with_run = false;

// The thread had no signal of a fault blocked when it was looked at last, and no change was reported since.
[[gnu::tls_model("initial-exec")]] thread_local constinit bool t_faults_open = false;

ProcessMutex g_mutex;                           // guards dispositions that we change
std::array<unsigned, kSignals + 1> g_guards{};  // g_mutex: RunSignals objects that guard a signal
std::atomic<u64> g_last_scan{0};                // host TSC
std::atomic<bool> g_reported{false};            // somebody calls signal_disposition_changed()
std::atomic<bool> g_masks_reported{false};      // somebody calls signal_mask_changed()
std::atomic<bool> g_elsewhere{false};           // signals_come_from_elsewhere() was called

bool get_action(int signal, KernelAction* action) {
  return syscall(SYS_rt_sigaction, signal, nullptr, action, sizeof(SignalSet)) == 0;
}

// Replaces what is there now; if the client was faster than us, its action wins.
bool replace_action(int signal, const KernelAction& expected, const KernelAction& action) {
  KernelAction old{};
  if (syscall(SYS_rt_sigaction, signal, &action, &old, sizeof(SignalSet)) != 0) return false;
  if (old == expected) return true;
  syscall(SYS_rt_sigaction, signal, &old, nullptr, sizeof(SignalSet));
  return false;
}

void hook(int signal) {
  KernelAction action{};
  while (get_action(signal, &action) && action.handled() && action.restorer != anykvm_signal_restorer) {
    KernelAction hooked = action;
    hooked.restorer = anykvm_signal_restorer;
    hooked.flags |= kSaRestorer;
    if (replace_action(signal, action, hooked)) return;
  }
}

void scan() {
  if (g_elsewhere.load(std::memory_order_relaxed)) return;
  ANYKVM_COUNT(signal_scans);
  std::lock_guard lock(g_mutex);
  g_last_scan.store(host_tsc(), std::memory_order_relaxed);
  for (int signal = 1; signal <= kSignals; ++signal)
    if (!(kIgnored & signal_bit(signal))) hook(signal);
}

bool scan_due() {
  if (t_scans < kEagerScans) return ++t_scans, true;
  return host_tsc() - g_last_scan.load(std::memory_order_relaxed) >
         u64{kScanIntervalUs} * host_tsc_khz() / 1000;
}

// --- Looking again while KVM_RUN goes on, where nobody reports changes ---

constexpr unsigned kRescanFirstMs = 4, kRescanLastMs = 64, kRescansWithoutRuns = 8;
// KVM_RUNs begun and ended, while nobody reports.
std::atomic<u32> g_begun{0}, g_ended{0};
std::atomic<u32> g_thread_awake{0};  // futex

bool somebody_runs() {
  const u32 ended = g_ended.load();
  return g_begun.load() != ended;
}

void rescan_until_nobody_runs() {
  unsigned interval = kRescanFirstMs;
  for (unsigned idle = 0; idle < kRescansWithoutRuns && !g_reported.load();) {
    const u32 runs = g_begun.load();
    const timespec pause{0, static_cast<long>(interval) * 1'000'000};
    nanosleep(&pause, nullptr);
    idle = somebody_runs() ? 0 : idle + 1;
    if (!idle) scan();
    interval = g_begun.load() != runs ? kRescanFirstMs : std::min(2 * interval, kRescanLastMs);
  }
}

void rescan_thread() {
  for (;;) {
    rescan_until_nobody_runs();
    g_thread_awake.store(0);
    // Somebody who began to run before that did not wake us.
    if (somebody_runs() && !g_reported.load()) {
      g_thread_awake.store(1);
      continue;
    }
    while (!g_thread_awake.load())
      syscall(SYS_futex, &g_thread_awake, FUTEX_WAIT_PRIVATE, 0, nullptr, nullptr, 0);
  }
}

void start_or_wake_rescans() {
  static std::atomic<bool> started{false};
  [[maybe_unused]] static const int forked = pthread_atfork(nullptr, nullptr, [] {
    started.store(false);
    g_thread_awake.store(0);
    g_ended.store(g_begun.load());
  });
  if (g_thread_awake.exchange(1)) return;
  if (!started.exchange(true))
    start_helper_thread("anykvm-signals", rescan_thread).detach();
  else
    syscall(SYS_futex, &g_thread_awake, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
}

// Stands in for the default action of signals that KVM_RUN is to report and leave pending.
void guard_handler(int signal, siginfo_t* info, void*) {
  if (t_running) return;  // the restorer reports it
  // On a thread outside KVM_RUN the default action is due.
  KernelAction action{};
  action.flags = kSaRestorer;
  action.restorer = anykvm_signal_restorer;
  syscall(SYS_rt_sigaction, signal, &action, nullptr, sizeof(SignalSet));
  syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), signal, info);
}

// The kernel fills in siginfo for SA_SIGINFO handlers only; it is needed to make a signal pending again.
// Handlers get the same three arguments either way.
void ask_for_siginfo(int signal, const KernelAction& action) {
  KernelAction with_info = action;
  with_info.flags |= SA_SIGINFO;
  replace_action(signal, action, with_info);
}

KernelAction guard_action() {
  return {reinterpret_cast<void*>(guard_handler), SA_SIGINFO | kSaRestorer, anykvm_signal_restorer, 0};
}

// Prepares the signals that KVM_RUN is to report and leave pending. Returns those that got a guard.
SignalSet prepare_kept(SignalSet signals) {
  SignalSet guarded = 0;
  std::lock_guard lock(g_mutex);
  for (int signal = 1; signal <= kSignals; ++signal) {
    KernelAction action{};
    if (!(signals & ~kIgnored & signal_bit(signal)) || !get_action(signal, &action)) continue;
    if (action.handled() && !(action.flags & SA_SIGINFO)) ask_for_siginfo(signal, action);
    const bool is_guard = action.handler == reinterpret_cast<void*>(guard_handler);
    if (!is_guard && action.handler != reinterpret_cast<void*>(SIG_DFL)) continue;
    if (!is_guard && !replace_action(signal, action, guard_action())) continue;
    ++g_guards[static_cast<unsigned>(signal)];
    guarded |= signal_bit(signal);
  }
  return guarded;
}

void unguard(SignalSet signals) {
  std::lock_guard lock(g_mutex);
  for (int signal = 1; signal <= kSignals; ++signal) {
    if (!(signals & signal_bit(signal)) || --g_guards[static_cast<unsigned>(signal)] > 0) continue;
    KernelAction action{}, normal{};
    normal.flags = kSaRestorer;
    normal.restorer = anykvm_signal_restorer;
    if (get_action(signal, &action) && action.handler == reinterpret_cast<void*>(guard_handler))
      replace_action(signal, action, normal);
  }
}

SignalSet change_mask(int how, SignalSet set) {
  SignalSet old = 0;
  raw_syscall(SYS_rt_sigprocmask, how, reinterpret_cast<long>(&set), reinterpret_cast<long>(&old),
              sizeof set);
  return old;
}

}  // namespace

RunSignals::RunSignals(SignalListener& listener, std::optional<SignalSet> mask)
    : m_listener(listener), m_cancellation(listener), m_outer(t_running) {
  if (scan_due()) {
    scan();
    m_scanned = true;
  }
  if (!g_reported.load(std::memory_order_relaxed)) {
    m_counted = true;
    g_begun.fetch_add(1);
    if (!g_thread_awake.load()) start_or_wake_rescans();
  }
  t_running = this;
  std::atomic_signal_fence(std::memory_order_seq_cst);
  if (t_arrives_with_run) {
    t_arrives_with_run = false;
    interrupt();
  }
  // A run in a handler that interrupted another one has the handler's mask.
  const bool known = t_faults_open && !m_outer && g_masks_reported.load(std::memory_order_relaxed);
  if (known && !mask) return;
  m_saved_mask = change_mask(SIG_UNBLOCK, kFaults);
  m_mask_changed = (m_saved_mask & kFaults) != 0;
  t_faults_open = !m_mask_changed && !m_outer;
  if (!mask) return;
  m_kept = m_saved_mask & ~*mask & ~kIgnored;
  m_guarded = m_kept ? prepare_kept(m_kept) : 0;
  std::atomic_signal_fence(std::memory_order_seq_cst);
  m_mask_changed = true;
  change_mask(SIG_SETMASK, *mask & ~kFaults);
}

RunSignals::~RunSignals() {
  if (m_mask_changed) change_mask(SIG_SETMASK, m_saved_mask);
  std::atomic_signal_fence(std::memory_order_seq_cst);
  t_running = m_outer;
  if (m_counted) g_ended.fetch_add(1);
  if (m_guarded) unguard(m_guarded);
  for (unsigned i = 0; i < m_requeue_count; ++i)
    syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), m_requeue[i].si_signo, &m_requeue[i]);
}

void RunSignals::before_sleep() {
  if (m_scanned) return;
  m_scanned = true;
  scan();
}

// A handler without SA_SIGINFO leaves whatever the stack held in `info`; a signal whose handler has just
// returned is still blocked, and what was read once is not believed again.
void RunSignals::arrived(siginfo_t& info) {
  const int signal = info.si_signo;
  if (m_kept && signal >= 1 && signal <= kSignals && (m_kept & signal_bit(signal)) &&
      (change_mask(SIG_BLOCK, 0) & signal_bit(signal)) && m_requeue_count < m_requeue.size()) {
    m_requeue[m_requeue_count++] = info;
    info.si_signo = 0;
  }
  m_listener.signal_arrived();
}

void signal_mask_changed() {
  t_faults_open = false;
  g_masks_reported.store(true, std::memory_order_relaxed);
}

// May be called in a signal handler, as sigaction(2) may: then the lock may be this thread's own.
void signal_disposition_changed(int signal) {
  g_reported.store(true, std::memory_order_relaxed);
  if (signal < 1 || signal > kSignals || (kIgnored & signal_bit(signal))) return;
  std::unique_lock lock(g_mutex, std::try_to_lock);
  if (lock)
    hook(signal);
  else
    g_last_scan.store(0, std::memory_order_relaxed);
}

void signals_come_from_elsewhere() {
  g_elsewhere.store(true);
  signal_disposition_changed(0);
  signal_mask_changed();
}

void signal_arrives_with_next_run() { t_arrives_with_run = true; }

void signal_arrived_here() {
  if (t_running) t_running->interrupt();
}

}  // namespace anykvm::core

void anykvm_signal_returned(void* user_context) {
  using namespace anykvm;
  if (!core::t_running) return;
  // SAFETY: the kernel's frame is a ucontext (flags, link, stack, 256 bytes of registers, 8 of mask) followed
  // by the siginfo (arch/x86 rt_sigframe), both intact while the handler returns.
  constexpr std::size_t kUserContextSize = 8 + 8 + 24 + 256 + 8;
  int saved_errno = errno;
  core::t_running->arrived(*reinterpret_cast<siginfo_t*>(static_cast<u8*>(user_context) + kUserContextSize));
  errno = saved_errno;
}
