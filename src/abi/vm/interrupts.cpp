// Interrupt chips, routing, lines, messages, eventfds.
#include <errno.h>

#include "abi/client_list.h"
#include "abi/handlers.h"
#include "core/vm.h"

namespace anykvm::abi::vm {

Result<long> create_irqchip(core::Vm& vm, u64) {
  TRY(vm.create_irqchip());
  return 0;
}

Result<long> get_irqchip(core::Vm& vm, kvm_irqchip& chip) {
  auto* irqchip = TRY(vm.require_irqchip(ENXIO));
  TRY(irqchip->get_chip(&chip));
  return 0;
}

Result<long> set_irqchip(core::Vm& vm, const kvm_irqchip& chip) {
  auto* irqchip = TRY(vm.require_irqchip(ENXIO));
  TRY(irqchip->set_chip(chip));
  return 0;
}

Result<long> create_pit(core::Vm& vm, u64) {
  TRY(vm.create_pit(KVM_PIT_SPEAKER_DUMMY));
  return 0;
}

Result<long> create_pit2(core::Vm& vm, const kvm_pit_config& config) {
  TRY(vm.create_pit(config.flags));
  return 0;
}

Result<long> get_pit(core::Vm& vm, kvm_pit_state& state) {
  const kvm_pit_state2 full = TRY(vm.require_pit())->state();
  for (unsigned i = 0; i < std::size(state.channels); ++i) state.channels[i] = full.channels[i];
  return 0;
}

Result<long> set_pit(core::Vm& vm, const kvm_pit_state& state) {
  auto* pit = TRY(vm.require_pit());
  kvm_pit_state2 full = pit->state();
  for (unsigned i = 0; i < std::size(state.channels); ++i) full.channels[i] = state.channels[i];
  pit->set_state(full);
  return 0;
}

Result<long> get_pit2(core::Vm& vm, kvm_pit_state2& state) {
  state = TRY(vm.require_pit())->state();
  return 0;
}

Result<long> set_pit2(core::Vm& vm, const kvm_pit_state2& state) {
  TRY(vm.require_pit())->set_state(state);
  return 0;
}

Result<long> reinject_control(core::Vm& vm, const kvm_reinject_control& control) {
  TRY(vm.require_pit())->set_reinject(control.pit_reinject != 0);
  return 0;
}

Result<long> set_gsi_routing(core::Vm& vm, ClientPtr<kvm_irq_routing> list) {
  struct Header {
    u32 count, flags;
  };
  const Header header = TRY(ClientPtr<Header>(list.address()).read());
  auto* irqchip = TRY(vm.require_irqchip(EINVAL));
  if (header.count > irqchip::kMaxIrqRoutes || header.flags)
    return Error{EINVAL, "too many routes, or flags"};
  const auto entries = TRY(
      read_items(items_after<kvm_irq_routing_entry>(list, offsetof(kvm_irq_routing, entries)), header.count));
  TRY(irqchip->set_routing(entries));
  return 0;
}

Result<long> irq_line(core::Vm& vm, const kvm_irq_level& level) {
  TRY(vm.require_irqchip(ENXIO))->set_irq_line(level.irq, level.level != 0);
  return 0;
}

Result<long> irq_line_status(core::Vm& vm, kvm_irq_level& level) {
  level.status = TRY(vm.require_irqchip(ENXIO))->set_irq_line(level.irq, level.level != 0);
  return 0;
}

Result<long> signal_msi(core::Vm& vm, const kvm_msi& msi) {
  auto* irqchip = TRY(vm.require_irqchip(EINVAL));
  return TRY(irqchip->signal_msi(msi));
}

Result<long> irqfd(core::Vm& vm, const kvm_irqfd& request) {
  TRY(vm.irqfd(request));
  return 0;
}

}  // namespace anykvm::abi::vm
