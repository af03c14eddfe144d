#pragma once
// Regions of memory and of ports whose accesses go to servers over descriptors (KVM_SET_IOREGION,
// docs/ioregionfd.md, SEEDS G3). Owner: Vm. Any thread; m_mutex is a leaf lock, shared by vCPUs that look.

#include <anykvm/ioregion.h>

#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <shared_mutex>
#include <utility>

#include "base/expected.h"
#include "base/types.h"
#include "core/io_channel.h"
#include "core/io_events.h"

namespace anykvm::core {

class IoRegions {
 public:
  // Where an access goes.
  struct Hit {
    std::shared_ptr<IoChannel> channel;
    u64 user_data;
    u64 offset;
    bool pio;
    bool posted_writes;
  };

  Result<> set(const kvm_ioregion& request);
  // The region that holds all of the access.
  std::optional<Hit> find(IoBus bus, u64 address, u64 size) const;

 private:
  struct Region {
    u64 size;
    u64 user_data;
    bool posted_writes;
    std::shared_ptr<IoChannel> channel;
  };
  using Key = std::pair<IoBus, u64>;  // and the first address

  Result<> add(const Key& key, const kvm_ioregion& request);
  Result<> remove(const Key& key, u64 size);
  bool collides(const Key& key, u64 size) const;
  Result<std::shared_ptr<IoChannel>> channel_for(const kvm_ioregion& request) const;

  mutable std::shared_mutex m_mutex;
  std::map<Key, Region> m_regions;  // m_mutex
  std::atomic<bool> m_any{false};
};

}  // namespace anykvm::core
