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
  GuestCpu();
  ~GuestCpu();

  Outcome run(const UserState& state, const Memory& memory, unsigned code_bits, Translation translation);
  void discard_code();
  // Makes the code at `address` these bytes, as a program would: what was translated from others goes.
  void put_code(u64 address, const u8* bytes, u64 size);
  bool has_code(u64 address, const u8* bytes, u64 size);
  // Programs may write to the code in the pair of pages around `address`, and to no other. `apart`: the two
  // do not lie side by side in the host's memory.
  void open_code(u64 address, bool apart);
  // Nor do the pages of the data, if they are apart.
  void place_data(bool apart);
  // From a signal handler: interrupts a run, which goes on from there, or ends it (kEndless).
  void kick(bool for_good);
  // Disassembly of what was translated from `address` for user code, if anything was.
  std::string host_code(u64 address, unsigned code_bits, Translation translation);
  // There are the descriptors of user_descriptors.h.
  void add_descriptors();
  // What LSL gives for kProcessorNode.
  void set_processor_node(u32 limit);
  // The next run misses in the TLB.
  void flush_tlb();

 private:
  void build_tables();
  void build_descriptors();
  void enter_user_mode(unsigned code_bits);
  void map(u64 entry, u64 page, u64 frame, u64 rights);
  u64 code_frame(u64 address) const;
  template <class Part>
  void each_code_part(u64 address, u64 size, Part part);
  template <class T>
  void write(u64 at, T value);
  template <class T>
  T read(u64 at) const;

  x86::QuietPlatform m_platform;
  std::unique_ptr<x86::Machine> m_machine;
  std::unique_ptr<x86::Cpu> m_cpu;
  u8* m_ram = nullptr;
  u64 m_open = 0;             // the pair that programs may write to
  bool m_open_apart = false;  // it has its pages in the other order
  bool m_data_apart = false;
  volatile bool m_ended = false;  // by kick()
};

}  // namespace anykvm::isa
