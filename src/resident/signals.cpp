#include "resident/signals.h"

#include <errno.h>
#include <sys/syscall.h>

#include <array>
#include <atomic>

#include "base/raw_syscall.h"
#include "resident/code_area.h"
#include "resident/program_memory.h"
#include "resident/spin_lock.h"
#include "resident/tasks.h"
#include "x86/translate/host_signals.h"

namespace anykvm::resident {
namespace {

constexpr u64 bit(int signal) { return u64{1} << (signal - 1); }
constexpr u64 kTraps = bit(SIGSYS);
constexpr u64 kFaults = bit(SIGSEGV) | bit(SIGBUS) | bit(SIGFPE) | bit(SIGILL);
constexpr unsigned long kSaRestorer = 0x04000000;

// As rt_sigaction(2) has it.
struct Action {
  u64 handler, flags, restorer, mask;
};

std::array<Action, 32> g_wanted{};  // by signal: what the program wants done about what is ours
LeafLock g_lock;
std::atomic<u64> g_ours{kTraps};

long kernel_action(int signal, const Action* action, Action* old) {
  return system_call(SYS_rt_sigaction, signal, reinterpret_cast<long>(action), reinterpret_cast<long>(old),
                     sizeof(u64));
}

bool is_ours(int signal) { return signal >= 1 && signal < 32 && (g_ours.load() & bit(signal)); }

bool on_fault(int signal, siginfo_t* info, void* context) {
  if (!this_task()) return false;
  pass_to_program(signal, info, *static_cast<ucontext_t*>(context));
  return true;
}

}  // namespace

long change_action(int signal, const void* action, void* old, std::size_t set_size) {
  if (set_size != sizeof(u64)) return -EINVAL;
  Action wanted;
  if (action && !read_program(action, &wanted, sizeof wanted)) return -EFAULT;
  if (!is_ours(signal)) {
    if (!action) return kernel_action(signal, nullptr, static_cast<Action*>(old));
    Action open = wanted;
    open.mask &= ~kTraps;
    return kernel_action(signal, &open, static_cast<Action*>(old));
  }
  // A child that shares our memory wants nothing done here.
  if (!in_this_process()) return 0;
  Action& kept = g_wanted[static_cast<std::size_t>(signal)];
  g_lock.lock();
  const Action before = kept;
  if (action) kept = wanted;
  g_lock.unlock();
  return !old || write_program(old, &before, sizeof before) ? 0 : -EFAULT;
}

long change_mask(ucontext_t& context, int how, const u64* set, u64* old, std::size_t set_size) {
  if (set_size != sizeof(u64)) return -EINVAL;
  const u64 before = program_mask(context);
  u64 change;
  if (set && !read_program(set, change)) return -EFAULT;
  if (set) {
    change &= ~kTraps;
    if (how == SIG_BLOCK)
      program_mask(context) = before | change;
    else if (how == SIG_UNBLOCK)
      program_mask(context) = before & ~change;
    else if (how == SIG_SETMASK)
      program_mask(context) = change;
    else
      return -EINVAL;
  }
  return !old || write_program(old, before) ? 0 : -EFAULT;
}

// The kernel takes the stack from the context when the trap returns.
long change_signal_stack(ucontext_t& context, const stack_t* stack, stack_t* old) {
  Task* task = this_task();
  const u64 pointer = static_cast<u64>(context.uc_mcontext.gregs[REG_RSP]);
  stack_t before = task->program_stack, wanted;
  const bool in_use =
      !(before.ss_flags & SS_DISABLE) && pointer - reinterpret_cast<u64>(before.ss_sp) < before.ss_size;
  if (stack && !read_program(stack, wanted)) return -EFAULT;
  if (stack) {
    if (in_use) return -EPERM;
    if (wanted.ss_flags & ~(SS_DISABLE | SS_ONSTACK | static_cast<int>(1u << 31))) return -EINVAL;
    const bool off = wanted.ss_flags & SS_DISABLE;
    if (!off && wanted.ss_size < static_cast<std::size_t>(2048)) return -ENOMEM;
    task->program_stack = off ? stack_t{nullptr, SS_DISABLE, 0} : wanted;
    if (!off && (wanted.ss_size >= kEnoughStack || !task->stack))
      context.uc_stack = wanted;
    else if (task->stack)
      context.uc_stack = {task->stack, 0, kTrapStackSize};
    context.uc_stack.ss_flags |= kLeftWhileUsed;
  }
  if (in_use) before.ss_flags |= SS_ONSTACK;
  return !old || write_program(old, before) ? 0 : -EFAULT;
}

void pass_to_program(int signal, siginfo_t* info, ucontext_t& context) {
  g_lock.lock();
  Action& kept = g_wanted[static_cast<std::size_t>(signal)];
  const Action action = kept;
  if (action.flags & SA_RESETHAND) kept.handler = 0;
  g_lock.unlock();
  const bool fault = info->si_code > 0;
  if (action.handler == reinterpret_cast<u64>(SIG_IGN) && !fault) return;
  if (action.handler <= 1) {
    // The default action, once the instruction is executed again or the signal sent again.
    const Action normal{};
    kernel_action(signal, &normal, nullptr);
    program_mask(context) &= ~bit(signal);
    system_call(SYS_tgkill, system_call(SYS_getpid), system_call(SYS_gettid), signal);
    return;
  }
  Task* task = this_task();
  u64 mask = program_mask(context) | action.mask;
  if (!(action.flags & SA_NODEFER)) mask |= bit(signal);
  mask &= ~kTraps;
  system_call(SYS_rt_sigprocmask, SIG_SETMASK, reinterpret_cast<long>(&mask), 0, sizeof mask);
  const u8 selector = task->selector;
  task->selector = 1;
  reinterpret_cast<void (*)(int, siginfo_t*, void*)>(action.handler)(signal, info, &context);
  task->selector = selector;
}

void take_faults_over() {
  for (int signal = 1; signal < 32; ++signal)
    if (kFaults & bit(signal)) kernel_action(signal, nullptr, &g_wanted[static_cast<std::size_t>(signal)]);
  g_ours.fetch_or(kFaults);
  x86::set_fault_filter(on_fault);
  x86::install_host_signal_handlers();
}

void install_trap_handler(void (*handler)(int, siginfo_t*, void*)) {
  const Action action{reinterpret_cast<u64>(handler), SA_SIGINFO | SA_ONSTACK | SA_NODEFER | kSaRestorer,
                      signal_restorer(), ~u64{0}};
  kernel_action(SIGSYS, &action, nullptr);
}

}  // namespace anykvm::resident
