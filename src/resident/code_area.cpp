#include "resident/code_area.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include <atomic>

#include "resident/spin_lock.h"

extern "C" {
extern const anykvm::u8 anykvm_area_code[], anykvm_area_code_end[];
extern const anykvm::u8 anykvm_area_system_call[], anykvm_area_restorer[], anykvm_area_sigreturn[],
    anykvm_area_exit[];
void anykvm_task_shares_memory();
void anykvm_task_has_copy();
}

namespace anykvm::resident {
namespace {

constexpr std::size_t kSize = 1 << 20, kOwnSize = 4096;
constexpr std::size_t kWaySize = 48, kWays = (kSize - kOwnSize) / kWaySize, kBuckets = 1 << 15;

u8* g_area = nullptr;
LeafLock g_lock;
std::size_t g_ways = 0;                  // g_lock
std::atomic<u16> g_bucket_of[kBuckets];  // 1 + number of a way, by hash
struct {
  u64 next;
  Child child;
} g_made[kWays];  // written before its number is in a bucket

const u8* in_area(const u8* symbol) { return g_area + (symbol - anykvm_area_code); }

u8* place_of(std::size_t way) { return g_area + kOwnSize + way * kWaySize; }

template <std::size_t Size>
u8* put(u8* at, const u8 (&bytes)[Size]) {
  memcpy(at, bytes, Size);
  return at + Size;
}
u8* put_address(u8* at, u64 address) {
  memcpy(at, &address, sizeof address);
  return at + sizeof address;
}

void write_way(u8* at, u64 next, Child child) {
  constexpr u8 kSyscall[] = {0x0f, 0x05};
  constexpr u8 kJump[] = {0xff, 0x25, 0, 0, 0, 0};  // jmp *next quadword
  at = put(at, kSyscall);
  if (child == Child::kNone) {
    put_address(put(at, kJump), next);
    return;
  }
  // The parent, and a call that failed, skip the new task's way: test %rax, %rax; jnz.
  constexpr u8 kIfParent[] = {0x48, 0x85, 0xc0, 0x75, 5 + 6 + 6 + 8};
  constexpr u8 kMakeRoom[] = {0x48, 0x8d, 0x64, 0x24, 0x80};  // lea -128(%rsp), %rsp
  constexpr u8 kPushNext[] = {0xff, 0x35, 6 + 8 + 6, 0, 0, 0};
  at = put(put(put(at, kIfParent), kMakeRoom), kPushNext);
  at = put_address(put(at, kJump),
                   reinterpret_cast<u64>(child == Child::kSharesMemory ? &anykvm_task_shares_memory
                                                                       : &anykvm_task_has_copy));
  put_address(put(at, kJump), next);
}

std::size_t hash(u64 next, Child child) {
  return static_cast<std::size_t>(((next * 4 + static_cast<u64>(child)) * 0x9e3779b97f4a7c15) >> 40) %
         kBuckets;
}

}  // namespace

Result<> make_code_area() {
  void* area = mmap(nullptr, kSize, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (area == MAP_FAILED) return Error{errno, "no memory for code"};
  g_area = static_cast<u8*>(area);
  memcpy(g_area, anykvm_area_code, static_cast<std::size_t>(anykvm_area_code_end - anykvm_area_code));
  return {};
}

CodeRange code_area() { return {reinterpret_cast<u64>(g_area), kSize}; }
CodeRange our_own_code() { return {reinterpret_cast<u64>(g_area), kOwnSize}; }

long system_call(long number, long a, long b, long c, long d, long e, long f) {
  using Function = long(long, long, long, long, long, long, long);
  return reinterpret_cast<Function*>(in_area(anykvm_area_system_call))(number, a, b, c, d, e, f);
}

u64 signal_restorer() { return reinterpret_cast<u64>(in_area(anykvm_area_restorer)); }

void return_from_signal(u64 stack_pointer) {
  reinterpret_cast<void (*)(u64)>(in_area(anykvm_area_sigreturn))(stack_pointer);
  __builtin_unreachable();
}

void unmap_and_exit(void* stack, std::size_t size, int code) {
  reinterpret_cast<void (*)(void*, std::size_t, int)>(in_area(anykvm_area_exit))(stack, size, code);
  __builtin_unreachable();
}

u64 way_round(u64 next, Child child) {
  std::size_t bucket = hash(next, child);
  // Ways are only added, so what is found without the lock is right.
  for (int locked = 0;; ++locked) {
    for (;; bucket = (bucket + 1) % kBuckets) {
      const unsigned found = g_bucket_of[bucket].load(std::memory_order_acquire);
      if (!found) break;
      if (g_made[found - 1].next == next && g_made[found - 1].child == child)
        return locked                                     ? g_lock.unlock(),
               reinterpret_cast<u64>(place_of(found - 1)) : reinterpret_cast<u64>(place_of(found - 1));
    }
    if (locked) break;
    g_lock.lock();
  }
  if (g_ways == kWays) return g_lock.unlock(), 0;
  const std::size_t way = g_ways++;
  write_way(place_of(way), next, child);
  g_made[way] = {next, child};
  g_bucket_of[bucket].store(static_cast<u16>(way + 1), std::memory_order_release);
  g_lock.unlock();
  return reinterpret_cast<u64>(place_of(way));
}

}  // namespace anykvm::resident
