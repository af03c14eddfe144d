// KVM_GET_NESTED_STATE and KVM_SET_NESTED_STATE outside nested guests (KVM API 4.114, 4.115). With a guest: svm_test.cpp.
#include <cstring>

#include "kvm.h"

namespace anykvm::test {
namespace {

// What a client allocates: KVM_CAP_NESTED_STATE says how much.
struct Room {
  kvm_nested_state state{};
  std::uint8_t data[KVM_STATE_NESTED_SVM_VMCB_SIZE] = {};
};
static_assert(sizeof(Room) == sizeof(kvm_nested_state) + KVM_STATE_NESTED_SVM_VMCB_SIZE);

TEST(NestedState, capability_tells_the_largest_size) {
  System system;
  EXPECT_EQ(call(system.fd, KVM_CHECK_EXTENSION, static_cast<unsigned long>(KVM_CAP_NESTED_STATE)), static_cast<long>(sizeof(Room)));
}

TEST(NestedState, new_cpu_has_gif_set_and_no_guest) {
  Guest guest;
  Room room;
  room.state.size = sizeof room;
  ASSERT_EQ(call(guest.vcpu, KVM_GET_NESTED_STATE, &room), 0);
  EXPECT_EQ(room.state.format, KVM_STATE_NESTED_FORMAT_SVM);
  EXPECT_EQ(room.state.flags, KVM_STATE_NESTED_GIF_SET);
  EXPECT_EQ(room.state.size, sizeof room.state);
  EXPECT_EQ(call(guest.vcpu, KVM_SET_NESTED_STATE, &room), 0);
}

TEST(NestedState, too_little_room_tells_how_much_is_needed) {
  Guest guest;
  Room room;
  room.state.size = sizeof room.state - 1;
  EXPECT_EQ(call(guest.vcpu, KVM_GET_NESTED_STATE, &room), -E2BIG);
  EXPECT_EQ(room.state.size, sizeof room.state);
}

TEST(NestedState, what_no_cpu_can_be_in_is_refused) {
  Guest guest;
  auto set = [&](std::uint16_t flags, std::uint16_t format, std::uint32_t size) {
    Room room;
    room.state.flags = flags;
    room.state.format = format;
    room.state.size = size;
    return call(guest.vcpu, KVM_SET_NESTED_STATE, &room);
  };
  constexpr std::uint16_t kGif = KVM_STATE_NESTED_GIF_SET, kSvm = KVM_STATE_NESTED_FORMAT_SVM;
  EXPECT_EQ(set(kGif, kSvm, sizeof(kvm_nested_state)), 0);
  EXPECT_EQ(set(kGif, kSvm, sizeof(kvm_nested_state) - 1), -EINVAL);
  EXPECT_EQ(set(kGif, KVM_STATE_NESTED_FORMAT_VMX, sizeof(kvm_nested_state)), -EINVAL);
  EXPECT_EQ(set(kGif | 0x4000, kSvm, sizeof(kvm_nested_state)), -EINVAL);
  EXPECT_EQ(set(KVM_STATE_NESTED_RUN_PENDING | kGif, kSvm, sizeof(Room)), -EINVAL);
  // Without EFER.SVME:
  EXPECT_EQ(set(KVM_STATE_NESTED_GUEST_MODE | kGif, kSvm, sizeof(Room)), -EINVAL);
}

}  // namespace
}  // namespace anykvm::test
