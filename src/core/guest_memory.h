#pragma once
// Memory of the guest that the client cannot map (KVM_CREATE_GUEST_MEMFD), and which guest pages are to use
// such memory (KVM_SET_MEMORY_ATTRIBUTES; KVM API 4.140, 4.142). Owner: GuestMemory by its descriptor and by
// the slots bound to it; PrivateRanges by Vm, under its slot lock.

#include <map>
#include <memory>
#include <vector>

#include "base/expected.h"
#include "base/fd.h"
#include "base/types.h"

namespace anykvm::core {

class Vm;

class GuestMemory {
 public:
  // EINVAL: no size, or not whole pages.
  static Result<std::shared_ptr<GuestMemory>> create(std::weak_ptr<Vm> vm, u64 size);
  ~GuestMemory();
  GuestMemory(const GuestMemory&) = delete;
  GuestMemory& operator=(const GuestMemory&) = delete;

  u64 size() const { return m_size; }
  u8* data() const { return m_data; }
  bool belongs_to(const Vm& vm) const { return m_vm.lock().get() == &vm; }

  // The descriptor for the client. It can neither read nor write nor map the memory. Once.
  Fd take_descriptor() { return std::move(m_client_fd); }

  // fallocate(2) on that descriptor.
  Result<> allocate(int fd, int mode, i64 offset, i64 length);

 private:
  GuestMemory(std::weak_ptr<Vm> vm, u64 size, u8* data, Fd client_fd);

  const std::weak_ptr<Vm> m_vm;
  const u64 m_size;
  u8* const m_data;
  Fd m_client_fd;
};

// The guest pages with KVM_MEMORY_ATTRIBUTE_PRIVATE.
class PrivateRanges {
 public:
  void set(u64 first, u64 end, bool is_private);
  bool contains(u64 address) const;
  bool empty() const { return m_ranges.empty(); }

  // [first, end) cut where the attribute changes.
  struct Piece {
    u64 first, end;
    bool is_private;
    bool operator==(const Piece&) const = default;
  };
  std::vector<Piece> cut(u64 first, u64 end) const;

 private:
  std::map<u64, u64> m_ranges;  // first -> end, neither overlapping nor touching
};

}  // namespace anykvm::core
