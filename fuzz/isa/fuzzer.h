#pragma once
// Compares translator and host CPU stream by stream. Owner: main(). One thread.
//
// Each stream runs natively from all its start states, then by the translator: `block`, right after its first
// translation; `linked`, again and from the other states, when blocks jump to each other; `step`, one
// instruction a block; and some with every memory access by the C++ path (`slow`).

#include <array>
#include <optional>
#include <string>

#include "encodings.h"
#include "guest_cpu.h"
#include "native_batch.h"
#include "stream.h"

namespace anykvm::isa {

struct Forms {
  bool step = true, block = true, linked = true, slow = true;
  u64 interrupts = 0;  // microseconds from one interruption of a guest's run to the next; 0: none
};

class Fuzzer {
 public:
  explicit Fuzzer(Forms forms);
  // Notes which encodings run, for coverage().
  void keep_coverage() { m_keeps_coverage = true; }
  std::string coverage() { return m_coverage.report(m_native); }

  // Runs the streams of these numbers; returns the report of the first mismatch, or nothing.
  std::string run(u64 first, unsigned count, unsigned code_bits, bool minimize);

  struct Totals {
    u64 streams = 0, runs = 0;
    u64 instructions = 0;  // carried out natively and compared: those listed before each end
    u64 unrepeatable = 0;  // mismatches that were none when the stream ran again
    u64 left_out = 0;      // runs that ended by a system call, never, or killed the child
    std::array<u64, 32> by_vector{};
  };
  const Totals& totals() const { return m_totals; }
  u64 deaths() const { return m_native.deaths(); }
  std::size_t opcodes() const { return m_makers[0].opcodes() + m_makers[1].opcodes(); }

 private:
  struct Mismatch {
    unsigned start = 0;
    const char* form = "";
    Translation translation = Translation::kBlocks;
    std::string lines;
    Outcome native, guest;
  };
  using MaybeMismatch = std::optional<Mismatch>;

  u64 next_page();
  void fill_jobs(const Stream& stream, unsigned at);
  void count(const Stream& stream, const Job& job);
  bool usable(const Job& job) const;
  void put_code(const Stream& stream, const CodePair& image);
  MaybeMismatch check(const Stream& stream, unsigned at);
  MaybeMismatch check_forms(const Stream& stream, unsigned at);
  MaybeMismatch check_form(const Stream& stream, unsigned at, Translation translation, const char* form,
                           unsigned starts);
  std::string report(const Stream& stream, const Mismatch& mismatch);
  void minimize(Stream* stream, Mismatch* mismatch);
  bool still_fails(const Stream& stream, Mismatch* mismatch);

  Forms m_forms;
  NativeBatch m_native;  // before the guest: its children are made from a small process
  GuestCpu m_guest;
  StreamMaker m_makers[2];
  u64 m_page = 0;
  bool m_apart = false;
  bool m_keeps_coverage = false;
  Coverage m_coverage;
  Totals m_totals;
};

}  // namespace anykvm::isa
