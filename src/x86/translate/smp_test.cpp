// What can go wrong only between CPUs, or between a CPU and an interrupt that waits for it.
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "x86/translate/guest_fixture.h"

namespace anykvm::x86 {
namespace {

// A second CPU of the same machine, in the state that the first one has now.
std::unique_ptr<Cpu> another_cpu(Guest64& guest) {
  auto cpu = std::make_unique<Cpu>(*guest.machine, guest.platform);
  cpu->model().set_entries(supported_cpuid());
  cpu->state() = guest.state();
  cpu->state_replaced();
  return cpu;
}

Exit run_at(Cpu& cpu, u64 rip) {
  cpu.state().rip = rip;
  cpu.state_replaced();
  return cpu.run();
}

// Linux's start-up code for secondary CPUs takes a lock that lies in the page of the code itself, in real
// mode. Where segments have a base, every access takes the slow path, as it does in a page with code.
TEST(SmpTest, locked_update_by_the_slow_path_is_atomic) {
  constexpr u32 kRounds = 100000;
  Guest64 guest;
  guest.code({0xf0, 0xff, 0x03,  // lock inc dword [ebx]
              0x49,              // dec ecx
              0x75, 0xfa,        // jnz to the start
              0xf4});
  guest.state().segments[kCs].l = 0;
  guest.state().segments[kCs].db = 1;
  guest.state().segments[kDs].base = Guest64::kData;
  guest.state().gpr[kRbx] = 0x40;
  guest.state().gpr[kRcx] = kRounds;
  auto other = another_cpu(guest);
  std::thread thread([&] { run_at(*other, Guest64::kCode); });
  guest.run();
  thread.join();
  EXPECT_EQ(guest.read<u32>(Guest64::kData + 0x40), 2 * kRounds);
}

// Nothing else may come between the read and the write of a LOCKed instruction whose operand lies in two
// pages, not even the plain stores of another CPU to one of them.
TEST(SmpTest, locked_update_across_pages_is_atomic) {
  constexpr u32 kRounds = 2000;
  constexpr u64 kSplit = Guest64::kData + kPageSize - 2;
  Guest64 guest;
  guest.code({0xf0, 0xff, 0x03,  // lock inc dword [rbx]
              0xff, 0xc9,        // dec ecx
              0x75, 0xf9,        // jnz to the start
              0xf4});
  guest.state().gpr[kRbx] = kSplit;
  guest.state().gpr[kRcx] = kRounds;
  auto other = another_cpu(guest);
  std::thread thread([&] { run_at(*other, Guest64::kCode); });
  guest.run();
  thread.join();
  EXPECT_EQ(guest.read<u32>(kSplit), 2 * kRounds);
}

TEST(SmpTest, locked_bit_operation_across_pages_is_atomic) {
  constexpr u32 kRounds = 1000, kAddend = 0x4004;  // its sum reaches into the second page
  constexpr u64 kSplit = Guest64::kData + kPageSize - 2, kStep = 0x100;
  Guest64 guest;
  // Each CPU complements its own bit; what comes out depends on no other.
  guest.code({0xf0, 0x0f, 0xbb, 0x13,  // lock btc [rbx], edx
              0xff, 0xc9,              // dec ecx
              0x75, 0xf8,              // jnz to the start
              0xf4});
  guest.code({0xf0, 0x01, 0x03,  // lock add [rbx], eax
              0xff, 0xc9,        // dec ecx
              0x75, 0xf9,        // jnz to the start
              0xf4},
             Guest64::kCode + kStep);
  guest.state().gpr[kRbx] = kSplit;
  guest.state().gpr[kRcx] = kRounds;
  guest.state().gpr[kRdx] = 0;
  guest.state().gpr[kRax] = kAddend;
  auto other = another_cpu(guest);
  std::thread thread([&] { run_at(*other, Guest64::kCode + kStep); });
  guest.run();
  thread.join();
  EXPECT_EQ(guest.read<u32>(kSplit), kAddend * kRounds);
}

TEST(SmpTest, write_next_to_code_is_known_to_the_cpu_that_translates_there_later) {
  constexpr u64 kNearby = Guest64::kCode + 0x800, kSecond = Guest64::kCode + 0x100, kWriter = 0x20000;
  Guest64 guest;
  guest.code({0xf4});
  guest.code({0xf4}, kSecond);
  guest.code({0x89, 0x03, 0xf4}, kWriter);  // mov [rbx], eax
  guest.state().gpr[kRbx] = kNearby;
  auto other = another_cpu(guest);
  guest.run();
  run_at(*other, kWriter);
  const PageMeta& page = guest.machine->memory().find(Gpa(kNearby))->meta(Gpa(kNearby));
  ASSERT_EQ(page.writer.load(), other->number());
  guest.run(kSecond);
  EXPECT_EQ(page.writer.load(), 0);
  EXPECT_EQ(page.has_code.load(), 1);
}

// Two changes of the memory layout, one right behind the other: a CPU that steps aside for the first must not
// take the request of the second for done. Each pair ends with the other host page at the same guest address.
TEST(SmpTest, layout_that_changes_twice_at_once_is_seen) {
  constexpr u64 kWindow = Guest64::kRam, kSeen = Guest64::kData, kStop = Guest64::kData + 0x1000;
  constexpr u32 kRounds = 200;
  Guest64 guest;
  guest.code({0x8b, 0x03,        // mov eax, [rbx]
              0x89, 0x06,        // mov [rsi], eax
              0x83, 0x3f, 0x00,  // cmp dword [rdi], 0
              0x74, 0xf7,        // je to the start
              0xf4});
  guest.state().gpr[kRbx] = kWindow;
  guest.state().gpr[kRsi] = kSeen;
  guest.state().gpr[kRdi] = kStop;
  alignas(4096) static u8 pages[2][kPageSize];
  pages[0][0] = 1, pages[1][0] = 2;
  auto show = [&](unsigned which) {
    MemorySlot ram, window;
    ram.size = Guest64::kRam, ram.host = guest.ram;
    window.id = 1, window.base = Gpa(kWindow), window.size = kPageSize, window.host = pages[which];
    guest.machine->set_slots({ram, window});
  };
  show(0);
  std::thread thread([&] { guest.run(); });
  auto* seen = reinterpret_cast<u32*>(guest.ram + kSeen);
  auto sees = [&](u32 value) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (__atomic_load_n(seen, __ATOMIC_ACQUIRE) != value)
      if (std::chrono::steady_clock::now() > end) return false;
    return true;
  };
  bool right = true;
  for (u32 i = 0; i < kRounds && right; ++i) {
    show(i % 2);
    show(1 - i % 2);
    right = sees(2 - i % 2);
  }
  EXPECT_TRUE(right);
  __atomic_store_n(reinterpret_cast<u32*>(guest.ram + kStop), 1, __ATOMIC_RELEASE);
  thread.join();
}

template <class Condition>
bool comes_true(Condition condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!condition())
    if (std::chrono::steady_clock::now() > end) return false;
  return true;
}

// User code, whose accesses have slots that are filled by then; once alone, once behind a leader that reads.
class DirtyLogUnderALoop : public testing::TestWithParam<std::vector<u8>> {};

TEST_P(DirtyLogUnderALoop, sees_its_writes) {
  Guest64 guest;
  for (auto& segment : guest.state().segments) segment.dpl = 3, segment.selector |= 3;
  guest.state().cpl = 3;
  guest.state().gpr[kRbx] = Guest64::kData;
  guest.code(GetParam());
  std::thread thread([&] { guest.run(); });
  auto* counter = reinterpret_cast<u64*>(guest.ram + Guest64::kData + 8);
  auto count = [&] { return __atomic_load_n(counter, __ATOMIC_ACQUIRE); };
  EXPECT_TRUE(comes_true([&] { return count() > 100'000; }));
  MemorySlot logged;
  logged.size = Guest64::kRam, logged.host = guest.ram;
  logged.dirty_bitmap = std::make_shared<std::vector<std::atomic<u64>>>(Guest64::kRam / kPageSize / 64);
  constexpr u64 kPage = Guest64::kData / kPageSize;
  auto logs = [&] { return has_bit((*logged.dirty_bitmap)[kPage / 64].load(), kPage % 64); };
  for (unsigned i = 0; i < 3; ++i) {
    guest.machine->set_slots({logged});
    EXPECT_TRUE(comes_true(logs)) << i;
    guest.machine->stop_the_world([&] { (*logged.dirty_bitmap)[kPage / 64] = 0; });
  }
  EXPECT_TRUE(comes_true(logs));
  guest.cpu->request(kAttentionKick);
  thread.join();
}

INSTANTIATE_TEST_SUITE_P(Loops, DirtyLogUnderALoop,
                         testing::Values(std::vector<u8>{0x48, 0xff, 0x43, 0x08,  // inc qword [rbx+8]
                                                         0xeb, 0xfa},             // jmp inc
                                         std::vector<u8>{0x48, 0x8b, 0x03,        // mov rax, [rbx]
                                                         0x48, 0xff, 0xc1,        // inc rcx
                                                         0x48, 0x89, 0x4b, 0x08,  // mov [rbx+8], rcx
                                                         0xeb, 0xf4}));           // jmp mov

class ReadyPlatform : public QuietPlatform {
 public:
  bool interrupt_ready() override { return ready; }
  std::optional<u8> acknowledge_interrupt() override {
    ready = false;
    return 0x20;
  }
  bool ready = false;
};

// STI holds interrupts back for one instruction. What follows may be a loop that never leaves translated
// code.
TEST(SmpTest, interrupt_held_back_by_sti_comes_after_one_instruction) {
  constexpr u64 kGdt = 0x8000, kIdt = 0x9000, kHandler = 0xf000;
  Guest64 guest;
  ReadyPlatform platform;
  Cpu cpu(*guest.machine, platform);
  cpu.model().set_entries(supported_cpuid());
  cpu.state() = guest.state();
  guest.write<u64>(kGdt + 8, 0x00af9b000000ffff);
  guest.write<u64>(kIdt + 16 * 0x20, kHandler | u64{8} << 16 | u64{0x8e00} << 32);
  cpu.state().gdtr.base = kGdt, cpu.state().gdtr.limit = 0xff;
  cpu.state().idtr.base = kIdt, cpu.state().idtr.limit = 0xfff;
  guest.code({0xfb,        // sti
              0x90,        // nop
              0xff, 0xc9,  // dec ecx
              0x75, 0xfc,  // jnz to dec ecx
              0xf4});
  guest.code({0x89, 0xc8, 0xf4}, kHandler);  // mov eax, ecx
  // Once without an interrupt, so that the blocks are linked.
  cpu.state().gpr[kRcx] = 1000;
  run_at(cpu, Guest64::kCode);
  ASSERT_EQ(cpu.state().gpr[kRcx], 0u);

  cpu.state().rflags &= ~u64{kFlagIf};
  cpu.state().mp_state = MpState::kRunnable;
  cpu.state().gpr[kRcx] = 1000;
  cpu.state().gpr[kRax] = 0;
  platform.ready = true;
  run_at(cpu, Guest64::kCode);
  EXPECT_EQ(cpu.state().gpr[kRax], 1000u);
}

}  // namespace
}  // namespace anykvm::x86
