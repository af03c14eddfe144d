#pragma once
// The I/O APIC (82093AA, version 11H): 24 pins, redirection table.
// Owner: IrqChip. Not thread-safe: under IrqChip::m_mutex; delivers into the (lock-free) ApicBus while it is
// held.

#include <linux/kvm.h>

#include <array>

#include "base/types.h"
#include "irqchip/apic_bus.h"

namespace anykvm::irqchip {

inline constexpr u64 kIoapicDefaultAddress = 0xfec00000;
inline constexpr u64 kIoapicSize = 0x100;

class Ioapic {
 public:
  explicit Ioapic(ApicBus& bus);

  void reset();
  bool owns_address(Gpa address) const { return address.value - m_state.base_address < kIoapicSize; }
  void mmio_read(u32 offset, void* data, unsigned size);
  void mmio_write(u32 offset, const void* data, unsigned size);

  // Pin at `level`. As KVM_IRQ_LINE_STATUS: -1 nobody took it, 0 merged, else how many took it.
  int set_line(unsigned pin, bool level);
  // A local APIC ended service of `vector`: Remote IRR falls. Returns the pins concerned, one bit each; those
  // still high are sent again by resend().
  u32 eoi(u8 vector, bool level);
  void resend(u32 pins);
  // Vectors in the table at present, 256 bits.
  std::array<u32, 8> vectors() const;

  u32 unmasked_pins() const;
  u64 base_address() const { return m_state.base_address; }

  kvm_ioapic_state state() const;
  void set_state(const kvm_ioapic_state& state);

 private:
  int send(unsigned pin);
  u32 read_indirect() const;
  void write_indirect(u32 value);
  void write_redirection(unsigned pin, bool high, u32 value);

  ApicBus& m_bus;
  kvm_ioapic_state m_state{};  // irr: line levels as last set
};

}  // namespace anykvm::irqchip
