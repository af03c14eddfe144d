#include "process.h"

#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>

namespace anykvm::fuzz {
namespace {

const char* g_what = "";
volatile u64 g_number = 0;

void last_words(int signal) {
  char text[96];
  int size = std::snprintf(text, sizeof text, "CRASH: signal %d in %s %llu\n", signal, g_what,
                           static_cast<unsigned long long>(g_number));
  if (write(2, text, static_cast<size_t>(size)) < 0) _exit(3);
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

}  // namespace

long open_descriptors() {
  return std::distance(std::filesystem::directory_iterator("/proc/self/fd"),
                       std::filesystem::directory_iterator{});
}

void print_descriptors() {
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    const auto target = std::filesystem::read_symlink(entry, gone);
    if (!gone) std::printf("  %s -> %s\n", entry.path().filename().c_str(), target.c_str());
  }
}

u64 resident_kib() {
  std::ifstream statm("/proc/self/statm");
  u64 total = 0, resident = 0;
  statm >> total >> resident;
  return resident * 4;
}

void report_crashes(const char* what) {
  g_what = what;
  for (int signal : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT}) std::signal(signal, last_words);
}

void now_running(u64 number) { g_number = number; }

}  // namespace anykvm::fuzz
