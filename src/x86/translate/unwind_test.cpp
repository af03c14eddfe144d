#include "x86/translate/unwind.h"

#include <gmock/gmock.h>
#include <unwind.h>

#include "x86/translate/code_cache.h"
#include "x86/translate/guest_fixture.h"
#include "x86/translate/thunk_frames.h"

namespace anykvm::x86 {
namespace {

using testing::ElementsAre;

// --- Rows out of instructions ---

std::vector<FrameRow> rows_of(std::vector<u8> code, ThunkEntry entry) {
  return stack_rows(code.data(), code.size(), entry);
}

TEST(StackRows, call_of_cpp_is_one_deeper) {
  EXPECT_THAT(rows_of({0x48, 0x83, 0xec, 0x08,        // sub rsp, 8
                       0xe8, 0x00, 0x00, 0x00, 0x00,  // call
                       0x48, 0x83, 0xc4, 0x08,        // add rsp, 8
                       0xc3},                         // ret
                      ThunkEntry::kCalledByBlock),
              ElementsAre(FrameRow{0, 8, false}, FrameRow{4, 16, false}, FrameRow{13, 8, false}));
}

TEST(StackRows, frame_is_the_blocks_once_its_return_address_is_popped) {
  EXPECT_THAT(rows_of({0x58, 0xc3}, ThunkEntry::kCalledByBlock),  // pop rax; ret
              ElementsAre(FrameRow{0, 8, false}, FrameRow{1, kBlockCfa, true}, FrameRow{2, 8, false}));
}

TEST(StackRows, code_behind_a_jump_has_the_stack_of_who_jumps_there) {
  EXPECT_THAT(rows_of({0x50,         // push rax
                       0x74, 0x02,   // jz +2
                       0x58,         // pop rax
                       0xc3,         // ret
                       0x58, 0xc3},  // pop rax; ret
                      ThunkEntry::kCalledByCpp),
              ElementsAre(FrameRow{0, 8, false}, FrameRow{1, 16, false}, FrameRow{4, 8, false},
                          FrameRow{5, 16, false}, FrameRow{6, 8, false}));
}

// --- The C++ runtime's unwinder, started inside a device access of the guest ---

using Frames = std::vector<void*>;

_Unwind_Reason_Code note_function(_Unwind_Context* context, void* frames) {
  auto ip = reinterpret_cast<void*>(_Unwind_GetIP(context) - 1);
  static_cast<Frames*>(frames)->push_back(_Unwind_FindEnclosingFunction(ip));
  return _URC_NO_REASON;
}

class BacktracePlatform : public QuietPlatform {
 public:
  bool pio_write(u16, const void*, unsigned) override { return note(); }
  bool mmio_read(Gpa, void*, unsigned) override { return note(); }
  Frames frames;

 private:
  bool note() {
    frames.clear();
    _Unwind_Backtrace(note_function, &frames);
    return true;
  }
};

[[gnu::noinline]] Exit run_here(Guest64& guest) {
  Exit exit = guest.run();
  asm volatile("" ::: "memory");
  return exit;
}

struct UnwindTest : testing::Test {
  BacktracePlatform platform;
  Guest64 guest{platform};

  // Registers that unwinders restore on their way.
  void fill_registers() {
    for (u8 gpr : {kRbx, kRbp, kR12, kR13, kR14, kR15}) guest.state().gpr[gpr] = 0x4141414141414141;
  }
};

TEST_F(UnwindTest, from_an_instruction_helper_to_who_runs_the_guest) {
  guest.code({0xe6, 0x10, 0xf4});  // out 10h, al; hlt
  fill_registers();
  ASSERT_EQ(run_here(guest).reason, Exit::Reason::kHalt);
  EXPECT_THAT(platform.frames, testing::Contains(reinterpret_cast<void*>(&run_here)));
}

TEST_F(UnwindTest, from_a_slow_memory_access_to_who_runs_the_guest) {
  guest.code({0x8b, 0x06, 0xf4});  // mov eax, [rsi]; hlt
  fill_registers();
  guest.state().gpr[kRsi] = 0x30000000;  // no slot
  ASSERT_EQ(run_here(guest).reason, Exit::Reason::kHalt);
  EXPECT_THAT(platform.frames, testing::Contains(reinterpret_cast<void*>(&run_here)));
}

TEST_F(UnwindTest, every_function_of_a_code_cache_is_found_by_its_addresses) {
  const Thunks& thunks = guest.machine->code().thunks();
  EXPECT_EQ(_Unwind_FindEnclosingFunction(const_cast<u8*>(thunks.tlb_miss) + 4), thunks.tlb_miss);
  EXPECT_EQ(_Unwind_FindEnclosingFunction(const_cast<u8*>(thunks.helper) + 4), thunks.helper);
}

}  // namespace
}  // namespace anykvm::x86
