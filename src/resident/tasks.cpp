#include "resident/tasks.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <array>

#include "resident/code_area.h"
#include "resident/spin_lock.h"

#ifndef PR_SET_SYSCALL_USER_DISPATCH  // since Linux 5.11
#define PR_SET_SYSCALL_USER_DISPATCH 59
#define PR_SYS_DISPATCH_ON 1
#endif

namespace anykvm::resident {
namespace {

constexpr std::size_t kTasks = 4096;
std::array<Task, kTasks> g_tasks;
LeafLock g_lock;                // who takes and frees records
std::atomic<int> g_threads{1};  // of the process
std::atomic<int> g_process{0};

int thread_id() { return static_cast<int>(system_call(SYS_gettid)); }

Task* find(int id) {
  // Records lie near where their number leads; a gap ends no search, since threads go in any order.
  constexpr std::size_t kNear = 64;
  const std::size_t first = static_cast<std::size_t>(id) % kTasks;
  for (std::size_t i = 0; i < kNear; ++i) {
    Task& task = g_tasks[(first + i) % kTasks];
    if (task.id.load(std::memory_order_relaxed) == id) return &task;
  }
  return nullptr;
}

bool is_gone(int id) {
  return system_call(SYS_tgkill, system_call(SYS_getpid), id, 0) == -ESRCH &&
         system_call(SYS_kill, id, 0) == -ESRCH;
}

// Children that share our memory leave their records behind.
Task* take(int id) {
  constexpr std::size_t kNear = 64;
  const std::size_t first = static_cast<std::size_t>(id) % kTasks;
  for (const bool also_gone : {false, true})
    for (std::size_t i = 0; i < kNear; ++i) {
      Task& task = g_tasks[(first + i) % kTasks];
      const int owner = task.id.load(std::memory_order_relaxed);
      if (owner && owner != id && !(also_gone && is_gone(owner))) continue;
      task.id.store(id);
      return &task;
    }
  return nullptr;
}

bool give_stack(Task& task) {
  stack_t now{};
  system_call(SYS_sigaltstack, 0, reinterpret_cast<long>(&now));
  if (!(now.ss_flags & SS_DISABLE)) return true;  // a child's, who goes on with the parent's
  const long stack = system_call(SYS_mmap, 0, kTrapStackSize, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack < 0 && stack > -4096) return false;
  task.stack = reinterpret_cast<u8*>(stack);
  const stack_t ours{task.stack, kLeftWhileUsed, kTrapStackSize};
  return system_call(SYS_sigaltstack, reinterpret_cast<long>(&ours), 0) == 0;
}

bool trap_system_calls(Task& task) {
  const CodeRange area = code_area();
  return system_call(SYS_prctl, PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON,
                     static_cast<long>(area.begin), static_cast<long>(area.size),
                     reinterpret_cast<long>(&task.selector)) == 0;
}

}  // namespace

Task* this_task() { return find(thread_id()); }

bool begin_task() {
  const int id = thread_id();
  g_lock.lock();
  Task* task = take(id);
  g_lock.unlock();
  if (!task) return false;
  task->selector = 0;
  task->stack = nullptr;
  task->program_stack = {nullptr, SS_DISABLE, 0};
  task->companion = nullptr;
  return give_stack(*task) && trap_system_calls(*task);
}

bool begin_copied_task() {
  note_process();
  return begin_task();
}

void end_task(Task& task) { task.id.store(0); }

void forget_record() {
  if (Task* task = this_task()) end_task(*task);
}

void count_thread() { g_threads.fetch_add(1); }
bool is_last_thread() { return g_threads.fetch_sub(1) == 1; }

bool in_this_process() { return system_call(SYS_getpid) == g_process.load(std::memory_order_relaxed); }
void note_process() {
  g_process.store(static_cast<int>(system_call(SYS_getpid)));
  g_threads.store(1);
}

}  // namespace anykvm::resident
