// Which pages a guest has written to: bitmaps that the client clears, and rings.
#include <algorithm>

#include "kvm.h"

namespace anykvm::test {
namespace {

// Writes to pages 4 and 6 of its 16, then: out 10h,al.
constexpr std::initializer_list<std::uint8_t> kWriteTwoPages = {0xc6, 0x06, 0x00, 0x40, 0x01, 0xc6,
                                                                0x06, 0x00, 0x60, 0x01, 0xe6, 0x10};
constexpr std::uint64_t kBothPages = 1 << 4 | 1 << 6;

std::uint64_t dirty_log(const Guest& guest) {
  std::uint64_t bitmap = 0;
  kvm_dirty_log log{};
  log.dirty_bitmap = &bitmap;
  EXPECT_EQ(call(guest.vm, KVM_GET_DIRTY_LOG, &log), 0);
  return bitmap;
}

long clear_log(const Guest& guest, std::uint64_t first, std::uint32_t pages, std::uint64_t bitmap) {
  kvm_clear_dirty_log log{};
  log.first_page = first;
  log.num_pages = pages;
  log.dirty_bitmap = &bitmap;
  return call(guest.vm, KVM_CLEAR_DIRTY_LOG, &log);
}

void start_logging(Guest& guest) {
  ASSERT_EQ(guest.set_region(0, 0, 0x10000, guest.memory.address(), KVM_MEM_LOG_DIRTY_PAGES), 0);
}

void write_again(Guest& guest) {
  guest.start_at_code();
  ASSERT_EQ(guest.run(), 0);
}

// --- Bitmaps ---

TEST(DirtyLog, manual_protection_leaves_clearing_to_the_client) {
  Guest guest(kWriteTwoPages);
  EXPECT_EQ(enable_cap(guest.vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 2), -EINVAL);
  EXPECT_EQ(enable_cap(guest.vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 4 | 1), -EINVAL);
  ASSERT_EQ(enable_cap(guest.vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 1), 0);
  start_logging(guest);
  write_again(guest);
  EXPECT_EQ(dirty_log(guest), kBothPages);
  EXPECT_EQ(dirty_log(guest), kBothPages);
  ASSERT_EQ(clear_log(guest, 0, 16, 1 << 6), 0);
  EXPECT_EQ(dirty_log(guest), 1u << 4);
  write_again(guest);
  EXPECT_EQ(dirty_log(guest), kBothPages);
}

TEST(DirtyLog, initially_set_log_begins_full) {
  Guest guest(kWriteTwoPages);
  ASSERT_EQ(enable_cap(guest.vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 3), 0);
  start_logging(guest);
  EXPECT_EQ(dirty_log(guest), 0xffffu);
  ASSERT_EQ(clear_log(guest, 0, 16, 0xffff), 0);
  write_again(guest);
  EXPECT_EQ(dirty_log(guest), kBothPages);
}

TEST(DirtyLog, clearing_wants_pages_of_the_slot) {
  Guest guest(kWriteTwoPages);
  EXPECT_EQ(clear_log(guest, 0, 16, 0), -ENOENT);
  start_logging(guest);
  EXPECT_EQ(clear_log(guest, 1, 15, 0), -EINVAL);
  EXPECT_EQ(clear_log(guest, 0, 8, 0), -EINVAL);
  EXPECT_EQ(clear_log(guest, 64, 1, 0), -EINVAL);
  kvm_clear_dirty_log log{};
  log.num_pages = 16;
  log.dirty_bitmap = kBadPointer;
  EXPECT_EQ(call(guest.vm, KVM_CLEAR_DIRTY_LOG, &log), -EFAULT);
}

// --- Rings ---

constexpr std::uint64_t kRingBytes = 4096;

// As Guest, with a ring.
struct RingGuest : Vm {
  explicit RingGuest(std::initializer_list<std::uint8_t> code) {
    EXPECT_EQ(enable_cap(vm, KVM_CAP_DIRTY_LOG_RING, kRingBytes), 0);
    EXPECT_EQ(set_region(0, 0, memory.size(), memory.address(), KVM_MEM_LOG_DIRTY_PAGES), 0);
    vcpu = Handle(call(vm, KVM_CREATE_VCPU, 0ul));
    shared = static_cast<kvm_run*>(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0));
    ring = static_cast<kvm_dirty_gfn*>(mmap(nullptr, kRingBytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu,
                                            KVM_DIRTY_LOG_PAGE_OFFSET * 4096));
    EXPECT_NE(ring, MAP_FAILED);
    std::copy(code.begin(), code.end(), memory.data() + 0x1000);
    kvm_sregs sregs{};
    EXPECT_EQ(call(vcpu, KVM_GET_SREGS, &sregs), 0);
    sregs.cs.base = sregs.cs.selector = 0;
    EXPECT_EQ(call(vcpu, KVM_SET_SREGS, &sregs), 0);
    start();
  }
  ~RingGuest() {
    munmap(shared, 4096);
    munmap(ring, kRingBytes);
  }
  void start() {
    kvm_regs regs{};
    regs.rip = 0x1000;
    regs.rflags = 2;
    EXPECT_EQ(call(vcpu, KVM_SET_REGS, &regs), 0);
  }
  long run() { return call(vcpu, KVM_RUN); }
  // The page that entry `number` tells of, or -1.
  long page(unsigned number) const {
    return ring[number].flags & 1 ? static_cast<long>(ring[number].offset) : -1;
  }
  void give_back(unsigned number) { __atomic_store_n(&ring[number].flags, 2, __ATOMIC_RELEASE); }

  Pages memory{0x200000};
  Handle vcpu;
  kvm_run* shared = nullptr;
  kvm_dirty_gfn* ring = nullptr;
};

TEST(DirtyRing, size_is_a_power_of_two_and_set_once_before_vcpus) {
  Guest with_vcpu;
  EXPECT_EQ(enable_cap(with_vcpu.vm, KVM_CAP_DIRTY_LOG_RING, kRingBytes), -EINVAL);
  Vm vm;
  EXPECT_EQ(call(vm.vm, KVM_RESET_DIRTY_RINGS), -EINVAL);
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_DIRTY_LOG_RING, 0), -EINVAL);
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_DIRTY_LOG_RING, 3 * 4096), -EINVAL);
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_DIRTY_LOG_RING, 1ul << 30), -E2BIG);
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, kRingBytes), 0);
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_DIRTY_LOG_RING, kRingBytes), -EINVAL);
}

TEST(DirtyRing, pages_come_in_order_and_again_after_a_reset) {
  RingGuest guest(kWriteTwoPages);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.page(0), 4);
  EXPECT_EQ(guest.page(1), 6);
  EXPECT_EQ(guest.page(2), -1);
  guest.give_back(0);
  EXPECT_EQ(call(guest.vm, KVM_RESET_DIRTY_RINGS), 1);
  EXPECT_EQ(guest.ring[0].flags, 0u);
  guest.start();
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.page(2), 4);  // page 6 was not given back
  EXPECT_EQ(guest.page(3), -1);
}

TEST(DirtyRing, bitmaps_are_not_to_be_had_beside_rings) {
  RingGuest guest(kWriteTwoPages);
  std::uint64_t bitmap[8];
  kvm_dirty_log log{};
  log.dirty_bitmap = bitmap;
  EXPECT_EQ(call(guest.vm, KVM_GET_DIRTY_LOG, &log), -ENXIO);
}

// mov ax,1000h; again: mov ds,ax; mov [0],al; add ax,100h; jmp again
TEST(DirtyRing, full_ring_stops_the_vcpu_until_it_is_reset) {
  RingGuest guest({0xb8, 0x00, 0x10, 0x8e, 0xd8, 0xa2, 0x00, 0x00, 0x05, 0x00, 0x01, 0xeb, 0xf6});
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_DIRTY_RING_FULL));
  EXPECT_EQ(guest.page(0), 0x10);
  EXPECT_EQ(guest.page(100), 0x10 + 100);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_DIRTY_RING_FULL));
  for (unsigned entry = 0; entry < 128; ++entry) guest.give_back(entry);
  EXPECT_EQ(call(guest.vm, KVM_RESET_DIRTY_RINGS), 128);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_GE(guest.page(200), 0x10);
}

}  // namespace
}  // namespace anykvm::test
