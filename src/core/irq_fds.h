#pragma once
// irqfds: eventfds that raise guest interrupts, with resampling for level-triggered lines (KVM_IRQFD, SEEDS
// G2). Owner: Vm, which has the chip and outlives nothing of this. One helper thread with an epoll set,
// started at the first assignment. Any thread; m_mutex is taken before the chip's locks, never the other way
// round.

#include <linux/kvm.h>

#include <list>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "base/expected.h"
#include "base/fd.h"
#include "core/eventfd.h"
#include "irqchip/irqchip.h"

namespace anykvm::core {

class IrqFds {
 public:
  explicit IrqFds(irqchip::IrqChip& chip);
  ~IrqFds();
  IrqFds(const IrqFds&) = delete;
  IrqFds& operator=(const IrqFds&) = delete;

  Result<> change(const kvm_irqfd& request);
  // KVM_IRQFD_FLAG_DEASSIGN where nothing can be connected: the arguments count all the same.
  static Result<> check_deassign(const kvm_irqfd& request);

 private:
  // Whoever reads an eventfd takes its count from the others, so it is the irqfd of one VM at a time.
  class Claim {
   public:
    explicit Claim(const EventFd& event);
    Claim(Claim&& other) : m_id(std::exchange(other.m_id, std::nullopt)) {}
    ~Claim();
    bool granted() const { return m_id.has_value(); }

   private:
    std::optional<u64> m_id;
  };

  struct Entry {
    u32 gsi;
    EventFd event;
    Claim claim;
    std::optional<EventFd> resample;
  };

  Result<> assign(const kvm_irqfd& request);
  Result<> deassign(const kvm_irqfd& request);
  Result<> start();
  void loop();
  void fire(const Entry& entry);
  void acknowledged(u32 gsi);

  irqchip::IrqChip& m_chip;
  std::mutex m_mutex;
  std::list<Entry> m_entries;  // m_mutex
  Fd m_epoll, m_stop;
  std::thread m_thread;
};

}  // namespace anykvm::core
