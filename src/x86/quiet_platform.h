#pragma once
// For tests: a machine around the CPU in which nothing answers and no interrupt comes. Tests override what
// they are about. Owner: the test; one thread.

#include "x86/platform.h"

namespace anykvm::x86 {

class QuietPlatform : public Platform {
 public:
  bool pio_read(u16, void*, unsigned) override { return false; }
  bool pio_write(u16, const void*, unsigned) override { return false; }
  bool mmio_read(Gpa, void*, unsigned) override { return false; }
  bool mmio_write(Gpa, const void*, unsigned) override { return false; }
  bool interrupt_ready() override { return false; }
  std::optional<u8> acknowledge_interrupt() override { return {}; }
  u8 cr8() override { return 0; }
  void set_cr8(u8) override {}
  bool apic_msr_read(u32, u64*) override { return false; }
  bool apic_msr_write(u32, u64) override { return false; }
  u32 apic_id() override { return 0; }
  u64 kvmclock_ns(u64) override { return 0; }
  u32 tsc_khz() override { return 1000000; }
  bool enforces_pv_features() override { return true; }
  bool async_page_fault_msr_write(u32, u64) override { return true; }
};

}  // namespace anykvm::x86
