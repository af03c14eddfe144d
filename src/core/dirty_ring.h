#pragma once
// Dirty rings (KVM API 8.29): each vCPU tells the client of the pages that it writes to in a ring of entries
// that both map, and stops while the ring is nearly full.
// Owner: Vcpu, with the memory in its SharedPage. push() from the thread that holds the vCPU's mutex (see
// Scope); reset() under Vm's slot lock. The two may run at once.

#include <linux/kvm.h>

#include <array>
#include <atomic>
#include <vector>

#include "base/types.h"
#include "x86/mmu/physical_memory.h"

namespace anykvm::x86 {
class Cpu;
}

namespace anykvm::core {

inline constexpr u32 kMaxDirtyRingEntries = 65536;
inline constexpr u64 kMaxDirtyRingBytes = kMaxDirtyRingEntries * sizeof(kvm_dirty_gfn);
// What may still come between the moment when the ring counts as full and the vCPU's exit; an eighth of
// larger rings.
inline constexpr u32 kDirtyRingReserve = 64;

class DirtyRing {
 public:
  // No entries: the VM has no rings. `cpu` is kicked when the ring is full.
  DirtyRing(kvm_dirty_gfn* entries, u32 count) : m_entries(entries), m_count(count) {}
  bool exists() const { return m_count != 0; }
  void set_cpu(x86::Cpu* cpu) { m_cpu = cpu; }

  // KVM_EXIT_DIRTY_RING_FULL.
  bool nearly_full() const;
  // Puts pages into the ring that found no room; as push().
  void place_late();
  // Takes the entries that the client has given back, the oldest first, into `pages`.
  struct Page {
    u32 slot;
    u64 page;
  };
  void reset(std::vector<Page>* pages);

  // While it lives, what this thread dirties goes into the ring.
  class Scope {
   public:
    explicit Scope(DirtyRing& ring);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    DirtyRing* const m_outer;  // a signal handler of the client may run in the middle of KVM_RUN
  };

  // For MemorySlot::dirty_listener: the ring of the thread.
  static x86::DirtyListener& listener();

 private:
  class Listener;
  void push(u32 slot, u64 page);
  bool put(u32 slot, u64 page);

  kvm_dirty_gfn* m_entries;
  const u32 m_count;
  x86::Cpu* m_cpu = nullptr;
  u32 m_next = 0;              // the next entry to fill; push()
  std::atomic<u32> m_used{0};  // entries that the client has not given back
  u32 m_oldest = 0;            // of these; reset()
  // Pages that came when all entries were in use: one block of code may write to many.
  std::array<Page, 512> m_late{};
  u32 m_late_count = 0;
};

}  // namespace anykvm::core
