// What the performance counters count, to the instruction: in blocks, one by one, and with slow accesses.
#include "x86/sys/pmu.h"

#include <gtest/gtest.h>
#include <x86intrin.h>

#include "x86/sys/msr.h"
#include "x86/translate/guest_fixture.h"
#include "x86/translate/jump_entries.h"

namespace anykvm::x86 {
namespace {

constexpr u64 kOs = bit(17), kUser = bit(16), kInterrupt = bit(20), kEnable = bit(22);
constexpr u32 kAmdSelect = 0xc0010200, kAmdCounter = 0xc0010201, kIntelSelect = 0x186, kIntelCounter = 0xc1;
constexpr u64 kAmdInstructions = 0xc0, kAmdBranches = 0xc2, kAmdCycles = 0x76;
constexpr u64 kAmdLoads = 0x129, kAmdStores = 0x229, kAmdUpdates = 0x429, kAmdAccesses = 0x729;

struct CountingPlatform : QuietPlatform {
  unsigned interrupts = 0;
  bool any = true;
  u64 denied = 0;
  void performance_interrupt() override { ++interrupts; }
  bool has_counters() override { return any; }
  bool counts_event(u64 select) override { return !denied || (select & 0xff) != denied; }
};

constexpr u32 kFamily1ah = 0x00b00f00, kFamily10h = 0x00100f00;

std::vector<CpuidEntry> model_of(const char* vendor, u32 leaf_a_eax, u32 leaf_a_ebx, u32 leaf_a_edx) {
  std::vector<CpuidEntry> entries = supported_cpuid();
  auto word = [&](unsigned at) {
    u32 value = 0;
    std::memcpy(&value, vendor + at, 4);
    return value;
  };
  for (CpuidEntry& entry : entries) {
    if (entry.function == 0) entry.eax = 0xd, entry.ebx = word(0), entry.edx = word(4), entry.ecx = word(8);
    if (entry.function == 1) entry.ecx |= bit(15), entry.eax = kFamily1ah;  // PDCM
    if (entry.function == 0xa) entry.eax = leaf_a_eax, entry.ebx = leaf_a_ebx, entry.edx = leaf_a_edx;
    if (entry.function == 0x80000001) entry.ecx |= bit(23);  // PerfCtrExtCore
  }
  return entries;
}
std::vector<CpuidEntry> amd() { return model_of("AuthenticAMD", 0, 0, 0); }
std::vector<CpuidEntry> intel() { return model_of("GenuineIntel", 0x07300402, 0x58, 0x603); }

class Counting : public testing::TestWithParam<TranslationLimits> {
 protected:
  Counting() { use(amd()); }

  void use(std::vector<CpuidEntry> entries) {
    guest.cpu->model().set_entries(std::move(entries));
    guest.cpu->set_translation_limits(GetParam());
    guest.cpu->pmu().refresh();
    guest.cpu->state_replaced();
  }
  void set(u32 index, u64 value) { ASSERT_TRUE(write_msr(*guest.cpu, index, value, MsrAccess::kClient)); }
  u64 get(u32 index) { return read_msr(*guest.cpu, index, MsrAccess::kClient).value_or(~u64{0}); }
  // Counter 0 counts instructions, counter 1 branches, at `levels`.
  void count_both(u64 levels = kOs | kUser) {
    set(kAmdSelect, kAmdInstructions | levels | kEnable);
    set(kAmdSelect + 2, kAmdBranches | levels | kEnable);
  }
  // The first counters count the kinds of accesses.
  void count_accesses(u64 levels = kOs | kUser) {
    set(kAmdSelect, kAmdLoads | levels | kEnable);
    set(kAmdSelect + 2, kAmdStores | levels | kEnable);
    set(kAmdSelect + 4, kAmdUpdates | levels | kEnable);
  }
  // {loads, stores, updates}
  std::array<u64, 3> accesses() { return {get(kAmdCounter), get(kAmdCounter + 2), get(kAmdCounter + 4)}; }
  u64 instructions() { return get(kAmdCounter); }
  u64 branches() { return get(kAmdCounter + 2); }

  // A gate to `handler` for `vector`.
  void set_gate(u8 vector, u64 handler) {
    constexpr u64 kIdt = 0x6000, kCodeSelector = 8;
    guest.write<u64>(kIdt + vector * 16u, (handler & 0xffff) | kCodeSelector << 16 | u64{0x8e} << 40 |
                                              (handler >> 16 & 0xffff) << 48);
    guest.write<u64>(kIdt + vector * 16u + 8, handler >> 32);
    guest.state().idtr = {kIdt, 0xfff};
    guest.write<u64>(0x7008, 0x00af9b000000ffff);  // a 64-bit code segment
    guest.write<u64>(0x7010, 0x00cf93000000ffff);
    guest.state().gdtr = {0x7000, 0xff};
    guest.state().segments[kCs].selector = kCodeSelector;
    guest.state().segments[kSs].selector = 0x10;
  }

  CountingPlatform platform;
  Guest64 guest{platform};
};

INSTANTIATE_TEST_SUITE_P(InEveryForm, Counting,
                         testing::Values(TranslationLimits{}, TranslationLimits{true, false},
                                         TranslationLimits{false, true}));

TEST_P(Counting, loop_of_known_length) {
  guest.code({0xb9, 0xe8, 0x03, 0, 0,  // mov ecx, 1000
              0xff, 0xc9,              // dec ecx
              0x75, 0xfc,              // jnz
              0xf4});
  count_both();
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(instructions(), 1 + 2 * 1000 + 1u);
  EXPECT_EQ(branches(), 1000u);
}

TEST_P(Counting, nothing_runs_that_is_not_enabled) {
  guest.code({0xb9, 0xe8, 0x03, 0, 0, 0xff, 0xc9, 0x75, 0xfc, 0xf4});
  set(kAmdSelect, kAmdInstructions | kOs);
  set(kAmdSelect + 2, kAmdBranches | kUser | kEnable);
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(instructions(), 0u);
  EXPECT_EQ(branches(), 0u);
}

TEST_P(Counting, calls_returns_and_memory) {
  guest.code({0xb9, 100,  0,    0,    0,              // mov ecx, 100
              0xe8, 0x09, 0,    0,    0,              // call 0x13
              0xe3, 0x04,                             // jrcxz 0x10
              0xff, 0xc9,                             // dec ecx
              0xeb, 0xf5,                             // jmp 5
              0xf4, 0x90, 0x90,                       // 0x10: hlt
              0x50,                                   // 0x13: push rax
              0x48, 0x8b, 0x03, 0x48, 0x01, 0x43, 8,  // mov rax, [rbx]; add [rbx+8], rax
              0xf3, 0x0f, 0x6f, 0x03,                 // movdqu xmm0, [rbx]
              0x58, 0xc3});                           // pop rax; ret
  guest.state().gpr[kRbx] = Guest64::kData;
  count_both();
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  constexpr u64 kRounds = 101, kFunction = 6;
  EXPECT_EQ(instructions(), 1 + kRounds * (2 + kFunction) + 100 * 2 + 1u);
  EXPECT_EQ(branches(), kRounds * 3 + 100u);
}

TEST_P(Counting, calls_and_jumps_to_other_pages) {
  guest.code({0xb9, 100, 0, 0, 0,      // mov ecx, 100
              0xe8, 0xf6, 0x0f, 0, 0,  // call 0x11000
              0xff, 0xc9, 0x75, 0xf7,  // dec ecx; jnz 5
              0xf4});
  guest.code({0xc3}, Guest64::kCode + 0x1000);
  count_both();
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(instructions(), 1 + 100 * 4 + 1u);
  EXPECT_EQ(branches(), 100 * 3u);
}

TEST_P(Counting, loop_instructions) {
  guest.code({0xb9, 100, 0, 0, 0, 0xe2, 0xfe,              // mov ecx, 100; loop .
              0xb9, 100, 0, 0, 0, 0x39, 0xc0, 0xe1, 0xfc,  // mov ecx, 100; 1: cmp eax, eax; loope 1b
              0xf4});
  count_both();
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(instructions(), 1 + 100 + 1 + 200 + 1u);
  EXPECT_EQ(branches(), 200u);
}

TEST_P(Counting, repeated_string_instruction_is_one) {
  guest.code({0xf3, 0xaa, 0xf3, 0xaa, 0xf4});  // rep stosb twice, the second of no bytes; hlt
  guest.state().gpr[kRcx] = 300000;            // several bursts
  guest.state().gpr[kRdi] = Guest64::kData;
  count_both();
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(instructions(), 3u);
  EXPECT_EQ(branches(), 0u);
}

TEST_P(Counting, instructions_with_helpers_and_rules_of_their_own) {
  guest.state().tsc_ratio = kTscUnscaled / 2;  // RDTSC by its helper
  guest.code({0x0f, 0x31, 0xfa, 0xfb, 0x9c, 0x9d, 0xfc, 0x0f, 0xa2, 0xf4});
  // rdtsc; cli; sti; pushf; popf; cld; cpuid; hlt
  count_both();
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(instructions(), 8u);
  EXPECT_EQ(branches(), 0u);
}

// On AMD's CPUs the exception counts as an instruction and a branch of its own.
TEST_P(Counting, instruction_that_faults_is_not_retired) {
  guest.code({0x90, 0x0f, 0x0b, 0x90, 0xf4});  // nop; ud2; nop; hlt
  guest.code({0x48, 0x83, 0x04, 0x24, 0x02, 0x48, 0xcf},
             Guest64::kCode + 0x100);  // add qword [rsp], 2; iretq
  set_gate(kVectorUd, Guest64::kCode + 0x100);
  count_both();
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(instructions(), 1 + 1 + 2 + 2u);
  EXPECT_EQ(branches(), 2u);
}

TEST_P(Counting, page_fault_in_the_middle_of_a_block) {
  guest.code({0x90, 0x48, 0x01, 0xc8, 0x48, 0x8b, 0x06, 0x48, 0x01, 0xc8, 0xf4});
  // nop; add rax, rcx; mov rax, [rsi]; add rax, rcx; hlt
  guest.code({0x48, 0x83, 0xc4, 0x08, 0x48, 0x89, 0xde, 0x48, 0xcf}, Guest64::kCode + 0x100);
  // add rsp, 8; mov rsi, rbx; iretq
  set_gate(kVectorPf, Guest64::kCode + 0x100);
  guest.state().gpr[kRbx] = Guest64::kData;
  guest.state().gpr[kRsi] = u64{1} << 40;
  use(intel());
  set(kIntelSelect, 0xc0 | kOs | kEnable);
  set(kIntelSelect + 1, 0xc4 | kOs | kEnable);
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(get(kIntelCounter), 2 + 3 + 3u);
  EXPECT_EQ(get(kIntelCounter + 1), 1u);  // IRET
}

TEST_P(Counting, single_steps_of_the_client_count_each_instruction) {
  guest.code({0xb9, 5, 0, 0, 0, 0xff, 0xc9, 0x75, 0xfc, 0xf4});
  GuestDebug debug;
  debug.single_step = true;
  guest.cpu->set_guest_debug(debug);
  count_both();
  Exit exit = guest.run();
  for (unsigned steps = 0; exit.reason == Exit::Reason::kDebug && steps < 100; ++steps)
    exit = guest.cpu->run();
  EXPECT_EQ(exit.reason, Exit::Reason::kHalt);
  EXPECT_EQ(instructions(), 1 + 10 + 1u);
  EXPECT_EQ(branches(), 5u);
}

TEST_P(Counting, overflow_interrupts_once) {
  guest.code({0xb9, 0xe8, 0x03, 0, 0, 0xff, 0xc9, 0x75, 0xfc, 0xf4});
  set(kAmdSelect, kAmdInstructions | kOs | kInterrupt | kEnable);
  set(kAmdCounter, -u64{500});
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(platform.interrupts, 1u);
  EXPECT_EQ(instructions(), 2002 - 500u);
}

TEST_P(Counting, branch_counter_that_overflows_through_the_jump_cache) {
  guest.code({0xb9, 100, 0, 0, 0, 0xe8, 0xf6, 0x0f, 0, 0, 0xff, 0xc9, 0x75, 0xf7, 0xf4});
  guest.code({0xc3}, Guest64::kCode + 0x1000);
  set(kAmdSelect + 2, kAmdBranches | kOs | kInterrupt | kEnable);
  set(kAmdCounter + 2, -u64{50});
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(platform.interrupts, 1u);
  EXPECT_EQ(branches(), 300 - 50u);
}

TEST_P(Counting, events_that_the_client_denies_count_nothing) {
  guest.code({0xb9, 0xe8, 0x03, 0, 0, 0xff, 0xc9, 0x75, 0xfc, 0xf4});
  platform.denied = kAmdBranches;
  count_both();
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(instructions(), 2002u);
  EXPECT_EQ(branches(), 0u);
}

TEST_P(Counting, events_that_nobody_knows_count_nothing) {
  guest.code({0x90, 0x90, 0xf4});
  set(kAmdSelect, 0xc3 | kOs | kEnable);                            // mispredicted branches
  set(kAmdSelect + 2, kAmdInstructions | kOs | kEnable | bit(24));  // cycles with more than one
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(instructions(), 0u);
  EXPECT_EQ(branches(), 0u);
}

TEST_P(Counting, cycles_are_those_of_the_run) {
  guest.code({0xb9, 0xa0, 0x86, 0x01, 0, 0xff, 0xc9, 0x75, 0xfc, 0xf4});
  set(kAmdSelect, kAmdCycles | kOs | kEnable);
  const u64 before = __rdtsc();
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  const u64 passed = __rdtsc() - before, counted = instructions();
  EXPECT_GT(counted, 0u);
  EXPECT_LE(counted, passed);
  EXPECT_EQ(instructions(), counted);  // nothing runs now
}

TEST_P(Counting, wrmsr_that_ends_it_is_the_last_that_counts) {
  use(intel());
  set(0x38f, 0);
  set(0x38d, 2 << 0 | 1);  // fixed counter 0, all levels
  guest.code({0xb9, 0x8f, 0x03, 0,    0,    0xba, 1,    0,    0,
              0,    0x31, 0xc0, 0x0f, 0x30,                            // mov ecx, 38fh; edx = 1; wrmsr
              0x90, 0x90, 0x31, 0xd2, 0x0f, 0x30,                      // nop; nop; xor edx, edx; wrmsr
              0x90, 0xb9, 0,    0,    0,    0x40, 0x0f, 0x33, 0xf4});  // nop; mov ecx, 40000000h; rdpmc; hlt
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kRax], 4u);
  EXPECT_EQ(get(0x309), 4u);
}

TEST_P(Counting, intel_overflow_shows_in_the_status_until_it_is_cleared) {
  use(intel());
  set(kIntelSelect, 0xc0 | kOs | kEnable);
  set(kIntelCounter, -u64{2});
  guest.code({0x90, 0x90, 0x90, 0xf4});
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(get(0x38e), 1u);
  EXPECT_EQ(platform.interrupts, 0u);
  EXPECT_TRUE(write_msr(*guest.cpu, 0x390, 1, MsrAccess::kGuest));
  EXPECT_EQ(get(0x38e), 0u);
}

using Accesses = std::array<u64, 3>;

TEST_P(Counting, accesses_of_a_loop) {
  guest.code({0xb9, 100,  0,    0,    0,  // mov ecx, 100
              0x8b, 0x03,                 // 5: mov eax, [rbx]
              0x89, 0x43, 0x40,           // mov [rbx+40h], eax
              0xff, 0x43, 0x44,           // inc dword [rbx+44h]
              0x03, 0x43, 0x48,           // add eax, [rbx+48h]
              0xf3, 0x0f, 0x6f, 0x03,     // movdqu xmm0, [rbx]
              0x8d, 0x03,                 // lea eax, [rbx]
              0xff, 0xc9, 0x75, 0xeb,     // dec ecx; jnz 5
              0xf4});
  guest.state().gpr[kRbx] = Guest64::kData;
  count_accesses();
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(accesses(), (Accesses{300, 100, 100}));
}

TEST_P(Counting, accesses_of_the_stack) {
  guest.code({0xb9, 100,  0,    0,    0,             // mov ecx, 100
              0xe8, 0x05, 0,    0,    0,             // 5: call 0x0f
              0xff, 0xc9, 0x75, 0xf7,                // dec ecx; jnz 5
              0xf4,                                  // hlt
              0x50, 0xff, 0x33, 0x9c,                // 0x0f: push rax; push qword [rbx]; pushf
              0x9d, 0x58, 0x8f, 0x03,                // popf; pop rax; pop qword [rbx]
              0xc8, 0,    0,    0,    0xc9, 0xc3});  // enter 0, 0; leave; ret
  guest.state().gpr[kRbx] = Guest64::kData;
  count_accesses();
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(accesses(), (Accesses{600, 600, 0}));
}

TEST_P(Counting, repeated_string_instructions_access_in_each_iteration) {
  guest.code({0xf3, 0xaa, 0xf3, 0xaa,                    // rep stosb twice, the second of no bytes
              0xb9, 10,   0,    0,    0,    0xf3, 0xa4,  // mov ecx, 10; rep movsb
              0xa5, 0xfd, 0xa5, 0xfc,                    // movsd; std; movsd; cld
              0x31, 0xc0, 0xb9, 10,   0,    0,    0,    0x48, 0x89, 0xdf,  // eax = 0; ecx = 10; mov rdi, rbx
              0xc6, 0x43, 0x03, 0x00, 0xf2, 0xae, 0xf4});  // mov byte [rbx+3], 0; repne scasb; hlt
  constexpr u64 kBytes = 300000;                           // several bursts
  guest.state().gpr[kRax] = 1;
  guest.state().gpr[kRcx] = kBytes;
  guest.state().gpr[kRbx] = guest.state().gpr[kRdi] = Guest64::kData;
  guest.state().gpr[kRsi] = Guest64::kData;
  count_accesses();
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(accesses(), (Accesses{10 + 2 + 4, kBytes + 10 + 2 + 1, 0}));
}

TEST_P(Counting, kinds_of_accesses_add_up) {
  guest.code(
      {0xb9, 100, 0, 0, 0, 0x8b, 0x03, 0x89, 0x43, 0x40, 0xff, 0x43, 0x44, 0xff, 0xc9, 0x75, 0xf4, 0xf4});
  guest.state().gpr[kRbx] = Guest64::kData;
  set(kAmdSelect, kAmdAccesses | kOs | kEnable);
  set(kAmdSelect + 2, kAmdLoads | kAmdUpdates | kOs | kEnable);
  set(kAmdSelect + 4, (kAmdLoads & 0xff) | kOs | kEnable);  // no kind at all
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(accesses(), (Accesses{300, 200, 0}));
}

TEST_P(Counting, stores_that_overflow_among_loads_interrupt_once) {
  guest.code({0xb9, 0xe8, 0x03, 0, 0,                          // mov ecx, 1000
              0x8b, 0x03, 0x8b, 0x03, 0x8b, 0x03, 0x89, 0x03,  // 5: three loads, a store
              0xff, 0xc9, 0x75, 0xf4, 0xf4});                  // dec ecx; jnz 5; hlt
  guest.state().gpr[kRbx] = Guest64::kData;
  set(kAmdSelect, kAmdLoads | kOs | kEnable);
  set(kAmdSelect + 2, kAmdStores | kOs | kInterrupt | kEnable);
  set(kAmdCounter + 2, -u64{600});
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(platform.interrupts, 1u);
  EXPECT_EQ(accesses(), (Accesses{3000, 400, 0}));
}

TEST_P(Counting, accesses_of_models_before_zen_and_of_others_count_nothing) {
  std::vector<CpuidEntry> old = amd();
  for (CpuidEntry& entry : old) {
    if (entry.function == 1) entry.eax = kFamily10h;
  }
  use(old);
  guest.code({0x8b, 0x03, 0xf4});
  guest.state().gpr[kRbx] = Guest64::kData;
  count_accesses();
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(accesses(), (Accesses{}));
  use(intel());
  guest.state().rip = Guest64::kCode;
  set(kIntelSelect, kAmdLoads | kOs | kEnable);
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(get(kIntelCounter), 0u);
}

// A gather whose elements are not at hand is done by its helper; it counts once all the same.
TEST_P(Counting, gather_counts_once) {
  if (!__builtin_cpu_supports("avx2")) GTEST_SKIP() << "no AVX2";
  guest.code({0xb9, 10,   0,    0,    0,           // mov ecx, 10
              0xc5, 0xe5, 0x76, 0xdb,              // 5: vpcmpeqd ymm3, ymm3, ymm3
              0xc4, 0xe2, 0x61, 0x90, 0x0c, 0x93,  // vpgatherdd xmm1, [rbx+xmm2*4], xmm3
              0xff, 0xc9, 0x75, 0xf2, 0xf4});      // dec ecx; jnz 5; hlt
  guest.state().gpr[kRbx] = Guest64::kData;
  guest.state().cr4 |= kCr4Osxsave;
  guest.state().xcr0 = kXcr0X87 | kXcr0Sse | kXcr0Avx;
  guest.cpu->state_replaced();
  set(kAmdSelect, kAmdInstructions | kOs | kEnable);
  set(kAmdSelect + 2, kAmdLoads | kOs | kEnable);
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(instructions(), 1 + 10 * 4 + 1u);
  EXPECT_EQ(get(kAmdCounter + 2), 10u);
}

TEST_P(Counting, rdpmc_reads_all_bits) {
  set(kAmdCounter + 2, 0x123456789a);
  guest.code({0xb9, 1, 0, 0, 0, 0x0f, 0x33, 0xf4});  // mov ecx, 1; rdpmc; hlt
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kRax], 0x3456789au);
  EXPECT_EQ(guest.state().gpr[kRdx], 0x12u);
}

TEST_P(Counting, model_without_counters_has_none) {
  platform.any = false;
  use(amd());
  EXPECT_FALSE(read_msr(*guest.cpu, kAmdCounter, MsrAccess::kGuest).has_value());
  EXPECT_TRUE(write_msr(*guest.cpu, 0xc0010000, kAmdInstructions | kOs | kEnable, MsrAccess::kGuest));
  EXPECT_EQ(read_msr(*guest.cpu, 0xc0010000, MsrAccess::kGuest), 0u);
}

TEST_P(Counting, intel_reserved_bits_fault_and_legacy_writes_sign_extend) {
  use(intel());
  auto write = [&](u32 index, u64 value) { return write_msr(*guest.cpu, index, value, MsrAccess::kGuest); };
  EXPECT_FALSE(write(kIntelSelect, bit(21)));
  EXPECT_FALSE(write(kIntelSelect, bit(32)));
  EXPECT_FALSE(write(kIntelSelect + 4, 0));  // four counters
  EXPECT_FALSE(write(0x38d, 0x4));
  EXPECT_FALSE(write(0x38f, bit(4)));
  EXPECT_FALSE(write(0x38e, 0));
  EXPECT_FALSE(write(0xc0010200, 0));
  ASSERT_TRUE(write(kIntelCounter, 0x80000000));
  EXPECT_EQ(get(kIntelCounter), 0xffff80000000u);
  ASSERT_TRUE(write(0x4c1, 0x80000000));
  EXPECT_EQ(get(kIntelCounter), 0x80000000u);
  EXPECT_FALSE(write(0x4c1, bit(48)));
}

// LinkStamp: what says that a counter has overflowed must not make one address look like another.
TEST(CounterStamp, an_address_with_overflows_has_another_place_in_the_jump_cache) {
  for (u64 added : {0xff00u, 0xff0000u, 0xffff00u, 0xff000000u, 0xff00ff00u, 0xffff0000u, 0xffffff00u}) {
    for (u64 address = 0; address < u64{1} << 26; address += 0x101) {
      const u64 rip = address * 0x9e3779b97f4a7c15 >> 8;
      ASSERT_NE(jump_cache_index(rip, false), jump_cache_index(rip + added, false));
      ASSERT_NE(second_jump_index(rip, false), second_jump_index(rip + added, false));
    }
  }
}

}  // namespace
}  // namespace anykvm::x86
