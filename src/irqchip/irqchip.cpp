#include "irqchip/irqchip.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/bits.h"
#include "irqchip/msi.h"

namespace anykvm::irqchip {

namespace {

constexpr u32 kPitGsi = 0;
constexpr unsigned kPinsOfPic = 8;

kvm_irq_routing_msi as_route(const kvm_msi& msi) { return {msi.address_lo, msi.address_hi, msi.data, {0}}; }

}  // namespace

IrqChip::IrqChip(Kind kind, u32 reserved_pins)
    : m_kind(kind), m_reserved_pins(reserved_pins), m_ioapic(m_bus) {
  std::vector<kvm_irq_routing_entry> routes;
  if (kind == Kind::kFull) routes = default_routing();
  m_routing = RoutingTable::create(routes, full_irqchip(), false).value();
  m_bus.set_eoi_listener(this);
  std::lock_guard lock(m_mutex);
  if (kind == Kind::kFull) ioapic_changed();
}

IrqChip::~IrqChip() { m_bus.set_eoi_listener(nullptr); }

void IrqChip::set_x2apic_api(bool ids_32bit, bool disable_broadcast_quirk) {
  if (ids_32bit) m_ids_32bit.store(true);
  if (disable_broadcast_quirk) m_bus.disable_broadcast_quirk();
}

Result<> IrqChip::create_pit(Clock& clock, bool speaker, std::function<void()> deadline_changed) {
  std::lock_guard lock(m_mutex);
  if (m_pit_storage) return Error{EEXIST, "there is a PIT already"};
  if (m_kind != Kind::kFull) return Error{ENOENT, "a PIT needs the PIC and the IOAPIC"};
  Pit::Callbacks callbacks{[this] { return pulse_irq0(); }, std::move(deadline_changed)};
  m_pit_storage = std::make_unique<Pit>(clock, std::move(callbacks), speaker);
  m_pit.store(m_pit_storage.get(), std::memory_order_release);
  return {};
}

// --- lines and messages ---

int IrqChip::set_irq_line(u32 gsi, bool level, unsigned source) {
  int taken = -1;
  auto add = [&](int by) {
    if (by >= 0) taken = std::max(taken, 0) + by;
  };
  std::shared_ptr<const RoutingTable> table;
  {
    std::lock_guard lock(m_mutex);
    table = m_routing;
    for (const kvm_irq_routing_entry& route : table->routes(gsi))
      if (route.type == KVM_IRQ_ROUTING_IRQCHIP) add(set_pin(route, level, source));
  }
  for (const kvm_irq_routing_entry& route : table->routes(gsi)) {
    if (!level) continue;
    if (route.type == KVM_IRQ_ROUTING_MSI) add(m_bus.deliver(decode_msi(route.u.msi, ids_32bit()), nullptr));
    if (route.type == KVM_IRQ_ROUTING_HV_SINT && m_sint_raiser)
      add(m_sint_raiser(route.u.hv_sint.vcpu, route.u.hv_sint.sint));
    if (route.type == KVM_IRQ_ROUTING_XEN_EVTCHN && m_event_raiser)
      add(m_event_raiser(route.u.xen_evtchn.port, route.u.xen_evtchn.vcpu));
  }
  return taken;
}

int IrqChip::set_pin(const kvm_irq_routing_entry& route, bool level, unsigned source) {
  u32 chip = route.u.irqchip.irqchip, pin = route.u.irqchip.pin;
  u8& holders = m_sources[chip][pin];
  holders = static_cast<u8>(level ? holders | 1u << source : holders & ~(1u << source));
  if (chip == KVM_IRQCHIP_IOAPIC) return m_ioapic.set_line(pin, holders != 0);
  int taken = m_pic.set_line(chip * kPinsOfPic + pin, holders != 0);
  pic_changed();
  return taken;
}

Result<int> IrqChip::signal_msi(const kvm_msi& msi) {
  if (msi.flags & ~KVM_MSI_VALID_DEVID) return Error{EINVAL, "unknown MSI flags"};
  kvm_irq_routing_msi route = as_route(msi);
  TRY(check_msi(route.address_hi, ids_32bit()));
  const Message message = decode_msi(route, ids_32bit());
  const int taken = m_bus.deliver(message, nullptr);
  // -1 to the kernel, whose ioctl makes this errno of it.
  if (taken < 0 && !m_bus.has_destination(message)) return Error{EPERM, "no local APIC has that address"};
  return std::max(0, taken);
}

Result<> IrqChip::set_routing(std::span<const kvm_irq_routing_entry> entries) {
  std::span<const RoutableChip> chips;
  if (m_kind == Kind::kFull) chips = full_irqchip();
  auto table = TRY(RoutingTable::create(entries, chips, ids_32bit()));
  std::lock_guard lock(m_mutex);
  m_routing = std::move(table);
  if (m_kind == Kind::kSplit) eoi_vectors_changed(client_ioapic_vectors());
  return {};
}

std::shared_ptr<const RoutingTable> IrqChip::routing() const {
  std::lock_guard lock(m_mutex);
  return m_routing;
}

bool IrqChip::pulse_irq0() {
  int taken = set_irq_line(kPitGsi, true, kSourcePit);
  set_irq_line(kPitGsi, false, kSourcePit);
  return taken >= 0;
}

// The PIC's INTR went up: LINT0 of every local APIC sees it; at most one of them is set up to pass it on.
void IrqChip::pic_changed() {
  bool was = m_pic_intr.exchange(m_pic.intr());
  if (was || !m_pic.intr()) return;
  for (unsigned i = 0; i < m_bus.count(); i++)
    if (Lapic* lapic = m_bus.at(i)) lapic->raise_lint(0);
}

// --- end of interrupt ---

void IrqChip::set_ack_listener(std::function<void(u32 gsi)> listener) {
  std::lock_guard lock(m_mutex);
  m_ack_listener = std::make_shared<const std::function<void(u32)>>(std::move(listener));
}

void IrqChip::ioapic_changed() { eoi_vectors_changed(m_ioapic.vectors()); }

void IrqChip::eoi_vectors_changed(std::array<u32, 8> vectors) {
  for (unsigned i = 0; i < vectors.size(); i++)
    m_ioapic_vectors[i].store(vectors[i], std::memory_order_relaxed);
}

bool IrqChip::ioapic_has_vector(u8 vector) const {
  return has_bit(m_ioapic_vectors[vector >> 5].load(std::memory_order_relaxed), vector & 31);
}

// The client's IOAPIC is known by the MSI routes of its pins; only level-triggered ones wait for an EOI.
std::array<u32, 8> IrqChip::client_ioapic_vectors() const {
  std::array<u32, 8> vectors{};
  for (u32 gsi = 0; gsi < m_reserved_pins; gsi++) {
    for (const kvm_irq_routing_entry& route : m_routing->routes(gsi)) {
      if (route.type != KVM_IRQ_ROUTING_MSI) continue;
      Message message = decode_msi(route.u.msi, ids_32bit());
      if (message.level_triggered) vectors[message.vector >> 5] |= 1u << (message.vector & 31);
    }
  }
  return vectors;
}

// A pin whose entry has been sent elsewhere since may still be in service here; the TMR bit (`level`) says
// so.
bool IrqChip::client_ioapic_has(const Lapic& lapic, u8 vector, bool level) const {
  std::shared_ptr<const RoutingTable> table = routing();
  for (u32 gsi = 0; gsi < m_reserved_pins; gsi++) {
    for (const kvm_irq_routing_entry& route : table->routes(gsi)) {
      if (route.type != KVM_IRQ_ROUTING_MSI) continue;
      Message message = decode_msi(route.u.msi, ids_32bit());
      if (!message.level_triggered || message.vector != vector) continue;
      if (level || m_bus.matches(message, lapic, nullptr)) return true;
    }
  }
  return false;
}

void IrqChip::lapic_eoi(Lapic& from, u8 vector, bool level) {
  // Most EOIs are for IPIs, MSIs and the local timer: no lock for them.
  if (!ioapic_has_vector(vector)) return;
  if (m_kind == Kind::kSplit) {
    if (client_ioapic_has(from, vector, level)) from.tell_client_eoi(vector);
    return;
  }
  std::unique_lock lock(m_mutex);
  u32 pins = m_ioapic.eoi(vector, level);
  lock.unlock();
  // Listeners may lower the line (a resampling irqfd does); what is still high afterwards asks again.
  notify_acknowledged(KVM_IRQCHIP_IOAPIC, pins);
  lock.lock();
  m_ioapic.resend(pins);
}

void IrqChip::notify_acknowledged(u32 chip, u32 pins) {
  if (!pins) return;
  std::unique_lock lock(m_mutex);
  auto table = m_routing;
  auto listener = m_ack_listener;
  lock.unlock();
  for (unsigned pin = 0; pins >> pin; pin++) {
    if (!has_bit(pins, pin)) continue;
    std::optional<u32> gsi = table->gsi_of_pin(chip, pin);
    if (!gsi) continue;
    if (*gsi == kPitGsi && pit()) pit()->irq0_acknowledged();
    if (listener && *listener) (*listener)(*gsi);
  }
}

void IrqChip::sint_acknowledged(u32 vp_index, u32 sint) {
  std::unique_lock lock(m_mutex);
  const std::optional<u32> gsi = m_routing->gsi_of_sint(vp_index, sint);
  auto listener = m_ack_listener;
  lock.unlock();
  if (gsi && listener && *listener) (*listener)(*gsi);
}

void IrqChip::notify_pic_completed(u16 lines) {
  notify_acknowledged(KVM_IRQCHIP_PIC_MASTER, lines & 0xff);
  notify_acknowledged(KVM_IRQCHIP_PIC_SLAVE, lines >> 8);
}

// --- vCPU side ---

bool IrqChip::pic_requests(const Lapic& lapic) const {
  bool intr = m_kind == Kind::kFull ? m_pic_intr.load() : lapic.has_client_vector();
  return intr && lapic.accepts_pic();
}

bool IrqChip::interrupt_ready(const Lapic& lapic) const {
  return pic_requests(lapic) || lapic.interrupt_ready();
}

std::optional<u8> IrqChip::acknowledge(Lapic& lapic) {
  if (pic_requests(lapic))
    if (std::optional<u8> vector = acknowledge_pic(lapic)) return vector;
  return lapic.acknowledge();
}

std::optional<u8> IrqChip::acknowledge_pic(Lapic& lapic) {
  if (m_kind == Kind::kSplit) return lapic.take_client_vector();
  std::unique_lock lock(m_mutex);
  if (!m_pic.intr()) return std::nullopt;
  u8 vector = m_pic.acknowledge();
  u16 completed = m_pic.take_completed();
  pic_changed();
  bool more = m_pic.intr();
  lock.unlock();
  if (more) lapic.announce();
  notify_pic_completed(completed);
  return vector;
}

// --- ports and memory ---

bool IrqChip::owns_port(u16 port) {
  if (m_kind != Kind::kFull) return false;
  return Pic::owns_port(port) || (pit() && pit()->owns_port(port));
}

// A wide access reaches one port a byte, as on the ISA bus; the neighbours that nobody here has read FFH.
bool IrqChip::pio_read(u16 port, void* data, unsigned size) {
  if (!owns_port(port)) return false;
  u8* bytes = static_cast<u8*>(data);
  for (unsigned i = 0; i < size; i++) bytes[i] = owns_port(port + i) ? pio_read_byte(port + i) : 0xff;
  return true;
}

bool IrqChip::pio_write(u16 port, const void* data, unsigned size) {
  if (!owns_port(port)) return false;
  const u8* bytes = static_cast<const u8*>(data);
  for (unsigned i = 0; i < size; i++)
    if (owns_port(port + i)) pio_write_byte(port + i, bytes[i]);
  return true;
}

u8 IrqChip::pio_read_byte(u16 port) {
  if (!Pic::owns_port(port)) return pit()->read(port);
  std::unique_lock lock(m_mutex);
  u8 value = m_pic.read(port);  // a poll acknowledges
  u16 completed = m_pic.take_completed();
  pic_changed();
  lock.unlock();
  notify_pic_completed(completed);
  return value;
}

void IrqChip::pio_write_byte(u16 port, u8 value) {
  if (Pic::owns_port(port))
    write_pic(port, value);
  else
    pit()->write(port, value);
}

void IrqChip::write_pic(u16 port, u8 value) {
  std::unique_lock lock(m_mutex);
  unsigned open_before = irq0_open_routes();
  m_pic.write(port, value);
  u16 completed = m_pic.take_completed();
  pic_changed();
  bool opened = irq0_open_routes() & ~open_before;
  lock.unlock();
  if (opened && pit()) pit()->irq0_unmasked();
  notify_pic_completed(completed);
}

void IrqChip::write_ioapic(u32 offset, const void* data, unsigned size) {
  std::unique_lock lock(m_mutex);
  unsigned open_before = irq0_open_routes();
  m_ioapic.mmio_write(offset, data, size);
  ioapic_changed();
  bool opened = irq0_open_routes() & ~open_before;
  lock.unlock();
  if (opened && pit()) pit()->irq0_unmasked();
}

// Which of IRQ 0's routes are not masked, a bit each. A tick may sit in one that nobody serves (the PIC while
// LINT0 is masked), so that each route that opens lets the PIT begin anew.
unsigned IrqChip::irq0_open_routes() const {
  unsigned open = 0, index = 0;
  for (const kvm_irq_routing_entry& route : m_routing->routes(kPitGsi)) {
    if (route.type == KVM_IRQ_ROUTING_IRQCHIP) {
      u32 chip = route.u.irqchip.irqchip, pin = route.u.irqchip.pin;
      bool masked = chip == KVM_IRQCHIP_IOAPIC ? !has_bit(m_ioapic.unmasked_pins(), pin)
                                               : has_bit(m_pic.state(chip).imr, pin);
      if (!masked) open |= 1u << index;
    }
    index++;
  }
  return open;
}

// Where the local APIC's page would be, but the APIC is off or in x2APIC mode, the bus reads all ones
// (KVM_X86_QUIRK_LAPIC_MMIO_HOLE).
bool IrqChip::mmio_read(Lapic& lapic, Gpa address, void* data, unsigned size) {
  if (lapic.owns_address(address)) {
    if (lapic.hardware_enabled() && !lapic.x2apic_mode())
      lapic.mmio_read(address.page_offset(), data, size);
    else
      std::memset(data, 0xff, size);
    return true;
  }
  if (m_kind != Kind::kFull) return false;
  std::lock_guard lock(m_mutex);
  if (!m_ioapic.owns_address(address)) return false;
  m_ioapic.mmio_read(static_cast<u32>(address.value - m_ioapic.base_address()), data, size);
  return true;
}

bool IrqChip::mmio_write(Lapic& lapic, Gpa address, const void* data, unsigned size) {
  if (lapic.owns_address(address)) {
    if (lapic.hardware_enabled() && !lapic.x2apic_mode()) lapic.mmio_write(address.page_offset(), data, size);
    return true;
  }
  if (m_kind != Kind::kFull) return false;
  std::unique_lock lock(m_mutex);
  if (!m_ioapic.owns_address(address)) return false;
  u32 offset = static_cast<u32>(address.value - m_ioapic.base_address());
  lock.unlock();
  write_ioapic(offset, data, size);
  return true;
}

// --- state ---

Result<> IrqChip::get_chip(kvm_irqchip* chip) {
  if (m_kind != Kind::kFull) return Error{ENXIO, "no PIC and IOAPIC"};
  if (chip->chip_id >= KVM_NR_IRQCHIPS) return Error{EINVAL, "no such chip"};
  std::memset(&chip->chip, 0, sizeof chip->chip);
  std::lock_guard lock(m_mutex);
  if (chip->chip_id == KVM_IRQCHIP_IOAPIC)
    chip->chip.ioapic = m_ioapic.state();
  else
    chip->chip.pic = m_pic.state(chip->chip_id);
  return {};
}

Result<> IrqChip::set_chip(const kvm_irqchip& chip) {
  if (m_kind != Kind::kFull) return Error{ENXIO, "no PIC and IOAPIC"};
  if (chip.chip_id >= KVM_NR_IRQCHIPS) return Error{EINVAL, "no such chip"};
  std::lock_guard lock(m_mutex);
  if (chip.chip_id == KVM_IRQCHIP_IOAPIC) {
    m_ioapic.set_state(chip.chip.ioapic);
    ioapic_changed();
  } else {
    m_pic.set_state(chip.chip_id, chip.chip.pic);
    pic_changed();
  }
  return {};
}

}  // namespace anykvm::irqchip
