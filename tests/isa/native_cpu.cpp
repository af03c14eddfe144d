#include "native_cpu.h"

#include <asm/ldt.h>
#include <asm/prctl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>
#include <x86intrin.h>

#include <csignal>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "user_descriptors.h"
#include "x86/translate/host_signals.h"

namespace anykvm::isa {
namespace {

enum class Phase : u8 { kIdle, kEntering, kRunning };

// What the signal handler works on. It must not touch thread-local storage while FS is the test's.
struct Run {
  Phase phase = Phase::kIdle;
  UserState start;
  unsigned code_bits = 64;
  Outcome* outcome = nullptr;
  greg_t own_registers[NGREG];
  u8 own_vectors[16384];
  u64 own_fs = 0, own_gs = 0;
  bool fsgsbase = false;  // the instructions may be used
  bool confined = false;
  unsigned ticks = 0;  // of the timer, since the run began
};
Run g_run;

constexpr u64 kOddFlags = 0x244000;  // NT, AC, ID: signal frames do not bring them back

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
struct sigaction g_previous[NSIG];

constexpr int kGregOfGpr[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

void raw_arch_prctl(long what, u64 value) {
  long result;
  asm volatile("syscall"
               : "=a"(result)
               : "a"(SYS_arch_prctl), "D"(what), "S"(value)
               : "rcx", "r11", "memory");
}

struct Bases {
  u64 fs = 0, gs = 0;
};

// What the code has left in the segment registers.
struct Segments {
  Bases bases;
  u16 es = 0, ds = 0, fs = kUserDs, gs = kUserDs;
};

Bases bases() {
  Bases now;
  if (g_run.fsgsbase) {
    asm volatile("rdfsbase %0; rdgsbase %1" : "=r"(now.fs), "=r"(now.gs));
  } else {
    raw_arch_prctl(ARCH_GET_FS, reinterpret_cast<u64>(&now.fs));
    raw_arch_prctl(ARCH_GET_GS, reinterpret_cast<u64>(&now.gs));
  }
  return now;
}

void set_bases(Bases to) {
  if (g_run.fsgsbase) {
    asm volatile("wrfsbase %0; wrgsbase %1" : : "r"(to.fs), "r"(to.gs) : "memory");
  } else {
    raw_arch_prctl(ARCH_SET_FS, to.fs);
    raw_arch_prctl(ARCH_SET_GS, to.gs);
  }
}

// 64-bit mode does not look at these, compatibility mode does. Bases of FS and GS are set afterwards.
void load_data_segments() {
  u16 selector = kUserDs;
  asm volatile("mov %0, %%ds; mov %0, %%es" : : "r"(selector));
  if (g_run.fsgsbase) asm volatile("mov %0, %%fs; mov %0, %%gs" : : "r"(selector));
}

// Bytes of the XSAVE image in a signal frame: struct _fpx_sw_bytes at the end of its legacy part.
u32 image_size(const u8* image) {
  u32 magic, size;
  std::memcpy(&magic, image + 464, sizeof magic);
  std::memcpy(&size, image + 464 + 16, sizeof size);
  constexpr u32 kMagic1 = 0x46505853;
  return magic == kMagic1 && size <= sizeof g_run.own_vectors ? size : 512;
}

void enter(ucontext_t* context) {
  auto& registers = context->uc_mcontext.gregs;
  auto* image = reinterpret_cast<u8*>(context->uc_mcontext.fpregs);
  std::memcpy(g_run.own_registers, registers, sizeof g_run.own_registers);
  std::memcpy(g_run.own_vectors, image, image_size(image));
  const UserState& s = g_run.start;
  for (unsigned i = 0; i < 16; ++i) registers[kGregOfGpr[i]] = static_cast<greg_t>(s.gpr[i]);
  registers[REG_RIP] = static_cast<greg_t>(s.rip);
  registers[REG_EFL] = static_cast<greg_t>(s.rflags);
  if (g_run.code_bits == 32) {
    // The kernel's flat 32-bit code segment and the data segment that goes with it.
    u64 segments = static_cast<u64>(registers[REG_CSGSFS]) & 0x0000ffffffff0000;
    registers[REG_CSGSFS] = static_cast<greg_t>(segments | kUserCs32 | u64{kUserDs} << 48);
  }
  s.to_xsave(image);
  g_run.phase = Phase::kRunning;
  g_run.ticks = 0;
  set_bases({s.fs_base, s.gs_base});
}

void leave(ucontext_t* context) {
  auto& registers = context->uc_mcontext.gregs;
  auto* image = reinterpret_cast<u8*>(context->uc_mcontext.fpregs);
  Outcome& outcome = *g_run.outcome;
  for (unsigned i = 0; i < 16; ++i) outcome.state.gpr[i] = static_cast<u64>(registers[kGregOfGpr[i]]);
  outcome.state.rip = static_cast<u64>(registers[REG_RIP]);
  outcome.state.rflags = static_cast<u64>(registers[REG_EFL]);
  outcome.vector = static_cast<u8>(registers[REG_TRAPNO]);
  outcome.error = static_cast<u32>(registers[REG_ERR]);
  outcome.cr2 = static_cast<u64>(registers[REG_CR2]);
  outcome.state.from_xsave(image);
  std::memcpy(registers, g_run.own_registers, sizeof g_run.own_registers);
  std::memcpy(image, g_run.own_vectors, image_size(image));
  registers[REG_RIP] += 2;  // over the UD2 that began it
  g_run.phase = Phase::kIdle;
}

// The code has run until now: what it set must not disturb the handler.
Segments back_from_code() {
  __builtin_ia32_writeeflags_u64(__builtin_ia32_readeflags_u64() & ~kOddFlags);
  Segments ended;
  ended.bases = bases();
  asm volatile("mov %%es, %0; mov %%ds, %1" : "=r"(ended.es), "=r"(ended.ds));
  // Without FSGSBASE the code changes neither, and the kernel has null selectors there.
  if (g_run.fsgsbase) asm volatile("mov %%fs, %0; mov %%gs, %1" : "=r"(ended.fs), "=r"(ended.gs));
  load_data_segments();
  set_bases({g_run.own_fs, g_run.own_gs});
  return ended;
}

u32 segment_limit(u16 selector) {
  u32 limit = 0;
  asm volatile("lsl %1, %0" : "+r"(limit) : "r"(u32{selector}) : "cc");
  return limit;
}

void leave_with(ucontext_t* context, const Segments& ended) {
  auto frame = static_cast<u64>(context->uc_mcontext.gregs[REG_CSGSFS]);
  leave(context);
  Outcome& outcome = *g_run.outcome;
  outcome.state.fs_base = ended.bases.fs;
  outcome.state.gs_base = ended.bases.gs;
  outcome.state.selectors = {
      ended.es, static_cast<u16>(frame), static_cast<u16>(frame >> 48), ended.ds, ended.fs, ended.gs};
  outcome.processor_node = segment_limit(kProcessorNode);
}

user_desc as_kernel_takes_it(const UserDescriptor& d, unsigned number) {
  user_desc result{};
  result.entry_number = number;
  result.base_addr = d.base;
  result.limit = d.limit;
  result.seg_32bit = d.wide;
  result.contents = d.contents;
  result.read_exec_only = d.restricted;
  result.limit_in_pages = d.pages;
  result.seg_not_present = !d.present;
  return result;
}

// For signals that no exception of the code has raised.
[[gnu::no_stack_protector, gnu::no_sanitize("address", "undefined")]] void stop(int signal, siginfo_t*,
                                                                                void* raw) {
  if (g_run.phase != Phase::kRunning) return;
  constexpr unsigned kPatience = 3;  // ticks
  if (signal == SIGVTALRM && ++g_run.ticks < kPatience) return;
  leave_with(static_cast<ucontext_t*>(raw), back_from_code());
  g_run.outcome->vector = signal == SIGVTALRM ? Outcome::kEndless : Outcome::kSystemCall;
}

[[gnu::no_stack_protector, gnu::no_sanitize("address", "undefined")]] void handle(int signal, siginfo_t* info,
                                                                                  void* raw) {
  auto* context = static_cast<ucontext_t*>(raw);
  switch (g_run.phase) {
    case Phase::kEntering:
      enter(context);
      return;
    case Phase::kRunning:
      leave_with(context, back_from_code());
      return;
    case Phase::kIdle:
      break;
  }
  const struct sigaction& previous = g_previous[signal];
  if (previous.sa_flags & SA_SIGINFO) return previous.sa_sigaction(signal, info, raw);
  struct sigaction dfl {};
  dfl.sa_handler = SIG_DFL;
  sigaction(signal, &dfl, nullptr);
}

// The translator puts its handlers in front again when a VM is made.
void come_first() {
  for (int signal : kSignals) {
    struct sigaction now {
    }, action{};
    sigaction(signal, nullptr, &now);
    if (now.sa_sigaction == handle) continue;
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigemptyset(&action.sa_mask);
    sigaction(signal, &action, nullptr);
  }
}

[[noreturn]] void give_up(const char* what) {
  std::perror(what);
  std::abort();
}

void map(u64 address, u64 size, int protection, int flags, int fd) {
  void* wanted = reinterpret_cast<void*>(address);
  if (mmap(wanted, size, protection, flags | MAP_FIXED_NOREPLACE | MAP_POPULATE, fd, 0) != wanted)
    give_up("mapping memory");
}

}  // namespace

NativeCpu& NativeCpu::instance() {
  static NativeCpu cpu;
  return cpu;
}

void NativeCpu::map_code() {
  int fd = memfd_create("isa_code", MFD_CLOEXEC);
  if (fd < 0 || ftruncate(fd, kCodeSize) != 0) give_up("memory for code");
  void* writable = mmap(nullptr, kCodeSize, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (writable == MAP_FAILED) give_up("mapping code");
  m_code = static_cast<u8*>(writable);
  map(kCodeBase, kCodeSize, PROT_READ | PROT_EXEC, MAP_SHARED, fd);
  close(fd);
}

NativeCpu::NativeCpu() {
  map_code();
  map(kDataBase, kDataSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
  fill_read_only_page(reinterpret_cast<u8*>(kReadOnlyBase));
  mprotect(reinterpret_cast<void*>(kReadOnlyBase), kDataSize - kWritableSize, PROT_READ);
  // In front of the translator's handlers, which look into thread-local storage.
  x86::install_host_signal_handlers();
  static u8 stack[128 << 10];
  stack_t alternate{};
  alternate.ss_sp = stack;
  alternate.ss_size = sizeof stack;
  sigaltstack(&alternate, nullptr);
  for (int signal : kSignals) sigaction(signal, nullptr, &g_previous[signal]);
  g_run.fsgsbase = loads_segments();
  Bases own = bases();
  g_run.own_fs = own.fs;
  g_run.own_gs = own.gs;
  load_data_segments();
  set_bases(own);
}

bool NativeCpu::loads_segments() {
  constexpr unsigned long kHwcap2Fsgsbase = 2;
  return getauxval(AT_HWCAP2) & kHwcap2Fsgsbase;
}

bool NativeCpu::make_descriptors() {
  constexpr int kWrite = 0x11;  // modify_ldt(2), all of user_desc
  if (!loads_segments()) return false;
  for (unsigned i = 0; i < kLdtEntries; ++i) {
    user_desc entry = as_kernel_takes_it(kLdtDescriptors[i], i);
    if (syscall(SYS_modify_ldt, kWrite, &entry, sizeof entry) != 0) return false;
  }
  return true;
}

void NativeCpu::confine() {
  g_run.confined = true;
  for (int signal : {SIGSYS, SIGVTALRM}) {
    struct sigaction action {};
    action.sa_sigaction = stop;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigfillset(&action.sa_mask);
    sigaction(signal, &action, nullptr);
  }
  for (int signal : kSignals) {
    struct sigaction action {};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaddset(&action.sa_mask, SIGVTALRM);
    sigaction(signal, &action, nullptr);
  }
  constexpr suseconds_t kTick = 10'000;
  itimerval timer{{0, kTick}, {0, kTick}};
  setitimer(ITIMER_VIRTUAL, &timer, nullptr);

  // System calls from the code's own addresses raise SIGSYS.
  constexpr u32 kHigh = offsetof(seccomp_data, instruction_pointer) + 4,
                kLow = offsetof(seccomp_data, instruction_pointer);
  sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kHigh),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kLow),
      BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, kCodeBase, 0, 1),
      BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, static_cast<u32>(kCodeBase + kCodeSize), 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
  };
  sock_fprog filter{static_cast<unsigned short>(std::size(program)), program};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0)
    give_up("confining the child");
}

void NativeCpu::open_code(u64 address) {
  const u64 pair = code_pair(address);
  if (pair == m_open) return;
  auto protect = [](u64 at, int protection) {
    if (at && mprotect(reinterpret_cast<void*>(at), kCodePair, protection) != 0) give_up("protecting code");
  };
  protect(m_open, PROT_READ | PROT_EXEC);
  protect(pair, PROT_READ | PROT_WRITE | PROT_EXEC);
  m_open = pair;
}

Outcome NativeCpu::run(const UserState& state, const Memory& memory, unsigned code_bits) {
  Outcome outcome;
  std::memcpy(reinterpret_cast<void*>(kDataBase), memory.data(), kWritableSize);
  if (!g_run.confined) come_first();
  g_run.start = state;
  g_run.code_bits = code_bits;
  g_run.outcome = &outcome;
  g_run.phase = Phase::kEntering;
  asm volatile("ud2" : : : "memory");
  std::memcpy(outcome.memory.data(), reinterpret_cast<void*>(kDataBase), kDataSize);
  return outcome;
}

}  // namespace anykvm::isa
