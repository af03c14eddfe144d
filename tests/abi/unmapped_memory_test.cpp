// The client takes guest memory away under a slot. KVM_RUN is EFAULT at the access, whatever makes it, and
// goes on once the memory is back.
#include "kvm.h"

namespace anykvm::test {
namespace {

constexpr std::uint64_t kGone = 0x10000;
constexpr std::uint64_t kHltAt = 0;

struct Access {
  const char* name;
  std::vector<std::uint8_t> code;  // DS, ES and SS are over the memory that goes; SI = 0, DI = 100H, CX = 16
};

class UnmappedMemory : public testing::TestWithParam<Access> {
 protected:
  UnmappedMemory() {
    guest.memory.data()[kHltAt] = 0xf4;
    EXPECT_EQ(guest.set_region(1, kGone, memory.size(), memory.address()), 0);
  }

  void prepare(const std::vector<std::uint8_t>& code) {
    std::uint8_t* to = guest.memory.data() + Guest::kCode;
    memcpy(to, code.data(), code.size());
    to[code.size()] = 0xf4;
    restart();
  }
  void restart() {
    guest.start_at_code();
    kvm_sregs sregs{};
    EXPECT_EQ(call(guest.vcpu, KVM_GET_SREGS, &sregs), 0);
    for (kvm_segment* segment : {&sregs.ds, &sregs.es, &sregs.ss}) {
      segment->base = kGone;
      segment->selector = kGone >> 4;
    }
    EXPECT_EQ(call(guest.vcpu, KVM_SET_SREGS, &sregs), 0);
    kvm_regs regs = guest.regs();
    regs.rsi = 0;
    regs.rdi = 0x100;
    regs.rcx = 16;
    regs.rsp = 0x800;
    guest.set_regs(regs);
  }

  void take_away() { ASSERT_EQ(munmap(memory.data(), memory.size()), 0); }
  void give_back(std::uint8_t fill = 0) {
    ASSERT_EQ(mmap(memory.data(), memory.size(), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
              memory.data());
    memset(memory.data(), fill, memory.size());
  }
  void expect_halt() {
    EXPECT_EQ(guest.run(), 0);
    EXPECT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
  }
  void expect_fault() {
    for (int attempt = 0; attempt < 2; ++attempt) {
      EXPECT_EQ(guest.run(), -EFAULT);
      EXPECT_EQ(guest.regs().rip, Guest::kCode);
      if (!on_real_kvm()) expect_memory_fault();
    }
  }
  // KVM API 7.34; kernels tell the page of private memory only.
  void expect_memory_fault() {
    struct {
      std::uint64_t flags, gpa, size;
    } fault;
    memcpy(&fault, guest.shared->padding, sizeof fault);
    EXPECT_EQ(guest.shared->exit_reason, 39u);  // KVM_EXIT_MEMORY_FAULT
    EXPECT_EQ(fault.flags, 0u);
    EXPECT_EQ(fault.size, 0x1000u);
    EXPECT_TRUE(fault.gpa == kGone || fault.gpa == kGone + 0x1000) << std::hex << fault.gpa;
  }

  Pages memory{0x2000};
  Guest guest;
};

TEST_P(UnmappedMemory, access_is_efault) {
  prepare(GetParam().code);
  take_away();
  expect_fault();
  give_back();
  expect_halt();
}

TEST_P(UnmappedMemory, access_to_memory_in_the_tlb_is_efault) {
  prepare(GetParam().code);
  expect_halt();
  restart();
  take_away();
  expect_fault();
  give_back();
  expect_halt();
}

TEST_P(UnmappedMemory, file_that_ends_before_the_access_is_efault) {
  const int file = memfd_create("guest", 0);
  ASSERT_EQ(ftruncate(file, static_cast<off_t>(memory.size())), 0);
  ASSERT_EQ(mmap(memory.data(), memory.size(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0),
            memory.data());
  prepare(GetParam().code);
  ASSERT_EQ(ftruncate(file, 0), 0);
  expect_fault();
  ASSERT_EQ(ftruncate(file, static_cast<off_t>(memory.size())), 0);
  expect_halt();
  close(file);
}

INSTANTIATE_TEST_SUITE_P(
    Instructions, UnmappedMemory,
    testing::Values(
        Access{"mov_load", {0xa0, 0, 0}}, Access{"mov_store", {0xa2, 0, 0}},
        Access{"add_to_memory", {0x00, 0x06, 0, 0}}, Access{"lock_add", {0xf0, 0x00, 0x06, 0, 0}},
        Access{"lock_add_dword_unaligned", {0xf0, 0x66, 0x01, 0x06, 0x3d, 0}},
        Access{"across_pages", {0x66, 0xa1, 0xfe, 0x0f}}, Access{"lock_bts", {0xf0, 0x0f, 0xab, 0x06, 0, 0}},
        Access{"bts", {0x0f, 0xab, 0x06, 0, 0}}, Access{"xchg", {0x86, 0x06, 0, 0}},
        Access{"cmpxchg8b", {0xf0, 0x0f, 0xc7, 0x0e, 0, 0}}, Access{"push", {0x50}}, Access{"pop", {0x58}},
        Access{"pusha", {0x60}}, Access{"popa", {0x61}}, Access{"rep_movsb", {0xf3, 0xa4}},
        Access{"rep_movsw", {0xf3, 0xa5}}, Access{"movsb", {0xa4}}, Access{"rep_stosd", {0xf3, 0x66, 0xab}},
        Access{"rep_lodsb", {0xf3, 0xac}}, Access{"repe_cmpsb", {0xf3, 0xa6}},
        Access{"repne_scasw", {0xf2, 0xaf}}, Access{"fld", {0xd9, 0x06, 0, 0}},
        Access{"fnsave", {0xdd, 0x36, 0, 0}}, Access{"sgdt", {0x0f, 0x01, 0x06, 0, 0}},
        Access{"lgdt", {0x0f, 0x01, 0x16, 0, 0}}, Access{"xlat", {0xd7}}, Access{"les", {0xc4, 0x06, 0, 0}},
        Access{"bound", {0x62, 0x06, 0, 0}}, Access{"call_far", {0xff, 0x1e, 0, 0}},
        Access{"jump_through_memory", {0xff, 0x2e, 0, 0}}),
    [](const auto& info) { return std::string(info.param.name); });

using UnmappedTables = UnmappedMemory;

TEST_F(UnmappedTables, code_that_is_gone) {
  prepare({0xea, 0x00, 0x00, 0x00, 0x10});  // jmp 1000H:0
  take_away();
  EXPECT_EQ(guest.run(), -EFAULT);
  give_back(0xf4);
  expect_halt();
}

TEST_F(UnmappedTables, code_that_was_translated_is_gone) {
  prepare({0xea, 0x00, 0x00, 0x00, 0x10});
  take_away();
  give_back(0xf4);
  expect_halt();
  restart();
  take_away();
  EXPECT_EQ(guest.run(), -EFAULT);
  give_back(0xf4);
  expect_halt();
}

TEST_F(UnmappedTables, interrupt_vectors_that_are_gone) {
  prepare({0xcc});  // int3
  kvm_sregs sregs{};
  EXPECT_EQ(call(guest.vcpu, KVM_GET_SREGS, &sregs), 0);
  sregs.idt.base = kGone;
  sregs.ss.base = 0;
  sregs.ss.selector = 0;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_SREGS, &sregs), 0);
  take_away();
  expect_fault();
  give_back();
  expect_halt();  // the vector is 0:0
}

TEST_F(UnmappedTables, page_tables_that_are_gone) {
  prepare({0x90});
  kvm_sregs sregs{};
  EXPECT_EQ(call(guest.vcpu, KVM_GET_SREGS, &sregs), 0);
  sregs.cr3 = kGone;
  sregs.cr4 |= 0x10;        // 4 MiB pages
  sregs.cr0 |= 0x80000001;  // paging, protection
  EXPECT_EQ(call(guest.vcpu, KVM_SET_SREGS, &sregs), 0);
  take_away();
  EXPECT_EQ(guest.run(), -EFAULT);
  kvm_translation translation{};
  EXPECT_EQ(call(guest.vcpu, KVM_TRANSLATE, &translation), 0);
  EXPECT_EQ(translation.valid, 0);
  give_back();
  memory.data()[0] = 0x83;  // present, writable, large
  expect_halt();
}

}  // namespace
}  // namespace anykvm::test
