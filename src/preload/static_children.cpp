#include "preload/static_children.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/raw_syscall.h"
#include "preload/engine.h"
#include "resident/program_file.h"

namespace anykvm::preload {
namespace {

constexpr char kArgv0[] = "--argv0=", kHardware[] = "--prefer-hardware";

bool file_mentions_device(const char* path) {
  constexpr char kDevice[] = "/dev/kvm";
  const long fd = raw_syscall(SYS_open, reinterpret_cast<long>(path), O_RDONLY | O_CLOEXEC, 0);
  if (fd < 0) return false;
  const long size = raw_syscall(SYS_lseek, fd, 0, SEEK_END);
  const long file = size > 0 ? raw_syscall(SYS_mmap, 0, size, PROT_READ, MAP_PRIVATE, fd, 0) : -1;
  raw_syscall(SYS_close, fd);
  if (file < 0 && file > -4096) return false;
  const bool mentions = memmem(reinterpret_cast<const void*>(file), static_cast<std::size_t>(size), kDevice,
                               sizeof kDevice - 1);
  raw_syscall(SYS_munmap, file, size);
  return mentions;
}

bool is_executable(const char* path) {
  return raw_syscall(SYS_access, reinterpret_cast<long>(path), X_OK) == 0;
}

// The command lies beside the library where both were built, and in bin/ where they are installed.
bool find_command(char (&path)[PATH_MAX]) {
  Dl_info self{};
  if (!dladdr(reinterpret_cast<void*>(&find_command), &self) || !self.dli_fname) return false;
  const char* slash = strrchr(self.dli_fname, '/');
  const std::size_t directory = slash ? static_cast<std::size_t>(slash - self.dli_fname) : 0;
  for (const char* place : {"/anykvm", "/../bin/anykvm", "/../../bin/anykvm"}) {
    if (!slash || directory + strlen(place) >= sizeof path) return false;
    memcpy(path, self.dli_fname, directory);
    strcpy(path + directory, place);
    if (is_executable(path)) return true;
  }
  return false;
}

// execvp(3)'s search for a name without a slash.
bool search_for(const char* name, char (&found)[PATH_MAX]) {
  const char* at = getenv("PATH");
  if (!at) at = "/bin:/usr/bin";
  for (;;) {
    const std::size_t size = strcspn(at, ":");
    if (size + strlen(name) + 2 < sizeof found) {
      memcpy(found, at, size);
      strcpy(stpcpy(found + size, size ? "/" : ""), name);
      if (is_executable(found)) return true;
    }
    if (!at[size]) return false;
    at += size + 1;
  }
}

}  // namespace

Command command_for(const char* path, bool search, char (&found)[PATH_MAX]) {
  Command command;
  *command.path = 0;
  if (!path || strlen(path) >= sizeof found) return command;
  strcpy(found, path);
  if (search && !strchr(path, '/') && !search_for(path, found)) return command;
  if (!resident::is_static_program(found) || !is_executable(found) || !file_mentions_device(found))
    return command;
  if (hardware_wanted_and_working() || !find_command(command.path)) *command.path = 0;
  return command;
}

std::size_t room_for_arguments(char* const* arguments) {
  std::size_t count = 0;
  while (arguments && arguments[count]) ++count;
  const std::size_t name = count ? strlen(arguments[0]) : PATH_MAX;
  return (count + 8) * sizeof(char*) + sizeof kArgv0 + name;
}

char* const* arguments_through(const Command& command, const char* program, char* const* arguments,
                               void* space) {
  std::size_t count = 0;
  while (arguments && arguments[count]) ++count;
  const auto** words = static_cast<const char**>(space);
  char* const name = reinterpret_cast<char*>(words + count + 8);
  strcpy(stpcpy(name, kArgv0), count ? arguments[0] : program);
  const char** out = words;
  *out++ = command.path;
  *out++ = "exec";
  if (getenv("ANYKVM_PREFER_HARDWARE")) *out++ = kHardware;
  *out++ = name;
  *out++ = "--";
  *out++ = program;
  for (std::size_t i = 1; i < count; ++i) *out++ = arguments[i];
  *out = nullptr;
  return const_cast<char* const*>(words);
}

char* const* without_library(char* const* environment, char** space) {
  char** out = space;
  for (; environment && *environment; ++environment)
    if (strncmp(*environment, "LD_PRELOAD=", 11) != 0 || !strstr(*environment, "libanykvm-preload"))
      *out++ = *environment;
  *out = nullptr;
  return space;
}

}  // namespace anykvm::preload
