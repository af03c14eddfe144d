#pragma once
// What a local APIC tells its vCPU.
// Owner: core::Vcpu implements it and outlives the Lapic. Calls come from ANY thread (also from the vCPU's
// own), with or without locks of the irqchip held: an implementation sets flags and wakes; it never calls
// into the irqchip, never blocks.

#include "base/types.h"

namespace anykvm::irqchip {

class LapicHost {
 public:
  virtual ~LapicHost() = default;

  // An interrupt may have become deliverable: leave guest code or HLT and look (IrqChip::interrupt_ready()).
  // The state that it announces was stored, sequentially consistent, before the call.
  virtual void interrupt_posted() = 0;
  virtual void nmi() = 0;
  virtual void smi() {}
  // A remote read, which no APIC has since the Pentium: KVM's message to a vCPU that halted in a paravirtual
  // lock.
  virtual void unhalt() {}
  // The vCPU thread answers with Lapic::reset(true) and waits for a SIPI (application processor) or starts
  // (BSP).
  virtual void init() = 0;
  virtual void sipi(u8 vector) = 0;  // SDM 3A 8.4.3: start at vector << 12; ignored unless waiting for it
  // EOI of a vector of the client's IOAPIC (split irqchip); on the vCPU's own thread.
  virtual void client_ioapic_eoi(u8 vector) = 0;
  // EOI of any vector; on the vCPU's own thread.
  virtual void interrupt_ended(u8 vector) { (void)vector; }
  // Is LINT0 open to the PIC after reset of the boot processor? (KVM_X86_QUIRK_LINT0_REENABLED)
  virtual bool opens_lint0() { return true; }
  // next_deadline_ns() changed: whoever sleeps until the old one looks again.
  virtual void deadline_changed() = 0;
};

}  // namespace anykvm::irqchip
