// VMCALL and VMMCALL: KVM's own calls (Linux: Documentation/virt/kvm/x86/hypercalls.rst).
#include <linux/kvm_para.h>
#include <sched.h>
#include <string.h>
#include <time.h>

#include "core/vcpu.h"
#include "core/vm.h"
#include "x86/mmu/access.h"

namespace anykvm::core {

bool Vcpu::pv_permitted(x86::Feature feature) {
  return !m_enforces_pv_features || m_cpu->model().has(feature);
}

void Vcpu::set_result(u64 value) { state().gpr[x86::kRax] = state().code64() ? value : value & 0xffffffff; }

x86::Hypercall Vcpu::hypercall(u32* client_call) {
  constexpr u64 kHypervCall = 1u << 31;  // set by its hypercall page beside Xen's
  const bool to_hyperv = m_hyperv.takes_hypercalls();
  if (m_vm.xen().takes_hypercalls() && !(to_hyperv && (state().gpr[x86::kRax] & kHypervCall))) {
    *client_call = KVM_EXIT_XEN;
    return m_xen.hypercall();
  }
  if (!to_hyperv) return kvm_hypercall(client_call);
  *client_call = KVM_EXIT_HYPERV;
  return m_hyperv.hypercall();
}

void Vcpu::hypercall_answered(u32 client_call, u64 answer) {
  if (client_call == KVM_EXIT_HYPERV) return m_hyperv.set_result(answer);
  if (client_call == KVM_EXIT_XEN) state().gpr[x86::kRax] = answer;
  if (client_call == KVM_EXIT_XEN) return;
  set_result(answer);
}

x86::Hypercall Vcpu::kvm_hypercall(u32* client_call) {
  const auto& gpr = state().gpr;
  const u64 mask = state().code64() ? ~u64{0} : 0xffffffff;
  const std::array<u64, 4> arguments{gpr[x86::kRbx] & mask, gpr[x86::kRcx] & mask, gpr[x86::kRdx] & mask,
                                     gpr[x86::kRsi] & mask};
  std::optional<i64> result = -KVM_EPERM;
  if (state().cpl == 0) result = kvm_call(gpr[x86::kRax] & mask, arguments, client_call);
  if (!result) return x86::Hypercall::kClient;
  set_result(static_cast<u64>(*result));
  return x86::Hypercall::kDone;
}

// Nothing: the client answers.
std::optional<i64> Vcpu::kvm_call(u64 number, const std::array<u64, 4>& arguments, u32* client_call) {
  switch (number) {
    // The instruction ends a block, after which pending interrupts are looked for: all that this call asks
    // for.
    case KVM_HC_VAPIC_POLL_IRQ:
      return 0;
    case KVM_HC_KICK_CPU: {
      if (!pv_permitted(x86::Feature::kKvmPvUnhalt)) return -KVM_ENOSYS;
      irqchip::Message kick;
      kick.destination = static_cast<u32>(arguments[1]);
      kick.mode = irqchip::DeliveryMode::kRemoteRead;
      if (m_lapic) m_vm.irqchip()->bus().deliver(kick, nullptr);
      return 0;
    }
    case KVM_HC_CLOCK_PAIRING:
      return pair_clocks(Gpa(arguments[0]), arguments[1]);
    case KVM_HC_SEND_IPI:
      if (!pv_permitted(x86::Feature::kKvmPvSendIpi)) return -KVM_ENOSYS;
      return send_ipis(arguments, state().code64());
    case KVM_HC_SCHED_YIELD:
      if (!pv_permitted(x86::Feature::kKvmPvSchedYield)) return -KVM_ENOSYS;
      sched_yield();
      return 0;
    case KVM_HC_MAP_GPA_RANGE: {
      const u64 first = arguments[0] / kPageSize, pages = arguments[1];
      if (!m_vm.client_answers_hypercall(number)) return -KVM_ENOSYS;
      if (arguments[0] % kPageSize || first + pages <= first) return -KVM_EINVAL;
      *client_call = KVM_EXIT_HYPERCALL;
      return std::nullopt;
    }
    default:
      return -KVM_ENOSYS;
  }
}

// The host's time and the guest's TSC at one moment.
i64 Vcpu::pair_clocks(Gpa to, u64 clock) {
  if (clock != KVM_CLOCK_PAIRING_WALLCLOCK) return -KVM_EOPNOTSUPP;
  timespec now{};
  kvm_clock_pairing pair{};
  const u64 before = m_cpu->read_tsc();
  clock_gettime(CLOCK_REALTIME, &now);
  pair.tsc = before + (m_cpu->read_tsc() - before) / 2;
  pair.sec = now.tv_sec;
  pair.nsec = now.tv_nsec;
  return x86::write_physical(*m_cpu, to, &pair, sizeof pair) ? 0 : -KVM_EFAULT;
}

// A bitmap of two words from APIC ID arguments[2] on; arguments[3] is an ICR with vector and delivery mode.
i64 Vcpu::send_ipis(const std::array<u64, 4>& arguments, bool wide) {
  if (!m_lapic) return -KVM_EOPNOTSUPP;
  irqchip::Message message;
  message.vector = static_cast<u8>(arguments[3]);
  message.mode = static_cast<irqchip::DeliveryMode>(arguments[3] >> 8 & 7);
  const u64 unknown = arguments[3] & ~u64{0x7ff};
  const bool known =
      message.mode == irqchip::DeliveryMode::kFixed || message.mode == irqchip::DeliveryMode::kNmi;
  if (unknown || !known) return -KVM_EINVAL;
  const unsigned word_bits = wide ? 64 : 32;
  i64 sent = 0;
  for (unsigned bit = 0; bit < 2 * word_bits; ++bit) {
    if (!(arguments[bit / word_bits] >> (bit % word_bits) & 1)) continue;
    message.destination = static_cast<u32>(arguments[2]) + bit;
    sent += m_vm.irqchip()->bus().deliver(message, nullptr) > 0 ? 1 : 0;
  }
  return sent;
}

void Vcpu::report_hypercall(const x86::Exit& exit) {
  m_io_exit = exit;
  kvm_run& run = m_shared.run();
  const auto& gpr = state().gpr;
  run.exit_reason = exit.code;
  if (exit.code == KVM_EXIT_HYPERV) return m_hyperv.describe_call(run.hyperv);
  if (exit.code == KVM_EXIT_XEN) return m_xen.describe_call(run.xen);
  const u64 mask = state().code64() ? ~u64{0} : 0xffffffff;
  const u64 arguments[] = {gpr[x86::kRbx], gpr[x86::kRcx], gpr[x86::kRdx], gpr[x86::kRsi]};
  memset(&run.hypercall, 0, sizeof run.hypercall);  // `flags` are wider than `longmode` (KVM API 5)
  run.hypercall.nr = gpr[x86::kRax] & mask;
  for (unsigned i = 0; i < std::size(arguments); ++i) run.hypercall.args[i] = arguments[i] & mask;
  run.hypercall.longmode = state().code64();
}

}  // namespace anykvm::core
