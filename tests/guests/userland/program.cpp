// Runs in the guest and on the host; the two outputs must be the same to the byte. Every line is
// deterministic.
#include <fcntl.h>
#include <fenv.h>
#include <immintrin.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

namespace {

using u64 = std::uint64_t;

u64 hash_of(const void* data, std::size_t size) {
  u64 hash = 14695981039346656037u;
  for (std::size_t i = 0; i < size; ++i)
    hash = (hash ^ static_cast<const unsigned char*>(data)[i]) * 1099511628211u;
  return hash;
}

template <class Work>
void on_threads(unsigned count, Work work) {
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < count; ++i) threads.emplace_back([=] { work(i); });
  for (auto& thread : threads) thread.join();
}

// --- Vector units ---

constexpr unsigned kSize = 192, kThreads = 4;
using Matrix = std::vector<double>;

Matrix example(unsigned seed) {
  Matrix m(kSize * kSize);
  for (unsigned i = 0; i < m.size(); ++i) m[i] = ((i * 2654435761u + seed) % 2003) / 7.0 - 100;
  return m;
}

using Rows = void (*)(const double* a, const double* b, double* c, unsigned first, unsigned last);

void rows_sse2(const double* a, const double* b, double* c, unsigned first, unsigned last) {
  for (unsigned i = first; i < last; ++i)
    for (unsigned k = 0; k < kSize; ++k)
      for (unsigned j = 0; j < kSize; ++j) c[i * kSize + j] += a[i * kSize + k] * b[k * kSize + j];
}
__attribute__((target("avx"))) void rows_avx(const double* a, const double* b, double* c, unsigned first,
                                             unsigned last) {
  for (unsigned i = first; i < last; ++i)
    for (unsigned k = 0; k < kSize; ++k)
      for (unsigned j = 0; j < kSize; j += 4) {
        __m256d product =
            _mm256_mul_pd(_mm256_broadcast_sd(a + i * kSize + k), _mm256_loadu_pd(b + k * kSize + j));
        _mm256_storeu_pd(c + i * kSize + j, _mm256_add_pd(_mm256_loadu_pd(c + i * kSize + j), product));
      }
}
__attribute__((target("avx2,fma"))) void rows_avx2(const double* a, const double* b, double* c,
                                                   unsigned first, unsigned last) {
  const __m256i swap = _mm256_set_epi32(1, 0, 3, 2, 5, 4, 7, 6);
  for (unsigned i = first; i < last; ++i)
    for (unsigned k = 0; k < kSize; ++k)
      for (unsigned j = 0; j < kSize; j += 4) {
        __m256d row = _mm256_loadu_pd(b + k * kSize + j);
        row = _mm256_castsi256_pd(_mm256_permutevar8x32_epi32(_mm256_castpd_si256(row), swap));
        double* out = c + i * kSize + j;
        _mm256_storeu_pd(out, _mm256_fmadd_pd(_mm256_set1_pd(a[i * kSize + k]), row, _mm256_loadu_pd(out)));
      }
}
__attribute__((target("avx512f"))) void rows_avx512(const double* a, const double* b, double* c,
                                                    unsigned first, unsigned last) {
  for (unsigned i = first; i < last; ++i)
    for (unsigned k = 0; k < kSize; ++k)
      for (unsigned j = 0; j < kSize; j += 8) {
        __mmask8 some = static_cast<__mmask8>(0x5a + j + k);
        double* out = c + i * kSize + j;
        __m512d sum = _mm512_mask_fmadd_pd(_mm512_maskz_loadu_pd(some, b + k * kSize + j), some,
                                           _mm512_set1_pd(a[i * kSize + k]), _mm512_loadu_pd(out));
        _mm512_mask_storeu_pd(out, some, sum);
      }
}

void multiply(const char* name, bool available, Rows rows) {
  if (!available) {
    std::printf("matrix %s: not here\n", name);
    return;
  }
  Matrix a = example(1), b = example(2), c(kSize * kSize);
  on_threads(kThreads, [&, rows](unsigned i) {
    rows(a.data(), b.data(), c.data(), i * kSize / kThreads, (i + 1) * kSize / kThreads);
  });
  std::printf("matrix %s: %016lx %.17g\n", name, hash_of(c.data(), c.size() * sizeof c[0]), c[kSize + 7]);
}

void matrices() {
  multiply("sse2", true, rows_sse2);
  multiply("avx", __builtin_cpu_supports("avx"), rows_avx);
  multiply("avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"), rows_avx2);
  multiply("avx512f", __builtin_cpu_supports("avx512f"), rows_avx512);
}

// --- x87 and the floating-point environment ---

void long_doubles() {
  volatile long double one = 1, sum = 0;
  for (int i = 1; i < 20000; ++i) sum = sum + one / i / i;
  std::printf("x87: %.21Lg %.21Lg %.21Lg %La\n", sqrtl(sum * 6), sinl(sum), expl(-sum),
              fmodl(sum * 1e15L, 3));
  std::array<unsigned char, 10> decimal{};
  asm volatile("fldl %1; fbstp %0" : "=m"(decimal) : "m"(*new double(-123456789012345.0)) : "st");
  std::printf("x87 decimal: %016lx\n", hash_of(decimal.data(), decimal.size()));
  for (int mode : {FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
    fesetround(mode);
    feclearexcept(FE_ALL_EXCEPT);
    volatile double third = 1, tiny = 1e-300;
    third = third / 3;
    tiny = tiny * tiny;
    std::printf("rounding %x: %a %a raised %x\n", mode, static_cast<double>(third), static_cast<double>(tiny),
                fetestexcept(FE_ALL_EXCEPT));
  }
  fesetround(FE_TONEAREST);
}

// --- Threads ---

void atomics() {
  std::atomic<u64> sum{0};
  std::atomic<unsigned> turns{0};
  alignas(16) static unsigned __int128 wide = 0;
  on_threads(kThreads, [&](unsigned) {
    for (int i = 0; i < 50000; ++i) sum.fetch_add(i);
    for (int i = 0; i < 5000; ++i) {
      unsigned seen = turns.load();
      while (!turns.compare_exchange_weak(seen, seen + 3)) {
      }
    }
    for (int i = 0; i < 5000; ++i) {
      u64 low = 0, high = 0;
      bool done = false;
      while (!done) {
        u64 next = low + 1, next_high = high + (next == 0);
        asm volatile("lock cmpxchg16b %1"
                     : "=@ccz"(done), "+m"(wide), "+a"(low), "+d"(high)
                     : "b"(next), "c"(next_high)
                     : "memory");
      }
    }
  });
  std::printf("atomics: %lu %u %lu\n", sum.load(), turns.load(), static_cast<u64>(wide));
}

void mutexes() {
  std::mutex mutex;
  std::condition_variable changed;
  unsigned turn = 0;
  u64 log = 0;
  on_threads(kThreads, [&](unsigned me) {
    for (unsigned round = 0; round < 200; ++round) {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return turn % kThreads == me; });
      log = log * 31 + me;
      ++turn;
      changed.notify_all();
    }
  });
  std::printf("mutexes: %u turns %016lx\n", turn, log);
}

u64 now_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<u64>(now.tv_sec) * 1000000000 + static_cast<u64>(now.tv_nsec);
}

// What one thread saw, no other may see again later.
void clock_never_goes_back() {
  std::atomic<u64> latest{0}, backwards{0};
  on_threads(kThreads, [&](unsigned) {
    for (int i = 0; i < 30000; ++i) {
      u64 before = latest.load(), now = now_ns();
      if (now < before) ++backwards;
      while (before < now && !latest.compare_exchange_weak(before, now)) {
      }
    }
  });
  std::printf("clock went back %lu times\n", backwards.load());
}

// --- Signals ---

sigjmp_buf g_jump;
volatile int g_signal, g_code;
volatile u64 g_address;
std::atomic<unsigned> g_ticks{0};

void note(int signal, siginfo_t* info, void*) {
  g_signal = signal;
  g_code = info->si_code;
  g_address = reinterpret_cast<u64>(info->si_addr);
  siglongjmp(g_jump, 1);
}
void tick(int, siginfo_t*, void*) { ++g_ticks; }
void stop_stepping(int, siginfo_t*, void* raw) {
  if (++g_ticks >= 8) static_cast<ucontext_t*>(raw)->uc_mcontext.gregs[REG_EFL] &= ~0x100L;
}

void handle(int signal, void (*handler)(int, siginfo_t*, void*)) {
  struct sigaction action {};
  action.sa_sigaction = handler;
  action.sa_flags = SA_SIGINFO;
  sigaction(signal, &action, nullptr);
}

template <class Cause>
void fault(const char* name, u64 base, Cause cause) {
  g_signal = 0;
  volatile int returns = 0;
  if (sigsetjmp(g_jump, 1)) {
    returns = returns + 1;
  } else {
    cause();
  }
  u64 address = base ? g_address - base : 0;
  std::printf("%s: signal %d code %d address %lx, %d jump\n", name, g_signal, g_code, address, returns);
}

void faults() {
  for (int signal : {SIGFPE, SIGSEGV, SIGILL, SIGTRAP, SIGBUS}) handle(signal, note);
  auto* page =
      static_cast<volatile char*>(mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  auto base = reinterpret_cast<u64>(page);
  int file = open("/proc/self/exe", O_RDONLY);
  auto* beyond = static_cast<volatile char*>(mmap(nullptr, 1 << 28, PROT_READ, MAP_PRIVATE, file, 0));
  for (int round = 0; round < 3; ++round) {
    fault("divide", 0, [] { asm volatile("xor %%ecx, %%ecx; div %%ecx" ::: "eax", "ecx", "edx"); });
    fault("divide overflow", 0, [] {
      asm volatile("mov $0x80000000, %%eax; cltd; mov $-1, %%ecx; idiv %%ecx" ::: "eax", "ecx", "edx");
    });
    fault("null", 1, [] { asm volatile("movl $1, 0x10"); });
    fault("read-only", base, [&] { page[123] = 1; });
    fault("not canonical", 0, [] { asm volatile("mov (%0), %%al" ::"r"(u64{1} << 63) : "rax"); });
    fault("beyond a file", reinterpret_cast<u64>(beyond), [&] { (void)beyond[(1 << 28) - 5]; });
    fault("undefined", 0, [] { asm volatile("ud2"); });
    fault("breakpoint", 0, [] { asm volatile("int3"); });
    fault("privileged", 0, [] { asm volatile("hlt"); });
    fault("unmasked SSE", 0, [] {
      feenableexcept(FE_DIVBYZERO);
      volatile double none = 0;
      none = 1 / none;
    });
    fesetenv(FE_DFL_ENV);
  }
  handle(SIGTRAP, stop_stepping);
  g_ticks = 0;
  asm volatile("pushfq; orl $0x100, (%%rsp); popfq; nop; nop; nop; nop; nop; nop; nop; nop; nop; nop" ::
                   : "memory", "cc");
  std::printf("single steps: %u\n", g_ticks.load());
}

void timer_signals() {
  handle(SIGALRM, tick);
  g_ticks = 0;
  itimerval every{{0, 3000}, {0, 3000}}, never{};
  setitimer(ITIMER_REAL, &every, nullptr);
  u64 spins = 0;
  while (g_ticks < 10) ++spins;
  setitimer(ITIMER_REAL, &never, nullptr);
  std::printf("timer: ticks came to a busy loop\n");
}

// --- Memory and processes ---

void new_code() {
  auto* code = static_cast<unsigned char*>(
      mmap(nullptr, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  auto* function = reinterpret_cast<int (*)()>(code);
  int sum = 0;
  for (int i = 0; i < 200; ++i) {
    const unsigned char bytes[] = {0xb8, static_cast<unsigned char>(i), 0, 0, 0, 0xc3};  // mov eax, i; ret
    std::memcpy(code, bytes, sizeof bytes);
    sum += function();
    if (i % 10 == 0) mprotect(code, 4096, PROT_READ | PROT_EXEC), sum += function();
    if (i % 10 == 0) mprotect(code, 4096, PROT_READ | PROT_WRITE | PROT_EXEC);
  }
  // Written by one thread, run by another that it tells.
  std::atomic<int> version{0}, answer{0};
  std::thread runner([&] {
    for (int i = 1; i <= 100; ++i) {
      while (version.load() != i) std::this_thread::yield();
      asm volatile("xor %%eax, %%eax; xor %%ecx, %%ecx; cpuid" ::: "eax", "ebx", "ecx", "edx", "memory");
      answer += function() == i;
      version = -i;
    }
  });
  for (int i = 1; i <= 100; ++i) {
    code[1] = static_cast<unsigned char>(i);
    version = i;
    while (version.load() != -i) std::this_thread::yield();
  }
  runner.join();
  std::printf("new code: %d, from another thread %d\n", sum, answer.load());
}

void maps() {
  constexpr std::size_t kBytes = 32u << 20;
  u64 sum = 0;
  for (int round = 0; round < 4; ++round) {
    auto* bytes = static_cast<unsigned char*>(
        mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (std::size_t i = 0; i < kBytes; i += 4096) bytes[i] = static_cast<unsigned char>(i >> 12);
    mprotect(bytes, kBytes / 2, PROT_READ);
    for (std::size_t i = 0; i < kBytes; i += 4096) sum += bytes[i];
    munmap(bytes, kBytes);
  }
  std::printf("maps: %lu\n", sum);
}

void forks() {
  int sum = 0;
  for (int burst = 0; burst < 5; ++burst) {
    for (int i = 0; i < 12; ++i) {
      if (fork() == 0) _exit(i + burst);
    }
    int status = 0;
    while (wait(&status) > 0) sum += WEXITSTATUS(status);
  }
  std::printf("forks: %d\n", sum);
}

void pipes() {
  int ends[2];
  if (pipe(ends) != 0) return;
  constexpr unsigned kBlocks = 300;
  std::vector<unsigned char> block(5000);
  std::fflush(stdout);
  if (fork() == 0) {
    for (unsigned i = 0; i < kBlocks; ++i) {
      std::memset(block.data(), static_cast<int>(i), block.size());
      if (write(ends[1], block.data(), block.size()) < 0) _exit(1);
    }
    _exit(0);
  }
  close(ends[1]);
  u64 hash = 0, total = 0;
  for (ssize_t got; (got = read(ends[0], block.data(), block.size())) > 0; total += static_cast<u64>(got))
    for (ssize_t i = 0; i < got; ++i) hash = hash * 31 + block[static_cast<std::size_t>(i)];
  close(ends[0]);
  wait(nullptr);
  std::printf("pipe: %lu bytes %016lx\n", total, hash);
}

void strings() {
  std::vector<char> from(70000), to(70000);
  for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<char>(1 + i * 7 % 250);
  from.back() = 0;
  u64 hash = std::strlen(from.data());
  for (std::size_t size = 0; size < 3000; size += 37) {
    std::memcpy(to.data() + size % 64, from.data() + size % 50, size);
    std::memmove(to.data() + 11, to.data(), size);
    hash = hash * 31 + hash_of(to.data(), size + 64);
    hash += static_cast<u64>(std::memcmp(to.data(), from.data(), size) > 0);
  }
  void *source = from.data(), *target = to.data();
  std::size_t count = from.size();
  asm volatile("rep movsb" : "+S"(source), "+D"(target), "+c"(count)::"memory");
  std::printf("strings: %016lx %016lx\n", hash, hash_of(to.data(), to.size()));
}

}  // namespace

int main() {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  matrices();
  long_doubles();
  atomics();
  mutexes();
  clock_never_goes_back();
  faults();
  timer_signals();
  new_code();
  maps();
  forks();
  pipes();
  strings();
}
