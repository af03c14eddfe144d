#pragma once
// Which file a command name stands for, and whether a preload library can work in it.
// Owner: nobody; functions that look at the file system. Any thread.

#include <optional>
#include <string>

namespace anykvm::cli {

// As execvp(3) finds it: through PATH unless there is a slash in the name. Nothing if there is no such file;
// a file that may not be executed is found if there is no better.
std::optional<std::string> find_program(const std::string& name);

// Why the dynamic linker will not load a preload library into this program, as the end of a sentence that
// begins with its name; nothing if it will. Scripts stand for their interpreter.
std::optional<std::string> why_not_preloadable(const std::string& path);

}  // namespace anykvm::cli
