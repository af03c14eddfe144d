// Instructions that go to devices all the time (SlotNumbers::goes_to_bus).
#include <gtest/gtest.h>

#include "base/optimizations.h"
#include "x86/translate/guest_fixture.h"

namespace anykvm::x86 {
namespace {

constexpr u64 kDevice = Guest64::kRam;  // the first page without memory
constexpr u32 kRounds = 1000;

// A counter that goes up with each read, and a register that keeps what was written and how often.
class Device : public QuietPlatform {
 public:
  bool mmio_read(Gpa, void* data, unsigned size) override {
    const u64 value = ++reads;
    std::memcpy(data, &value, size);
    return true;
  }
  bool mmio_write(Gpa, const void* data, unsigned size) override {
    ++writes;
    std::memcpy(&written, data, size);
    return true;
  }
  u64 reads = 0, writes = 0, written = 0;
};

// rbx: from where; ecx: how often; rax: the sum of what was read
const std::vector<u8> kReading = {0x31, 0xc0,        // xor eax, eax
                                  0x48, 0x03, 0x03,  // add rax, [rbx]
                                  0x48, 0xff, 0xc9,  // dec rcx
                                  0x75, 0xf8,        // jnz
                                  0xf4};
// The flags of the INC live on over the read, the carry over the write.
const std::vector<u8> kUpdating = {0x31, 0xd2,              // xor edx, edx
                                   0x48, 0xff, 0xc2,        // inc rdx
                                   0x48, 0x89, 0x53, 0x08,  // mov [rbx+8], rdx
                                   0x48, 0x8b, 0x03,        // mov rax, [rbx]
                                   0x75, 0x01,              // jnz over the HLT: by the INC
                                   0xf4,                    // hlt
                                   0x48, 0xff, 0xc9,        // dec rcx
                                   0x75, 0xee,              // jnz
                                   0xf4};

Exit run(Guest64& guest, u64 from, u64 rounds) {
  guest.state().gpr[kRbx] = from;
  guest.state().gpr[kRcx] = rounds;
  return guest.run();
}
u64 sum_to(u64 n) { return n * (n + 1) / 2; }

TEST(BusAccess, each_read_reaches_the_device_once) {
  Device device;
  Guest64 guest(device);
  guest.code(kReading);
  EXPECT_EQ(run(guest, kDevice, kRounds).reason, Exit::Reason::kHalt);
  EXPECT_EQ(device.reads, kRounds);
  EXPECT_EQ(guest.state().gpr[kRax], sum_to(kRounds));
}

// Where that is switched off, each read leaves for the dispatcher.
TEST(BusAccess, stays_in_translated_code_once_it_is_a_habit) {
  Device device;
  Guest64 guest(device);
  guest.code(kReading);
  run(guest, kDevice, kRounds);
  const u64 before = guest.cpu->counts().lookups;
  run(guest, kDevice, kRounds);
  const u64 lookups = guest.cpu->counts().lookups - before;
  const bool stays = optimizations().devices && optimizations().links;
  EXPECT_EQ(lookups < kRounds / 10, stays) << lookups;
}

TEST(BusAccess, flags_live_on_over_reads_and_writes) {
  Device device;
  Guest64 guest(device);
  guest.code(kUpdating);
  EXPECT_EQ(run(guest, kDevice, kRounds).reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kRcx], 0u);
  EXPECT_EQ(device.reads, kRounds);
  EXPECT_EQ(device.writes, kRounds);
  EXPECT_EQ(device.written, kRounds);
}

TEST(BusAccess, instruction_that_turns_to_memory_reads_memory_and_is_fast_again) {
  Device device;
  Guest64 guest(device);
  guest.code(kReading);
  run(guest, kDevice, kRounds);
  guest.write<u64>(Guest64::kData, 3);
  EXPECT_EQ(run(guest, Guest64::kData, kRounds).reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kRax], 3 * kRounds);
  const u64 before = guest.cpu->counts().slow_accesses;
  run(guest, Guest64::kData, kRounds);
  EXPECT_EQ(guest.state().gpr[kRax], 3 * kRounds);
  EXPECT_EQ(guest.cpu->counts().slow_accesses, before);
  EXPECT_EQ(device.reads, kRounds);
}

TEST(BusAccess, faults_as_ever_once_the_page_is_gone) {
  Device device;
  Guest64 guest(device);
  guest.code(kReading);
  run(guest, kDevice, kRounds);
  guest.write<u64>(Guest64::kTables + 0x2000 + 8 * (kDevice >> 21), 0);
  guest.cpu->flush_tlb();
  EXPECT_EQ(run(guest, kDevice, kRounds).reason, Exit::Reason::kShutdown);  // there is no IDT
  EXPECT_EQ(device.reads, kRounds);
  EXPECT_EQ(guest.state().cr2, kDevice);
}

// The device of a client: every access leaves, and completes exactly once.
TEST(BusAccess, client_answers_each_access_once) {
  Guest64 guest;
  guest.code(kUpdating);
  guest.state().gpr[kRbx] = kDevice;
  guest.state().gpr[kRcx] = kRounds;
  u64 reads = 0, writes = 0;
  Exit exit = guest.run();
  for (; exit.reason == Exit::Reason::kMmio; exit = guest.cpu->run()) {
    if (exit.write) {
      u64 value = 0;
      std::memcpy(&value, exit.data.data(), sizeof value);
      EXPECT_EQ(value, ++writes);
      EXPECT_EQ(exit.gpa, kDevice + 8);
      guest.cpu->complete_io(nullptr);
    } else {
      ++reads;
      guest.cpu->complete_io(&reads);
    }
  }
  EXPECT_EQ(exit.reason, Exit::Reason::kHalt);
  EXPECT_EQ(reads, kRounds);
  EXPECT_EQ(writes, kRounds);
  EXPECT_EQ(guest.state().gpr[kRax], kRounds);
}

}  // namespace
}  // namespace anykvm::x86
