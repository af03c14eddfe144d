#include "x86/mmu/access.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "x86/machine.h"
#include "x86/quiet_platform.h"

namespace anykvm::x86 {
namespace {

constexpr u64 kP = bit(0), kW = bit(1), kU = bit(2), kD = bit(6);
constexpr u64 kAll = kP | kW | kU;

// A bus that remembers what happened; devices answer at addresses above 3 GiB, below it nobody does.
class FakePlatform : public QuietPlatform {
 public:
  struct Event {
    bool write;
    u64 address;
    unsigned size;
    u64 data;
    bool operator==(const Event&) const = default;
  };

  bool mmio_read(Gpa address, void* data, unsigned size) override {
    if (address.value < kDevices) return false;
    u64 value = 0x8877665544332211;
    std::memcpy(data, &value, size);
    events.push_back({false, address.value, size, 0});
    return true;
  }
  bool mmio_write(Gpa address, const void* data, unsigned size) override {
    if (address.value < kDevices) return false;
    u64 value = 0;
    std::memcpy(&value, data, size);
    events.push_back({true, address.value, size, value});
    return true;
  }
  static constexpr u64 kDevices = 0xc0000000;
  std::vector<Event> events;
};
using Event = FakePlatform::Event;

// 64-bit mode at CPL 0 with 4-level paging. RAM at 0 to 1 MiB, ROM at 1 MiB. Tables at 0x1000 map the low 2
// MiB of linear addresses through one page table at 0x4000, absent until map().
class AccessTest : public testing::Test {
 protected:
  static constexpr u64 kRamSize = 0x100000, kRom = 0x100000, kDevice = 0xfebc0000, kHole = 0x80000000;

  AccessTest()
      : m_memory(kRamSize + 3 * kPageSize),
        m_machine(Machine::create().value()),
        m_cpu(*m_machine, m_platform) {
    m_machine->set_slots({slot(0, 0, kRamSize, host(0)), slot(1, kRom, kPageSize, host(kRamSize))});
    CpuState& state = m_cpu.state();
    state.cr0 = kCr0Pe | kCr0Pg | kCr0Wp;
    state.cr4 = kCr4Pae;
    state.efer = kEferLme | kEferLma | kEferNx;
    state.cr3 = 0x1000;
    state.cpl = 0;
    state.segments[kCs] = {.type = 11, .present = 1, .s = 1, .l = 1};
    poke(0x1000, u64{0x2000} | kAll);
    poke(0x2000, u64{0x3000} | kAll);
    poke(0x3000, u64{0x4000} | kAll);
    m_cpu.state_replaced();
  }

  static MemorySlot slot(u32 id, u64 base, u64 size, u8* host) {
    MemorySlot slot{.id = id, .base = Gpa(base), .size = size, .host = host, .read_only = id == 1};
    slot.dirty_bitmap = std::make_shared<std::vector<std::atomic<u64>>>(size / kPageSize / 64 + 1);
    slot.pages = PageMetas::create(size / kPageSize);
    return slot;
  }
  u8* host(u64 offset) {
    return reinterpret_cast<u8*>(align_up(reinterpret_cast<u64>(m_memory.data()), kPageSize)) + offset;
  }
  void map(u64 linear, u64 physical, u64 flags = kAll) {
    poke(0x4000 + linear / kPageSize * 8, physical | flags);
    m_cpu.flush_tlb();
  }
  void poke(u64 gpa, u64 value) { std::memcpy(host(gpa), &value, sizeof value); }
  u64 peek(u64 gpa) {
    u64 value;
    std::memcpy(&value, host(gpa), sizeof value);
    return value;
  }
  bool dirty(u64 gpa) {
    const MemorySlot* slot = m_machine->memory().find(Gpa(gpa));
    u64 page = (gpa - slot->base.value) / kPageSize;
    return (*slot->dirty_bitmap)[page / 64].load() >> (page % 64) & 1;
  }
  // Error code of the #PF that the result is, with its address.
  template <class T>
  static std::pair<u32, u64> fault_of(const Guest<T>& result) {
    EXPECT_FALSE(result.ok());
    if (result.ok()) return {};
    EXPECT_EQ(result.error().kind, GuestStop::Kind::kFault);
    return {result.error().fault.error, result.error().fault.payload};
  }
  template <class T>
  T read(u64 address) {
    auto result = load<T>(m_cpu, Gva(address));
    EXPECT_TRUE(result.ok());
    return result.ok() ? result.value() : T{};
  }

  std::vector<u8> m_memory;
  FakePlatform m_platform;
  std::unique_ptr<Machine> m_machine;
  Cpu m_cpu;
};

// --- RAM ---

TEST_F(AccessTest, load_and_store_reach_ram) {
  map(0x5000, 0x20000);
  EXPECT_TRUE(store<u32>(m_cpu, Gva(0x5004), 0xdeadbeef).ok());
  EXPECT_EQ(peek(0x20000), u64{0xdeadbeef} << 32);
  EXPECT_EQ(read<u32>(0x5004), 0xdeadbeefu);
}

TEST_F(AccessTest, read_across_pages_joins_both) {
  map(0x5000, 0x20000);
  map(0x6000, 0x30000);
  poke(0x20ff8, 0x1111111111111111);
  poke(0x30000, 0x2222222222222222);
  EXPECT_EQ(read<u64>(0x5ffd), 0x2222222222111111u);
}

TEST_F(AccessTest, write_across_pages_writes_and_marks_both) {
  map(0x5000, 0x20000);
  map(0x6000, 0x30000);
  EXPECT_TRUE(store<u64>(m_cpu, Gva(0x5ffc), 0x8877665544332211).ok());
  EXPECT_EQ(peek(0x20ff8) >> 32, 0x44332211u);
  EXPECT_EQ(peek(0x30000), 0x88776655u);
  EXPECT_TRUE(dirty(0x20000));
  EXPECT_TRUE(dirty(0x30000));
  EXPECT_FALSE(dirty(0x21000));
}

TEST_F(AccessTest, write_across_pages_that_faults_on_the_second_writes_nothing) {
  map(0x5000, 0x20000);
  EXPECT_EQ(fault_of(store<u64>(m_cpu, Gva(0x5ffc), ~u64{0})), std::pair(2u, u64{0x6000}));
  EXPECT_EQ(peek(0x20ff8), 0u);
  EXPECT_FALSE(dirty(0x20000));
}

TEST_F(AccessTest, access_across_pages_that_faults_on_the_first_reports_the_first) {
  map(0x6000, 0x30000);
  EXPECT_EQ(fault_of(load<u64>(m_cpu, Gva(0x5ffc))), std::pair(0u, u64{0x5ffc}));
}

TEST_F(AccessTest, whole_page_unaligned_crosses_one_boundary) {
  map(0x5000, 0x20000);
  map(0x6000, 0x30000);
  std::vector<u8> data(kPageSize, 0x5a);
  EXPECT_TRUE(write_linear(m_cpu, Gva(0x5800), data.data(), kPageSize).ok());
  EXPECT_EQ(peek(0x20800), 0x5a5a5a5a5a5a5a5au);
  EXPECT_EQ(peek(0x307f8), 0x5a5a5a5a5a5a5a5au);
  EXPECT_EQ(peek(0x30800), 0u);
}

TEST_F(AccessTest, read_does_not_mark_dirty) {
  map(0x5000, 0x20000);
  EXPECT_EQ(read<u32>(0x5000), 0u);
  EXPECT_FALSE(dirty(0x20000));
}

TEST_F(AccessTest, system_access_from_cpl_3_reads_supervisor_pages) {
  map(0x5000, 0x20000, kP | kW);
  m_cpu.state().cpl = 3;
  m_cpu.mode_changed();
  EXPECT_TRUE(load<u32>(m_cpu, Gva(0x5000), Privilege::kSystem).ok());
  EXPECT_EQ(fault_of(load<u32>(m_cpu, Gva(0x5000))).first, 5u);
}

TEST_F(AccessTest, write_to_clean_page_sets_its_dirty_flag) {
  map(0x5000, 0x20000);
  EXPECT_EQ(read<u32>(0x5000), 0u);
  EXPECT_TRUE(store<u32>(m_cpu, Gva(0x5000), 1).ok());
  EXPECT_EQ(peek(0x4000 + 5 * 8) & kD, kD);
}

// --- Probes and pointers ---

TEST_F(AccessTest, probe_write_faults_as_the_write_would) {
  map(0x5000, 0x20000, kP);
  EXPECT_EQ(fault_of(probe_write(m_cpu, Gva(0x5010), 4)), std::pair(3u, u64{0x5010}));
}

TEST_F(AccessTest, probe_write_that_succeeds_changes_nothing_but_flags) {
  map(0x5000, 0x20000);
  EXPECT_TRUE(probe_write(m_cpu, Gva(0x5000), 8).ok());
  EXPECT_FALSE(dirty(0x20000));
  EXPECT_EQ(peek(0x20000), 0u);
}

TEST_F(AccessTest, probe_write_of_device_does_not_touch_it) {
  map(0x5000, kDevice);
  EXPECT_TRUE(probe_write(m_cpu, Gva(0x5000), 8).ok());
  EXPECT_TRUE(m_platform.events.empty());
}

TEST_F(AccessTest, host_pointer_in_ram_points_there_and_marks_writes) {
  map(0x5000, 0x20000);
  EXPECT_EQ(host_pointer(m_cpu, Gva(0x5010), 16, Access::kWrite).value(), host(0x20010));
  EXPECT_TRUE(dirty(0x20000));
}

TEST_F(AccessTest, host_pointer_for_reading_does_not_mark) {
  map(0x5000, 0x20000);
  EXPECT_EQ(host_pointer(m_cpu, Gva(0x5010), 16, Access::kRead).value(), host(0x20010));
  EXPECT_FALSE(dirty(0x20000));
}

TEST_F(AccessTest, host_pointer_across_pages_or_to_devices_is_null) {
  map(0x5000, 0x20000);
  map(0x6000, kDevice);
  map(0x7000, kRom);
  EXPECT_EQ(host_pointer(m_cpu, Gva(0x5ffc), 8, Access::kRead).value(), nullptr);
  EXPECT_EQ(host_pointer(m_cpu, Gva(0x6000), 8, Access::kRead).value(), nullptr);
  EXPECT_EQ(host_pointer(m_cpu, Gva(0x7000), 8, Access::kWrite).value(), nullptr);
  EXPECT_EQ(host_pointer(m_cpu, Gva(0x7000), 8, Access::kRead).value(), host(kRamSize));
}

TEST_F(AccessTest, host_pointer_faults_as_the_access_would) {
  EXPECT_EQ(fault_of(host_pointer(m_cpu, Gva(0x5000), 8, Access::kWrite)), std::pair(2u, u64{0x5000}));
}

// --- Devices, read-only memory ---

TEST_F(AccessTest, seed_X9_address_without_slot_is_mmio_at_once) {
  map(0x5000, kDevice);
  EXPECT_EQ(read<u32>(0x5010), 0x44332211u);
  EXPECT_EQ(m_platform.events, (std::vector<Event>{{false, kDevice + 0x10, 4, 0}}));
}

TEST_F(AccessTest, seed_X9_slot_added_meanwhile_turns_mmio_into_ram) {
  map(0x5000, kDevice);
  EXPECT_EQ(read<u32>(0x5000), 0x44332211u);
  m_cpu.io_done();
  std::vector<MemorySlot> slots = m_machine->memory().slots();
  slots.push_back(slot(2, kDevice, kPageSize, host(kRamSize + kPageSize)));
  m_machine->set_slots(slots);
  m_cpu.flush_tlb();  // as Cpu::run() does where slots have changed
  EXPECT_EQ(read<u32>(0x5000), 0u);
  EXPECT_EQ(m_platform.events.size(), 1u);
}

// The page is known to be a device's; it must not be once the tables say something else.
TEST_F(AccessTest, page_that_was_a_device_is_looked_up_again_after_a_flush) {
  map(0x5000, kDevice);
  EXPECT_EQ(read<u32>(0x5010), 0x44332211u);
  map(0x5000, kDevice + 0x1000);
  EXPECT_EQ(read<u32>(0x5010), 0x44332211u);
  poke(0x4000 + 5 * 8, 0x20000 | kAll);
  m_cpu.flush_tlb_page(Gva(0x5000));
  poke(0x20010, 77);
  EXPECT_EQ(read<u64>(0x5010), 77u);
  map(0x5000, kDevice);
  EXPECT_EQ(read<u32>(0x5010), 0x44332211u);
  poke(0x4000 + 5 * 8, 0x20000 | kAll);
  m_cpu.flush_tlb_non_global();
  EXPECT_EQ(read<u64>(0x5010), 77u);
  EXPECT_EQ(m_platform.events, (std::vector<Event>{{false, kDevice + 0x10, 4, 0},
                                                   {false, kDevice + 0x1010, 4, 0},
                                                   {false, kDevice + 0x10, 4, 0}}));
}

// What was found by reading does not permit writing.
TEST_F(AccessTest, device_that_was_read_is_still_protected_from_writes) {
  map(0x5000, kDevice, kP | kU);
  EXPECT_EQ(read<u32>(0x5010), 0x44332211u);
  EXPECT_EQ(fault_of(store<u32>(m_cpu, Gva(0x5010), 1)), std::make_pair(3u, u64{0x5010}));
  EXPECT_EQ(m_platform.events.size(), 1u);
}

TEST_F(AccessTest, mmio_wider_than_8_bytes_goes_in_pieces_of_8) {
  map(0x5000, kDevice);
  u8 data[20] = {};
  EXPECT_TRUE(read_linear(m_cpu, Gva(0x5004), data, sizeof data).ok());
  EXPECT_EQ(m_platform.events,
            (std::vector<Event>{
                {false, kDevice + 4, 8, 0}, {false, kDevice + 12, 8, 0}, {false, kDevice + 20, 4, 0}}));
  EXPECT_EQ(data[8], 0x11);
  EXPECT_EQ(data[19], 0x44);
}

TEST_F(AccessTest, mmio_across_pages_is_cut_at_the_page) {
  map(0x5000, kDevice);
  map(0x6000, kDevice + 0x10000);
  EXPECT_TRUE(store<u32>(m_cpu, Gva(0x5ffe), 0x44332211).ok());
  EXPECT_EQ(m_platform.events,
            (std::vector<Event>{{true, kDevice + 0xffe, 2, 0x2211}, {true, kDevice + 0x10000, 2, 0x4433}}));
}

TEST_F(AccessTest, write_from_ram_into_a_clients_device_leaves_ram_alone_until_answered) {
  map(0x5000, 0x20000);
  map(0x6000, kHole);
  auto result = store<u32>(m_cpu, Gva(0x5ffe), 0x44332211);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().kind, GuestStop::Kind::kExit);
  EXPECT_EQ(peek(0x20ff8), 0u);
}

TEST_F(AccessTest, read_only_slot_reads_as_ram_and_writes_go_to_the_bus) {
  map(0x5000, kRom);
  poke(kRamSize, 0x1234);
  EXPECT_EQ(read<u32>(0x5000), 0x1234u);
  EXPECT_TRUE(m_platform.events.empty());
  auto result = store<u32>(m_cpu, Gva(0x5000), 1);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().kind, GuestStop::Kind::kExit);
  EXPECT_EQ(peek(kRamSize), 0x1234u);
}

// --- Wrapping ---

TEST_F(AccessTest, access_across_4_gib_wraps_outside_64_bit_mode) {
  CpuState& state = m_cpu.state();
  state.cr0 = kCr0Pe;
  state.cr4 = state.efer = 0;
  state.segments[kCs].l = 0;
  m_cpu.state_replaced();
  poke(0, 0x99887766);
  u8 data[4] = {};
  EXPECT_TRUE(read_linear(m_cpu, Gva(0xfffffffe), data, 4).ok());
  EXPECT_EQ(data[2], 0x66);
  EXPECT_EQ(m_platform.events, (std::vector<Event>{{false, 0xfffffffe, 2, 0}}));
}

TEST_F(AccessTest, access_across_4_gib_goes_on_in_64_bit_mode) {
  EXPECT_EQ(fault_of(load<u32>(m_cpu, Gva(0xfffffffe))), std::pair(0u, u64{0xfffffffe}));
  poke(0x2018, u64{0x6000} | kAll);
  poke(0x6ff8, u64{0x7000} | kAll);
  poke(0x7ff8, u64{0x20000} | kAll);
  EXPECT_EQ(fault_of(load<u32>(m_cpu, Gva(0xfffffffe))), std::pair(0u, u64{0x100000000}));
}

// --- Physical ---

TEST_F(AccessTest, physical_access_reaches_ram_only) {
  u32 value = 77;
  EXPECT_TRUE(write_physical(m_cpu, Gpa(0x20004), &value, 4));
  EXPECT_TRUE(dirty(0x20000));
  value = 0;
  EXPECT_TRUE(read_physical(m_cpu, Gpa(0x20004), &value, 4));
  EXPECT_EQ(value, 77u);
  EXPECT_FALSE(read_physical(m_cpu, Gpa(kDevice), &value, 4));
  EXPECT_FALSE(write_physical(m_cpu, Gpa(kDevice), &value, 4));
  EXPECT_FALSE(write_physical(m_cpu, Gpa(kRom), &value, 4));
}

TEST_F(AccessTest, physical_write_over_pages_marks_each) {
  std::vector<u8> data(3 * kPageSize);
  EXPECT_TRUE(write_physical(m_cpu, Gpa(0x20800), data.data(), 0x2000));
  EXPECT_TRUE(dirty(0x20000) && dirty(0x21000) && dirty(0x22000));
  EXPECT_FALSE(dirty(0x23000));
}

}  // namespace
}  // namespace anykvm::x86
