#pragma once
// Runs the same bytes as NativeCpu, by the translator: a guest in user mode whose exceptions end the run.
// Owner: one test. One thread.

#include <memory>
#include <string>
#include <vector>

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
  // `writable_code`: programs may write to the code, as after NativeCpu::confine().
  explicit GuestCpu(bool writable_code = false);
  ~GuestCpu();

  u8* code(u64 address);
  Outcome run(const UserState& state, const Memory& memory, unsigned code_bits, Translation translation);
  // Bytes that were translated may have been changed.
  void discard_code();
  // As a program would: what was translated from them goes.
  void rewrite_code(u64 address, const std::vector<u8>& bytes);
  // From a signal handler: ends a run that goes on for ever (kEndless).
  void kick();
  // Disassembly of what was translated from `address` for user code, if anything was.
  std::string host_code(u64 address, unsigned code_bits, Translation translation);
  // There are the descriptors of user_descriptors.h.
  void add_descriptors();
  // What LSL gives for kProcessorNode.
  void set_processor_node(u32 limit);
  // The next run misses in the TLB.
  void flush_tlb();

 private:
  void build_tables(bool writable_code);
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
