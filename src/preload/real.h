#pragma once
// The next definition of a hooked function: the C library's, or another preloaded library's.
// Owner: the process; one pointer per function, resolved at the first call. Any thread.

#include <dlfcn.h>

#include <atomic>

namespace anykvm::preload {

// A pointer that is looked up when it is first needed: hooks run before any constructor of ours. Two threads
// that look at once find the same.
template <class Function>
class Real {
 public:
  explicit constexpr Real(const char* name) : m_name(name) {}
  // Null if there is no such function in this C library.
  Function* get() {
    void* found = m_found.load(std::memory_order_acquire);
    if (!found) [[unlikely]] {
      found = dlsym(RTLD_NEXT, m_name);
      m_found.store(found, std::memory_order_release);
    }
    return reinterpret_cast<Function*>(found);
  }
  template <class... Arguments>
  auto operator()(Arguments... arguments) {
    return get()(arguments...);
  }

 private:
  const char* m_name;
  std::atomic<void*> m_found{nullptr};
};

}  // namespace anykvm::preload

// A hook is a function of its own name under the C library's symbol: the library's headers declare the latter
// with attributes and fortified forms that would be in the way.
// SAFETY: on x86-64 a variadic function gets its integer arguments in the same registers as a plain one, so
// the hooks of open, ioctl, fcntl and syscall are plain functions.
#define ANYKVM_HOOK(symbol) asm(#symbol) __attribute__((visibility("default")))
