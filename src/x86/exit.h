#pragma once
// Why Cpu::run() came back.
// Owner: Cpu. Only the vCPU's thread.

#include <array>

#include "base/types.h"

namespace anykvm::x86 {

struct Exit {
  enum class Reason : u8 {
    kNone,
    kInterrupted,      // kicked: the caller looks at its requests, then calls run() again or leaves
    kHalt,             // HLT completed; mp_state is kHalted
    kMmio,             // gpa, size, write, data; complete with Cpu::complete_io()
    kPio,              // port, size, count, write, data; complete with Cpu::complete_io()
    kShutdown,         // triple fault
    kDebug,            // debug exception that the client asked for; debug_* fields
    kInternalError,    // an instruction or state we cannot run; `code` is a KVM_INTERNAL_ERROR_* value
    kHypercall,        // VMCALL or VMMCALL that the client answers: code (KVM_EXIT_* of its kind)
    kTprAccess,        // CR8 or TPR lowered below the client's threshold (KVM_EXIT_SET_TPR)
    kInterruptWindow,  // request_interrupt_window, and the window is open
    kPlatform,         // the platform asked for it (Cpu::exit_after_instruction())
    kMemoryFault,      // the client has unmapped guest RAM that is needed: EFAULT
    kNoMemory,  // the process has no memory for what has to be made now: ENOMEM; the next run() tries again
    kMsr        // RDMSR or WRMSR that the client answers: gpa (the index), write, data, code
                // (KVM_MSR_EXIT_REASON_*)
  };

  Reason reason = Reason::kNone;
  bool write = false;
  u8 size = 0;  // bytes of one item: MMIO 1-8, PIO 1, 2 or 4
  u16 port = 0;
  u32 count = 1;  // items (PIO string instructions)
  // Small, since it is handed on several times on the way of each exit.
  union {
    u32 code = 0;
    u32 debug_vector;
  };
  union {
    u64 gpa = 0;
    u64 debug_pc;
  };
  union {
    std::array<u8, 8> data{};
    u64 debug_dr6;
  };
};
static_assert(sizeof(Exit) == 32);

}  // namespace anykvm::x86
