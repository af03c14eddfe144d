#include "base/fork.h"

#include <pthread.h>

#include <atomic>

namespace anykvm {
namespace {

constinit std::atomic<u32> g_generation{0};
constinit std::atomic<ProcessMutex*> g_mutexes{nullptr};  // a list that only grows, at its head
constinit ProcessMutex* g_held = nullptr;                 // what the list was when the fork began

void before_fork() {
  g_held = g_mutexes.load();
  for (ProcessMutex* mutex = g_held; mutex; mutex = mutex->next()) mutex->lock();
}

void in_parent() {
  for (ProcessMutex* mutex = g_held; mutex; mutex = mutex->next()) mutex->unlock();
}

void in_child() {
  ++g_generation;
  for (ProcessMutex* mutex = g_mutexes.load(); mutex; mutex = mutex->next()) mutex->make_anew();
}

[[maybe_unused]] const int g_registered = pthread_atfork(before_fork, in_parent, in_child);

}  // namespace

u32 fork_generation() { return g_generation.load(std::memory_order_relaxed); }

ProcessMutex::ProcessMutex() : m_next(g_mutexes.load()) {
  while (!g_mutexes.compare_exchange_weak(m_next, this)) {
  }
}

}  // namespace anykvm
