#include "x86/mmu/io_replay.h"

#include <cstring>

#include "x86/state/cpu_state.h"

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

// Room from the start, since translated code may be among the callers of what adds to the log: an XSAVE of
// every component, and what a client answers ahead.
IoReplay::IoReplay() {
  m_log.reserve(kXsaveAreaSize / 8);
  m_ahead.reserve(kPageSize);
}

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

// The client's answers are kept backwards, so that the next one is taken off the end.
bool IoReplay::take_ahead(BusAddress where, void* data, unsigned size) {
  if (m_ahead.empty()) return false;
  const bool same = where == m_ahead_where && size == m_ahead_size;
  if (!same) return m_ahead.clear(), false;
  std::memcpy(data, m_ahead.data() + m_ahead.size() - size, size);
  m_ahead.resize(m_ahead.size() - size);
  return true;
}

Guest<void> IoReplay::read(BusAddress where, void* data, unsigned size, Platform& platform, Exit& exit,
                           unsigned ahead) {
  Fragment* fragment = replayed(where, false, size);
  if (!fragment) {
    fragment = &m_log.emplace_back(Fragment{.where = where, .size = static_cast<u8>(size)});
    fragment->answered =
        take_ahead(where, fragment->data.data(), size) || ask(platform, where, fragment->data.data(), size);
    if (!fragment->answered) m_asked = ahead;
  }
  if (!fragment->answered) {
    GuestStop stop = leave(*fragment, exit);
    exit.count = m_asked;
    return stop;
  }
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

Guest<bool> IoReplay::msr(u32 index, bool write, u32 reason, u64* value, Exit& exit) {
  const BusAddress where{.address = index, .msr = true};
  Fragment* fragment = replayed(where, write, sizeof *value);
  if (!fragment) {
    fragment = &m_log.emplace_back(Fragment{.where = where, .write = write, .size = sizeof *value});
    if (write) std::memcpy(fragment->data.data(), value, sizeof *value);
    m_asked = 1;
  }
  if (!fragment->answered) {
    exit = Exit{};
    exit.reason = Exit::Reason::kMsr;
    exit.write = write;
    exit.gpa = index;
    exit.code = reason;
    exit.data = fragment->data;
    return GuestStop::exit();
  }
  if (!write) std::memcpy(value, fragment->data.data(), sizeof *value);
  ++m_cursor;
  return !fragment->refused;
}

const IoReplay::Fragment* IoReplay::next_answer() const {
  return m_cursor < m_log.size() && m_log[m_cursor].answered ? &m_log[m_cursor] : nullptr;
}

bool IoReplay::msr_answered(u32 index, bool write) const {
  const Fragment* answer = next_answer();
  return answer && answer->where == BusAddress{.address = index, .msr = true} && answer->write == write;
}

std::optional<u32> IoReplay::answered_call() const {
  const Fragment* answer = next_answer();
  if (!answer || !answer->where.call) return std::nullopt;
  return static_cast<u32>(answer->where.address);
}

Guest<u64> IoReplay::call(u32 code, Exit& exit) {
  const BusAddress where{.address = code, .call = true};
  Fragment* fragment = replayed(where, false, sizeof(u64));
  if (!fragment) {
    fragment = &m_log.emplace_back(Fragment{.where = where, .size = sizeof(u64)});
    m_asked = 1;
  }
  if (!fragment->answered) {
    exit = Exit{};
    exit.reason = Exit::Reason::kHypercall;
    exit.code = code;
    return GuestStop::exit();
  }
  u64 answer = 0;
  std::memcpy(&answer, fragment->data.data(), sizeof answer);
  ++m_cursor;
  return answer;
}

void IoReplay::complete(const void* data, bool refused) {
  if (!pending()) return;
  Fragment& fragment = m_log.back();
  fragment.answered = true;
  fragment.refused = refused;
  if (fragment.write || !data) return;
  const u8* items = static_cast<const u8*>(data);
  std::memcpy(fragment.data.data(), items, fragment.size);
  m_ahead_where = fragment.where;
  m_ahead_size = fragment.size;
  m_ahead.clear();
  for (unsigned i = m_asked - 1; i >= 1; --i)
    m_ahead.insert(m_ahead.end(), items + i * fragment.size, items + (i + 1) * fragment.size);
}

void IoReplay::element_done() {
  m_log.clear();
  m_cursor = 0;
}

void IoReplay::done() {
  element_done();
  m_ahead.clear();
}

}  // namespace anykvm::x86
