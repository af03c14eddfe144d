#pragma once
// libanykvm.so as the hooks see it. It is loaded when the process first opens /dev/kvm: a process that never
// does carries nothing but the hooks. Owner: the process. Any thread.

#include <sys/types.h>

#include <atomic>
#include <cstddef>

struct sigaction;

namespace anykvm::preload {

// The functions of include/anykvm/anykvm.h.
struct Engine {
  int (*open)(const char*, int, ...);
  int (*ioctl)(int, unsigned long, ...);
  void* (*mmap)(void*, std::size_t, int, int, int, off_t);
  int (*close)(int);
  int (*owns)(int);
  void (*close_range)(unsigned, unsigned);
  unsigned (*first_held)(unsigned, unsigned);
  void (*replaced)(int);
  int (*fallocate)(int, int, off_t, off_t);
  int (*sigaction)(int, const struct sigaction*, struct sigaction*);
  void (*show_virtualization)();
  void (*sigmask_changed)();
};

extern std::atomic<const Engine*> g_engine;

// Null until /dev/kvm has been opened.
inline const Engine* engine() { return g_engine.load(std::memory_order_acquire); }

// Loads it if need be. Null if it cannot be loaded; standard error then says why, once.
const Engine* load_engine();

// The user wants the machine's own /dev/kvm where it works (ANYKVM_PREFER_HARDWARE), and it does.
bool hardware_wanted_and_working();

}  // namespace anykvm::preload
