// 32-bit protected mode: paging with 32-bit and PAE tables against a model, virtual-8086 mode, task switches,
// gates.

#include "legacy.h"
#include "memory.h"
#include "report.h"
#include "traps.h"

namespace bare {

extern "C" {
extern const u8 ring0_read[], ring0_write[], ring0_jump[], ring0_done[], ring0_int_40[], ring0_far_call[];
extern const u8 ring3_read[], ring3_write[], ring3_jump[], ring3_done[], ring3_int_40[];
}

asm(R"(
  .code32
  .macro pieces ring
\ring\()_read:
  mov (%eax), %ecx
\ring\()_done:
  int $0x80
\ring\()_write:
  mov %ecx, 64(%eax)
  int $0x80
\ring\()_jump:
  jmp *%eax
\ring\()_int_40:
  int $0x40
  int $0x80
  .endm
  pieces ring0
ring0_far_call:
  lcall *(%eax)
  int $0x80
  .pushsection .user, "awx"
  pieces ring3
  .popsection
  .code64
)");

namespace {

enum class Access { kRead, kWrite, kFetch };
constexpr Access kAccesses[] = {Access::kRead, Access::kWrite, Access::kFetch};

constexpr u32 kAddress = 0x40005000;
constexpr u64 kIdentity = 64 << 20;  // mapped one to one in every run

u32 low(const void* p) { return static_cast<u32>(reinterpret_cast<u64>(p)); }

u32 code_for(Access access, bool user) {
  switch (access) {
    case Access::kRead:
      return low(user ? ring3_read : ring0_read);
    case Access::kWrite:
      return low(user ? ring3_write : ring0_write);
    case Access::kFetch:
      return low(user ? ring3_jump : ring0_jump);
  }
  return 0;
}

void make_user(LegacyRun& run) {
  run.cs = SEL_USER_CODE32;
  run.ss = SEL_USER_DATA;
  run.esp = static_cast<u32>(user_stack_top()) - 64;
}

// A frame that ends whoever jumps to it.
u64 frame_with_code() {
  u64 frame = allocate_frame();
  at_physical<u8>(frame)[0] = 0xcd;
  at_physical<u8>(frame)[1] = VECTOR_DONE;
  return frame;
}

// One paging mode's tables: 64 MiB one to one, of which users see the first 4 (that hold .user), and
// kAddress.
struct Tables32 {
  static constexpr u64 kNx = 0, kReservedBit = 0, kPaeBit = 0;
  u64 root = allocate_frame(), table = allocate_frame();
  Tables32() {
    for (u32 i = 0; i < kIdentity >> 22; ++i)
      at_physical<u32>(root)[i] = i << 22 | static_cast<u32>(kPresent | kWritable | kLarge | (i ? 0 : kUser));
  }
  void set(u64 table_flags, u64 page) {
    at_physical<u32>(root)[kAddress >> 22] = static_cast<u32>(table | table_flags);
    at_physical<u32>(table)[kAddress >> 12 & 1023] = static_cast<u32>(page);
  }
  u64 page() const { return at_physical<u32>(table)[kAddress >> 12 & 1023]; }
};

struct TablesPae {
  static constexpr u64 kNx = kNoExecute, kReservedBit = bit(62), kPaeBit = kCr4Pae;
  u64 root = allocate_frame(), identity = allocate_frame(), directory = allocate_frame(),
      table = allocate_frame();
  TablesPae() {
    at_physical(root)[0] = identity | kPresent;
    at_physical(root)[kAddress >> 30] = directory | kPresent;
    for (u64 i = 0; i < kIdentity >> 21; ++i)
      at_physical(identity)[i] = i << 21 | kPresent | kWritable | kLarge | (i < 2 ? kUser : 0);
  }
  void set(u64 table_flags, u64 page) {
    at_physical(directory)[kAddress >> 21 & 511] = table | table_flags;
    at_physical(table)[kAddress >> 12 & 511] = page;
  }
  u64 page() const { return at_physical(table)[kAddress >> 12 & 511]; }
};

struct Rules {
  bool wp, smep, smap, nx;
};

struct Expected {
  bool faults;
  u64 error;
};
Expected expect(const Rules& rules, u64 reserved, u64 table, u64 page, Access access, bool user, bool ac,
                bool pae) {
  u64 code = (user ? kPfUser : 0) | (access == Access::kWrite ? kPfWrite : 0);
  if (access == Access::kFetch && (rules.smep || (rules.nx && pae))) code |= kPfFetch;
  for (u64 entry : {table, page}) {
    if (!(entry & kPresent)) return {true, code};
    if (entry & reserved) return {true, code | kPfPresent | kPfReserved};
  }
  const u64 all = table & page, any = table | page;
  bool allowed = true;
  if (user) {
    allowed = all & kUser;
  } else if (all & kUser) {
    if (access == Access::kFetch && rules.smep) allowed = false;
    if (access != Access::kFetch && rules.smap && !ac) allowed = false;
  }
  if (access == Access::kWrite && !(all & kWritable) && (user || rules.wp)) allowed = false;
  if (access == Access::kFetch && (any & kNoExecute)) allowed = false;
  return {!allowed, allowed ? 0 : code | kPfPresent};
}

template <class Tables>
void check_one(Tables& tables, const Rules& rules, u64 frame, u64 table, u64 page, Access access, bool user,
               bool ac) {
  tables.set(table, frame | page);
  LegacyRun run;
  run.cr0 = static_cast<u32>(kCr0Pe | kCr0Et | kCr0Ne | kCr0Pg | (rules.wp ? kCr0Wp : 0));
  run.cr3 = static_cast<u32>(tables.root);
  run.cr4 =
      static_cast<u32>(kCr4Pse | Tables::kPaeBit | (rules.smep ? kCr4Smep : 0) | (rules.smap ? kCr4Smap : 0));
  run.nx = rules.nx;
  run.eip = code_for(access, user);
  run.eax = kAddress;
  run.eflags = static_cast<u32>(2 | (ac ? kFlagAc : 0));
  if (user) make_user(run);
  run_legacy(run);

  const u64 reserved = Tables::kReservedBit | (rules.nx ? 0 : Tables::kNx);
  const Expected expected = expect(rules, reserved, table, page, access, user, ac, Tables::kPaeBit);
  CHECK_EQ(run.vector, expected.faults ? unsigned{kPf} : unsigned{kDone});
  if (run.vector == kPf && expected.faults) {
    CHECK_EQ(run.error, expected.error);
    CHECK_EQ(run.cr2, kAddress + (access == Access::kWrite ? 64u : 0u));
  }
  if (!expected.faults) {
    CHECK(tables.page() & kAccessed);
    CHECK_EQ((tables.page() & kDirty) != 0, access == Access::kWrite);
  }
}

template <class Tables>
void check_matrix() {
  const u64 frame = frame_with_code();
  Tables tables;
  constexpr u64 kAll = kPresent | kWritable | kUser;
  const u64 table_flags[] = {kAll,
                             kAll & ~kWritable,
                             kAll & ~kUser,
                             kAll & ~kPresent,
                             kAll | Tables::kNx,
                             kAll | Tables::kReservedBit};
  for (unsigned r = 0; r < 16; ++r) {
    const Rules rules{(r & 1) != 0, (r & 2) && has_smep(), (r & 4) && has_smap(), (r & 8) && Tables::kNx};
    for (u64 table : table_flags) {
      for (unsigned p = 0; p < 16; ++p) {
        const u64 page = (p & 1 ? kPresent : 0) | (p & 2 ? kWritable : 0) | (p & 4 ? kUser : 0) |
                         (p & 8 ? Tables::kNx : 0);
        for (Access access : kAccesses) {
          check_one(tables, rules, frame, table, page, access, true, false);
          check_one(tables, rules, frame, table, page, access, false, false);
          if (rules.smap) check_one(tables, rules, frame, table, page, access, false, true);
        }
      }
    }
  }
}

// Without paging.
LegacyRun run_flat(const void* code) {
  LegacyRun run;
  run.eip = low(code);
  return run;
}

// --- Virtual-8086 mode ---

// Puts 16-bit code at REAL_CODE and runs it without paging.
LegacyRun run_v86(const u8* bytes, size_t size, unsigned iopl, u32 cr4 = 0) {
  for (size_t i = 0; i < size; ++i) at_physical<u8>(REAL_CODE)[i] = bytes[i];
  LegacyRun run;
  run.cr4 = cr4;
  run.eflags = static_cast<u32>(2 | kFlagVm | iopl << 12);
  run.cs = REAL_CODE >> 4;
  run.eip = 0;
  run.ss = run.ds = run.es = run.fs = run.gs = REAL_STACK >> 4;
  run.esp = 0xff0;
  run_legacy(run);
  return run;
}

}  // namespace

BARE_TEST(legacy, protected_mode_without_paging_runs) {
  LegacyRun run = run_flat(ring0_done);
  run.eax = 0x12345678;
  run_legacy(run);
  CHECK_EQ(run.vector, kDone);
  CHECK_EQ(run.out_eax, 0x12345678u);
  CHECK_EQ(run.out_cs, SEL_CODE32);
}

BARE_TEST(legacy, ring_3_comes_back_on_the_tss_stack) {
  LegacyRun run = run_flat(ring3_done);
  make_user(run);
  run_legacy(run);
  CHECK_EQ(run.vector, kDone);
  CHECK_EQ(run.out_cs, SEL_USER_CODE32);
  CHECK_EQ(run.out_ss, SEL_USER_DATA);
  CHECK_EQ(run.out_esp, run.esp);
}

BARE_TEST(legacy, two_level_page_permission_matrix) { check_matrix<Tables32>(); }
BARE_TEST(legacy, pae_page_permission_matrix) { check_matrix<TablesPae>(); }

BARE_TEST(legacy, software_interrupts_check_the_gates_privilege) {
  const u64 before = gate32(0x40);
  LegacyRun run = run_flat(ring3_int_40);
  make_user(run);
  run_legacy(run);
  CHECK_EQ(run.vector, kGp);
  CHECK_EQ(run.error, 0x40u * 8 + 2);
  gate32(0x40) |= u64{3} << 45;
  run_legacy(run);
  CHECK_EQ(run.vector, 0x40u);
  gate32(0x40) = before;
}

BARE_TEST(legacy, absent_tss_stack_segment_is_an_invalid_tss) {
  const u32 ss0 = tss32().ss0;
  for (u32 bad : {0u, u32{SEL_CODE32}, u32{SEL_USER_DATA}, u32{GDT_ENTRIES * 8}}) {
    tss32().ss0 = bad;
    const u64 before = gate32(kTs);
    LegacyRun run = run_flat(ring3_int_40);
    make_user(run);
    // #TS itself needs a stack: through a task gate it has its own.
    static Tss32 rescue;
    rescue = {};
    rescue.eip = low(ring0_done);
    rescue.eflags = 2;
    rescue.cs = SEL_CODE32;
    rescue.ss = rescue.ds = rescue.es = SEL_DATA;
    rescue.esp = static_cast<u32>(spare_stack_top()) - 64;
    descriptor(SEL_SPARE) = tss32_descriptor(rescue);
    gate32(kTs) = make_gate32(0, SEL_SPARE, 5, 0);
    gate32(0x40) |= u64{3} << 45;
    run_legacy(run);
    gate32(kTs) = before;
    CHECK_EQ(run.vector, kDone);
    // The error code is on top of the new task's stack.
    CHECK_EQ(at_physical<u32>(spare_stack_top() - 64)[-1], (bad & ~3u) + 0u);
  }
  gate32(0x40) &= ~(u64{3} << 45);
  tss32().ss0 = ss0;
}

BARE_TEST(tasks, interrupt_through_a_task_gate_nests) {
  static Tss32 task;
  task = {};
  task.eip = low(ring0_done);
  task.eflags = 2;
  task.cs = SEL_CODE32;
  task.ss = task.ds = task.es = SEL_DATA;
  task.esp = static_cast<u32>(spare_stack_top()) - 64;
  task.eax = 0xabcd;
  task.ebx = 0x1234;
  descriptor(SEL_SPARE) = tss32_descriptor(task);
  const u64 before = gate32(0x40);
  gate32(0x40) = make_gate32(0, SEL_SPARE, 5, 0);
  LegacyRun run = run_flat(ring0_int_40);
  run.ecx = 77;
  run_legacy(run);
  gate32(0x40) = before;
  CHECK_EQ(run.vector, kDone);
  CHECK_EQ(run.out_eax, 0xabcdu);
  CHECK_EQ(run.out_ebx, 0x1234u);
  CHECK(run.out_eflags & kFlagNt);
  CHECK(run.out_cr0 & kCr0Ts);
  CHECK_EQ(task.link & 0xffff, SEL_TSS32);
  CHECK_EQ(tss32().eip, low(ring0_int_40) + 2);
  CHECK_EQ(tss32().ecx, 77u);
  CHECK_EQ(descriptor(SEL_SPARE) >> 40 & 15, 11);  // busy
  CHECK_EQ(descriptor(SEL_TSS32) >> 40 & 15, 11);  // still: it is nested in
}

BARE_TEST(tasks, far_call_of_a_tss_and_iret_come_back) {
  static Tss32 task;
  static const u8 iret_code[] = {0xcf};
  task = {};
  task.eip = low(iret_code);
  task.eflags = 2;
  task.cs = SEL_CODE32;
  task.ss = task.ds = task.es = SEL_DATA;
  task.esp = static_cast<u32>(spare_stack_top()) - 64;
  descriptor(SEL_SPARE) = tss32_descriptor(task);
  static struct [[gnu::packed]] {
    u32 offset;
    u16 selector;
  } target = {0, SEL_SPARE};
  LegacyRun run = run_flat(ring0_far_call);
  run.eax = low(&target);
  run.edx = 55;
  run_legacy(run);
  CHECK_EQ(run.vector, kDone);
  CHECK_EQ(run.out_edx, 55u);
  CHECK_EQ(run.out_eflags & kFlagNt, 0);
  CHECK_EQ(descriptor(SEL_SPARE) >> 40 & 15, 9);  // no longer busy
  CHECK_EQ(task.eip, low(iret_code) + 1);
}

BARE_TEST(v86, interrupt_goes_to_ring_0_with_iopl_3_only) {
  const u8 code[] = {0xcd, VECTOR_DONE};
  LegacyRun run = run_v86(code, sizeof code, 3);
  CHECK_EQ(run.vector, kDone);
  CHECK_EQ(run.out_cs, u32{REAL_CODE >> 4});
  CHECK(run.out_eflags & kFlagVm);
  CHECK_EQ(run.out_eip, 2u);
  run = run_v86(code, sizeof code, 0);
  CHECK_EQ(run.vector, kGp);
  CHECK_EQ(run.error, 0u);
  CHECK_EQ(run.out_eip, 0u);
}

BARE_TEST(v86, sensitive_instructions_need_iopl_3) {
  for (u8 opcode : {0xfa, 0xfb, 0x9c, 0x9d, 0xcf}) {  // CLI, STI, PUSHF, POPF, IRET
    const u8 code[] = {opcode, 0xcd, VECTOR_DONE};
    CHECK_EQ(run_v86(code, sizeof code, 0).vector, kGp);
  }
  const u8 allowed[] = {0xfa, 0x9c, 0x9d, 0xcd, VECTOR_DONE};
  CHECK_EQ(run_v86(allowed, sizeof allowed, 3).vector, kDone);
  const u8 hlt[] = {0xf4};
  CHECK_EQ(run_v86(hlt, sizeof hlt, 3).vector, kGp);
}

BARE_TEST(v86, ports_go_by_the_bitmap_whatever_iopl_is) {
  const u8 code[] = {0xe4, 0x80, 0xcd, VECTOR_DONE};  // in $0x80, %al
  LegacyRun run = run_v86(code, sizeof code, 3);
  CHECK_EQ(run.vector, kGp);
  CHECK_EQ(run.error, 0u);
}

BARE_TEST(v86, segments_end_at_64_kib) {
  const u8 word_at_end[] = {0xa1, 0xff, 0xff, 0xcd, VECTOR_DONE};  // mov 0xffff, %ax
  CHECK_EQ(run_v86(word_at_end, sizeof word_at_end, 3).vector, kGp);
  const u8 byte_at_end[] = {0xa0, 0xff, 0xff, 0xcd, VECTOR_DONE};
  CHECK_EQ(run_v86(byte_at_end, sizeof byte_at_end, 3).vector, kDone);
  const u8 stack_at_end[] = {0xbc, 0x01, 0x00, 0x50, 0xcd, VECTOR_DONE};  // mov $1, %sp; push %ax
  CHECK_EQ(run_v86(stack_at_end, sizeof stack_at_end, 3).vector, kSs);
}

BARE_TEST(v86, protected_mode_instructions_are_undefined) {
  const u8 sldt[] = {0x0f, 0x00, 0xc0}, lar[] = {0x0f, 0x02, 0xc0}, arpl[] = {0x63, 0xc0};
  CHECK_EQ(run_v86(sldt, sizeof sldt, 3).vector, kUd);
  CHECK_EQ(run_v86(lar, sizeof lar, 3).vector, kUd);
  CHECK_EQ(run_v86(arpl, sizeof arpl, 3).vector, kUd);
}

}  // namespace bare
