#pragma once
// The fuzzer's unit of work: some code, and several states to start it from. Made from one number, so that
// this number brings it back. Owner: one fuzzer. One thread.

#include <vector>

#include "generator.h"

namespace anykvm::isa {

inline constexpr unsigned kMaxStreamCode = 760;  // bytes
inline constexpr unsigned kStarts = 4;
inline constexpr u8 kHlt = 0xf4;  // ends each stream, and fills what is no stream

struct Start {
  UserState state;
  Memory memory{};
};

struct Stream {
  u64 seed = 0;
  unsigned code_bits = 64;
  u64 rip = 0;
  std::vector<u8> bytes;               // without the HLT behind
  std::vector<unsigned> instructions;  // where each begins in `bytes`, and where the last ends
  std::vector<Start> starts;
  bool modifies_itself = false;
};

class StreamMaker {
 public:
  // `segments`: code may load segment registers, and there are the descriptors of user_descriptors.h.
  StreamMaker(unsigned code_bits, bool segments);

  // Code for an address in `page`, or in it and the following one.
  Stream make(u64 seed, u64 page);
  std::size_t opcodes() const { return m_generator.opcodes(); }

 private:
  // Where a store's displacement is, how many bytes its instruction has behind it, and where in the four
  // bytes of its target it goes.
  struct Store {
    unsigned at, behind, offset;
  };

  void ordinary(Random& random);
  void wild(Random& random);
  void leap(Random& random, bool calm);
  void raw(Random& random);
  void redundant_prefixes(Random& random);
  void self_modifying(Random& random);
  void system(Random& random);

  void straight(Random& random, const Wish& wish, unsigned count);
  void forward_jump(Random& random, const Wish& wish);
  void call(Random& random, const Wish& wish);
  void loop(Random& random, const Wish& wish);
  void close_loop(Random& random, unsigned head);
  void decimal(Random& random);
  void define_flags();
  void modify_operand(Random& random, const Wish& wish);
  void modify_opcode(Random& random, const Wish& wish);
  void modify_row(Random& random);
  void more_starts(Random& random);

  // What user code may do to segments, modes, flags and the FPU's image (stream_system.cpp).
  void system_part(Random& random, const Wish& wish);
  void load_segment(Random& random, const Wish& wish);
  void put_segment_load(Random& random, unsigned segment, u16 selector);
  void inspect_segment(Random& random);
  bool changes_mode(u16 selector) const;  // a transfer to this code segment
  void far_transfer(Random& random, const Wish& wish);
  unsigned put_far_transfer(Random& random, u16 selector, bool returning);
  void put_far_pointer_transfer(Random& random, u16 selector, unsigned* target);
  void other_mode(Random& random);
  void set_flags(Random& random);
  void save_image(Random& random);
  void put_at(std::vector<u8> opcode, u64 target, const std::vector<u8>& immediate = {});
  void put_number(u8 opcode, u32 number);

  // Instructions that do not come from the generator.
  void put(const std::vector<u8>& bytes);
  bool put_if_comparable(const u8* bytes, unsigned available);
  void put_with_immediate(Random& random);
  Store put_store(Random& random);
  unsigned load_address(unsigned number);  // returns where the address is to be filled in
  void forget_address();
  void put_address(unsigned at, unsigned behind, u64 target);
  void put_distance(unsigned at, u64 target);

  unsigned size() const { return static_cast<unsigned>(m_case.bytes.size()); }
  u64 here() const { return m_case.start.rip + size(); }
  u64 place(Random& random, u64 page) const;
  void begin_instruction() { m_stream.instructions.push_back(size()); }

  unsigned m_code_bits;
  bool m_segments;
  Generator m_generator;
  Generator m_branches;
  Stream m_stream;  // in hand
  Case m_case;      // its code and its first state
};

// Instructions whose results a program cannot tell from those of the host: everything unprivileged but what
// asks the machine who it is, and what depends on the kernel's descriptors.
bool comparable(const x86::Decoded& decoded);

}  // namespace anykvm::isa
