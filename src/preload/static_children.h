#pragma once
// Children that are linked statically take no library. One that names /dev/kvm is started by `anykvm exec`,
// which runs it in its own process (resident/start.h). Owner: nobody; on the stack only. Any thread, after
// vfork(2) too.

#include <limits.h>

#include <cstddef>

namespace anykvm::preload {

// What starts a program that would otherwise be left alone.
struct Command {
  char path[PATH_MAX];  // of anykvm; empty: the program starts by itself
  bool needed() const { return *path; }
};
// For the program at `path`, which is searched for as execvp(3) does if `search` is set; its place is in
// `found` then.
Command command_for(const char* path, bool search, char (&found)[PATH_MAX]);

// Bytes that arguments_through() may write.
std::size_t room_for_arguments(char* const* arguments);
// "anykvm exec --argv0=NAME -- PROGRAM ARGUMENT..."
char* const* arguments_through(const Command& command, const char* program, char* const* arguments,
                               void* space);

// `environment` without the library, which would be put into anykvm itself; room as room_for() says.
char* const* without_library(char* const* environment, char** space);

}  // namespace anykvm::preload
