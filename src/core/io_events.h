#pragma once
// ioeventfds: guest writes that signal an eventfd instead of leaving KVM_RUN (KVM_IOEVENTFD, SEEDS G2).
// Owner: Vm. Any thread; m_mutex is a leaf lock, shared by writers of the guest.

#include <linux/kvm.h>

#include <atomic>
#include <shared_mutex>
#include <vector>

#include "base/expected.h"
#include "base/types.h"
#include "core/eventfd.h"

namespace anykvm::core {

enum class IoBus : u8 { kMmio, kPio };

class IoEvents {
 public:
  Result<> change(const kvm_ioeventfd& request);
  // A guest's write. True: an eventfd was signalled, nobody else is to see the write.
  bool write(IoBus bus, u64 address, const void* data, unsigned size) const;

 private:
  struct Entry {
    IoBus bus;
    u64 address;
    u32 length;  // 0: any
    bool any_data;
    u64 data;
    EventFd event;

    bool collides_with(const Entry& other) const;
    bool matches(IoBus on, u64 at, u64 value, unsigned size) const;
  };

  mutable std::shared_mutex m_mutex;
  std::vector<Entry> m_entries;         // m_mutex
  std::atomic<std::size_t> m_count{0};  // of m_entries: most writes find none
};

}  // namespace anykvm::core
