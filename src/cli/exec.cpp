#include "cli/exec.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include <cstdlib>
#include <optional>

#include "base/expected.h"
#include "cli/host_checks.h"
#include "cli/program_file.h"
#include "resident/program_file.h"
#include "resident/start.h"
#include "vmm/notice.h"

namespace anykvm::cli {
namespace {

using vmm::failure;
using vmm::Outcome;

constexpr char kLibrary[] = "libanykvm-preload.so";
constexpr int kNotFound = 127, kNotExecutable = 126;  // as shells say

std::optional<std::string> own_directory() {
  char path[PATH_MAX];
  const ssize_t size = readlink("/proc/self/exe", path, sizeof path);
  if (size <= 0 || size == sizeof path) return std::nullopt;
  const std::string whole(path, static_cast<std::size_t>(size));
  return whole.substr(0, whole.rfind('/'));
}

// Beside the program where it was built; in the library directory where it is installed.
Outcome<std::string> find_library() {
  const auto directory = own_directory();
  if (!directory) return failure("cannot find out where anykvm itself is, and so not {}", kLibrary);
  for (const char* place : {"", "/../lib", "/../lib64", "/../lib/x86_64-linux-gnu"}) {
    const std::string path = *directory + place + "/" + kLibrary;
    char resolved[PATH_MAX];
    if (access(path.c_str(), R_OK) == 0 && realpath(path.c_str(), resolved)) return std::string(resolved);
  }
  return failure("{} is neither in {} nor in the lib directory beside it", kLibrary, *directory);
}

// LD_PRELOAD has no way to quote these.
bool can_be_preloaded_from(const std::string& path) { return path.find_first_of(" :") == std::string::npos; }

void prepend_to_preload(const std::string& library) {
  const char* others = std::getenv("LD_PRELOAD");
  const std::string all = others && *others ? library + ":" + others : library;
  setenv("LD_PRELOAD", all.c_str(), 1);
}

std::vector<std::string> arguments_of(const ExecOptions& options) {
  std::vector<std::string> arguments = options.command;
  if (!options.argv0.empty()) arguments.front() = options.argv0;
  return arguments;
}

int say(int code, const std::string& text) {
  vmm::notice(false, text);
  return code;
}

}  // namespace

Outcome<int> exec(const ExecOptions& options) {
  const std::string& name = options.command.front();
  const std::string library = TRY(find_library());
  if (!can_be_preloaded_from(library))
    return failure("{}: the dynamic linker takes no preload library whose path has a space or a colon",
                   library);
  const auto program = find_program(name);
  if (!program) return say(kNotFound, fmt::format("{}: no such command", name));
  if (auto reason = why_not_preloadable(*program)) return failure("{} {}", name, *reason);
  const std::vector<std::string> words = arguments_of(options);
  if (resident::is_static_program(program->c_str()) && access(program->c_str(), X_OK) == 0 &&
      !(options.prefer_hardware && check_real_kvm().finding == Finding::kPresent)) {
    const Error error = resident::start({*program, words, library, options.prefer_hardware});
    return failure("{} is linked statically, and cannot be run here: {}", name, error.reason);
  }
  prepend_to_preload(library);
  if (options.prefer_hardware)
    setenv("ANYKVM_PREFER_HARDWARE", "1", 1);
  else
    unsetenv("ANYKVM_PREFER_HARDWARE");
  std::vector<char*> arguments;
  for (const std::string& argument : words) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  execvp(program->c_str(), arguments.data());
  return say(errno == ENOENT ? kNotFound : kNotExecutable, fmt::format("{}: {}", name, strerror(errno)));
}

}  // namespace anykvm::cli
