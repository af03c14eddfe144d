#include "resident/start.h"

#include <elf.h>
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "base/raw_syscall.h"
#include "program/virtualization.h"
#include "resident/call.h"
#include "resident/code_area.h"
#include "resident/companion.h"
#include "resident/heap.h"
#include "resident/program_file.h"
#include "resident/seccomp.h"
#include "resident/tasks.h"
#include "resident/traps.h"

extern "C" [[noreturn]] void anykvm_enter_program(anykvm::u64 entry, anykvm::u64 stack_pointer,
                                                  volatile anykvm::u8* selector);

namespace anykvm::resident {

Identity g_identity{};

namespace {

// Copies that outlive everything.
const char* keep(const std::string& text) { return strdup(text.c_str()); }

std::string own_path() {
  char path[PATH_MAX];
  const ssize_t size = readlink("/proc/self/exe", path, sizeof path);
  return size > 0 ? std::string(path, static_cast<std::size_t>(size)) : std::string();
}

void introduce(const Start& what) {
  char resolved[PATH_MAX];
  g_identity.program = keep(realpath(what.program.c_str(), resolved) ? resolved : what.program);
  g_identity.anykvm = keep(own_path());
  g_identity.preload = keep("LD_PRELOAD=" + what.preload_library);
  g_identity.hardware = what.prefer_hardware ? "ANYKVM_PREFER_HARDWARE=1" : nullptr;
  const std::size_t slash = what.program.rfind('/');
  prctl(PR_SET_NAME, what.program.c_str() + (slash == std::string::npos ? 0 : slash + 1));
}

// The stack that a program finds: arguments, environment and the auxiliary vector (System V ABI, 3.4.1).
class StartStack {
 public:
  static Result<StartStack> create() {
    rlimit limit{};
    getrlimit(RLIMIT_STACK, &limit);
    constexpr rlim_t kLeast = 1 << 20, kMost = 64 << 20;
    const std::size_t size = std::clamp(limit.rlim_cur, kLeast, kMost) & ~rlim_t{4095};
    void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED) return Error{ENOMEM, "no memory for a stack"};
    return StartStack(static_cast<u8*>(memory) + size);
  }

  u64 text(const char* text) { return bytes(text, strlen(text) + 1); }
  u64 bytes(const void* from, std::size_t size) {
    m_top -= size;
    memcpy(m_top, from, size);
    return reinterpret_cast<u64>(m_top);
  }
  // Their own place is aligned; returns it.
  u64 words(const std::vector<u64>& values) {
    m_top = reinterpret_cast<u8*>((reinterpret_cast<u64>(m_top) - 8 * values.size()) & ~u64{15});
    memcpy(m_top, values.data(), 8 * values.size());
    return reinterpret_cast<u64>(m_top);
  }

 private:
  explicit StartStack(u8* top) : m_top(top) {}
  u8* m_top;
};

// Ours, but for what concerns the program.
void add_auxiliary_vector(std::vector<u64>& words, StartStack& stack, const Image& image) {
  u8 random[16];
  if (getrandom(random, sizeof random, 0) != sizeof random) memset(random, 0x5a, sizeof random);
  const u64 own[][2] = {{AT_PHDR, image.program_headers},
                        {AT_PHNUM, image.header_count},
                        {AT_PHENT, sizeof(Elf64_Phdr)},
                        {AT_ENTRY, image.entry},
                        {AT_BASE, 0},
                        {AT_EXECFN, stack.text(g_identity.program)},
                        {AT_RANDOM, stack.bytes(random, sizeof random)},
                        {AT_PLATFORM, stack.text("x86_64")}};
  for (const auto& pair : own) words.insert(words.end(), {pair[0], pair[1]});
  constexpr unsigned long kRseqFeatureSize = 27, kRseqAlign = 28, kMinimumSignalStack = 51;
  for (unsigned long type :
       {AT_SYSINFO_EHDR, AT_HWCAP, AT_HWCAP2, AT_PAGESZ, AT_CLKTCK, AT_FLAGS, AT_UID, AT_EUID, AT_GID,
        AT_EGID, AT_SECURE, int{kRseqFeatureSize}, int{kRseqAlign}, int{kMinimumSignalStack}}) {
    errno = 0;
    const u64 value = getauxval(type);
    if (value || errno == 0) words.insert(words.end(), {type, value});
  }
  words.insert(words.end(), {AT_NULL, 0});
}

u64 fill(StartStack& stack, const Start& what, const Image& image) {
  std::vector<u64> words{what.arguments.size()};
  for (const auto& argument : what.arguments) words.push_back(stack.text(argument.c_str()));
  words.push_back(0);
  for (char** variable = environ; *variable; ++variable) words.push_back(stack.text(*variable));
  words.push_back(0);
  add_auxiliary_vector(words, stack, image);
  return stack.words(words);
}

// A thread has one area for restartable sequences, and libc has taken it.
void give_up_restartable_sequences() {
  if (!__rseq_size) return;
  constexpr long kUnregister = 1, kSize = 32;
  raw_syscall(SYS_rseq, reinterpret_cast<long>(__builtin_thread_pointer()) + __rseq_offset, kSize,
              kUnregister, RSEQ_SIG);
}

// As for programs that are linked dynamically (docs/decisions/clients-that-ask-the-cpu.md).
void show_virtualization(const Image& image) {
  if (!image.mentions_device || !image.program_headers) return;
  program::show_virtualization(program::program_with(
      reinterpret_cast<const Elf64_Phdr*>(image.program_headers), image.header_count, image.moved));
}

}  // namespace

Error start(const Start& what) {
  introduce(what);
  const auto image = map_program(what.program.c_str());
  if (!image) return image.error();
  auto stack = StartStack::create();
  if (!stack) return stack.error();
  show_virtualization(image.value());
  const u64 pointer = fill(stack.value(), what, image.value());
  if (auto made = make_code_area(); !made) return made.error();
  if (auto made = make_heap(); !made) return made.error();
  note_our_code();
  remember_own_thread_storage();
  note_process();
  install_traps();
  give_up_restartable_sequences();
  if (!begin_task()) return {ENOSYS, "Linux 5.11's syscall user dispatch is missing"};
  anykvm_enter_program(image.value().entry, pointer, &this_task()->selector);
}

}  // namespace anykvm::resident
