#pragma once
// Fakes for the tests of this folder: a clock that stands still until told, a vCPU that counts what it is
// told, a small VM. Owner: each test. Counters are atomics, since some tests deliver from another thread.

#include <atomic>
#include <memory>
#include <vector>

#include "irqchip/irqchip.h"

namespace anykvm::irqchip::testing {

class FakeClock final : public Clock {
 public:
  u64 now_ns() override { return ns; }
  u64 guest_tsc() override { return ns * 2; }  // 2 GHz
  u64 guest_tsc_to_ns(u64 tsc) override { return (tsc + 1) / 2; }

  u64 ns = 1'000'000'000;
};

class FakeHost final : public LapicHost {
 public:
  void interrupt_posted() override { posted++; }
  void nmi() override { nmis++; }
  void smi() override { smis++; }
  void init() override { inits++; }
  void sipi(u8 vector) override {
    sipis++;
    sipi_vector = vector;
  }
  void client_ioapic_eoi(u8 vector) override { client_eois.push_back(vector); }
  void deadline_changed() override { deadline_changes++; }

  std::atomic<int> posted{0}, nmis{0}, smis{0}, inits{0}, sipis{0}, sipi_vector{-1}, deadline_changes{0};
  std::vector<int> client_eois;
};

// A LAPIC with its host, software-enabled unless told otherwise.
struct TestCpu {
  TestCpu(ApicBus& bus, Clock& clock, u32 id, bool enabled = true) : lapic(bus, clock, host, id, id == 0) {
    if (enabled) write(kApicSvr, 0x1ff);
    host.posted = 0;
  }

  u32 read(u32 offset) {
    u32 value = 0;
    lapic.mmio_read(offset, &value, 4);
    return value;
  }
  void write(u32 offset, u32 value) { lapic.mmio_write(offset, &value, 4); }
  void enter_x2apic() { lapic.set_apic_base(lapic.apic_base() | kApicBaseX2Apic, false); }
  // The vector that would be taken next, or -1.
  int pending() const { return lapic.pending_vector() ? *lapic.pending_vector() : -1; }
  int take() {
    auto vector = lapic.acknowledge();
    return vector ? *vector : -1;
  }
  // KVM_SIGNAL_MSI's bit in IRR.
  bool requested(u8 vector) { return read(kApicIrr + (vector >> 5) * 0x10) >> (vector & 31) & 1; }
  void logical_id(u32 ldr, u32 dfr) {
    write(kApicLdr, ldr << 24);
    write(kApicDfr, dfr);
  }

  FakeHost host;
  Lapic lapic;
};

// An IrqChip with `count` enabled LAPICs on it.
struct TestVm {
  explicit TestVm(unsigned count, IrqChip::Kind kind = IrqChip::Kind::kFull, u32 reserved_pins = 0)
      : chip(kind, reserved_pins) {
    for (unsigned id = 0; id < count; id++) {
      cpus.push_back(std::make_unique<TestCpu>(chip.bus(), clock, id));
      chip.add_lapic(cpus.back()->lapic);
    }
  }

  TestCpu& cpu(unsigned index) { return *cpus[index]; }
  int take(unsigned index = 0) {
    auto vector = chip.acknowledge(cpu(index).lapic);
    return vector ? *vector : -1;
  }
  void out(u16 port, u8 value) { chip.pio_write(port, &value, 1); }
  u8 in(u16 port) {
    u8 value = 0;
    chip.pio_read(port, &value, 1);
    return value;
  }
  void ioapic_write(u32 index, u32 value) {
    chip.mmio_write(cpu(0).lapic, Gpa{kIoapicDefaultAddress}, &index, 4);
    chip.mmio_write(cpu(0).lapic, Gpa{kIoapicDefaultAddress + 0x10}, &value, 4);
  }
  u32 ioapic_read(u32 index) {
    u32 value = 0;
    chip.mmio_write(cpu(0).lapic, Gpa{kIoapicDefaultAddress}, &index, 4);
    chip.mmio_read(cpu(0).lapic, Gpa{kIoapicDefaultAddress + 0x10}, &value, 4);
    return value;
  }
  void redirect(unsigned pin, u32 low, u32 destination = 0) {
    ioapic_write(0x11 + 2 * pin, destination << 24);
    ioapic_write(0x10 + 2 * pin, low);
  }
  // The usual PC set-up: vectors 20H and 28H, all lines open.
  void init_pics(u8 icw4 = 1) {
    out(0x20, 0x11), out(0x21, 0x20), out(0x21, 4), out(0x21, icw4), out(0x21, 0);
    out(0xa0, 0x11), out(0xa1, 0x28), out(0xa1, 2), out(0xa1, icw4), out(0xa1, 0);
  }

  FakeClock clock;
  IrqChip chip;
  std::vector<std::unique_ptr<TestCpu>> cpus;
};

}  // namespace anykvm::irqchip::testing
