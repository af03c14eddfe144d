#include "cli/program_file.h"

#include <elf.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cstdlib>
#include <vector>

#include "base/fd.h"
#include "base/types.h"

namespace anykvm::cli {
namespace {

bool is_file(const std::string& path) {
  struct stat status {};
  return stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode);
}

std::vector<std::string> search_path() {
  const char* value = std::getenv("PATH");
  const std::string text = value ? value : "/bin:/usr/bin";
  std::vector<std::string> directories;
  for (std::size_t from = 0, to = 0; to != std::string::npos; from = to + 1) {
    to = text.find(':', from);
    const std::string directory = text.substr(from, to == std::string::npos ? to : to - from);
    directories.push_back(directory.empty() ? "." : directory);
  }
  return directories;
}

bool read_at(int fd, off_t offset, void* to, std::size_t size) {
  return pread(fd, to, size, offset) == static_cast<ssize_t>(size);
}

// The interpreter that the script's first line names, or nothing.
std::optional<std::string> script_interpreter(int fd) {
  char line[256]{};
  if (pread(fd, line, sizeof line - 1, 0) < 3 || line[0] != '#' || line[1] != '!') return std::nullopt;
  const char* from = line + 2 + strspn(line + 2, " \t");
  return std::string(from, strcspn(from, " \t\n"));
}

// A PT_INTERP segment names the dynamic linker.
bool names_dynamic_linker(int fd, const Elf64_Ehdr& header) {
  for (unsigned i = 0; i < header.e_phnum; ++i) {
    Elf64_Phdr segment;
    const off_t at = static_cast<off_t>(header.e_phoff + u64{i} * header.e_phentsize);
    if (!read_at(fd, at, &segment, sizeof segment)) return false;
    if (segment.p_type == PT_INTERP) return true;
  }
  return false;
}

std::optional<std::string> why_not_elf(int fd, bool interprets) {
  Elf64_Ehdr header{};
  if (!read_at(fd, 0, &header, sizeof header) || memcmp(header.e_ident, ELFMAG, SELFMAG) != 0)
    return std::nullopt;  // execve(2) will say what is wrong with it
  if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_machine != EM_X86_64)
    return "is not a 64-bit x86 program, and KVM's API is offered to those only";
  if (interprets && !names_dynamic_linker(fd, header))
    return "is statically linked: start that with the script as its argument";
  return std::nullopt;
}

// The kernel then tells the dynamic linker to ignore LD_PRELOAD.
bool gains_capabilities(const std::string& path) {
  return geteuid() != 0 && getxattr(path.c_str(), "security.capability", nullptr, 0) > 0;
}

// As above.
bool changes_user(const struct stat& status) {
  if ((status.st_mode & S_ISUID) && status.st_uid != geteuid()) return true;
  return (status.st_mode & S_ISGID) && (status.st_mode & S_IXGRP) && status.st_gid != getegid();
}

std::optional<std::string> why_not(const std::string& path, unsigned depth) {
  constexpr unsigned kMostInterpreters = 4;  // as the kernel's limit
  Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat status {};
  if (!fd.valid() || fstat(fd.get(), &status) != 0) return std::nullopt;
  if (auto interpreter = script_interpreter(fd.get())) {
    if (depth == kMostInterpreters) return std::nullopt;
    auto reason = why_not(*interpreter, depth + 1);
    if (reason) return fmt::format("is a script for {}, which {}", *interpreter, *reason);
    return std::nullopt;
  }
  if (changes_user(status))
    return "changes the user or group, and such programs are started without preload libraries";
  if (gains_capabilities(path))
    return "has capabilities of its own, and such programs are started without preload libraries";
  return why_not_elf(fd.get(), depth > 0);
}

}  // namespace

std::optional<std::string> find_program(const std::string& name) {
  if (name.find('/') != std::string::npos) return is_file(name) ? std::optional(name) : std::nullopt;
  std::optional<std::string> forbidden;
  if (name.empty()) return std::nullopt;
  for (const std::string& directory : search_path()) {
    const std::string path = directory + "/" + name;
    if (!is_file(path)) continue;
    if (access(path.c_str(), X_OK) == 0) return path;
    if (!forbidden) forbidden = path;
  }
  return forbidden;
}

std::optional<std::string> why_not_preloadable(const std::string& path) { return why_not(path, 0); }

}  // namespace anykvm::cli
