#include "x86/mmu/io_replay.h"

#include <cstring>

namespace anykvm::x86 {

namespace {

bool ask(Platform& platform, BusAddress where, void* data, unsigned size) {
  return where.port ? platform.pio_read(static_cast<u16>(where.address), data, size)
                    : platform.mmio_read(Gpa(where.address), data, size);
}

bool tell(Platform& platform, BusAddress where, const void* data, unsigned size) {
  return where.port ? platform.pio_write(static_cast<u16>(where.address), data, size)
                    : platform.mmio_write(Gpa(where.address), data, size);
}

}  // namespace

// The fragment that an earlier attempt logged for this access, or null. An instruction that does something
// else than last time is another one (the client changed the state meanwhile): what is logged from here on is
// not its own.
IoReplay::Fragment* IoReplay::replayed(BusAddress where, bool write, unsigned size) {
  if (m_cursor == m_log.size()) return nullptr;
  Fragment& fragment = m_log[m_cursor];
  if (fragment.where == where && fragment.write == write && fragment.size == size) return &fragment;
  m_log.resize(m_cursor);
  return nullptr;
}

GuestStop IoReplay::leave(const Fragment& fragment, Exit& exit) {
  exit = Exit{};
  exit.reason = fragment.where.port ? Exit::Reason::kPio : Exit::Reason::kMmio;
  exit.write = fragment.write;
  exit.size = fragment.size;
  if (fragment.where.port) {
    exit.port = static_cast<u16>(fragment.where.address);
  } else {
    exit.gpa = fragment.where.address;
  }
  if (fragment.write) exit.data = fragment.data;
  return GuestStop::exit();
}

Guest<void> IoReplay::read(BusAddress where, void* data, unsigned size, Platform& platform, Exit& exit) {
  Fragment* fragment = replayed(where, false, size);
  if (!fragment) {
    fragment = &m_log.emplace_back(Fragment{.where = where, .size = static_cast<u8>(size)});
    fragment->answered = ask(platform, where, fragment->data.data(), size);
  }
  if (!fragment->answered) return leave(*fragment, exit);
  std::memcpy(data, fragment->data.data(), size);
  ++m_cursor;
  return {};
}

Guest<void> IoReplay::write(BusAddress where, const void* data, unsigned size, Platform& platform,
                            Exit& exit) {
  Fragment* fragment = replayed(where, true, size);
  if (!fragment) {
    fragment = &m_log.emplace_back(Fragment{.where = where, .write = true, .size = static_cast<u8>(size)});
    std::memcpy(fragment->data.data(), data, size);
    fragment->answered = tell(platform, where, data, size);
  }
  if (!fragment->answered) return leave(*fragment, exit);
  ++m_cursor;
  return {};
}

void IoReplay::complete(const void* data) {
  if (!pending()) return;
  Fragment& fragment = m_log.back();
  if (!fragment.write && data) std::memcpy(fragment.data.data(), data, fragment.size);
  fragment.answered = true;
}

void IoReplay::done() {
  m_log.clear();
  m_cursor = 0;
}

}  // namespace anykvm::x86
