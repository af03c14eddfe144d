#include "core/nested_state.h"

#include <errno.h>
#include <string.h>

#include "core/vcpu.h"
#include "x86/nested/svm/msr_map.h"
#include "x86/nested/svm/world_switch.h"

namespace anykvm::core {
namespace {

constexpr u16 kKnownFlags =
    KVM_STATE_NESTED_GUEST_MODE | KVM_STATE_NESTED_RUN_PENDING | KVM_STATE_NESTED_GIF_SET;

struct Vmcb {
  x86::VmcbControl control{};
  x86::VmcbSave save{};
};

Vmcb vmcb_in(const NestedData& data) {
  Vmcb vmcb;
  memcpy(&vmcb.control, data.vmcb12, sizeof vmcb.control);
  memcpy(&vmcb.save, data.vmcb12 + x86::kVmcbSaveOffset, sizeof vmcb.save);
  return vmcb;
}

void leave_guest_mode(x86::CpuState& state) {
  if (!state.svm.guest_mode) return;
  if (state.svm.nested_paging()) state.msrs.pat = state.svm.host.g_pat;
  x86::svm::load_registers(state, state.svm.host);
  state.svm.guest_mode = false;
  state.svm.tsc_offset = 0;
}

Result<> check_flags(const x86::CpuState& state, const kvm_nested_state& header) {
  if (header.format != KVM_STATE_NESTED_FORMAT_SVM) return Error{EINVAL, "not SVM's format"};
  if (header.flags & ~kKnownFlags) return Error{EINVAL, "unknown flags of the nested state"};
  const bool guest_mode = header.flags & KVM_STATE_NESTED_GUEST_MODE;
  if (guest_mode && !(state.efer & x86::kEferSvme)) return Error{EINVAL, "no guest without EFER.SVME"};
  if (guest_mode && state.smm.active) return Error{EINVAL, "no guest mode in system-management mode"};
  return {};
}

// The registers of the vCPU are the guest's by now; `vmcb.save` is the hypervisor's.
Result<> check_guest_mode(Vcpu& vcpu, const kvm_nested_state& header, const Vmcb& vmcb) {
  const x86::CpuModel& model = vcpu.cpu().model();
  const u64 address = header.hdr.svm.vmcb_pa;
  if (address % kPageSize || address >> model.physical_address_bits())
    return Error{EINVAL, "no address of a VMCB"};
  if (header.size < kNestedStateSize) return Error{EINVAL, "the nested state is too short for its VMCB"};
  if (!x86::svm::valid_control(model, vmcb.control)) return Error{EINVAL, "VMRUN would refuse the VMCB"};
  const u64 cr0 = vcpu.state().cr0;
  if ((cr0 & x86::kCr0Nw) && !(cr0 & x86::kCr0Cd)) return Error{EINVAL, "CR0.NW without CR0.CD"};
  const x86::VmcbSave& host = vmcb.save;
  const bool paging = (host.cr0 & x86::kCr0Pg) && (host.cr0 & x86::kCr0Pe) && !(host.rflags & x86::kFlagVm);
  if (!paging || !x86::svm::valid_guest(model, vmcb.control, host))
    return Error{EINVAL, "no hypervisor can be in this state"};
  return {};
}

}  // namespace

kvm_nested_state get_nested_state(Vcpu& vcpu, NestedData& data) {
  const x86::SvmState& svm = vcpu.state().svm;
  kvm_nested_state header{};
  header.format = KVM_STATE_NESTED_FORMAT_SVM;
  header.size = sizeof header;
  if (svm.gif) header.flags |= KVM_STATE_NESTED_GIF_SET;
  if (!svm.guest_mode) return header;
  header.flags |= KVM_STATE_NESTED_GUEST_MODE;
  header.size = kNestedStateSize;
  header.hdr.svm.vmcb_pa = svm.vmcb_pa;
  memset(&data, 0, sizeof data);
  memcpy(data.vmcb12, &svm.control, sizeof svm.control);
  memcpy(data.vmcb12 + x86::kVmcbSaveOffset, &svm.host, sizeof svm.host);
  return header;
}

Result<> set_nested_state(Vcpu& vcpu, const kvm_nested_state& header, const NestedData& data) {
  x86::CpuState& state = vcpu.state();
  x86::SvmState& svm = state.svm;
  TRY(check_flags(state, header));
  const bool guest_mode = header.flags & KVM_STATE_NESTED_GUEST_MODE;
  if (guest_mode) {
    const Vmcb vmcb = vmcb_in(data);
    TRY(check_guest_mode(vcpu, header, vmcb));
    svm.control = vmcb.control;
    svm.host = vmcb.save;
    svm.vmcb_pa = header.hdr.svm.vmcb_pa;
    if (!svm.host.g_pat) svm.host.g_pat = state.msrs.pat;  // the kernel does not tell
    svm.tsc_offset = vmcb.control.tsc_offset;
    svm.guest_mode = true;
    vcpu.hyperv().nested_guest_enters(svm.control);
  } else {
    leave_guest_mode(state);
  }
  svm.gif = header.flags & KVM_STATE_NESTED_GIF_SET;
  vcpu.cpu().msr_map_copy().forget();
  vcpu.cpu().state_replaced();
  return {};
}

}  // namespace anykvm::core
