#include "irqchip/pic.h"

#include "base/bits.h"

namespace anykvm::irqchip {

namespace {

constexpr unsigned kMaster = 0, kSlave = 1;
constexpr unsigned kCascadeIrq = 2;
constexpr unsigned kSpuriousIrq = 7;
constexpr u8 kNoPriority = 8;
// IRQ 0, 1, 2, 8 and 13 belong to chips on the board and are always edge-triggered (PIIX4 ELCR1, ELCR2).
constexpr u8 kElcrMasks[2] = {0xf8, 0xde};

constexpr u8 mask_of(unsigned irq) { return static_cast<u8>(1u << irq); }
constexpr unsigned chip_of_port(u16 port) { return port & 0x80 ? kSlave : kMaster; }

}  // namespace

Pic::Pic() { reset(); }

void Pic::reset() {
  m_chips = {};
  for (unsigned chip : {kMaster, kSlave}) m_chips[chip].elcr_mask = kElcrMasks[chip];
  m_completed = 0;
  update();
}

bool Pic::owns_port(u16 port) { return (port & ~0x81) == 0x20 || (port & ~1) == 0x4d0; }

// --- priorities ---

u8 Pic::priority_of(const kvm_pic_state& chip, u8 requests) const {
  for (u8 distance = 0; distance < kNoPriority; distance++)
    if (requests & mask_of((chip.priority_add + distance) & 7)) return distance;
  return kNoPriority;
}

// The request that gets through: above everything in service, as far as the modes let service count.
int Pic::pending_irq(unsigned index) const {
  const kvm_pic_state& chip = m_chips[index];
  u8 requested = priority_of(chip, chip.irr & ~chip.imr);
  if (requested == kNoPriority) return -1;
  u8 in_service = chip.isr;
  if (chip.special_mask) in_service &= ~chip.imr;
  // Special fully nested mode: service of one slave line does not hold back a higher one of the same slave.
  if (index == kMaster && chip.special_fully_nested_mode) in_service &= ~mask_of(kCascadeIrq);
  if (requested >= priority_of(chip, in_service)) return -1;
  return (requested + chip.priority_add) & 7;
}

// The slave's INT output is wired to the master's IR2. Following its level, rather than its edges, loses no
// request when the slave has another one right after an acknowledge.
void Pic::update() {
  if (pending_irq(kSlave) >= 0)
    m_chips[kMaster].irr |= mask_of(kCascadeIrq);
  else
    m_chips[kMaster].irr &= ~mask_of(kCascadeIrq);
  m_intr = pending_irq(kMaster) >= 0;
}

// --- lines ---

int Pic::set_line(unsigned irq, bool level) {
  if (irq == kCascadeIrq) return -1;  // not a line of the PC: the slave is there
  unsigned index = irq >> 3;
  bool raised = set_chip_line(index, irq & 7, level);
  bool masked = m_chips[index].imr & mask_of(irq & 7);
  update();
  if (masked) return -1;
  return level && !raised ? 0 : 1;
}

// Did it become a new request?
bool Pic::set_chip_line(unsigned index, unsigned irq, bool level) {
  kvm_pic_state& chip = m_chips[index];
  u8 mask = mask_of(irq);
  bool was_high = chip.last_irr & mask, was_requested = chip.irr & mask;
  chip.last_irr = level ? chip.last_irr | mask : chip.last_irr & ~mask;
  if (chip.elcr & mask)
    chip.irr = level ? chip.irr | mask : chip.irr & ~mask;
  else if (level && !was_high)
    chip.irr |= mask;
  return (chip.irr & mask) && !was_requested;
}

u8 Pic::acknowledge() {
  int irq = pending_irq(kMaster);
  u8 vector = m_chips[kMaster].irq_base;
  if (irq < 0) {
    vector += kSpuriousIrq;
  } else if (irq == kCascadeIrq) {
    int slave_irq = pending_irq(kSlave);
    take_interrupt(kMaster, kCascadeIrq);
    if (slave_irq >= 0) take_interrupt(kSlave, slave_irq);
    vector = m_chips[kSlave].irq_base + (slave_irq >= 0 ? slave_irq : kSpuriousIrq);
  } else {
    take_interrupt(kMaster, irq);
    vector += irq;
  }
  update();
  return vector;
}

void Pic::take_interrupt(unsigned index, unsigned irq) {
  kvm_pic_state& chip = m_chips[index];
  chip.isr |= mask_of(irq);
  if (!(chip.elcr & mask_of(irq))) chip.irr &= ~mask_of(irq);
  if (!chip.auto_eoi) return;
  if (chip.rotate_on_auto_eoi) chip.priority_add = (irq + 1) & 7;
  end_of_interrupt(index, irq);
}

void Pic::end_of_interrupt(unsigned index, unsigned irq) {
  m_chips[index].isr &= ~mask_of(irq);
  m_completed |= static_cast<u16>(1u << (index * 8 + irq));
}

u16 Pic::take_completed() {
  u16 completed = m_completed;
  m_completed = 0;
  return completed;
}

// --- ports (8259A data sheet: initialization and operation command words) ---

void Pic::write(u16 port, u8 value) {
  if ((port & ~1) == 0x4d0)
    m_chips[port & 1].elcr = value & m_chips[port & 1].elcr_mask;
  else if (port & 1)
    write_data(chip_of_port(port), value);
  else
    write_command(chip_of_port(port), value);
  update();
}

void Pic::write_command(unsigned index, u8 value) {
  if (value & 0x10)
    initialise(index, value);
  else if (value & 0x08)
    write_ocw3(index, value);
  else
    write_ocw2(index, value);
}

// ICW1. Lines keep their level: an edge that came before the initialization is forgotten and must come again.
void Pic::initialise(unsigned index, u8 icw1) {
  kvm_pic_state& chip = m_chips[index];
  chip.irr &= chip.elcr;
  chip.imr = chip.isr = 0;
  chip.priority_add = 0;
  chip.read_reg_select = chip.poll = 0;
  chip.special_mask = chip.rotate_on_auto_eoi = 0;
  chip.special_fully_nested_mode = chip.auto_eoi = 0;
  chip.init4 = icw1 & 1;
  chip.init_state = 1;
}

void Pic::write_data(unsigned index, u8 value) {
  kvm_pic_state& chip = m_chips[index];
  switch (chip.init_state) {
    case 0:  // OCW1
      chip.imr = value;
      return;
    case 1:  // ICW2
      chip.irq_base = value & 0xf8;
      chip.init_state = 2;
      return;
    case 2:  // ICW3: the cascade is wired, whatever it says
      chip.init_state = chip.init4 ? 3 : 0;
      return;
    default:  // ICW4
      chip.special_fully_nested_mode = has_bit(value, 4);
      chip.auto_eoi = has_bit(value, 1);
      chip.init_state = 0;
  }
}

void Pic::write_ocw3(unsigned index, u8 value) {
  kvm_pic_state& chip = m_chips[index];
  if (has_bit(value, 2)) chip.poll = 1;
  if (has_bit(value, 1)) chip.read_reg_select = value & 1;
  if (has_bit(value, 6)) chip.special_mask = has_bit(value, 5);
}

void Pic::write_ocw2(unsigned index, u8 value) {
  kvm_pic_state& chip = m_chips[index];
  bool rotate = has_bit(value, 7), specific = has_bit(value, 6), eoi = has_bit(value, 5);
  unsigned irq = value & 7;
  if (!eoi && !specific) {
    chip.rotate_on_auto_eoi = rotate;
    return;
  }
  if (!eoi && !rotate) return;  // no operation
  if (eoi && !specific) {
    // In special mask mode, service of masked lines is not what an unspecific EOI means.
    u8 in_service = chip.special_mask ? chip.isr & ~chip.imr : chip.isr;
    u8 priority = priority_of(chip, in_service);
    if (priority == kNoPriority) return;
    irq = (priority + chip.priority_add) & 7;
  }
  if (eoi) end_of_interrupt(index, irq);
  if (rotate) chip.priority_add = (irq + 1) & 7;
}

u8 Pic::read(u16 port) {
  if ((port & ~1) == 0x4d0) return m_chips[port & 1].elcr;
  return read_chip(chip_of_port(port), port & 1);
}

u8 Pic::read_chip(unsigned index, bool data_port) {
  kvm_pic_state& chip = m_chips[index];
  if (chip.poll) {
    chip.poll = 0;
    return poll(index);
  }
  if (data_port) return chip.imr;
  return chip.read_reg_select ? chip.isr : chip.irr;
}

// A read after the poll command is the acknowledge cycle.
u8 Pic::poll(unsigned index) {
  int irq = pending_irq(index);
  if (irq < 0) return 0;
  take_interrupt(index, irq);
  update();
  return static_cast<u8>(0x80 | irq);
}

void Pic::set_state(unsigned index, const kvm_pic_state& state) {
  kvm_pic_state& chip = m_chips[index];
  chip = state;
  chip.priority_add &= 7;
  update();
}

}  // namespace anykvm::irqchip
