// Calls that change the process: its heap, its filters, its program.
#include <alloca.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/sched.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/raw_syscall.h"
#include "resident/call.h"
#include "resident/heap.h"
#include "resident/program_file.h"
#include "resident/program_memory.h"
#include "resident/seccomp.h"
#include "resident/signals.h"

namespace anykvm::resident {
namespace {

using Strings = const char* const*;

constexpr int kUserDispatch = 59;           // PR_SET_SYSCALL_USER_DISPATCH
constexpr std::size_t kMostStrings = 1024;  // for which the stack of a trap has room

std::size_t count(Strings strings) {
  std::size_t number = 0;
  while (strings && strings[number]) ++number;
  return number;
}

bool has(Strings strings, const char* name) {
  const std::size_t length = strlen(name);
  for (; strings && *strings; ++strings)
    if (strncmp(*strings, name, length) == 0 && (*strings)[length] == '=') return true;
  return false;
}

// Arguments of "anykvm exec --argv0=NAME -- PROGRAM ARGUMENT..." in `out`.
void through_anykvm(const char** out, const char* argv0, const char* program, Strings arguments) {
  *out++ = g_identity.anykvm;
  *out++ = "exec";
  if (g_identity.hardware) *out++ = "--prefer-hardware";
  *out++ = argv0;
  *out++ = "--";
  *out++ = program;
  while (arguments && *arguments) *out++ = *arguments++;
  *out = nullptr;
}

void with_library(const char** out, Strings environment) {
  if (!has(environment, "LD_PRELOAD")) *out++ = g_identity.preload;
  if (g_identity.hardware && !has(environment, "ANYKVM_PREFER_HARDWARE")) *out++ = g_identity.hardware;
  while (environment && *environment) *out++ = *environment++;
  *out = nullptr;
}

// The new program inherits the mask: the caller's, not a trap's.
long execute(const char* path, Strings arguments, Strings environment, u64 mask) {
  u64 everything = ~u64{0};
  raw_syscall(SYS_rt_sigprocmask, SIG_SETMASK, reinterpret_cast<long>(&mask), 0, sizeof mask);
  const long result = raw_syscall(SYS_execve, reinterpret_cast<long>(path), reinterpret_cast<long>(arguments),
                                  reinterpret_cast<long>(environment));
  raw_syscall(SYS_rt_sigprocmask, SIG_SETMASK, reinterpret_cast<long>(&everything), 0, sizeof everything);
  return result;
}

Answer start_program(u64 mask, const char* path, Strings arguments, Strings environment) {
  if (!is_readable_string(path) || !are_readable_strings(arguments) || !are_readable_strings(environment))
    return std::nullopt;
  if (names_program(path)) path = g_identity.program;
  const std::size_t room = count(arguments) + count(environment) + 16;
  if (room > kMostStrings) return execute(path, arguments, environment, mask);
  const auto strings = static_cast<const char**>(alloca(room * sizeof(char*)));
  if (is_static_program(path)) {
    const char* const name = arguments && *arguments ? *arguments++ : path;
    constexpr char kOption[] = "--argv0=";
    char* const argv0 = static_cast<char*>(alloca(sizeof kOption + strlen(name)));
    strcpy(stpcpy(argv0, kOption), name);
    through_anykvm(strings, argv0, path, arguments);
    path = g_identity.anykvm;
    arguments = strings;
  } else {
    with_library(strings, environment);
    environment = strings;
  }
  return execute(path, arguments, environment, mask);
}

// execveat(2) of a whole name, or of a descriptor; of a name in a directory, the kernel does it.
Answer start_program_at(const Call& call) {
  const auto* path = reinterpret_cast<const char*>(call.b);
  char link[32], target[PATH_MAX];
  if (!is_readable_string(path)) return std::nullopt;
  if (!*path && (call.e & AT_EMPTY_PATH)) {
    name_descriptor(static_cast<int>(call.a), link);
    const long size = raw_syscall(SYS_readlink, reinterpret_cast<long>(link), reinterpret_cast<long>(target),
                                  sizeof target - 1);
    if (size <= 0 || *target != '/') return std::nullopt;
    target[size] = 0;
    path = target;
  } else if (call.e || (*path != '/' && static_cast<int>(call.a) != AT_FDCWD)) {
    return std::nullopt;
  }
  if (raw_syscall(SYS_access, reinterpret_cast<long>(path), X_OK) < 0) return std::nullopt;
  return start_program(program_mask(call.context), path, reinterpret_cast<Strings>(call.c),
                       reinterpret_cast<Strings>(call.d));
}

}  // namespace

std::optional<u64> clone3_flags(const Call& call) {
  u64 flags;
  static_assert(offsetof(clone_args, flags) == 0);
  if (!read_program(reinterpret_cast<const u64*>(call.a), flags)) return std::nullopt;
  return flags;
}

Answer call_on_process(const Call& call) {
  switch (call.number) {
    case SYS_brk:
      return change_heap_end(static_cast<u64>(call.a));
    case SYS_seccomp:
      return call_on_seccomp(call);
    case SYS_prctl:
      if (call.a == kUserDispatch) return -EINVAL;
      return call_on_seccomp(call);
    case SYS_clone3:
      // It would take our handler from the child, too. C libraries do without, as on kernels before 5.5.
      if (clone3_flags(call).value_or(0) & CLONE_CLEAR_SIGHAND) return -EINVAL;
      return std::nullopt;
    case SYS_execveat:
      return start_program_at(call);
    case SYS_execve:
      return start_program(program_mask(call.context), reinterpret_cast<const char*>(call.a),
                           reinterpret_cast<Strings>(call.b), reinterpret_cast<Strings>(call.c));
    default:
      return std::nullopt;
  }
}

}  // namespace anykvm::resident
