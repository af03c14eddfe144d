// No interrupt gets lost between threads: senders and a vCPU that sleeps whenever nothing is ready.
#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "irqchip/test_support.h"

namespace anykvm::irqchip {
namespace {

// Sleeps as a halted vCPU does; the only thing that wakes it is interrupt_posted().
class SleepingHost final : public LapicHost {
 public:
  void interrupt_posted() override {
    std::lock_guard lock(m_mutex);
    m_posted = true;
    m_wake.notify_one();
  }
  void nmi() override {}
  void init() override {}
  void sipi(u8) override {}
  void deadline_changed() override {}
  void client_ioapic_eoi(u8) override {}

  // False: nothing came within ten seconds, so a wake-up was lost.
  bool wait() {
    std::unique_lock lock(m_mutex);
    bool woken = m_wake.wait_for(lock, std::chrono::seconds(10), [&] { return m_posted; });
    m_posted = false;
    return woken;
  }

 private:
  std::mutex m_mutex;
  std::condition_variable m_wake;
  bool m_posted = false;
};

struct ThreadCpu {
  ThreadCpu(IrqChip& chip, Clock& clock, u32 id) : m_chip(chip), lapic(chip.bus(), clock, host, id, id == 0) {
    u32 svr = 0x1ff;
    lapic.mmio_write(kApicSvr, &svr, 4);
    chip.add_lapic(lapic);
  }
  // The next vector, after sleeping for it if need be; -1: it never came.
  int next() {
    while (true) {
      if (std::optional<u8> vector = m_chip.acknowledge(lapic)) return *vector;
      if (!host.wait()) return -1;
    }
  }
  void eoi() { lapic.eoi(); }
  void send(u32 destination, u8 vector) {
    u32 high = destination << 24, low = 0x4000u | vector;
    lapic.mmio_write(kApicIcr2, &high, 4);
    lapic.mmio_write(kApicIcr, &low, 4);
  }

  SleepingHost host;
  IrqChip& m_chip;
  Lapic lapic;
};

struct IpiThreads : ::testing::Test {
  testing::FakeClock clock;
  IrqChip chip;
};

// Each side sends only after it got the other's: one lost interrupt stops the game.
TEST_F(IpiThreads, ping_pong_between_two_cpus_never_stops) {
  constexpr int kRounds = 20'000;
  ThreadCpu a(chip, clock, 0), b(chip, clock, 1);
  auto play = [](ThreadCpu& self, u32 other, int* rounds) {
    while (*rounds < kRounds && self.next() == 0x80) {
      self.eoi();
      self.send(other, 0x80);
      ++*rounds;
    }
  };
  int rounds_a = 0, rounds_b = 0;
  a.send(1, 0x80);
  std::thread other([&] { play(b, 0, &rounds_b); });
  play(a, 1, &rounds_a);
  other.join();
  EXPECT_EQ(rounds_a, kRounds);
  EXPECT_EQ(rounds_b, kRounds);
}

// Two threads, two vectors, each waiting for its own to be served: every request is a delivery of its own.
TEST_F(IpiThreads, two_senders_to_one_cpu_are_both_served_every_time) {
  constexpr int kEach = 10'000;
  ThreadCpu cpu(chip, clock, 0);
  std::atomic<int> served[2] = {0, 0};
  auto sender = [&](int which) {
    for (int i = 0; i < kEach; i++) {
      kvm_msi msi{};
      msi.address_lo = 0xfee00000;
      msi.data = which ? 0x91 : 0x41;
      (void)chip.signal_msi(msi);
      while (served[which] == i) std::this_thread::yield();
    }
  };
  std::thread first(sender, 0), second(sender, 1);
  int total = 0;
  for (int vector; total < 2 * kEach && (vector = cpu.next()) >= 0; total++) {
    cpu.eoi();
    served[vector == 0x91]++;
  }
  EXPECT_EQ(total, 2 * kEach);
  served[0] = served[1] = kEach + 1;  // lets the senders go if something was lost
  first.join();
  second.join();
}

// A level line raised by one thread and lowered by the handler: the chip's lock and the LAPIC's lock-free
// part together.
TEST_F(IpiThreads, level_line_raised_by_a_device_thread_is_served_every_time) {
  constexpr int kTimes = 10'000;
  ThreadCpu cpu(chip, clock, 0);
  u32 index = 0x10 + 2 * 20, entry = 1u << 15 | 0x51;
  chip.mmio_write(cpu.lapic, Gpa{kIoapicDefaultAddress}, &index, 4);
  chip.mmio_write(cpu.lapic, Gpa{kIoapicDefaultAddress + 0x10}, &entry, 4);
  std::atomic<int> served{0};
  std::thread device([&] {
    for (int i = 0; i < kTimes; i++) {
      chip.set_irq_line(20, true);
      while (served == i) std::this_thread::yield();
    }
  });
  int total = 0;
  while (total < kTimes && cpu.next() == 0x51) {
    chip.set_irq_line(20, false);
    cpu.eoi();
    served = ++total;
  }
  EXPECT_EQ(total, kTimes);
  served = kTimes + 1;
  device.join();
}

}  // namespace
}  // namespace anykvm::irqchip
