#pragma once
// The synthetic interrupt controller of one virtual processor (TLFS 11): 16 sources with a vector each, and
// the page through which messages come. Owner: VirtualProcessor. The vCPU's thread, or the client's while it
// does not run; functions marked so from any thread.

#include <array>
#include <atomic>
#include <optional>

#include "core/hyperv/tlfs.h"
#include "x86/cpu.h"

namespace anykvm::core::hyperv {

class Synic {
 public:
  Synic();

  // KVM_CAP_HYPERV_SYNIC; `keep_pages` (KVM_CAP_HYPERV_SYNIC2): pages that the guest switches on are not
  // cleared.
  void activate(bool keep_pages);
  bool active() const { return m_active.load(std::memory_order_acquire); }  // any thread

  static bool owns_msr(u32 index);
  std::optional<u64> read_msr(u32 index, bool from_client) const;
  // False: #GP. End-of-message is the caller's business.
  bool write_msr(x86::Cpu& cpu, u32 index, u64 value, bool from_client);
  // Does the client want to hear of such a write by the guest? (KVM_EXIT_HYPERV_SYNIC)
  static bool exits_on_write(u32 index);

  u64 control() const { return m_control; }
  u64 event_page() const { return m_event_page; }
  u64 message_page() const { return m_message_page; }

  // Any thread. Nothing: the source is masked.
  std::optional<u8> vector_of(unsigned sint) const;
  // The sources with this vector, a bit each.
  u16 sints_of(u8 vector) const;
  // Such an interrupt needs no EOI by the guest.
  bool ends_by_itself(u8 vector) const;

  enum class Posted : u8 { kYes, kSlotBusy, kNo };
  // Puts the message into the source's slot. kSlotBusy: the guest will say when it has read what is there.
  Posted post(x86::Cpu& cpu, unsigned sint, const Message& message);
  // Asks for that.
  void mark_waiting(x86::Cpu& cpu, unsigned sint);

 private:
  bool set_page(x86::Cpu& cpu, u64 value, bool from_client, u64* page);
  Gpa slot(unsigned sint) const { return page_of(m_message_page) + sint * sizeof(Message); }

  std::atomic<bool> m_active{false};
  bool m_keep_pages = false;
  u64 m_control = 0, m_version = 1, m_event_page = 0, m_message_page = 0;
  std::array<std::atomic<u64>, kSints> m_sints;
};

}  // namespace anykvm::core::hyperv
