#include "x86/sys/kvmclock.h"

#include <time.h>
#include <x86intrin.h>

#include <atomic>

#include "x86/mmu/access.h"

namespace anykvm::x86 {
namespace {

// Linux has it in arch/x86/include/asm/pvclock-abi.h, which is not exported.
struct WallClock {
  u32 version;
  u32 seconds;
  u32 nanoseconds;
};
static_assert(sizeof(WallClock) == 12);

constexpr u64 kSystemTimeEnable = bit(0);
constexpr u8 kTscStable = 1, kGuestStopped = 2;
constexpr u64 kNanosecondsPerSecond = 1'000'000'000;

// Writes `value` so that a guest on another CPU never takes a mixture: version odd, the rest, version even.
template <class T>
void publish(Cpu& cpu, Gpa address, T value) {
  u32 odd = (value.version + 1) | 1;
  if (!write_physical(cpu, address, &odd, sizeof odd)) return;
  std::atomic_thread_fence(std::memory_order_release);
  const u8* rest = reinterpret_cast<const u8*>(&value) + sizeof odd;
  write_physical(cpu, address + sizeof odd, rest, sizeof value - sizeof odd);
  std::atomic_thread_fence(std::memory_order_release);
  u32 even = odd + 1;
  write_physical(cpu, address, &even, sizeof even);
}

}  // namespace

PvclockScale pvclock_scale(u32 tsc_khz) {
  unsigned __int128 hertz = u64{tsc_khz} * 1000;
  if (hertz == 0) return {};
  // The smallest shift whose multiplier still fits loses the fewest bits.
  for (int shift = -31; shift < 32; ++shift) {
    unsigned __int128 mul = (static_cast<unsigned __int128>(kNanosecondsPerSecond) << (32 - shift)) / hertz;
    if (mul >> 32 == 0) return {static_cast<u32>(mul), static_cast<i8>(shift)};
  }
  return {};
}

PvclockRecord pvclock_record(Cpu& cpu) {
  const CpuState& state = cpu.state();
  PvclockRecord record{};
  u64 host_tsc = __rdtsc();
  PvclockScale scale = pvclock_scale(cpu.platform().tsc_khz());
  u64 scaled_tsc = static_cast<u64>((static_cast<unsigned __int128>(host_tsc) * state.tsc_ratio) >> 32);
  record.tsc_timestamp = scaled_tsc + state.tsc_offset;
  record.system_time = cpu.platform().kvmclock_ns(host_tsc);
  record.tsc_to_system_mul = scale.mul;
  record.tsc_shift = scale.shift;
  // With the stable flag guests use one CPU's record on all. A guest that moved this CPU's TSC must not.
  record.flags = state.msrs.tsc_adjust == 0 ? kTscStable : 0;
  return record;
}

void refresh_kvmclock(Cpu& cpu) {
  const CpuState& state = cpu.state();
  if (!(state.msrs.kvm_system_time & kSystemTimeEnable)) return;
  Gpa address(state.msrs.kvm_system_time & ~kSystemTimeEnable);
  PvclockRecord before{};
  if (!read_physical(cpu, address, &before, sizeof before)) return;
  PvclockRecord record = pvclock_record(cpu);
  record.version = before.version;
  record.flags = static_cast<u8>(record.flags | (before.flags & kGuestStopped));
  publish(cpu, address, record);
}

bool mark_guest_stopped(Cpu& cpu) {
  const u64 system_time = cpu.state().msrs.kvm_system_time;
  Gpa address(system_time & ~kSystemTimeEnable);
  PvclockRecord record{};
  if (!(system_time & kSystemTimeEnable) || !read_physical(cpu, address, &record, sizeof record))
    return false;
  record.flags |= kGuestStopped;
  publish(cpu, address, record);
  return true;
}

void write_kvm_wall_clock(Cpu& cpu, Gpa address) {
  // 0 is the register's reset value, which a client writes when it resets the CPU (as in KVM).
  if (address == Gpa(0)) return;
  WallClock clock{};
  if (!read_physical(cpu, address, &clock, sizeof clock)) return;
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  u64 realtime = static_cast<u64>(now.tv_sec) * kNanosecondsPerSecond + static_cast<u64>(now.tv_nsec);
  u64 boot = realtime - cpu.platform().kvmclock_ns(__rdtsc());
  clock.seconds = static_cast<u32>(boot / kNanosecondsPerSecond);
  clock.nanoseconds = static_cast<u32>(boot % kNanosecondsPerSecond);
  publish(cpu, address, clock);
}

}  // namespace anykvm::x86
