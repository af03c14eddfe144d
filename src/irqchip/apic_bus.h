#pragma once
// The interrupt message bus between IOAPIC, MSIs and local APICs: who is addressed (SDM 3A 10.6.2), and
// delivery. Owner: IrqChip. Delivery from any thread, lock-free; add() and remove() are serialised by a mutex
// of their own.

#include <array>
#include <atomic>
#include <mutex>

#include "base/types.h"

namespace anykvm::irqchip {

class Lapic;

inline constexpr unsigned kMaxLapics = 1024;

// SDM 3A figure 10-12; the numbers are the register's and the MSI's.
enum class DeliveryMode : u8 {
  kFixed = 0,
  kLowest = 1,
  kSmi = 2,
  kRemoteRead = 3,
  kNmi = 4,
  kInit = 5,
  kStartup = 6,
  kExtInt = 7
};
enum class Shorthand : u8 { kNone = 0, kSelf = 1, kAllIncludingSelf = 2, kAllExcludingSelf = 3 };

// One interrupt message.
struct Message {
  u32 destination = 0;
  bool logical = false;
  DeliveryMode mode = DeliveryMode::kFixed;
  u8 vector = 0;
  bool level_triggered = false;
  bool assert_level = true;  // false: INIT level de-assert, which does nothing (SDM 3A 10.6.1)
  bool lowest_hint = false;  // MSI redirection hint: one of the addressed, as with kLowest
  Shorthand shorthand = Shorthand::kNone;
};

// Who wants to hear of EOIs: the IOAPIC, by way of the IrqChip.
class EoiListener {
 public:
  virtual ~EoiListener() = default;
  // On the vCPU's thread, no lock held. `level`: the TMR bit was set, so the message is broadcast (SDM
  // 3A 10.8.5).
  virtual void lapic_eoi(Lapic& from, u8 vector, bool level) = 0;
};

class ApicBus {
 public:
  // False: kMaxLapics are there already.
  bool add(Lapic& lapic);
  // The caller sees to it that nobody delivers meanwhile (VM tear-down, or a vCPU that failed to be created).
  void remove(Lapic& lapic);

  void set_eoi_listener(EoiListener* listener) { m_eoi_listener.store(listener); }
  EoiListener* eoi_listener() const { return m_eoi_listener.load(std::memory_order_acquire); }

  // KVM_CAP_X2APIC_API, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK: destination FFH of IOAPIC and MSI is no
  // longer a broadcast for x2APICs.
  void disable_broadcast_quirk() { m_broadcast_quirk.store(false); }

  // From now on some xAPIC's ID is not its CPU's number.
  void id_written() { m_ids_are_numbers.store(false); }

  // `source` is the sender of an IPI, null for IOAPIC and MSI. Returns what KVM_IRQ_LINE_STATUS wants: -1 if
  // nobody took it, 0 if it merged with one pending, else the number of local APICs that took it.
  int deliver(const Message& message, Lapic* source);

  // Whether an MSI names any local APIC, whatever that one makes of it.
  bool has_destination(const Message& message) const;

  bool matches(const Message& message, const Lapic& target, const Lapic* source) const;

  unsigned count() const { return m_count.load(std::memory_order_acquire); }
  Lapic* at(unsigned index) const { return m_lapics[index].load(std::memory_order_acquire); }  // may be null

 private:
  bool matches_destination(const Message& message, const Lapic& target, const Lapic* source) const;
  Lapic* single_target(const Message& message, const Lapic* source) const;
  int deliver_lowest(const Message& message, Lapic* source);

  std::mutex m_mutex;  // add, remove
  std::array<std::atomic<Lapic*>, kMaxLapics> m_lapics{};
  std::atomic<unsigned> m_count{0};  // slots in use, holes included
  std::atomic<EoiListener*> m_eoi_listener{nullptr};
  std::atomic<bool> m_broadcast_quirk{true};
  std::atomic<bool> m_ids_are_numbers{true};
};

}  // namespace anykvm::irqchip
