#pragma once
// Runs a few bytes of user code on the host CPU, from a given state until an instruction raises an exception.
// Owner: one per process, since it owns the signal handlers. One thread.
//
// The kernel does the work: a signal handler puts the start state into the signal frame and returns into the
// code; the exception that ends it makes a second frame, which holds the end state.

#include "user_state.h"

namespace anykvm::isa {

class NativeCpu {
 public:
  static NativeCpu& instance();

  // Code lies in [kCodeBase, kCodeBase + kCodeSize), data at kDataBase; both are mapped here.
  // code() gives where to write what is executed at `address`: programs cannot.
  u8* code(u64 address) { return m_code + (address - kCodeBase); }
  // May programs change segment registers and bring them back? Else the code must leave FS and GS alone.
  static bool loads_segments();
  // Gives this process the descriptors of user_descriptors.h. False: the kernel does not allow it, and there
  // may be some of them.
  static bool make_descriptors();
  // Runs from state.rip. `code_bits` is 64 or 32 (compatibility mode).
  Outcome run(const UserState& state, const Memory& memory, unsigned code_bits);
  // For a child process that does nothing else: what runs can neither call the kernel (kSystemCall) nor go on
  // for ever (kEndless), and nobody else installs signal handlers.
  void confine();
  // Programs may write to the code in the pair of pages around `address`, and to no other.
  void open_code(u64 address);

 private:
  NativeCpu();
  void map_code();

  u8* m_code = nullptr;
  u64 m_open = 0;  // the pair that programs may write to
};

}  // namespace anykvm::isa
