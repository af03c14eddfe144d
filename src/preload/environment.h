#pragma once
// What a child's environment needs so that the dynamic linker gives it the preload library, too.
// Owner: the process; fixed when the library is loaded. Any thread, async-signal-safe.

#include <cstddef>

namespace anykvm::preload {

// Pointers that with_library() may write.
std::size_t room_for(char* const* environment);

// `environment` itself if it has an LD_PRELOAD, or if this process was not started by one of ours. Else a
// copy in `space` with what we were started with.
char* const* with_library(char* const* environment, char** space);

}  // namespace anykvm::preload
