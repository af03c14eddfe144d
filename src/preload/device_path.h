#pragma once
// Which paths name /dev/kvm, and what the device looks like to those that ask.
// Owner: nobody; functions without state, async-signal-safe. Any thread.

#include <sys/stat.h>

namespace anykvm::preload {

// Any spelling of it without symbolic links, relative to `directory` (AT_FDCWD: the working directory).
// Cheap for every path that does not end in "kvm". Null and unreadable pointers: see the .cpp.
bool names_device(int directory, const char* path);

// What stat(2) says of a /dev/kvm that everybody may use.
void fill_status(struct stat& status);
void fill_status(struct statx& status);

}  // namespace anykvm::preload
