#pragma once
// The interrupt chips of one VM as a whole: PIC, IOAPIC, PIT, routing and the local APICs' bus behind one
// door. Owner: core::Vm. Any thread. One lock, m_mutex, guards PIC, IOAPIC, line levels and the routing
// pointer; LapicHost calls may come while it is held, acknowledgement listeners and Pit callbacks never. Lock
// order: m_mutex, then LapicTimer's.

#include <linux/kvm.h>

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/expected.h"
#include "base/types.h"
#include "irqchip/apic_bus.h"
#include "irqchip/ioapic.h"
#include "irqchip/lapic.h"
#include "irqchip/pic.h"
#include "irqchip/pit.h"
#include "irqchip/routing.h"

namespace anykvm::irqchip {

// Who drives a line; a line is high while any of them holds it high.
enum IrqSource : unsigned {
  kSourceClient = 0,    // KVM_IRQ_LINE, irqfd
  kSourceResample = 1,  // irqfd with a resample fd
  kSourcePit = 2,
  kIrqSources = 3,
};

class IrqChip final : private EoiListener {
 public:
  enum class Kind : u8 {
    kFull,   // KVM_CREATE_IRQCHIP
    kSplit,  // KVM_CAP_SPLIT_IRQCHIP: local APICs and MSI routes only
  };
  // `reserved_pins`: with kSplit, the GSIs below it belong to the client's IOAPIC (KVM_CAP_SPLIT_IRQCHIP).
  explicit IrqChip(Kind kind = Kind::kFull, u32 reserved_pins = 0);
  ~IrqChip() override;

  Kind kind() const { return m_kind; }
  ApicBus& bus() { return m_bus; }
  // Local APICs join and leave; see ApicBus. False: too many.
  bool add_lapic(Lapic& lapic) { return m_bus.add(lapic); }
  void remove_lapic(Lapic& lapic) { m_bus.remove(lapic); }
  // KVM_CAP_X2APIC_API.
  void set_x2apic_api(bool ids_32bit, bool disable_broadcast_quirk);
  bool ids_32bit() const { return m_ids_32bit.load(); }

  // KVM_CREATE_PIT2. EEXIST if there is one, ENOENT without PIC and IOAPIC. `deadline_changed`: see
  // Pit::Callbacks.
  Result<> create_pit(Clock& clock, bool speaker, std::function<void()> deadline_changed);
  Pit* pit() { return m_pit.load(std::memory_order_acquire); }  // null: none

  // --- lines and messages: any thread ---

  // KVM_IRQ_LINE and KVM_IRQ_LINE_STATUS: -1 ignored (no route, masked), 0 merged with one pending, else how
  // many took it.
  int set_irq_line(u32 gsi, bool level, unsigned source = kSourceClient);
  // KVM_SIGNAL_MSI: the number delivered (0: blocked by the guest), or EINVAL.
  Result<int> signal_msi(const kvm_msi& msi);
  // KVM_SET_GSI_ROUTING. Replaces the table, or changes nothing and returns EINVAL.
  Result<> set_routing(std::span<const kvm_irq_routing_entry> entries);
  // The table at this moment; for irqfd, to see whether a GSI is an MSI.
  std::shared_ptr<const RoutingTable> routing() const;

  // `listener(gsi)` runs, without locks, when service of a PIC or IOAPIC line ends (resampling irqfds). One
  // listener.
  void set_ack_listener(std::function<void(u32 gsi)> listener);

  // Routes to synthetic interrupts: `raiser(vp_index, sint)` returns what set_irq_line() does. Before there
  // are vCPUs.
  void set_sint_raiser(std::function<int(u32 vp_index, u32 sint)> raiser) {
    m_sint_raiser = std::move(raiser);
  }
  // Routes to Xen's event channels, likewise.
  void set_event_raiser(std::function<int(u32 port, u32 vcpu)> raiser) { m_event_raiser = std::move(raiser); }
  // Service of a synthetic interrupt ended.
  void sint_acknowledged(u32 vp_index, u32 sint);

  // --- for a vCPU, from its thread ---

  // LAPIC and, through LINT0, the PIC (with kSplit, what the client's PIC gave the LAPIC). What x86::Platform
  // wants.
  bool interrupt_ready(const Lapic& lapic) const;
  std::optional<u8> acknowledge(Lapic& lapic);
  // Does the EOI of this vector mean something outside the local APIC?
  bool awaits_eoi(u8 vector) const { return ioapic_has_vector(vector); }

  // False: not ours. `lapic` is the accessing vCPU's.
  bool pio_read(u16 port, void* data, unsigned size);
  bool pio_write(u16 port, const void* data, unsigned size);
  bool mmio_read(Lapic& lapic, Gpa address, void* data, unsigned size);
  bool mmio_write(Lapic& lapic, Gpa address, const void* data, unsigned size);

  // KVM_GET_IRQCHIP and KVM_SET_IRQCHIP, by chip_id. EINVAL for another chip; ENXIO without PIC and IOAPIC.
  Result<> get_chip(kvm_irqchip* chip);
  Result<> set_chip(const kvm_irqchip& chip);

 private:
  void lapic_eoi(Lapic& from, u8 vector, bool level) override;
  int set_pin(const kvm_irq_routing_entry& route, bool level, unsigned source);  // m_mutex held
  void pic_changed();                                                            // m_mutex held
  void ioapic_changed();                                                         // m_mutex held
  bool pulse_irq0();                                                             // m_mutex not held
  void notify_acknowledged(u32 chip, u32 pins);                                  // m_mutex not held
  void notify_pic_completed(u16 lines);                                          // m_mutex not held
  // The EOI of a kSplit vector: does it concern a pin of the client's IOAPIC?
  bool client_ioapic_has(const Lapic& lapic, u8 vector, bool level) const;
  std::array<u32, 8> client_ioapic_vectors() const;      // m_mutex
  void eoi_vectors_changed(std::array<u32, 8> vectors);  // m_mutex
  bool ioapic_has_vector(u8 vector) const;
  bool pic_requests(const Lapic& lapic) const;
  std::optional<u8> acknowledge_pic(Lapic& lapic);
  bool owns_port(u16 port);
  unsigned irq0_open_routes() const;  // m_mutex held
  void write_pic(u16 port, u8 value);
  void write_ioapic(u32 offset, const void* data, unsigned size);
  u8 pio_read_byte(u16 port);
  void pio_write_byte(u16 port, u8 value);

  const Kind m_kind;
  const u32 m_reserved_pins;
  ApicBus m_bus;
  std::atomic<bool> m_ids_32bit{false};

  mutable std::mutex m_mutex;
  Pic m_pic;        // m_mutex
  Ioapic m_ioapic;  // m_mutex
  std::array<std::array<u8, 24>, KVM_NR_IRQCHIPS>
      m_sources{};                                // m_mutex: who holds pin [chip][pin] high, a bit each
  std::shared_ptr<const RoutingTable> m_routing;  // m_mutex
  std::shared_ptr<const std::function<void(u32)>> m_ack_listener;  // m_mutex
  std::function<int(u32, u32)> m_sint_raiser, m_event_raiser;
  std::unique_ptr<Pit> m_pit_storage;  // m_mutex; set once

  std::atomic<Pit*> m_pit{nullptr};
  std::atomic<bool> m_pic_intr{false};  // mirrors m_pic.intr()
  // Vectors of an IOAPIC's entries, ours (m_ioapic.vectors()) or the client's (client_ioapic_vectors()).
  std::array<std::atomic<u32>, 8> m_ioapic_vectors{};
};

}  // namespace anykvm::irqchip
