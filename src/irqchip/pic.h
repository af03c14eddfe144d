#pragma once
// The two cascaded 8259A interrupt controllers of a PC, with the edge/level registers (ELCR) of the PIIX.
// Owner: IrqChip. Not thread-safe: under IrqChip::m_mutex.

#include <linux/kvm.h>

#include <array>

#include "base/types.h"

namespace anykvm::irqchip {

class Pic {
 public:
  Pic();

  void reset();
  static bool owns_port(u16 port);  // 20, 21, A0, A1, 4D0, 4D1
  u8 read(u16 port);
  void write(u16 port, u8 value);

  // Line `irq` (0-15) at `level`. As KVM_IRQ_LINE_STATUS: -1 masked, 0 merged with one pending, 1 requested.
  int set_line(unsigned irq, bool level);
  bool intr() const { return m_intr; }  // the INTR output
  u8 acknowledge();                     // INTA cycle; the spurious vector (IR7) if the request went away

  // Lines whose service ended (EOI in any form) since the last call, one bit each.
  u16 take_completed();

  kvm_pic_state state(unsigned chip) const { return m_chips[chip]; }
  void set_state(unsigned chip, const kvm_pic_state& state);

 private:
  u8 priority_of(const kvm_pic_state& chip, u8 requests) const;  // 8: none; else distance from the highest
  int pending_irq(unsigned chip) const;                          // -1: none
  void update();
  bool set_chip_line(unsigned chip, unsigned irq, bool level);
  void take_interrupt(unsigned chip, unsigned irq);
  void end_of_interrupt(unsigned chip, unsigned irq);
  void initialise(unsigned chip, u8 icw1);
  void write_command(unsigned chip, u8 value);
  void write_ocw2(unsigned chip, u8 value);
  void write_ocw3(unsigned chip, u8 value);
  void write_data(unsigned chip, u8 value);
  u8 poll(unsigned chip);
  u8 read_chip(unsigned chip, bool data_port);

  std::array<kvm_pic_state, 2> m_chips{};  // master, slave
  bool m_intr = false;
  u16 m_completed = 0;
};

}  // namespace anykvm::irqchip
