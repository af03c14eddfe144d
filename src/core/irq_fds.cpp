#include "core/irq_fds.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <set>
#include <vector>

#include "base/fork.h"
#include "base/helper_thread.h"
#include "base/trace.h"

namespace anykvm::core {
namespace {

constexpr u32 kKnownFlags = KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_RESAMPLE;

// The eventfds that are irqfds of some VM of this process.
struct Claims {
  ProcessMutex mutex;
  std::set<u64> ids;  // mutex
};

Claims& claims() {
  static Claims all;
  return all;
}

}  // namespace

IrqFds::Claim::Claim(const EventFd& event) {
  std::lock_guard lock(claims().mutex);
  if (claims().ids.insert(event.id()).second) m_id = event.id();
}

IrqFds::Claim::~Claim() {
  if (!m_id) return;
  std::lock_guard lock(claims().mutex);
  claims().ids.erase(*m_id);
}

IrqFds::IrqFds(irqchip::IrqChip& chip) : m_chip(chip) {}

IrqFds::~IrqFds() {
  m_chip.set_ack_listener(nullptr);
  if (!m_thread.joinable()) return;
  const u64 one = 1;
  [[maybe_unused]] ssize_t written = write(m_stop.get(), &one, sizeof one);
  m_thread.join();
}

Result<> IrqFds::check_deassign(const kvm_irqfd& request) {
  if (request.flags & ~kKnownFlags) return Error{EINVAL, "unknown irqfd flags"};
  TRY(EventFd::open(static_cast<int>(request.fd)));
  return {};
}

Result<> IrqFds::change(const kvm_irqfd& request) {
  if (request.flags & ~kKnownFlags) return Error{EINVAL, "unknown irqfd flags"};
  return request.flags & KVM_IRQFD_FLAG_DEASSIGN ? deassign(request) : assign(request);
}

Result<> IrqFds::start() {
  if (m_thread.joinable()) return {};
  m_epoll = out_of_the_way(Fd(epoll_create1(EPOLL_CLOEXEC)));
  m_stop = out_of_the_way(Fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)));
  if (!m_epoll.valid() || !m_stop.valid()) return Error{errno, "no epoll set for irqfds"};
  epoll_event event{EPOLLIN, {}};
  if (epoll_ctl(m_epoll.get(), EPOLL_CTL_ADD, m_stop.get(), &event) != 0)
    return Error{errno, "cannot watch the stop event"};
  m_chip.set_ack_listener([this](u32 gsi) { acknowledged(gsi); });
  m_thread = start_helper_thread("anykvm-irqfd", [this] { loop(); });
  return {};
}

Result<> IrqFds::assign(const kvm_irqfd& request) {
  EventFd event = TRY(EventFd::open(static_cast<int>(request.fd)));
  std::optional<EventFd> resample;
  if (request.flags & KVM_IRQFD_FLAG_RESAMPLE)
    resample = TRY(EventFd::open(static_cast<int>(request.resamplefd)));
  std::lock_guard lock(m_mutex);
  Claim claim(event);
  if (!claim.granted()) return Error{EBUSY, "this eventfd is an irqfd already"};
  TRY(start());
  m_entries.push_back({request.gsi, std::move(event), std::move(claim), std::move(resample)});
  // Level-triggered: what was signalled before is seen at once.
  epoll_event watch{EPOLLIN, {}};
  watch.data.ptr = &m_entries.back();
  if (epoll_ctl(m_epoll.get(), EPOLL_CTL_ADD, m_entries.back().event.number(), &watch) == 0) return {};
  int code = errno;
  m_entries.pop_back();
  return Error{code, "cannot watch the eventfd"};
}

// A GSI and eventfd that are not connected are no error, as in the kernel.
Result<> IrqFds::deassign(const kvm_irqfd& request) {
  EventFd event = TRY(EventFd::open(static_cast<int>(request.fd)));
  std::lock_guard lock(m_mutex);
  for (auto entry = m_entries.begin(); entry != m_entries.end();) {
    auto next = std::next(entry);
    if (entry->gsi == request.gsi && entry->event.same_as(event)) {
      epoll_ctl(m_epoll.get(), EPOLL_CTL_DEL, entry->event.number(), nullptr);
      if (entry->resample) m_chip.set_irq_line(entry->gsi, false, irqchip::kSourceResample);
      m_entries.erase(entry);
    }
    entry = next;
  }
  return {};
}

void IrqFds::fire(const Entry& entry) {
  if (!entry.event.take()) return;
  ANYKVM_TRACE(irq, "irqfd for gsi {}", entry.gsi);
  if (entry.resample) {
    m_chip.set_irq_line(entry.gsi, true, irqchip::kSourceResample);
    return;
  }
  m_chip.set_irq_line(entry.gsi, true);
  m_chip.set_irq_line(entry.gsi, false);
}

void IrqFds::loop() {
  for (;;) {
    epoll_event events[16];
    int ready = epoll_wait(m_epoll.get(), events, static_cast<int>(std::size(events)), -1);
    if (ready < 0 && errno != EINTR) return;
    std::lock_guard lock(m_mutex);
    for (int i = 0; i < ready; ++i) {
      if (!events[i].data.ptr) return;
      // An entry deassigned since epoll_wait() is not in the list any more.
      auto entry = std::ranges::find_if(m_entries, [&](const Entry& e) { return &e == events[i].data.ptr; });
      if (entry != m_entries.end()) fire(*entry);
    }
  }
}

// The guest ended service of a level-triggered line: lower it, and let the devices say whether they still
// want it.
void IrqFds::acknowledged(u32 gsi) {
  std::lock_guard lock(m_mutex);
  auto resamples = [gsi](const Entry& entry) { return entry.gsi == gsi && entry.resample; };
  if (std::ranges::none_of(m_entries, resamples)) return;
  m_chip.set_irq_line(gsi, false, irqchip::kSourceResample);
  for (const Entry& entry : m_entries)
    if (resamples(entry)) entry.resample->signal();
}

}  // namespace anykvm::core
