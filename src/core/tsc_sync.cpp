#include "core/tsc_sync.h"

namespace anykvm::core {

u64 TscSync::join(u64 offset, u32 khz) {
  std::lock_guard lock(m_mutex);
  if (khz == m_khz) return m_offset;
  m_khz = khz;
  return m_offset = offset;
}

u64 TscSync::write(u64 value, u64 offset, u32 khz) {
  std::lock_guard lock(m_mutex);
  // One second either way, as in the kernel. The first write of all sets the time; a 0 never does.
  const u64 second = u64{khz} * 1000;
  const bool near = offset - m_offset + second <= 2 * second;
  const bool same = khz == m_khz && (value == 0 || (m_written && near));
  m_written = true;
  if (same) return m_offset;
  m_khz = khz;
  return m_offset = offset;
}

void TscSync::set(u64 offset, u32 khz) {
  std::lock_guard lock(m_mutex);
  m_khz = khz;
  m_offset = offset;
}

}  // namespace anykvm::core
