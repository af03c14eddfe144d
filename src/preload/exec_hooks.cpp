// Hooks of the functions that start programs. A child gets the preload library by its environment; where the
// program makes one from nothing (env -i, sandboxes, test runners), the library is put into it once more. An
// LD_PRELOAD that is there, even an empty one, is the program's own wish and stays. SAFETY: these run after
// vfork(2) and in signal handlers, so they use the stack only.
#include <alloca.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "preload/environment.h"
#include "preload/real.h"
#include "preload/static_children.h"

namespace anykvm::preload {
namespace {

using Strings = char* const*;

constinit Real<int(const char*, Strings, Strings)> real_execve{"execve"};
constinit Real<int(const char*, Strings, Strings)> real_execvpe{"execvpe"};
constinit Real<int(int, Strings, Strings)> real_fexecve{"fexecve"};
constinit Real<int(int, const char*, Strings, Strings, int)> real_execveat{"execveat"};
using Spawn = int(pid_t*, const char*, const posix_spawn_file_actions_t*, const posix_spawnattr_t*, Strings,
                  Strings);
constinit Real<Spawn> real_posix_spawn{"posix_spawn"};
constinit Real<Spawn> real_posix_spawnp{"posix_spawnp"};

// Calls `start(path, arguments, environment)` for the program itself or for anykvm in front of it.
template <class Start>
int start_child(const char* path, bool search, Strings arguments, Strings environment, Start&& start) {
  char** strings = static_cast<char**>(alloca(room_for(environment) * sizeof(char*)));
  char program[PATH_MAX];
  const Command command = command_for(path, search, program);
  if (!command.needed()) return start(path, arguments, with_library(environment, strings));
  void* space = alloca(room_for_arguments(arguments));
  return start(command.path, arguments_through(command, program, arguments, space),
               without_library(environment, strings));
}

int execute(const char* path, Strings arguments, Strings environment) {
  return start_child(path, false, arguments, environment, [](auto... all) { return real_execve(all...); });
}
int search_and_execute(const char* file, Strings arguments, Strings environment) {
  return start_child(file, true, arguments, environment, [](auto... all) { return real_execvpe(all...); });
}

}  // namespace

// The environment for a child, on the caller's stack.
#define ANYKVM_WITH_LIBRARY(environment) \
  with_library(environment, static_cast<char**>(alloca(room_for(environment) * sizeof(char*))))

int hook_execve(const char*, Strings, Strings) ANYKVM_HOOK(execve);
int hook_execve(const char* path, Strings arguments, Strings environment) {
  return execute(path, arguments, environment);
}

int hook_execv(const char*, Strings) ANYKVM_HOOK(execv);
int hook_execv(const char* path, Strings arguments) { return execute(path, arguments, environ); }

int hook_execvpe(const char*, Strings, Strings) ANYKVM_HOOK(execvpe);
int hook_execvpe(const char* file, Strings arguments, Strings environment) {
  return search_and_execute(file, arguments, environment);
}

int hook_execvp(const char*, Strings) ANYKVM_HOOK(execvp);
int hook_execvp(const char* file, Strings arguments) { return search_and_execute(file, arguments, environ); }

int hook_fexecve(int, Strings, Strings) ANYKVM_HOOK(fexecve);
int hook_fexecve(int fd, Strings arguments, Strings environment) {
  return real_fexecve(fd, arguments, ANYKVM_WITH_LIBRARY(environment));
}

int hook_execveat(int, const char*, Strings, Strings, int) ANYKVM_HOOK(execveat);
int hook_execveat(int directory, const char* path, Strings arguments, Strings environment, int flags) {
  return real_execveat(directory, path, arguments, ANYKVM_WITH_LIBRARY(environment), flags);
}

// The forms with the arguments one by one: `list` becomes an array, and what follows the null pointer is left
// to be read.
#define ANYKVM_COLLECT_ARGUMENTS(first, list, arguments)                       \
  va_list list;                                                                \
  va_start(list, first);                                                       \
  std::size_t count = 1;                                                       \
  while (va_arg(list, char*)) ++count;                                         \
  va_end(list);                                                                \
  char** arguments = static_cast<char**>(alloca((count + 1) * sizeof(char*))); \
  va_start(list, first);                                                       \
  arguments[0] = const_cast<char*>(first);                                     \
  for (std::size_t i = 1; i <= count; ++i) arguments[i] = va_arg(list, char*)

int hook_execl(const char*, const char*, ...) ANYKVM_HOOK(execl);
int hook_execl(const char* path, const char* first, ...) {
  ANYKVM_COLLECT_ARGUMENTS(first, list, arguments);
  va_end(list);
  return execute(path, arguments, environ);
}

int hook_execlp(const char*, const char*, ...) ANYKVM_HOOK(execlp);
int hook_execlp(const char* file, const char* first, ...) {
  ANYKVM_COLLECT_ARGUMENTS(first, list, arguments);
  va_end(list);
  return search_and_execute(file, arguments, environ);
}

int hook_execle(const char*, const char*, ...) ANYKVM_HOOK(execle);
int hook_execle(const char* path, const char* first, ...) {
  ANYKVM_COLLECT_ARGUMENTS(first, list, arguments);
  const Strings environment = va_arg(list, Strings);
  va_end(list);
  return execute(path, arguments, environment);
}

#define ANYKVM_SPAWN_HOOK(symbol, search)                                                                  \
  int hook_##symbol(pid_t*, const char*, const posix_spawn_file_actions_t*, const posix_spawnattr_t*,      \
                    Strings, Strings) ANYKVM_HOOK(symbol);                                                 \
  int hook_##symbol(pid_t* child, const char* path, const posix_spawn_file_actions_t* actions,             \
                    const posix_spawnattr_t* attributes, Strings arguments, Strings environment) {         \
    return start_child(path, search, arguments, environment, [=](auto program, auto words, auto strings) { \
      return real_##symbol(child, program, actions, attributes, words, strings);                           \
    });                                                                                                    \
  }

ANYKVM_SPAWN_HOOK(posix_spawn, false)
ANYKVM_SPAWN_HOOK(posix_spawnp, true)

}  // namespace anykvm::preload
