// Guests of the guest (TLFS: nested virtualization): what a hypervisor that knows Hyper-V's interface says
// about its guest in the VMCB.
#include <string.h>

#include "core/hyperv/processor.h"
#include "core/vcpu.h"
#include "x86/mmu/access.h"

namespace anykvm::core::hyperv {
namespace {

NestedEnlightenments enlightenments_in(const x86::VmcbControl& control) {
  NestedEnlightenments found;
  static_assert(sizeof found == sizeof control.software);
  memcpy(&found, control.software, sizeof found);
  return found;
}

}  // namespace

// Translations of nested guests stay when they are left, so a flush by any processor of one is for whoever
// ran another last. What the vCPU has of somebody else goes when it is known by the new numbers.
void VirtualProcessor::nested_guest_enters(const x86::VmcbControl& control) {
  if (!(m_features.nested & kNestedDirectFlush)) return;
  const NestedEnlightenments guest = enlightenments_in(control);
  if (m_nested_vm_id == guest.vm_id && m_nested_vp_id == guest.vp_id) return;
  m_nested_vm_id = guest.vm_id;
  m_nested_vp_id = guest.vp_id;
  m_vcpu.cpu().flush_tlb();
}

x86::MsrMapUse VirtualProcessor::msr_map_use(const x86::VmcbControl& control) const {
  const bool speaks = takes_hypercalls() && (m_features.nested & kNestedMsrBitmap);
  if (!speaks || !(enlightenments_in(control).control & kNestedMsrMap)) return x86::MsrMapUse::kMemory;
  return control.clean & kEnlightenmentsClean ? x86::MsrMapUse::kKeep : x86::MsrMapUse::kTake;
}

// The hypervisor wants it on this processor, and for the guest that runs.
bool VirtualProcessor::takes_nested_flushes() const {
  if (!takes_hypercalls() || !(m_features.nested & kNestedDirectFlush)) return false;
  if (!(enlightenments_in(m_vcpu.state().svm.control).control & kNestedFlushCalls)) return false;
  if (!(m_assist_page & kPageEnabled)) return false;
  u32 features = 0;
  const Gpa from = page_of(m_assist_page) + kAssistNestedFeatures;
  return x86::read_physical(m_vcpu.cpu(), from, &features, sizeof features) && (features & kDirectHypercalls);
}

// Not 0: the hypervisor wants to hear of the flush. Nothing: there is no such page.
std::optional<u32> VirtualProcessor::flush_lock_count() const {
  u32 count = 0;
  const Gpa page(enlightenments_in(m_vcpu.state().svm.control).partition_assist_page);
  if (!x86::read_physical(m_vcpu.cpu(), page, &count, sizeof count)) return std::nullopt;
  return count;
}

}  // namespace anykvm::core::hyperv
