#include "x86/translate/host_signals.h"

#include <ucontext.h>
#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstring>
#include <mutex>

#include "base/fork.h"
#include "base/guarded_memory.h"
#include "base/raw_syscall.h"

namespace anykvm::x86 {
namespace {

struct Current {
  Context* context;
  const u8* leave;
  const u8* begin;
  const u8* end;
};
// Initial-exec: no allocation happens when a signal handler reads it.
[[gnu::tls_model("initial-exec")]] thread_local Current t_current{};

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
struct sigaction g_previous[NSIG];  // what the client wants
std::atomic<bool> g_installed{false};
std::atomic<bool (*)(int, siginfo_t*, void*)> g_filter{nullptr};
ProcessMutex g_mutex;                    // changes of g_previous
thread_local bool t_installing = false;  // our own calls of sigaction() come by change_fault_action(), too

void chain(int signal, siginfo_t* info, void* ucontext) {
  const struct sigaction& previous = g_previous[signal];
  if (previous.sa_flags & SA_SIGINFO) {
    previous.sa_sigaction(signal, info, ucontext);
  } else if (previous.sa_handler == SIG_DFL || previous.sa_handler == SIG_IGN) {
    // Not ours and nobody else's: let it happen again with the default action.
    const struct {
      u64 handler, flags, restorer, mask;  // as rt_sigaction(2) has it
    } default_action{};
    raw_syscall(SYS_rt_sigaction, signal, reinterpret_cast<long>(&default_action), 0,
                sizeof default_action.mask);
  } else {
    previous.sa_handler(signal);
  }
}

void handle(int signal, siginfo_t* info, void* raw) {
  auto* ucontext = static_cast<ucontext_t*>(raw);
  auto& registers = ucontext->uc_mcontext.gregs;
  auto pc = reinterpret_cast<const u8*>(registers[REG_RIP]);
  if (const u8* landing = guarded_landing(pc)) {
    note_guarded_fault(info->si_addr);
    registers[REG_RIP] = reinterpret_cast<greg_t>(landing);
    return;
  }
  if (auto* filter = g_filter.load(std::memory_order_relaxed); filter && filter(signal, info, raw)) return;
  const Current& current = t_current;
  bool ours = current.context && pc >= current.begin && pc < current.end;
  if (!ours) return chain(signal, info, raw);
  note_guarded_fault(info->si_addr);
  Context& context = *current.context;
  context.leave = Leave::kSignal;
  context.leave_pc = reinterpret_cast<u64>(pc);
  context.signal_trap = static_cast<u8>(registers[REG_TRAPNO]);
  context.signal_flags = context.flags_image;  // the thunk is about to store the host's there
  registers[REG_RIP] = reinterpret_cast<greg_t>(current.leave);
}

}  // namespace

void install_host_signal_handlers() {
  std::lock_guard lock(g_mutex);
  t_installing = true;
  for (int signal : kSignals) {
    struct sigaction now {
    }, action{};
    if (sigaction(signal, nullptr, &now) == 0 && now.sa_sigaction == handle) continue;
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigemptyset(&action.sa_mask);
    g_previous[signal] = now;
    sigaction(signal, &action, nullptr);
  }
  t_installing = false;
  g_installed.store(true);
  guarded_memory_is_ready();
}

bool change_fault_action(int signal, const struct sigaction* action, struct sigaction* old) {
  if (!g_installed.load() || t_installing ||
      std::find(std::begin(kSignals), std::end(kSignals), signal) == std::end(kSignals))
    return false;
  std::lock_guard lock(g_mutex);
  const struct sigaction before = g_previous[signal];
  if (action) g_previous[signal] = *action;
  if (old) *old = before;
  return true;
}

void set_fault_filter(bool (*filter)(int, siginfo_t*, void*)) { g_filter.store(filter); }

void set_current_context(Context* context, const u8* leave_by_signal, const u8* code_begin,
                         const u8* code_end) {
  t_current = {context, leave_by_signal, code_begin, code_end};
}

}  // namespace anykvm::x86
