#include "resident/companion.h"

#include <asm/prctl.h>
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include <bit>
#include <new>

#include "base/fd.h"
#include "base/helper_thread.h"
#include "base/raw_syscall.h"
#include "core/run_signals.h"
#include "resident/code_area.h"
#include "resident/signals.h"
#include "resident/spin_lock.h"
#include "resident/tasks.h"

namespace anykvm::resident {
namespace {

enum State : u32 { kIdle, kPosted, kDone, kLeave };

u64 g_own_storage = 0;  // FS base of the thread that the program was started on
SpinLock g_borrowing;   // who uses that
std::atomic<bool> g_in_use{false};
std::atomic<bool> g_lost{false};  // the threads stayed in the parent
// Who makes companions: threads inherit seccomp filters, so it is one from before the program has any.
std::atomic<Companion**> g_wanted{nullptr};
std::atomic<u32> g_maker_turns{0};  // futex
std::atomic<u32> g_made{0};         // futex
SpinLock g_ordering;

void wait_while(std::atomic<u32>& word, u32 value, const timespec* at_most = nullptr) {
  raw_syscall(SYS_futex, reinterpret_cast<long>(&word), FUTEX_WAIT_PRIVATE, value,
              reinterpret_cast<long>(at_most));
}
void wake(std::atomic<u32>& word) {
  raw_syscall(SYS_futex, reinterpret_cast<long>(&word), FUTEX_WAKE_PRIVATE, 1);
}

// Some 20 us, about as long as it takes to wake somebody on another processor; none where there is no other.
constexpr u64 kMostPatience = 50'000;
std::atomic<u64> g_most_patience{0};

void learn_about_processors() {
  u64 processors[128] = {};
  const long size =
      raw_syscall(SYS_sched_getaffinity, 0, sizeof processors, reinterpret_cast<long>(processors));
  int count = 0;
  for (u64 some : processors) count += std::popcount(some);
  g_most_patience.store(size > 0 && count > 1 ? kMostPatience : 0);
}

// What ends a KVM_RUN, and faults. All others are blocked, as in the trap that asked for the thread.
void open_signals() {
  u64 signals = 0;
  for (int signal : {SIGSYS, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP}) signals |= u64{1} << (signal - 1);
  raw_syscall(SYS_rt_sigprocmask, SIG_UNBLOCK, reinterpret_cast<long>(&signals), 0, sizeof signals);
}

}  // namespace

template <class Ready>
bool Patience::look(Ready ready) const {
  const u64 begin = __rdtsc();
  do {
    if (ready()) return true;
    _mm_pause();
  } while (__rdtsc() - begin < m_cycles);
  return false;
}

void Patience::waited(u64 cycles) {
  const u64 most = g_most_patience.load(std::memory_order_relaxed);
  m_cycles = cycles < most ? most : m_cycles / 2;
}

// What the companion's own thread does.
struct CompanionThread {
  static void* body(void* raw) {
    auto* self = static_cast<Companion*>(raw);
    name_this_thread("anykvm-ioctls");
    while (wait_for_request(*self)) {
      if (self->m_ended) core::signal_arrives_with_next_run();
      self->m_result = self->m_request.function(self->m_request);
      self->m_done_at = __rdtsc();
      self->m_state.store(kDone);
      // Who waits as it finds the state decides before it looks at that once more.
      const u32 wait = self->m_wait.load();
      if (wait == Companion::kSleeps) wake(self->m_state);
      if (wait == Companion::kPolls) eventfd_write(self->m_done, 1);
    }
    Fd done(self->m_done);
    delete self;
    return nullptr;
  }

  // False: it is to leave.
  static bool wait_for_request(Companion& self) {
    const u64 begin = __rdtsc();
    u32 state;
    const auto arrived = [&] { return (state = self.m_state.load()) == kPosted || state == kLeave; };
    if (!self.m_companion.look(arrived)) {
      self.m_sleeps.store(true);
      while (!arrived()) wait_while(self.m_state, state);
      self.m_sleeps.store(false);
    }
    self.m_companion.waited(self.m_posted_at - begin);
    return state == kPosted;
  }

  static Companion* make() {
    auto* made = new (std::nothrow) Companion;
    if (!made) return nullptr;
    made->m_done = out_of_the_way(Fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK))).release();
    if (made->m_done < 0) return delete made, nullptr;
    held_fds.note(made->m_done, true);
    std::atomic<int> id{0};
    struct Start {
      Companion* companion;
      std::atomic<int>* id;
    } start{made, &id};
    pthread_t thread;
    const auto begin = [](void* raw) -> void* {
      auto* start = static_cast<Start*>(raw);
      Companion* companion = start->companion;
      companion->m_thread = static_cast<int>(raw_syscall(SYS_gettid));
      forget_record();  // of a child with the same number, long ago
      open_signals();
      start->id->store(companion->m_thread);
      return body(companion);
    };
    if (pthread_create(&thread, nullptr, begin, &start) != 0) return delete made, nullptr;
    pthread_detach(thread);
    while (!id.load()) raw_syscall(SYS_sched_yield);
    return made;
  }

  static void* make_companions(void*) {
    name_this_thread("anykvm-resident");
    for (u32 turn = 0;; ++turn) {
      while (g_maker_turns.load() == turn) wait_while(g_maker_turns, turn);
      *g_wanted.load() = make();
      g_made.fetch_add(1);
      wake(g_made);
    }
  }
};

namespace {

// On a thread of the program's: libc's functions need libc's storage, which is one thread's at a time.
template <class Function>
[[gnu::noinline]] auto with_own_storage(Function&& function) {
  u64 programs = 0;
  g_borrowing.lock();
  raw_syscall(SYS_arch_prctl, ARCH_GET_FS, reinterpret_cast<long>(&programs));
  raw_syscall(SYS_arch_prctl, ARCH_SET_FS, static_cast<long>(g_own_storage));
  const auto result = function();
  raw_syscall(SYS_arch_prctl, ARCH_SET_FS, static_cast<long>(programs));
  g_borrowing.unlock();
  return result;
}

bool start_maker() {
  learn_about_processors();
  return with_own_storage([] {
    pthread_t thread;
    return pthread_create(&thread, nullptr, CompanionThread::make_companions, nullptr) == 0;
  });
}

// In the child of libc's fork(): the threads stayed in the parent, and others can be made.
void forget_companions() {
  g_in_use.store(false);
  g_maker_turns.store(0);
  g_made.store(0);
}

Companion* order_companion() {
  Companion* made = nullptr;
  const u32 before = g_made.load();
  g_wanted.store(&made);
  g_maker_turns.fetch_add(1);
  wake(g_maker_turns);
  while (g_made.load() == before) wait_while(g_made, before);
  return made;
}

// The engine's threads must hear of no signal, but SIGSYS, by which a request is interrupted.
long prepare_engine(const Request&) {
  core::signals_come_from_elsewhere();
  take_faults_over();
  return 0;
}

}  // namespace

void remember_own_thread_storage() {
  raw_syscall(SYS_arch_prctl, ARCH_GET_FS, reinterpret_cast<long>(&g_own_storage));
}

bool engine_in_use() { return g_in_use.load() && !g_lost.load() && in_this_process(); }

void lose_companions() {
  if (g_in_use.load()) g_lost.store(true);
}

long fork_with_own_thread_storage() {
  g_ordering.lock();
  const long child = with_own_storage([]() -> long {
    LeafLock::lock_all();
    const long forked = fork();
    LeafLock::unlock_all();
    return forked < 0 ? -errno : forked;
  });
  g_ordering.unlock();
  if (child == 0) {
    forget_companions();
    begin_copied_task();
  }
  return child;
}

Companion* Companion::of_this_thread() {
  Task* task = this_task();
  if (!task || g_lost.load() || !in_this_process()) return nullptr;
  if (task->companion) return task->companion;
  g_ordering.lock();
  const bool first = !g_in_use.load();
  if (!first || start_maker()) task->companion = order_companion();
  if (task->companion && first) {
    task->companion->call({prepare_engine});
    g_in_use.store(true);
  }
  g_ordering.unlock();
  return task->companion;
}

void Companion::post(const Request& request) {
  m_request = request;
  m_wait.store(kLooks);
  m_posted_at = __rdtsc();
  m_state.store(kPosted);
  if (m_sleeps.load()) wake(m_state);
}

bool Companion::look_for_end() {
  return m_program.look([this] { return m_state.load() == kDone; });
}

long Companion::call(const Request& request) {
  if (m_state.load() != kIdle) interrupt_until_done();
  m_ended = false;
  post(request);
  if (!look_for_end()) {
    m_wait.store(kSleeps);
    while (m_state.load() != kDone) wait_while(m_state, kPosted);
  }
  m_program.waited(m_done_at - m_posted_at);
  m_state.store(kIdle);
  return m_result;
}

// A request of which somebody left the handler by longjmp, or that a signal ends.
void Companion::interrupt_until_done() {
  constexpr timespec kPause{0, 1'000'000};
  m_wait.store(kSleeps);
  while (m_state.load() == kPosted) {
    raw_syscall(SYS_tgkill, raw_syscall(SYS_getpid), m_thread, SIGSYS);
    wait_while(m_state, kPosted, &kPause);
  }
  m_interrupted_result = m_result;
  m_state.store(kIdle);
}

namespace {

// The trap blocks all signals: those of the program's that have come and that KVM_RUN is to let in.
bool signals_wait(u64 mask) {
  u64 pending = 0;
  raw_syscall(SYS_rt_sigpending, reinterpret_cast<long>(&pending), sizeof pending);
  return pending & ~mask;
}

void empty(int eventfd) {
  u64 count;
  raw_syscall(SYS_read, eventfd, reinterpret_cast<long>(&count), sizeof count);
}

}  // namespace

long Companion::run(const Request& request, u64 mask, int ending) {
  if (m_state.load() != kIdle) interrupt_until_done();
  pollfd pending{ending, POLLIN, 0};
  m_ended = ending >= 0 && raw_syscall(SYS_poll, reinterpret_cast<long>(&pending), 1, 0) > 0;
  const bool waiting = signals_wait(mask);
  post(request);
  if (waiting || !look_for_end()) sleep_through_run(mask, ending);
  if (m_state.load() == kIdle) return m_interrupted_result;
  m_program.waited(m_done_at - m_posted_at);
  m_state.store(kIdle);
  return m_result;
}

void Companion::sleep_through_run(u64 mask, int ending) {
  Task* task = this_task();
  empty(m_done);  // of a request that was interrupted
  m_wait.store(kPolls);
  while (m_state.load() == kPosted) {
    pollfd watched[] = {{m_done, POLLIN, 0}, {ending, POLLIN, 0}};
    // Handlers run in here, and their system calls trap.
    task->selector = 1;
    const long ready = system_call(SYS_ppoll, reinterpret_cast<long>(watched), 2, 0,
                                   reinterpret_cast<long>(&mask), sizeof mask);
    task->selector = 0;
    // A handler that asked the companion for something has done that already.
    if ((ready == -EINTR || watched[1].revents) && m_state.load() != kIdle) interrupt_until_done();
    if (ready > 0) empty(m_done);
  }
}

void Companion::leave() {
  if (m_state.load() != kIdle) interrupt_until_done();
  m_state.store(kLeave);
  if (m_sleeps.load()) wake(m_state);
}

void interrupted_companion() { core::signal_arrived_here(); }

}  // namespace anykvm::resident
