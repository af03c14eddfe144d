// Compiled without vector instructions, but for what does not run inside translated code: a TLB miss comes
// here while the guest's vector state is in the host's registers.
#include "core/dirty_ring.h"

#include <algorithm>

#include "x86/cpu.h"

namespace anykvm::core {
namespace {

// The initial-exec model keeps the access free of __tls_get_addr, which may use vector registers.
[[gnu::tls_model("initial-exec")]] thread_local DirtyRing* t_ring = nullptr;

}  // namespace

class DirtyRing::Listener final : public x86::DirtyListener {
 public:
  void page_dirtied(u32 slot, u64 page) override {
    if (t_ring) t_ring->push(slot, page);
  }
};

x86::DirtyListener& DirtyRing::listener() {
  static Listener instance;
  return instance;
}

DirtyRing::Scope::Scope(DirtyRing& ring) : m_outer(t_ring) { t_ring = &ring; }
DirtyRing::Scope::~Scope() { t_ring = m_outer; }

bool DirtyRing::nearly_full() const {
  const u32 reserve = std::max(kDirtyRingReserve, m_count / 8);
  return m_count && m_used.load(std::memory_order_acquire) >= m_count - reserve;
}

void DirtyRing::place_late() {
  while (m_late_count && put(m_late[m_late_count - 1].slot, m_late[m_late_count - 1].page)) --m_late_count;
}

bool DirtyRing::put(u32 slot, u64 page) {
  if (m_used.load(std::memory_order_acquire) >= m_count) return false;
  kvm_dirty_gfn& entry = m_entries[m_next];
  m_next = (m_next + 1) % m_count;
  m_used.fetch_add(1, std::memory_order_acq_rel);
  entry.slot = slot;
  entry.offset = page;
  // The client may look at the rest once it sees the flag.
  __atomic_store_n(&entry.flags, KVM_DIRTY_GFN_F_DIRTY, __ATOMIC_RELEASE);
  return true;
}

void DirtyRing::push(u32 slot, u64 page) {
  if (!m_count) return;
  place_late();
  if (!put(slot, page) && m_late_count < m_late.size()) m_late[m_late_count++] = {slot, page};
  if (nearly_full() && m_cpu) m_cpu->request(x86::kAttentionKick);
}

void DirtyRing::reset(std::vector<Page>* pages) {
  if (!m_count) return;
  // What the client wrote into the entry is looked at once.
  while (m_used.load(std::memory_order_acquire)) {
    kvm_dirty_gfn& entry = m_entries[m_oldest];
    if (!(__atomic_load_n(&entry.flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_RESET)) return;
    pages->push_back(
        {__atomic_load_n(&entry.slot, __ATOMIC_RELAXED), __atomic_load_n(&entry.offset, __ATOMIC_RELAXED)});
    __atomic_store_n(&entry.flags, 0, __ATOMIC_RELEASE);
    m_oldest = (m_oldest + 1) % m_count;
    m_used.fetch_sub(1, std::memory_order_acq_rel);
  }
}

}  // namespace anykvm::core
