#include "core/hyperv/synic.h"

#include <stddef.h>

#include "x86/mmu/access.h"

namespace anykvm::core::hyperv {

Synic::Synic() {
  for (auto& sint : m_sints) sint = kSintMasked;
}

void Synic::activate(bool keep_pages) {
  m_keep_pages = keep_pages;
  m_control = 1;  // enabled
  m_active.store(true, std::memory_order_release);
}

bool Synic::owns_msr(u32 index) {
  return (index >= kMsrSynicControl && index <= kMsrEndOfMessage) ||
         (index >= kMsrSint0 && index <= kMsrSint15);
}

bool Synic::exits_on_write(u32 index) {
  return index == kMsrSynicControl || index == kMsrEventPage || index == kMsrMessagePage;
}

std::optional<u64> Synic::read_msr(u32 index, bool from_client) const {
  if (!active() && !from_client) return std::nullopt;
  switch (index) {
    case kMsrSynicControl:
      return m_control;
    case kMsrSynicVersion:
      return m_version;
    case kMsrEventPage:
      return m_event_page;
    case kMsrMessagePage:
      return m_message_page;
    case kMsrEndOfMessage:
      return 0;
    default:
      return m_sints[index - kMsrSint0].load();
  }
}

bool Synic::write_msr(x86::Cpu& cpu, u32 index, u64 value, bool from_client) {
  // The client may restore what was never used.
  if (!active()) return from_client && value == 0;
  switch (index) {
    case kMsrSynicControl:
      m_control = value;
      return true;
    case kMsrSynicVersion:
      if (from_client) m_version = value;
      return from_client;
    case kMsrEventPage:
      return set_page(cpu, value, from_client, &m_event_page);
    case kMsrMessagePage:
      return set_page(cpu, value, from_client, &m_message_page);
    case kMsrEndOfMessage:
      return true;
    default:
      break;
  }
  const bool has_vector = (value & 0xff) >= kFirstSintVector;
  if (!has_vector && !(value & kSintMasked) && !from_client) return false;
  m_sints[index - kMsrSint0] = value;
  return true;
}

bool Synic::set_page(x86::Cpu& cpu, u64 value, bool from_client, u64* page) {
  static constexpr u8 kZeros[kPageSize] = {};
  const bool clear = (value & kPageEnabled) && !from_client && !m_keep_pages;
  if (clear && !x86::write_physical(cpu, page_of(value), kZeros, sizeof kZeros)) return false;
  *page = value;
  return true;
}

std::optional<u8> Synic::vector_of(unsigned sint) const {
  const u64 value = m_sints[sint].load();
  if (value & kSintMasked) return std::nullopt;
  return static_cast<u8>(value);
}

u16 Synic::sints_of(u8 vector) const {
  u16 found = 0;
  for (unsigned sint = 0; sint < kSints; ++sint)
    if (vector_of(sint) == vector) found = static_cast<u16>(found | 1u << sint);
  return found;
}

bool Synic::ends_by_itself(u8 vector) const {
  if (!active() || vector < kFirstSintVector) return false;
  for (const auto& sint : m_sints) {
    const u64 value = sint.load(std::memory_order_relaxed);
    if (static_cast<u8>(value) == vector && (value & kSintAutoEoi) && !(value & kSintMasked)) return true;
  }
  return false;
}

// TLFS 11.10.3: the payload before the type, which says that the slot is full.
Synic::Posted Synic::post(x86::Cpu& cpu, unsigned sint, const Message& message) {
  if (!(m_message_page & kPageEnabled)) return Posted::kNo;
  u32 type = 0;
  if (!x86::read_physical(cpu, slot(sint), &type, sizeof type)) return Posted::kNo;
  if (type != kMessageNone) return Posted::kSlotBusy;
  const unsigned size = static_cast<unsigned>(offsetof(Message, payload)) + message.payload_size;
  const u8* rest = reinterpret_cast<const u8*>(&message) + sizeof type;
  if (!x86::write_physical(cpu, slot(sint) + sizeof type, rest, size - sizeof type)) return Posted::kNo;
  std::atomic_thread_fence(std::memory_order_release);
  return x86::write_physical(cpu, slot(sint), &message.type, sizeof type) ? Posted::kYes : Posted::kNo;
}

void Synic::mark_waiting(x86::Cpu& cpu, unsigned sint) {
  x86::write_physical(cpu, slot(sint) + offsetof(Message, flags), &kMessagePending, sizeof kMessagePending);
}

}  // namespace anykvm::core::hyperv
