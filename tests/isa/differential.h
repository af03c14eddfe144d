#pragma once
// Runs a case natively and by the translator in each of its forms, and compares everything a program could
// see. Owner: one test. One thread.

#include <string>
#include <vector>

#include "guest_cpu.h"
#include "native_cpu.h"
#include "user_state.h"

namespace anykvm::isa {

struct Case {
  std::vector<u8> bytes;  // without the HLT that ends it
  UserState start;        // rip from Differential::place()
  Memory memory{};
  unsigned code_bits = 64;
  u64 seed = 0;
  u64 ignored_flags = 0;
};

class Differential {
 public:
  Differential();
  // Where the next case's code goes; each gets fresh addresses, as most programs do.
  u64 place();
  // Empty if translator and host CPU agree, otherwise a report.
  std::string check(const Case& test);
  // How many cases ended by an exception of their own, not by the HLT behind them.
  u64 faults() const { return m_faults; }
  u64 cases() const { return m_cases; }

 private:
  static constexpr u64 kMaxCaseBytes = 256;

  void put_code(const Case& test);
  std::string compare(const Case& test, const Outcome& native, Translation translation);

  NativeCpu& m_native = NativeCpu::instance();
  GuestCpu m_guest;
  u64 m_next = kCodeBase;
  u64 m_faults = 0, m_cases = 0;
};

// One line for each difference between the two ends of `test`, but for what is known to differ
// (docs/quirks.md).
std::string unexpected_differences(const Case& test, const Outcome& native, const Outcome& guest);
std::string disassemble(const std::vector<u8>& bytes, u64 rip, unsigned code_bits);

// The seed of a test's random numbers: ANYKVM_ISA_SEED if set, else `usual`. ANYKVM_ISA_FACTOR multiplies its
// length.
u64 seed_or(u64 usual);
u64 scaled(u64 count);

}  // namespace anykvm::isa
