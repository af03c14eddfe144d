#include "preload/engine.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <initializer_list>

#include "base/raw_syscall.h"

namespace anykvm::preload {

constinit std::atomic<const Engine*> g_engine{nullptr};

namespace {

constexpr char kLibrary[] = "libanykvm.so.0";

void complain(const char* text) {
  constexpr char kPrefix[] = "anykvm: cannot load the engine: ";
  [[maybe_unused]] ssize_t written = write(STDERR_FILENO, kPrefix, sizeof kPrefix - 1);
  written = write(STDERR_FILENO, text, strlen(text));
  written = write(STDERR_FILENO, "\n", 1);
}

// The engine lies beside this library.
bool engine_path(char* path, std::size_t size) {
  Dl_info self{};
  if (!dladdr(reinterpret_cast<void*>(&load_engine), &self) || !self.dli_fname) return false;
  const char* slash = strrchr(self.dli_fname, '/');
  const std::size_t directory = slash ? static_cast<std::size_t>(slash - self.dli_fname) + 1 : 0;
  if (directory + sizeof kLibrary > size) return false;
  memcpy(path, self.dli_fname, directory);
  memcpy(path + directory, kLibrary, sizeof kLibrary);
  return true;
}

template <class Function>
bool find(void* library, const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(dlsym(library, name));
  return function != nullptr;
}

bool find_functions(void* library, Engine& engine) {
  return find(library, "anykvm_open", engine.open) && find(library, "anykvm_ioctl", engine.ioctl) &&
         find(library, "anykvm_mmap", engine.mmap) && find(library, "anykvm_close", engine.close) &&
         find(library, "anykvm_owns", engine.owns) &&
         find(library, "anykvm_close_range", engine.close_range) &&
         find(library, "anykvm_replaced", engine.replaced) &&
         find(library, "anykvm_first_held", engine.first_held) &&
         find(library, "anykvm_fallocate", engine.fallocate) &&
         find(library, "anykvm_sigaction", engine.sigaction) &&
         find(library, "anykvm_show_virtualization", engine.show_virtualization) &&
         find(library, "anykvm_sigmask_changed", engine.sigmask_changed);
}

const Engine* fail(const char* text) {
  static std::atomic<bool> said{false};
  if (!said.exchange(true)) complain(text);
  return nullptr;
}

// A KVM that is there but cannot run guests (nested virtualization switched off, no right) is of no use.
bool hardware_works() {
  const long device = raw_syscall(SYS_open, reinterpret_cast<long>("/dev/kvm"), O_RDWR | O_CLOEXEC, 0);
  if (device < 0) return false;
  const bool api = raw_syscall(SYS_ioctl, device, KVM_GET_API_VERSION, 0) == KVM_API_VERSION;
  const long vm = api ? raw_syscall(SYS_ioctl, device, KVM_CREATE_VM, 0) : -1;
  const long vcpu = vm >= 0 ? raw_syscall(SYS_ioctl, vm, KVM_CREATE_VCPU, 0) : -1;
  for (long fd : {vcpu, vm, device})
    if (fd >= 0) raw_syscall(SYS_close, fd, 0, 0);
  return vcpu >= 0;
}

}  // namespace

const Engine* load_engine() {
  if (const Engine* loaded = engine()) return loaded;
  const int saved_errno = errno;
  char path[4096];
  if (!engine_path(path, sizeof path)) return fail("its place is unknown");
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) return fail(dlerror());
  // Two threads that come here at once load the same library; both tables say the same.
  static Engine table;
  Engine found{};
  if (!find_functions(library, found)) return fail("it is of another version");
  static std::atomic<bool> filled{false};
  if (!filled.exchange(true)) {
    table = found;
    table.sigaction(0, nullptr, nullptr);  // calls of sigaction() will be reported
    table.sigmask_changed();               // and so will changes of signal masks
    g_engine.store(&table, std::memory_order_release);
  }
  while (!engine()) {
  }
  errno = saved_errno;
  return engine();
}

bool hardware_wanted_and_working() {
  static std::atomic<int> answer{-1};
  int known = answer.load(std::memory_order_relaxed);
  if (known < 0) {
    known = getenv("ANYKVM_PREFER_HARDWARE") && hardware_works();
    answer.store(known, std::memory_order_relaxed);
  }
  return known;
}

}  // namespace anykvm::preload
