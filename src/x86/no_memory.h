#pragma once
// What C++ does for translated code that is on the stack above it: an exception must not get there. Owner:
// nobody; a function. The vCPU's thread.

#include <new>
#include <system_error>
#include <utility>

#include "x86/cpu.h"
#include "x86/fault.h"

namespace anykvm::x86 {

// `work` returns a Guest<...>. Where there is no memory for it, or none for a thread, the instruction stops
// for the client (KVM_RUN is ENOMEM) and is executed again later.
template <class Work>
auto or_no_memory(Cpu& cpu, Work&& work) -> decltype(work()) {
  Exit exit;
  exit.reason = Exit::Reason::kNoMemory;
  try {
    return std::forward<Work>(work)();
  } catch (const std::bad_alloc&) {
    return cpu.stop_for_client(exit);
  } catch (const std::system_error&) {
    return cpu.stop_for_client(exit);
  }
}

}  // namespace anykvm::x86
