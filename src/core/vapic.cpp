// KVM_TPR_ACCESS_REPORTING, for a client that finds an old guest's accesses to the TPR and patches them, and
// KVM_SET_VAPIC_ADDR, for what they become: the client's option ROM reads and writes the task priority in a
// word of memory instead of the APIC's page: TPR in bits 7:0, the highest vector in service (its class) in
// 15:8, the highest requested vector in 31:24.
#include <errno.h>
#include <string.h>

#include <algorithm>

#include "base/guarded_memory.h"
#include "core/vcpu.h"
#include "core/vm.h"
#include "irqchip/apic_registers.h"

namespace anykvm::core {

Result<> Vcpu::set_vapic_address(u64 address) {
  if (address && !m_vm.is_guest_memory(Gpa(address), sizeof(u32)))
    return Error{EINVAL, "the word is not in guest memory"};
  m_vapic = address ? std::optional(Gpa(address)) : std::nullopt;
  m_cpu->request(x86::kAttentionEvent);
  return {};
}

void Vcpu::note_tpr_access(Gpa address, bool write) {
  if (!m_lapic->owns_address(address) || address.page_offset() != irqchip::kApicTpr) return;
  m_tpr_rip = m_cpu->io_rip();
  m_tpr_write = write;
  request(kRequestTprAccess);
}

void Vcpu::take_vapic_tpr() {
  const u8* word = m_vapic && m_lapic ? m_vm.machine().memory().host(*m_vapic, sizeof(u32)) : nullptr;
  u32 value = 0;
  if (word && guarded_copy(&value, word, sizeof value)) m_lapic->set_tpr(static_cast<u8>(value));
}

void Vcpu::show_vapic() {
  u8* word = m_vapic && m_lapic ? m_vm.machine().memory().host(*m_vapic, sizeof(u32)) : nullptr;
  if (!word) return;
  const u32 in_service = static_cast<u32>(std::max(m_lapic->highest_in_service(), 0)) & 0xf0;
  const u32 requested = static_cast<u32>(std::max(m_lapic->highest_requested(), 0));
  const u32 shown = m_lapic->tpr() | in_service << 8 | requested << 24;
  guarded_copy(word, &shown, sizeof shown);
}

}  // namespace anykvm::core
