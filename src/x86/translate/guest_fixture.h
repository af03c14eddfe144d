#pragma once
// For tests: a guest CPU in 64-bit mode with identity-mapped RAM, running a few bytes of code until HLT.
// Owner: one test.

#include <sys/mman.h>

#include <cstring>
#include <initializer_list>
#include <vector>

#include "x86/cpu.h"
#include "x86/machine.h"
#include "x86/quiet_platform.h"
#include "x86/sys/cpu_model.h"

namespace anykvm::x86 {

class Guest64 {
 public:
  static constexpr u64 kRam = 16u << 20;
  static constexpr u64 kTables = 0x1000;  // PML4, PDPT, PD with 2 MiB pages
  static constexpr u64 kCode = 0x10000;
  static constexpr u64 kData = 0x200000;
  static constexpr u64 kStack = 0x300000;

  Guest64() : Guest64(platform) {}
  explicit Guest64(Platform& platform) {
    ram = static_cast<u8*>(mmap(nullptr, kRam, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    machine = std::move(Machine::create()).value();
    cpu = std::make_unique<Cpu>(*machine, platform);
    MemorySlot slot;
    slot.size = kRam;
    slot.host = ram;
    machine->set_slots({slot});
    cpu->model().set_entries(supported_cpuid());
    enter_long_mode();
  }
  ~Guest64() {
    cpu.reset();
    munmap(ram, kRam);
  }

  CpuState& state() { return cpu->state(); }

  void code(std::vector<u8> bytes, u64 at = kCode) { std::memcpy(ram + at, bytes.data(), bytes.size()); }

  // Runs from `at`; the code must end in HLT.
  Exit run(u64 at = kCode) {
    state().rip = at;
    cpu->state_replaced();
    return cpu->run();
  }

  template <class T>
  T read(u64 at) const {
    T value;
    std::memcpy(&value, ram + at, sizeof value);
    return value;
  }
  template <class T>
  void write(u64 at, T value) {
    std::memcpy(ram + at, &value, sizeof value);
  }

  QuietPlatform platform;
  std::unique_ptr<Machine> machine;
  std::unique_ptr<Cpu> cpu;
  u8* ram = nullptr;

 private:
  void enter_long_mode() {
    write<u64>(kTables, (kTables + 0x1000) | 7);
    write<u64>(kTables + 0x1000, (kTables + 0x2000) | 7);
    for (u64 i = 0; i < 512; ++i) write<u64>(kTables + 0x2000 + 8 * i, i << 21 | 0x87);
    CpuState& s = state();
    s.cr0 = kCr0Pe | kCr0Pg | kCr0Wp | kCr0Ne | kCr0Et | kCr0Mp;
    s.cr4 = kCr4Pae | kCr4Osfxsr | kCr4Osxmmexcpt | kCr4Osxsave;
    s.cr3 = kTables;
    s.efer = kEferLme | kEferLma | kEferNx | kEferSce;
    s.xcr0 = cpu->model().xcr0_supported();
    Segment flat;
    flat.limit = 0xffffffff;
    flat.present = flat.s = flat.g = 1;
    flat.type = 3;
    flat.selector = 0x10;
    flat.db = 1;
    for (auto& segment : s.segments) segment = flat;
    Segment& cs = s.segments[kCs];
    cs.type = 11, cs.l = 1, cs.db = 0, cs.selector = 8;
    s.gpr[kRsp] = kStack;
    s.rflags = kFlagFixed1;
  }
};

}  // namespace anykvm::x86
