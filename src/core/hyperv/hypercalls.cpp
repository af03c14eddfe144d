// Hypercalls (TLFS 3, 10.5, 12): TLB flushes and interrupts for several processors at once, messages and
// events. Those of unknown meaning to us go to the client.
#include <sched.h>
#include <string.h>

#include <array>
#include <bit>
#include <utility>

#include "core/hyperv/processor.h"
#include "core/vcpu.h"
#include "core/vm.h"
#include "x86/mmu/access.h"
#include "x86/state/xsave_image.h"

namespace anykvm::core::hyperv {
namespace {

constexpr u64 kReservedControl = u64{0x1f} << 27 | u64{0xf} << 44 | u64{0xf} << 60;

bool is_extended(u16 code) { return code >= kCallFirstExtended && code <= kCallLastExtended; }

bool is_flush(u16 code) {
  return code == kCallFlushSpace || code == kCallFlushList || code == kCallFlushSpaceEx ||
         code == kCallFlushListEx;
}

// These take parameters in XMM registers.
bool takes_xmm(u16 code) { return is_flush(code) || code == kCallSendIpiEx; }

}  // namespace

// The control word and where the parameters are (TLFS 3.7 to 3.9): in memory, or with a fast call in
// registers, one block of words either way.
class HypercallInput {
 public:
  HypercallInput(x86::Cpu& cpu, bool long_mode) : m_cpu(cpu) {
    const auto& gpr = cpu.state().gpr;
    auto pair = [&](unsigned high, unsigned low) { return gpr[high] << 32 | static_cast<u32>(gpr[low]); };
    control = long_mode ? gpr[x86::kRcx] : pair(x86::kRdx, x86::kRax);
    first = long_mode ? gpr[x86::kRdx] : pair(x86::kRbx, x86::kRcx);
    second = long_mode ? gpr[x86::kR8] : pair(x86::kRdi, x86::kRsi);
    code = static_cast<u16>(control);
    fast = has_bit(control, 16);
    extra_words = static_cast<unsigned>(bits(control, 26, 17));
    repetitions = static_cast<unsigned>(bits(control, 43, 32));
    first_repetition = static_cast<unsigned>(bits(control, 59, 48));
  }

  bool repeats() const { return repetitions || first_repetition; }

  // `count` words of the parameters from word `at` on. False: there are no such.
  bool read(unsigned at, u64* words, unsigned count) const {
    if (!fast) return x86::read_guest_physical(m_cpu, Gpa(first) + 8 * at, words, 8 * count);
    if (at + count > kFastWords) return false;
    std::array<u64, kFastWords> block{first, second};
    memcpy(&block[2], x86::xsave_component_bytes(m_cpu.state(), 1), 8 * (kFastWords - 2));
    memcpy(words, &block[at], 8 * count);
    return true;
  }

  u64 control = 0, first = 0, second = 0;  // `first` and `second`: addresses of input and output, if not fast
  u16 code = 0;
  bool fast = false;
  unsigned extra_words = 0;  // of a header of variable size
  unsigned repetitions = 0, first_repetition = 0;
  bool direct = false;  // a nested guest's, which its hypervisor does not hear of

 private:
  static constexpr unsigned kFastWords = 2 + 12;  // six XMM registers

  x86::Cpu& m_cpu;
};

// Some of the processors: all, or 64 banks of 64 of which only those with a bit in `valid` are given
// (TLFS 7.8.7.3).
class ProcessorSet {
 public:
  static ProcessorSet all() {
    ProcessorSet set;
    set.m_all = true;
    return set;
  }
  static ProcessorSet first_bank(u64 mask) {
    ProcessorSet set;
    set.m_banks[0] = mask;
    return set;
  }
  // The format and the mask of valid banks are words `at` and `at` + 1, the banks follow. Nothing: bad input.
  static std::optional<ProcessorSet> read(const HypercallInput& input, unsigned at) {
    enum Format : u64 { kSparse, kAll };
    u64 header[2];
    if (!input.read(at, header, 2)) return std::nullopt;
    const u64 valid = header[1];
    if (input.extra_words != static_cast<unsigned>(std::popcount(valid))) return std::nullopt;
    if (header[0] == kAll) return all();
    std::array<u64, 64> given{};
    if (input.extra_words && !input.read(at + 2, given.data(), input.extra_words)) return std::nullopt;
    ProcessorSet set;
    unsigned next = 0;
    for (u64 left = valid; left; left &= left - 1) set.m_banks[std::countr_zero(left)] = given[next++];
    return set;
  }

  bool contains(u32 vp_index) const {
    return m_all || (vp_index / 64 < m_banks.size() && has_bit(m_banks[vp_index / 64], vp_index % 64));
  }

 private:
  bool m_all = false;
  std::array<u64, 64> m_banks{};
};

bool VirtualProcessor::long_mode() const { return m_vcpu.state().code64(); }

x86::Hypercall VirtualProcessor::hypercall() {
  HypercallInput input(m_vcpu.cpu(), long_mode());
  return answer(input);
}

std::optional<x86::Hypercall> VirtualProcessor::nested_hypercall() {
  HypercallInput input(m_vcpu.cpu(), long_mode());
  input.direct = is_flush(input.code) && takes_nested_flushes();
  if (!input.direct) return std::nullopt;
  return answer(input);
}

x86::Hypercall VirtualProcessor::answer(HypercallInput& input) {
  const x86::CpuState& state = m_vcpu.state();
  if (state.cpl != 0 || !(state.cr0 & x86::kCr0Pe)) return x86::Hypercall::kUndefined;
  const bool no_xmm = m_enforces_cpuid && !(m_features.others & kXmmInput);
  const bool permitted = !m_enforces_cpuid || m_features.permit_call(input.code);
  bool ask_client = false;
  u16 status = kAccessDenied;
  if (permitted && (input.control & kReservedControl)) {
    status = kInvalidInput;
  } else if (permitted) {
    if (input.fast && takes_xmm(input.code) && no_xmm) return x86::Hypercall::kUndefined;
    status = carry_out(input, &ask_client);
  }
  if (ask_client) return x86::Hypercall::kClient;
  // All repetitions were done at once.
  const u64 done = status == kSuccess ? input.repetitions : 0;
  set_result(status | done << 32);
  return x86::Hypercall::kDone;
}

void VirtualProcessor::set_result(u64 result) {
  auto& gpr = m_vcpu.state().gpr;
  gpr[x86::kRax] = long_mode() ? result : static_cast<u32>(result);
  if (!long_mode()) gpr[x86::kRdx] = result >> 32;
}

void VirtualProcessor::describe_call(kvm_hyperv_exit& exit) const {
  const HypercallInput input(m_vcpu.cpu(), long_mode());
  memset(&exit, 0, sizeof exit);
  exit.type = KVM_EXIT_HYPERV_HCALL;
  exit.u.hcall.input = input.control;
  exit.u.hcall.params[0] = input.first;
  exit.u.hcall.params[1] = input.second;
}

u16 VirtualProcessor::carry_out(HypercallInput& input, bool* ask_client) {
  const bool simple = !input.repeats() && !input.extra_words;
  switch (input.code) {
    case kCallLongSpinWait:
      if (!simple) return kInvalidInput;
      sched_yield();
      return kSuccess;
    case kCallSignalEvent: {
      if (!simple) return kInvalidInput;
      const u16 status = signal_event(input);
      if (status != kInvalidPortId) return status;
      [[fallthrough]];  // the client may know the connection
    }
    case kCallPostMessage:
      if (!simple || !m_synic.active()) return kInvalidInput;
      *ask_client = true;
      return kSuccess;
    case kCallFlushSpace:
    case kCallFlushSpaceEx:
      return input.repeats() ? u16{kInvalidInput} : flush(input);
    case kCallFlushList:
    case kCallFlushListEx:
      return !input.repetitions || input.first_repetition ? u16{kInvalidInput} : flush(input);
    case kCallSendIpi:
    case kCallSendIpiEx:
      return input.repeats() ? u16{kInvalidInput} : send_ipi(input);
    case kCallPostDebugData:
    case kCallRetrieveDebugData:
    case kCallResetDebugSession:
      return debug_call(input, ask_client);
    default:
      break;
  }
  if (!is_extended(input.code)) return kInvalidCode;
  if (input.fast) return kInvalidParameter;
  *ask_client = true;
  return kSuccess;
}

// The whole TLB goes, whatever the address space and the list of addresses.
u16 VirtualProcessor::flush(HypercallInput& input) {
  constexpr u64 kAllProcessors = 1;
  const bool has_set = input.code == kCallFlushSpaceEx || input.code == kCallFlushListEx;
  u64 words[3];  // address space, flags, mask
  if (!input.read(0, words, has_set ? 2 : 3)) return kInvalidInput;
  std::optional<ProcessorSet> set;
  if (has_set) {
    set = ProcessorSet::read(input, 2);
    if (!set) return kInvalidInput;
  } else {
    if (input.extra_words) return kInvalidInput;
    // Windows Server 2012 leaves the mask empty and means everybody.
    const bool all = (words[1] & kAllProcessors) || words[2] == 0;
    set = all ? ProcessorSet::all() : ProcessorSet::first_bank(words[2]);
  }
  const std::optional<u32> locks = input.direct ? flush_lock_count() : 0;
  if (!locks) return kInvalidInput;
  m_trap_after_flush = *locks != 0;
  m_to_flush.clear();
  // Whoever is about to run one of these nested processors sees what was written until now, or is seen here.
  if (input.direct) std::atomic_thread_fence(std::memory_order_seq_cst);
  for (unsigned number = 0; number < m_partition.count(); ++number) {
    VirtualProcessor& processor = m_partition.at(number);
    if (!is_meant(processor, input, *set)) continue;
    if (&processor == this)
      m_vcpu.cpu().flush_tlb();
    else
      m_to_flush.push_back(&processor.m_vcpu.cpu());
  }
  // The call returns when the others have done it; they cannot be waited for in here.
  if (!m_to_flush.empty() || m_trap_after_flush) exit_to_client(0, 0);
  return kSuccess;
}

// A nested guest means processors of its own, wherever they run.
bool VirtualProcessor::is_meant(const VirtualProcessor& other, const HypercallInput& input,
                                const ProcessorSet& set) const {
  if (!input.direct) return set.contains(other.vp_index());
  return other.m_nested_vm_id == m_nested_vm_id && set.contains(other.m_nested_vp_id);
}

void VirtualProcessor::finish_flush() {
  if (!m_to_flush.empty()) m_vcpu.vm().machine().flush_tlbs(m_to_flush);
  m_to_flush.clear();
  if (std::exchange(m_trap_after_flush, false))
    m_vcpu.leave_nested_guest(kExitEnlightenment, kTrapAfterFlush);
}

u16 VirtualProcessor::send_ipi(HypercallInput& input) {
  constexpr u64 kFirstVector = 0x10, kLastVector = 0xff;
  if (!m_vcpu.lapic()) return kInvalidInput;
  u64 words[2];  // vector, then mask or format
  if (!input.read(0, words, 2)) return kInvalidInput;
  std::optional<ProcessorSet> set;
  if (input.code == kCallSendIpiEx) {
    set = ProcessorSet::read(input, 1);
    if (!set) return kInvalidInput;
    words[0] = static_cast<u32>(words[0]);
    if (!input.extra_words && words[1] == 0) return kSuccess;  // nobody: the vector does not matter
  } else {
    if (input.extra_words) return kInvalidInput;
    set = ProcessorSet::first_bank(words[1]);
  }
  if (words[0] < kFirstVector || words[0] > kLastVector) return kInvalidInput;
  for (unsigned number = 0; number < m_partition.count(); ++number) {
    VirtualProcessor& processor = m_partition.at(number);
    if (set->contains(processor.vp_index())) processor.send(static_cast<u8>(words[0]));
  }
  return kSuccess;
}

u16 VirtualProcessor::signal_event(HypercallInput& input) {
  constexpr u64 kFlagNumber = u64{0xffff} << 32;
  u64 connection = input.first;
  if (!input.fast && (connection % sizeof connection || !input.read(0, &connection, 1)))
    return kInvalidAlignment;
  if (connection & kFlagNumber) return kInvalidPortId;
  if (connection & ~u64{KVM_HYPERV_CONN_ID_MASK}) return kInvalidInput;
  return m_partition.signal_event(static_cast<u32>(connection)) ? kSuccess : kInvalidPortId;
}

u16 VirtualProcessor::debug_call(HypercallInput& input, bool* ask_client) {
  constexpr u64 kUseHypercalls = 1u << 2;
  if (input.code != kCallResetDebugSession && input.fast) return kInvalidParameter;
  if (!m_features.kernel_debugging) return kInvalidCode;
  if (!(m_partition.debugger().options & kUseHypercalls)) return kOperationDenied;
  *ask_client = true;
  return kSuccess;
}

}  // namespace anykvm::core::hyperv
