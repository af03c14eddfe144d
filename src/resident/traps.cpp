#include "resident/traps.h"

#include <errno.h>
#include <linux/sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "base/raw_syscall.h"
#include "resident/call.h"
#include "resident/code_area.h"
#include "resident/companion.h"
#include "resident/program_memory.h"
#include "resident/signals.h"
#include "resident/tasks.h"

namespace anykvm::resident {
namespace {

constexpr int kSysUserDispatch = 2;  // si_code

// Who comes out of a clone(2), by its flags.
Child child_of(u64 flags) { return flags & CLONE_VM ? Child::kSharesMemory : Child::kHasCopy; }

Child child_of(const Call& call) {
  switch (call.number) {
    case SYS_fork:
      return Child::kHasCopy;
    case SYS_vfork:
      return Child::kSharesMemory;
    case SYS_clone:
      return child_of(static_cast<u64>(call.a));
    case SYS_clone3: {
      const auto flags = clone3_flags(call);
      return flags ? child_of(*flags) : Child::kNone;
    }
    default:
      return Child::kNone;
  }
}

void count_if_thread(const Call& call) {
  u64 flags = 0;
  if (call.number == SYS_clone) flags = static_cast<u64>(call.a);
  if (call.number == SYS_clone3) flags = clone3_flags(call).value_or(0);
  if ((flags & CLONE_THREAD) && in_this_process()) count_thread();
}

// fork(2), by whatever name: libc's, so that the engine's state is whole in the child.
std::optional<long> fork_by_libc(const Call& call) {
  constexpr u64 kKnown = CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | CLONE_PARENT_SETTID | 0xff;
  const u64 flags = call.number == SYS_fork ? u64{SIGCHLD} : static_cast<u64>(call.a);
  if (call.number != SYS_fork && call.number != SYS_clone) return std::nullopt;
  if ((flags & ~kKnown) || (flags & 0xff) != SIGCHLD || call.b || !in_this_process()) return std::nullopt;
  const long child = fork_with_own_thread_storage();
  // As for the kernel, it is all the same whether there is memory.
  if (child > 0 && (flags & CLONE_PARENT_SETTID))
    write_program(reinterpret_cast<int*>(call.c), static_cast<int>(child));
  if (child != 0) return child;
  if (flags & CLONE_CHILD_SETTID)
    write_program(reinterpret_cast<int*>(call.d), static_cast<int>(raw_syscall(SYS_getpid)));
  raw_syscall(SYS_set_tid_address, flags & CLONE_CHILD_CLEARTID ? call.d : 0);
  return 0;
}

void let_through(const Call& call) {
  auto& registers = call.context.uc_mcontext.gregs;
  const Child child = child_of(call);
  if (child != Child::kNone) count_if_thread(call);
  if (const u64 way = way_round(static_cast<u64>(registers[REG_RIP]), child))
    registers[REG_RIP] = static_cast<greg_t>(way);
  else
    registers[REG_RAX] = -ENOMEM;
}

[[noreturn]] void exit_thread(Task& task, int code) {
  const bool last = in_this_process() && is_last_thread();
  if (task.companion) task.companion->leave();
  if (last) raw_syscall(SYS_exit_group, code);
  u8* stack = task.stack;
  task.selector = 1;
  end_task(task);
  unmap_and_exit(stack, stack ? kTrapStackSize : 0, code);
}

Answer answer_to(const Call& call) {
  if (auto answer = call_on_descriptor(call)) return answer;
  if (auto answer = call_on_file_name(call)) return answer;
  if (auto answer = call_on_signals(call)) return answer;
  return call_on_process(call);
}

void on_trap(int signal, siginfo_t* info, void* raw) {
  auto& context = *static_cast<ucontext_t*>(raw);
  Task* task = this_task();
  if (!task) return interrupted_companion();
  if (info->si_code != kSysUserDispatch) return pass_to_program(signal, info, context);
  auto& registers = context.uc_mcontext.gregs;
  const Call call{registers[REG_RAX], registers[REG_RDI], registers[REG_RSI], registers[REG_RDX],
                  registers[REG_R10], registers[REG_R8],  registers[REG_R9],  context};
  if (call.number == SYS_rt_sigreturn) return_from_signal(static_cast<u64>(registers[REG_RSP]));
  task->selector = 0;
  if (call.number == SYS_exit) exit_thread(*task, static_cast<int>(call.a));
  if (const Answer answer = answer_to(call))
    registers[REG_RAX] = *answer;
  else if (const auto child = fork_by_libc(call))
    registers[REG_RAX] = *child;
  else
    let_through(call);
  if (Task* now = this_task()) now->selector = 1;
}

}  // namespace

void install_traps() { install_trap_handler(on_trap); }

}  // namespace anykvm::resident

using namespace anykvm::resident;

// entry.S: the first that new tasks do.
extern "C" void anykvm_begin_sharing_task() {
  if (begin_task()) this_task()->selector = 1;
}
extern "C" void anykvm_begin_copied_task() {
  lose_companions();
  if (begin_copied_task()) this_task()->selector = 1;
}
