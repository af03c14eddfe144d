#pragma once
// Runs the same bytes as NativeCpu, by the translator: a guest in user mode whose exceptions end the run.
// Owner: one test. One thread.

#include <memory>

#include "user_state.h"
#include "x86/translate/guest_fixture.h"

namespace anykvm::isa {

// How guest code is translated.
enum class Translation : u8 {
  kBlocks,     // as always
  kSteps,      // blocks of one instruction, as under single-stepping
  kSlowMemory  // every memory access by the C++ path
};
const char* name_of(Translation translation);

class GuestCpu {
 public:
  GuestCpu();
  ~GuestCpu();

  u8* code(u64 address);
  Outcome run(const UserState& state, const Memory& memory, unsigned code_bits, Translation translation);
  // Bytes that were translated may have been changed.
  void discard_code();
  // The next run misses in the TLB.
  void flush_tlb();

 private:
  void build_tables();
  void build_descriptors();
  void enter_user_mode(unsigned code_bits);
  template <class T>
  void write(u64 at, T value);
  template <class T>
  T read(u64 at) const;

  x86::QuietPlatform m_platform;
  std::unique_ptr<x86::Machine> m_machine;
  std::unique_ptr<x86::Cpu> m_cpu;
  u8* m_ram = nullptr;
};

}  // namespace anykvm::isa
