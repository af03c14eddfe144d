// Xen's interface to HVM guests: hypercalls, shared info, event channels, timers, run states.
#include <unistd.h>

#include <cstring>
#include <thread>
#include <utility>

#include "kvm.h"

namespace anykvm::test {
namespace {

// Newer than the oldest headers we build with.
constexpr std::uint16_t kAttrRunstateUpdateFlag = 5;  // KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG
constexpr std::uint16_t kAttrSharedInfoHva = 6;       // KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA
constexpr std::uint16_t kVcpuAttrInfoHva = 9;         // KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA
constexpr std::uint32_t kTscUnstable = 1 << 7;        // KVM_XEN_HVM_CONFIG_PVCLOCK_TSC_UNSTABLE

constexpr std::uint32_t kMsr = 0x40000200;
constexpr std::uint64_t kSharedInfo = 0x4000, kVcpuInfo = 0x5000, kRunstate = 0x6000;
constexpr std::uint8_t kVector = 0x41;

// A 64-bit shared info page (as tests set it), vcpu_info and an upcall vector, whose handler does: out
// 12h,al.
struct XenGuest : Guest {
  explicit XenGuest(std::initializer_list<std::uint8_t> code,
                    std::uint32_t flags = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL | KVM_XEN_HVM_CONFIG_EVTCHN_SEND)
      : Guest(code, Chips::kIrqchip) {
    kvm_xen_hvm_config config{};
    config.flags = flags;
    config.msr = kMsr;
    EXPECT_EQ(call(vm, KVM_XEN_HVM_CONFIG, &config), 0);
    kvm_xen_hvm_attr attribute{};
    attribute.u.long_mode = 1;
    EXPECT_EQ(set(KVM_XEN_ATTR_TYPE_LONG_MODE, attribute), 0);
    attribute.u.shared_info.gfn = kSharedInfo / 4096;
    EXPECT_EQ(set(KVM_XEN_ATTR_TYPE_SHARED_INFO, attribute), 0);
    attribute = {};
    attribute.u.vector = kVector;
    EXPECT_EQ(set(KVM_XEN_ATTR_TYPE_UPCALL_VECTOR, attribute), 0);
    kvm_xen_vcpu_attr of_vcpu{};
    of_vcpu.u.gpa = kVcpuInfo;
    EXPECT_EQ(set(KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, of_vcpu), 0);
    set_handler(kVector, 0x2000, {0xe6, 0x12});
  }

  long set(std::uint16_t type, kvm_xen_hvm_attr attribute) {
    attribute.type = type;
    return call(vm, KVM_XEN_HVM_SET_ATTR, &attribute);
  }
  long set(std::uint16_t type, kvm_xen_vcpu_attr attribute) {
    attribute.type = type;
    return call(vcpu, KVM_XEN_VCPU_SET_ATTR, &attribute);
  }
  long send(std::uint32_t port) {
    kvm_irq_routing_xen_evtchn event{port, 0, KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL};
    return call(vm, KVM_XEN_HVM_EVTCHN_SEND, &event);
  }
  void mask(unsigned port) { memory.data()[kSharedInfo + 2560 + port / 8] |= 1u << (port % 8); }
  bool pending(unsigned port) const { return memory.data()[kSharedInfo + 2048 + port / 8] >> (port % 8) & 1; }
  bool upcall_pending() const { return memory.data()[kVcpuInfo] != 0; }
  template <class T>
  T load(std::size_t address) {
    T value;
    std::memcpy(&value, memory.data() + address, sizeof value);
    return value;
  }
};

constexpr std::initializer_list<std::uint8_t> kWait = {0xfb, 0xf4, 0xeb, 0xfd};  // sti; hlt; jmp to hlt

// --- Configuration ---

TEST(Xen, configuration_with_unknown_flags_or_pages_beside_interception_is_einval) {
  Guest guest;
  kvm_xen_hvm_config config{};
  config.flags = KVM_XEN_HVM_CONFIG_SHARED_INFO;  // needs no enabling
  EXPECT_EQ(call(guest.vm, KVM_XEN_HVM_CONFIG, &config), -EINVAL);
  config.flags = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL;
  config.blob_size_64 = 1;
  EXPECT_EQ(call(guest.vm, KVM_XEN_HVM_CONFIG, &config), -EINVAL);
}

TEST(Xen, attributes_read_back) {
  XenGuest guest({0xf4});
  kvm_xen_hvm_attr attribute{};
  attribute.type = KVM_XEN_ATTR_TYPE_SHARED_INFO;
  ASSERT_EQ(call(guest.vm, KVM_XEN_HVM_GET_ATTR, &attribute), 0);
  EXPECT_EQ(attribute.u.shared_info.gfn, kSharedInfo / 4096);
  attribute.type = kAttrSharedInfoHva;
  ASSERT_EQ(call(guest.vm, KVM_XEN_HVM_GET_ATTR, &attribute), 0);
  EXPECT_EQ(attribute.u.shared_info.gfn, 0u);
  attribute.type = 77;
  EXPECT_EQ(call(guest.vm, KVM_XEN_HVM_GET_ATTR, &attribute), -ENOENT);
  kvm_xen_vcpu_attr outside{};
  outside.u.gpa = 1ull << 40;
  EXPECT_EQ(guest.set(KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, outside), -EFAULT);
}

TEST(Xen, pages_can_be_given_by_the_clients_addresses) {
  XenGuest guest(kWait);
  Pages pages(0x2000);
  kvm_xen_hvm_attr shared{};
  shared.u.shared_info.gfn = pages.address() + 1;
  EXPECT_EQ(guest.set(kAttrSharedInfoHva, shared), -EINVAL);
  shared.u.shared_info.gfn = pages.address();
  ASSERT_EQ(guest.set(kAttrSharedInfoHva, shared), 0);
  kvm_xen_vcpu_attr info{};
  info.u.gpa = pages.address() + 0x1002;
  EXPECT_EQ(guest.set(kVcpuAttrInfoHva, info), -ENXIO);
  info.u.gpa = 0x1000;
  EXPECT_EQ(guest.set(kVcpuAttrInfoHva, info), -EFAULT);
  info.u.gpa = pages.address() + 0x1000;
  ASSERT_EQ(guest.set(kVcpuAttrInfoHva, info), 0);
  ASSERT_EQ(guest.send(70), 0);
  EXPECT_EQ(pages.data()[2048 + 70 / 8], 1 << 70 % 8);
  EXPECT_EQ(pages.data()[0x1000], 1);
  EXPECT_FALSE(guest.pending(70));
}

TEST(Xen, other_attributes_read_back) {
  XenGuest guest({0xf4});
  kvm_xen_hvm_attr attribute{};
  attribute.u.xen_version = 4 << 16 | 17;
  ASSERT_EQ(guest.set(KVM_XEN_ATTR_TYPE_XEN_VERSION, attribute), 0);
  attribute = {};
  attribute.u.vector = 15;
  EXPECT_EQ(guest.set(KVM_XEN_ATTR_TYPE_UPCALL_VECTOR, attribute), -EINVAL);
  attribute.u.long_mode = 1;
  ASSERT_EQ(guest.set(kAttrRunstateUpdateFlag, attribute), 0);
  attribute = {};
  attribute.type = KVM_XEN_ATTR_TYPE_XEN_VERSION;
  ASSERT_EQ(call(guest.vm, KVM_XEN_HVM_GET_ATTR, &attribute), 0);
  EXPECT_EQ(attribute.u.xen_version, 4u << 16 | 17);
  attribute.type = kAttrRunstateUpdateFlag;
  ASSERT_EQ(call(guest.vm, KVM_XEN_HVM_GET_ATTR, &attribute), 0);
  EXPECT_EQ(attribute.u.long_mode, 1);
  attribute.type = KVM_XEN_ATTR_TYPE_EVTCHN;
  EXPECT_EQ(call(guest.vm, KVM_XEN_HVM_GET_ATTR, &attribute), -ENOENT);
}

TEST(Xen, other_attributes_of_a_vcpu_read_back) {
  XenGuest guest({0xf4});
  kvm_xen_vcpu_attr attribute{};
  attribute.u.vcpu_id = ~0u;
  EXPECT_EQ(guest.set(KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID, attribute), -EINVAL);
  attribute.u.vcpu_id = 3;
  ASSERT_EQ(guest.set(KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID, attribute), 0);
  attribute = {};
  attribute.u.vector = 15;
  EXPECT_EQ(guest.set(KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR, attribute), -EINVAL);
  attribute.u.vector = 0x55;
  ASSERT_EQ(guest.set(KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR, attribute), 0);
  attribute.u.gpa = 0x7000;
  ASSERT_EQ(guest.set(KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, attribute), 0);
  EXPECT_NE(guest.load<std::uint32_t>(0x7000), 0u);  // the version
  for (auto [type, value] : {std::pair{KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID, 3u},
                             {KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR, 0x55u},
                             {KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, 0x7000u}}) {
    attribute = {};
    attribute.type = static_cast<std::uint16_t>(type);
    ASSERT_EQ(call(guest.vcpu, KVM_XEN_VCPU_GET_ATTR, &attribute), 0);
    EXPECT_EQ(attribute.u.gpa, value);
  }
}

TEST(Xen, time_is_not_stable_if_the_client_says_so) {
  XenGuest stable({0xf4}), unstable({0xf4}, KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL | kTscUnstable);
  EXPECT_EQ(stable.load<std::uint8_t>(kVcpuInfo + 32 + 29), 1);
  EXPECT_EQ(unstable.load<std::uint8_t>(kVcpuInfo + 32 + 29), 0);
}

TEST(Xen, shared_info_has_the_wall_clock) {
  XenGuest guest({0xf4});
  EXPECT_EQ(guest.load<std::uint32_t>(kSharedInfo + 3072) % 2, 0u);
  EXPECT_GT(guest.load<std::uint32_t>(kSharedInfo + 3076), 1'000'000'000u);  // later than 2001
  EXPECT_NE(guest.load<std::uint32_t>(kVcpuInfo + 32), 0u);                  // and vcpu_info the time
}

// --- Hypercalls ---

TEST(Xen, hypercall_page_leads_to_the_client) {
  // mov ecx,40000200h; mov eax,7000h; xor edx,edx; wrmsr; call 7000h + 9 * 32; out 10h,al
  XenGuest guest({0x66, 0xb9, 0x00, 0x02, 0x00, 0x40, 0x66, 0xb8, 0x00, 0x70, 0x00,
                  0x00, 0x66, 0x31, 0xd2, 0x0f, 0x30, 0xe8, 0x0c, 0x61, 0xe6, 0x10});
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.load<std::uint8_t>(0x7000 + 9 * 32), 0xb8);
  EXPECT_EQ(guest.load<std::uint8_t>(0x7000 + 9 * 32 + 1), 9);
  ASSERT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_XEN));
  EXPECT_EQ(guest.shared->xen.u.hcall.input, 9u);
}

TEST(Xen, client_answers_hypercalls) {
  XenGuest guest({0x0f, 0x01, 0xc1, 0xe6, 0x10});
  kvm_regs regs = guest.regs();
  regs.rax = 99;
  regs.rbx = 1;
  regs.rbp = 6;
  guest.set_regs(regs);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_XEN));
  EXPECT_EQ(guest.shared->xen.u.hcall.input, 99u);
  EXPECT_EQ(guest.shared->xen.u.hcall.longmode, 0u);
  EXPECT_EQ(guest.shared->xen.u.hcall.params[0], 1u);
  EXPECT_EQ(guest.shared->xen.u.hcall.params[5], 6u);
  guest.shared->xen.u.hcall.result = 55;
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_IO));
  EXPECT_EQ(guest.regs().rax, 55u);
}

// --- Events ---

TEST(Xen, event_wakes_and_interrupts) {
  XenGuest guest(kWait);
  ASSERT_EQ(guest.send(70), 0);
  EXPECT_TRUE(guest.pending(70));
  EXPECT_TRUE(guest.upcall_pending());
  EXPECT_EQ(guest.load<std::uint64_t>(kVcpuInfo + 8), 1u << 1);  // the second word
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->io.port, 0x12);
}

TEST(Xen, masked_event_is_pending_only) {
  XenGuest guest(kWait);
  guest.mask(3);
  ASSERT_EQ(guest.send(3), 0);
  EXPECT_TRUE(guest.pending(3));
  EXPECT_FALSE(guest.upcall_pending());
}

TEST(Xen, event_to_nowhere_fails) {
  XenGuest guest(kWait);
  EXPECT_EQ(guest.send(0), -EINVAL);
  EXPECT_EQ(guest.send(4096), -EINVAL);
  kvm_xen_hvm_attr off{};
  off.u.shared_info.gfn = ~0ull;
  ASSERT_EQ(guest.set(KVM_XEN_ATTR_TYPE_SHARED_INFO, off), 0);
  EXPECT_LT(guest.send(5), 0);
}

TEST(Xen, upcall_that_the_client_asks_for_in_memory_is_delivered) {
  XenGuest guest(kWait);
  guest.memory.data()[kVcpuInfo] = 1;
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->io.port, 0x12);
}

TEST(Xen, timer_sends_its_event) {
  XenGuest guest(kWait);
  kvm_clock_data now{};
  ASSERT_EQ(call(guest.vm, KVM_GET_CLOCK, &now), 0);
  kvm_xen_vcpu_attr timer{};
  timer.u.timer = {5, KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL, now.clock + 2'000'000};
  ASSERT_EQ(guest.set(KVM_XEN_VCPU_ATTR_TYPE_TIMER, timer), 0);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->io.port, 0x12);
  EXPECT_TRUE(guest.pending(5));
  timer.type = KVM_XEN_VCPU_ATTR_TYPE_TIMER;
  ASSERT_EQ(call(guest.vcpu, KVM_XEN_VCPU_GET_ATTR, &timer), 0);
  EXPECT_EQ(timer.u.timer.expires_ns, 0u);
}

// EVTCHNOP_send (4) of hypercall 32 from 32-bit registers; the port is at 3000H.
long guest_sends(XenGuest& guest, std::uint32_t port) {
  std::memcpy(guest.memory.data() + 0x3000, &port, sizeof port);
  kvm_regs regs = guest.regs();
  regs.rip = Guest::kCode;
  regs.rax = 32;
  regs.rbx = 4;
  regs.rcx = 0x3000;
  guest.set_regs(regs);
  EXPECT_EQ(guest.run(), 0);
  return guest.shared->exit_reason == KVM_EXIT_IO ? static_cast<long>(guest.regs().rax) : -1;
}

TEST(Xen, events_that_the_guest_sends_go_where_the_client_says) {
  XenGuest guest({0x0f, 0x01, 0xc1, 0xe6, 0x10});  // vmcall; out 10h,al
  EXPECT_EQ(guest_sends(guest, 7), -1);            // the client's
  ASSERT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_XEN));
  EXPECT_EQ(guest.shared->xen.type, static_cast<unsigned>(KVM_EXIT_XEN_HCALL));
  ASSERT_EQ(guest.run(), 0);  // with the answer
  kvm_xen_hvm_attr route{};
  route.u.evtchn.send_port = 7;
  route.u.evtchn.type = 2;  // EVTCHNSTAT_interdomain
  route.u.evtchn.deliver.port = {70, 0, KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL};
  ASSERT_EQ(guest.set(KVM_XEN_ATTR_TYPE_EVTCHN, route), 0);
  EXPECT_EQ(guest.set(KVM_XEN_ATTR_TYPE_EVTCHN, route), -EEXIST);
  EXPECT_EQ(guest_sends(guest, 7), 0);
  EXPECT_TRUE(guest.pending(70));
  route.u.evtchn.flags = KVM_XEN_EVTCHN_UPDATE;
  EXPECT_EQ(guest.set(KVM_XEN_ATTR_TYPE_EVTCHN, route), 0);
  route.u.evtchn.deliver.port.port = 71;
  EXPECT_EQ(guest.set(KVM_XEN_ATTR_TYPE_EVTCHN, route), -EINVAL);
  route.u.evtchn.flags = KVM_XEN_EVTCHN_DEASSIGN | KVM_XEN_EVTCHN_UPDATE;
  EXPECT_EQ(guest.set(KVM_XEN_ATTR_TYPE_EVTCHN, route), -EINVAL);
  route.u.evtchn.flags = KVM_XEN_EVTCHN_DEASSIGN;
  EXPECT_EQ(guest.set(KVM_XEN_ATTR_TYPE_EVTCHN, route), 0);
  EXPECT_EQ(guest.set(KVM_XEN_ATTR_TYPE_EVTCHN, route), -ENOENT);
}

TEST(Xen, reset_takes_all_routes_away) {
  XenGuest guest({0xf4});
  kvm_xen_hvm_attr route{}, reset{};
  route.u.evtchn.send_port = 7;
  route.u.evtchn.type = 2;
  route.u.evtchn.deliver.port = {70, 0, KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL};
  ASSERT_EQ(guest.set(KVM_XEN_ATTR_TYPE_EVTCHN, route), 0);
  reset.u.evtchn.flags = KVM_XEN_EVTCHN_RESET;
  ASSERT_EQ(guest.set(KVM_XEN_ATTR_TYPE_EVTCHN, reset), 0);
  EXPECT_EQ(guest.set(KVM_XEN_ATTR_TYPE_EVTCHN, route), 0);
}

TEST(Xen, gsi_routed_to_an_event_channel_sends_its_event) {
  XenGuest guest(kWait);
  struct {
    std::uint32_t nr = 1, flags = 0;
    kvm_irq_routing_entry entry{};
  } table;
  table.entry.gsi = 40;
  table.entry.type = KVM_IRQ_ROUTING_XEN_EVTCHN;
  table.entry.u.xen_evtchn = {70, 0, KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL};
  ASSERT_EQ(call(guest.vm, KVM_SET_GSI_ROUTING, &table), 0);
  kvm_irq_level line{{40}, 1};
  ASSERT_EQ(call(guest.vm, KVM_IRQ_LINE, &line), 0);
  EXPECT_TRUE(guest.pending(70));
}

// --- Run states ---

TEST(Xen, run_states_are_adjusted_by_what_adds_up) {
  XenGuest guest({0xf4});
  kvm_xen_vcpu_attr attribute{};
  attribute.u.runstate = {1, 10, 1, 2, 3, 4};
  ASSERT_EQ(guest.set(KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA, attribute), 0);
  ASSERT_EQ(guest.set(KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA, attribute), 0);
  attribute.u.runstate = {~0ull, 4, 1, 1, 1, 1};
  ASSERT_EQ(guest.set(KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST, attribute), 0);
  attribute.u.runstate.state_entry_time = 5;
  EXPECT_EQ(guest.set(KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST, attribute), -EINVAL);
  attribute.type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA;
  ASSERT_EQ(call(guest.vcpu, KVM_XEN_VCPU_GET_ATTR, &attribute), 0);
  EXPECT_EQ(attribute.u.runstate.state, 1u);
  EXPECT_EQ(attribute.u.runstate.state_entry_time, 14u);
  EXPECT_EQ(attribute.u.runstate.time_offline, 5u);
  attribute.type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST;
  EXPECT_EQ(call(guest.vcpu, KVM_XEN_VCPU_GET_ATTR, &attribute), -EINVAL);
}

TEST(Xen, run_states_add_up) {
  XenGuest guest({0xe6, 0x10});
  kvm_xen_vcpu_attr attribute{};
  attribute.u.gpa = kRunstate;
  ASSERT_EQ(guest.set(KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, attribute), 0);
  attribute.u.runstate.state = 2;  // blocked
  ASSERT_EQ(guest.set(KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT, attribute), 0);
  usleep(1000);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.load<std::uint32_t>(kRunstate), 0u);             // running
  EXPECT_GE(guest.load<std::uint64_t>(kRunstate + 32), 900'000u);  // was blocked
  std::uint64_t sum = 0;
  for (unsigned state = 0; state < 4; ++state) sum += guest.load<std::uint64_t>(kRunstate + 16 + state * 8);
  EXPECT_EQ(sum, guest.load<std::uint64_t>(kRunstate + 8));
  attribute.u.runstate = {0, 5, 1, 1, 1, 1};
  EXPECT_EQ(guest.set(KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA, attribute), -EINVAL);
}

}  // namespace
}  // namespace anykvm::test
