#pragma once
// Memory for the records that describe translated code: plain values, packed side by side and forgotten all
// at once. 32 bits name a record. Owner: CodeCache. Allocation under CodeCache's mutex; the records stay
// where they are until clear().

#include <memory>
#include <new>
#include <type_traits>

#include "base/expected.h"
#include "base/types.h"

namespace anykvm::x86 {

// Names a record: its place in the memory. No record is at 0.
using RecordRef = u32;
inline constexpr RecordRef kNoRecord = 0;

class RecordMemory {
 public:
  // `size` bytes of address space, which nobody may touch yet: a client that locks all of its memory
  // (mlockall(2)) does not fill them.
  static Result<std::unique_ptr<RecordMemory>> create(std::size_t size);
  ~RecordMemory();
  RecordMemory(const RecordMemory&) = delete;
  RecordMemory& operator=(const RecordMemory&) = delete;

  // Makes sure of `bytes` for records. False: there is no room.
  bool reserve(std::size_t bytes);
  // Within what was reserved.
  template <class T>
  T* make(const T& value) {
    static_assert(std::is_trivially_destructible_v<T> && alignof(T) <= 8);
    m_used = (m_used + alignof(T) - 1) & ~(alignof(T) - 1);
    T* record = new (m_memory + m_used) T(value);
    m_used += sizeof(T);
    return record;
  }
  template <class T>
  T* at(RecordRef ref) const {
    return std::launder(reinterpret_cast<T*>(m_memory + ref));
  }
  RecordRef ref(const void* record) const {
    return static_cast<RecordRef>(static_cast<const u8*>(record) - m_memory);
  }
  // Forgets what was made since used() was `mark`.
  std::size_t used() const { return m_used; }
  void rewind(std::size_t mark) { m_used = mark; }
  // Forgets every record and gives the memory back.
  void clear();

 private:
  static constexpr std::size_t kFirst = 8;

  RecordMemory(u8* memory, std::size_t size) : m_memory(memory), m_size(size) {}

  u8* const m_memory;
  const std::size_t m_size;
  std::size_t m_open = 0;  // may be written to
  std::size_t m_used = kFirst;
};

}  // namespace anykvm::x86
