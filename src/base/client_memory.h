#pragma once
// Guarded copies from and to addresses that the client gave us: bad memory is EFAULT, never SIGSEGV.
// Owner: nobody; functions over the client's address space, which is ours. Any thread.

#include <type_traits>

#include "base/expected.h"
#include "base/types.h"

namespace anykvm {

Result<> copy_from_client(void* to, u64 client_address, std::size_t size);
Result<> copy_to_client(u64 client_address, const void* from, std::size_t size);

// An address of a T in the client's memory. It can be reached only through the guarded copies.
template <class T>
class ClientPtr {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  ClientPtr() = default;
  explicit ClientPtr(u64 address) : m_address(address) {}

  u64 address() const { return m_address; }
  ClientPtr operator+(std::size_t items) const { return ClientPtr(m_address + items * sizeof(T)); }

  Result<T> read() const {
    T value;
    TRY(copy_from_client(&value, m_address, sizeof value));
    return value;
  }
  Result<> write(const T& value) const { return copy_to_client(m_address, &value, sizeof value); }
  Result<> read_array(T* to, std::size_t items) const {
    return copy_from_client(to, m_address, items * sizeof(T));
  }
  Result<> write_array(const T* from, std::size_t items) const {
    return copy_to_client(m_address, from, items * sizeof(T));
  }

 private:
  u64 m_address = 0;
};

}  // namespace anykvm
