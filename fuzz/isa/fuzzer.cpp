#include "fuzzer.h"

#include <Zydis/Zydis.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/time.h>

#include <algorithm>
#include <cstring>

namespace anykvm::isa {
namespace {

constexpr u8 kNop = 0x90;
constexpr unsigned kStreams = NativeBatch::kJobs / kStarts;

// A guest that does not come back is stopped: the host has, or the run would not be compared.
constexpr u64 kPatience = 2'000'000;  // microseconds

GuestCpu* volatile g_running = nullptr;
volatile u64 g_waited = 0, g_interval = 0;  // microseconds
volatile bool g_interrupts = false;

void tick(int) {
  g_waited = g_waited + g_interval;
  const bool for_good = g_waited > kPatience;
  if (g_running && (for_good || g_interrupts)) g_running->kick(for_good);
}

// `interrupts`: the time from one interruption of the guest to the next, or 0 if there are none.
void start_watchdog(u64 interrupts) {
  constexpr u64 kUsual = 100'000;
  g_interrupts = interrupts != 0;
  g_interval = interrupts ? interrupts : kUsual;
  struct sigaction action {};
  action.sa_handler = tick;
  action.sa_flags = SA_RESTART | SA_ONSTACK;
  sigaction(SIGALRM, &action, nullptr);
  const timeval interval{0, static_cast<suseconds_t>(g_interval)};
  itimerval timer{interval, interval};
  setitimer(ITIMER_REAL, &timer, nullptr);
}

Case as_case(const Stream& stream) {
  Case test;
  test.bytes = stream.bytes;
  test.start.rip = stream.rip;
  test.code_bits = stream.code_bits;
  test.seed = stream.seed;
  return test;
}

const CodePair kNoCode = [] {
  CodePair image;
  image.fill(kHlt);
  return image;
}();

// The pair of pages that it lies in.
CodePair image_of(const Stream& stream) {
  CodePair image = kNoCode;
  const u64 at = stream.rip - code_pair(stream.rip);
  std::memcpy(&image[at], stream.bytes.data(), stream.bytes.size());
  return image;
}

// The instruction of the stream at `rip`, or the one that ends there.
bool instruction_at(const Stream& stream, u64 rip, bool ends_there, x86::Decoded* out) {
  u64 at = rip - stream.rip;
  if (ends_there) {
    auto next = std::find(stream.instructions.begin(), stream.instructions.end(), at);
    if (next == stream.instructions.end() || next == stream.instructions.begin()) return false;
    at = next[-1];
  }
  if (at >= stream.bytes.size()) return false;
  auto left = static_cast<unsigned>(stream.bytes.size() - at);
  return x86::decode(&stream.bytes[at], left, stream.code_bits, stream.code_bits / 8, stream.rip + at, out) ==
         x86::DecodeStatus::kOk;
}

bool loads_state(const x86::Decoded& d) {
  switch (d.insn.mnemonic) {
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64:
    case ZYDIS_MNEMONIC_XRSTOR:
    case ZYDIS_MNEMONIC_XRSTOR64:
    case ZYDIS_MNEMONIC_FRSTOR:
    case ZYDIS_MNEMONIC_FLDENV:
      return true;
    default:
      return false;
  }
}

// Their operands must be aligned; whether that is #GP or #AC is the CPU's choice (SDM 2A FXSAVE).
bool stores_state(const x86::Decoded& d) {
  switch (d.insn.mnemonic) {
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64:
    case ZYDIS_MNEMONIC_XSAVE:
    case ZYDIS_MNEMONIC_XSAVE64:
      return true;
    default:
      return false;
  }
}

bool moves_many_words(const x86::Decoded& d) {
  switch (d.insn.mnemonic) {
    case ZYDIS_MNEMONIC_ENTER:
    case ZYDIS_MNEMONIC_PUSHA:
    case ZYDIS_MNEMONIC_PUSHAD:
    case ZYDIS_MNEMONIC_POPA:
    case ZYDIS_MNEMONIC_POPAD:
      return true;
    default:
      return false;
  }
}

// VMREAD's opcode has another length on AMD's CPUs, which have EXTRQ and INSERTQ there: with many prefixes it
// is too long.
bool names_vmread(const Stream& stream) {
  static constexpr u8 kOpcode[] = {0x0f, 0x78};
  const auto& bytes = stream.bytes;
  return std::search(bytes.begin(), bytes.end(), std::begin(kOpcode), std::end(kOpcode)) != bytes.end();
}

bool stack_faults(const Outcome& o) {
  constexpr u8 kStackFault = 12, kPageFault = 14;
  return o.vector == kPageFault || o.vector == kStackFault;
}

// A far CALL that cannot push both its items: the first may be there already; and AMD's CPUs push as the mode
// that it goes to would, with its base and limit of SS.
bool far_call_cannot_push(const x86::Decoded& d, const Outcome& native, const Outcome& guest) {
  constexpr u8 kFarCall = 3, kDirectFarCall = 0x9a;
  const bool direct = d.insn.opcode == kDirectFarCall;
  const bool far_call = d.insn.mnemonic == ZYDIS_MNEMONIC_CALL && (direct || d.insn.reg == kFarCall);
  const bool both = stack_faults(native) && stack_faults(guest);
  const bool one_left = native.state.selectors[1] != guest.state.selectors[1];
  return far_call && ((both && native.state.rip == guest.state.rip) || one_left);
}

// Which of its items a far RET reads first; AMD's CPUs also look behind what it pops before they look at the
// selector.
bool far_return_cannot_pop(const x86::Decoded& d, const Outcome& native, const Outcome& guest) {
  constexpr u8 kAlignmentCheck = 17;
  const bool faults = stack_faults(native) || native.vector == kAlignmentCheck;
  const bool far_return = d.category == ZYDIS_CATEGORY_RET && (d.insn.opcode & 0xfe) == 0xca;
  return far_return && faults && native.state.rip == guest.state.rip;
}

// INT1 that a jump into the middle of an instruction has found (StreamMaker makes none).
bool traps_at_int1(const x86::Decoded& d, const Outcome& native, const Outcome& guest) {
  constexpr u8 kDebug = 1;
  const bool behind = guest.state.rip == native.state.rip + d.insn.length;
  return d.insn.mnemonic == ZYDIS_MNEMONIC_INT1 && native.vector == kDebug && guest.vector == kDebug &&
         behind;
}

// What is known to differ among CPUs, and from them (docs/quirks.md).
bool known_difference(const Stream& stream, const Outcome& native, const Outcome& guest) {
  constexpr u8 kUndefined = 6, kProtection = 13, kPageFault = 14, kAlignmentCheck = 17;
  // Where a near branch to no canonical address is reported.
  bool canonical = static_cast<u64>(static_cast<i64>(guest.state.rip << 16) >> 16) == guest.state.rip;
  if (native.vector == kProtection && guest.vector == kProtection && !canonical) return true;
  x86::Decoded d;
  if (stack_faults(guest) && instruction_at(stream, guest.state.rip, false, &d) &&
      far_call_cannot_push(d, native, guest))
    return true;
  bool same_place = native.state.rip == guest.state.rip;
  if (!instruction_at(stream, native.state.rip, false, &d))
    return same_place && native.vector == kProtection && guest.vector == kUndefined && names_vmread(stream);
  if (stack_faults(native) && far_call_cannot_push(d, native, guest)) return true;
  if (far_return_cannot_pop(d, native, guest)) return true;
  if (traps_at_int1(d, native, guest)) return true;
  // The return address that a CALL to no canonical address has written.
  const bool protection = same_place && native.vector == kProtection && guest.vector == kProtection;
  if (protection && d.insn.mnemonic == ZYDIS_MNEMONIC_CALL) return true;
  // Which vector operands are checked for alignment.
  bool same_check = same_place && guest.vector == kAlignmentCheck;
  if (native.vector == kAlignmentCheck && !same_check)
    return d.vector != x86::VectorClass::kNone || moves_many_words(d) || stores_state(d) || loads_state(d);
  // Whether the elements of masked moves are.
  if (guest.vector == kAlignmentCheck && d.masked_memory) return true;
  if (d.insn.mnemonic == ZYDIS_MNEMONIC_VMREAD) return native.vector == kProtection;
  // Which operand MOVS looks at first, if neither may be accessed.
  bool moves = d.category == ZYDIS_CATEGORY_STRINGOP && (d.insn.opcode & 0xfe) == 0xa4;
  if (moves && same_place) return native.vector == kPageFault || guest.vector == kPageFault;
  // Which part of a large operand is looked at first, and whether to read or to write.
  constexpr u64 kLargest = 4096;
  bool both = same_place && native.vector == kPageFault && guest.vector == kPageFault;
  bool of_one_image = native.cr2 - guest.cr2 < kLargest || guest.cr2 - native.cr2 < kLargest;
  return both && (loads_state(d) || stores_state(d)) && of_one_image;
}

// A single-step trap right behind an instruction that leaves flags undefined.
bool shows_undefined_flags(const Stream& stream, const Outcome& native) {
  constexpr u8 kDebug = 1;
  x86::Decoded d;
  return native.vector == kDebug && instruction_at(stream, native.state.rip, true, &d) &&
         d.category == ZYDIS_CATEGORY_DECIMAL;
}

std::string without_nops(const std::string& listing) {
  std::string text;
  for (std::size_t at = 0; at < listing.size();) {
    std::size_t end = listing.find('\n', at) + 1;
    std::string line = listing.substr(at, end - at);
    if (line.find(" 90   nop") == std::string::npos) text += line;
    at = end;
  }
  return text;
}

}  // namespace

Fuzzer::Fuzzer(Forms forms)
    : m_forms(forms), m_makers{{32, m_native.has_descriptors()}, {64, m_native.has_descriptors()}} {
  if (m_native.has_descriptors()) m_guest.add_descriptors();
  for (u64 at = kCodeBase; at < kCodeBase + kCodeSize; at += kCodePair)
    m_guest.put_code(at, kNoCode.data(), kNoCode.size());
  start_watchdog(forms.interrupts);
}

u64 Fuzzer::next_page() {
  if (m_page + 0x2000 > kCodeSize) {
    m_page = 0;
    m_guest.discard_code();
  }
  u64 page = kCodeBase + m_page;
  m_page += 0x2000;
  return page;
}

void Fuzzer::fill_jobs(const Stream& stream, unsigned at) {
  const CodePair image = image_of(stream);
  for (unsigned i = 0; i < stream.starts.size(); ++i) {
    Job& job = m_native.job(at + i);
    job.code_bits = stream.code_bits;
    job.code = image;
    job.start = stream.starts[i].state;
    job.memory = stream.starts[i].memory;
  }
}

bool Fuzzer::usable(const Job& job) const {
  u8 vector = job.outcome.vector;
  return vector != Outcome::kSystemCall && vector != Outcome::kEndless && vector != Outcome::kLost;
}

void Fuzzer::count(const Stream& stream, const Job& job) {
  ++m_totals.runs;
  if (!usable(job)) {
    ++m_totals.left_out;
    return;
  }
  u64 at = job.outcome.state.rip - stream.rip;
  auto place = std::upper_bound(stream.instructions.begin(), stream.instructions.end(), at);
  const auto done = static_cast<std::size_t>(place - stream.instructions.begin());
  m_totals.instructions += done;
  if (m_keeps_coverage) m_coverage.carried_out(stream, done);
  ++m_totals.by_vector[job.outcome.vector % m_totals.by_vector.size()];
}

void Fuzzer::put_code(const Stream& stream, const CodePair& image) {
  m_guest.put_code(code_pair(stream.rip), image.data(), image.size());
}

Fuzzer::MaybeMismatch Fuzzer::check_form(const Stream& stream, unsigned at, Translation translation,
                                         const char* form, unsigned starts) {
  constexpr u64 kArithmetic = 0x8d5;
  Case test = as_case(stream);
  for (unsigned i = 0; i < starts; ++i) {
    const Job& job = m_native.job(at + i);
    if (!usable(job)) continue;
    put_code(stream, job.code);
    m_guest.set_processor_node(job.outcome.processor_node);
    g_waited = 0;
    g_running = &m_guest;
    Outcome guest = m_guest.run(job.start, job.memory, job.code_bits, translation);
    g_running = nullptr;
    // Single steps take hundreds of times as long: what the host ended in time need not end here.
    if (guest.vector == Outcome::kEndless && translation != Translation::kBlocks) {
      ++m_totals.left_out;
      continue;
    }
    test.ignored_flags = shows_undefined_flags(stream, job.outcome) ? kArithmetic : 0;
    std::string lines = unexpected_differences(test, job.outcome, guest);
    if (!m_guest.has_code(code_pair(stream.rip), job.code_after.data(), job.code_after.size()))
      lines += "  * the code\n";
    if (lines.empty()) continue;
    bool known = known_difference(stream, job.outcome, guest);
    bool childs = known || m_native.childs_own(guest.cr2) || m_native.childs_own(job.outcome.state.rip);
    if (!childs) return Mismatch{i, form, translation, lines, job.outcome, guest};
    ++m_totals.left_out;
  }
  return {};
}

Fuzzer::MaybeMismatch Fuzzer::check(const Stream& stream, unsigned at) {
  // Half of them on pages that do not lie side by side in the host's memory.
  constexpr u64 kLayoutBit = 16;
  const bool apart = stream.seed & kLayoutBit;
  if (apart != m_apart) m_guest.place_data(apart);
  m_apart = apart;
  m_guest.open_code(stream.rip, apart);
  auto found = check_forms(stream, at);
  put_code(stream, kNoCode);  // as the child does: other code may read it
  return found;
}

Fuzzer::MaybeMismatch Fuzzer::check_forms(const Stream& stream, unsigned at) {
  auto all = static_cast<unsigned>(stream.starts.size());
  if (m_forms.block) {
    if (auto found = check_form(stream, at, Translation::kBlocks, "block", 1)) return found;
  }
  if (m_forms.linked) {
    if (auto found = check_form(stream, at, Translation::kBlocks, "linked", all)) return found;
  }
  if (m_forms.step) {
    if (auto found = check_form(stream, at, Translation::kSteps, "step", all)) return found;
  }
  if (m_forms.slow && stream.seed % 4 == 0)
    return check_form(stream, at, Translation::kSlowMemory, "slow", 1);
  return {};
}

std::string Fuzzer::run(u64 first, unsigned count_of_streams, unsigned code_bits, bool minimize_it) {
  StreamMaker& maker = m_makers[code_bits == 64];
  std::vector<Stream> streams;
  for (unsigned done = 0; done < count_of_streams;) {
    streams.clear();
    for (; streams.size() < kStreams && done < count_of_streams; ++done) {
      streams.push_back(maker.make(first + done, next_page()));
      fill_jobs(streams.back(), static_cast<unsigned>(streams.size() - 1) * kStarts);
    }
    m_native.run(static_cast<unsigned>(streams.size()) * kStarts);
    for (unsigned i = 0; i < streams.size(); ++i) {
      Stream& stream = streams[i];
      if (m_page % (64 << 10) == 0) m_guest.flush_tlb();
      if (auto mismatch = check(stream, i * kStarts)) {
        const bool again = still_fails(stream, &*mismatch);
        if (!again) ++m_totals.unrepeatable;
        if (again && minimize_it) minimize(&stream, &*mismatch);
        return report(stream, *mismatch);
      }
      ++m_totals.streams;
      for (unsigned start = 0; start < kStarts; ++start) count(stream, m_native.job(i * kStarts + start));
    }
  }
  return {};
}

// --- Mismatches ---

bool Fuzzer::still_fails(const Stream& stream, Mismatch* mismatch) {
  fill_jobs(stream, 0);
  m_native.run(static_cast<unsigned>(stream.starts.size()));
  auto found = check(stream, 0);
  if (found) *mismatch = *found;
  return found.has_value();
}

// Replaces instructions by NOPs and state by zeros as long as the mismatch stays.
void Fuzzer::minimize(Stream* stream, Mismatch* mismatch) {
  auto attempt = [&](auto&& change) {
    Stream smaller = *stream;
    change(smaller);
    if (still_fails(smaller, mismatch)) *stream = smaller;
  };
  unsigned failing = mismatch->start;
  attempt([&](Stream& s) { s.starts = {s.starts[failing]}; });
  for (std::size_t i = stream->instructions.size() - 1; i-- > 0;) {
    unsigned from = stream->instructions[i], to = stream->instructions[i + 1];
    attempt([&](Stream& s) { std::fill(s.bytes.begin() + from, s.bytes.begin() + to, kNop); });
  }
  for (Start& start : stream->starts) {
    auto index = static_cast<std::size_t>(&start - stream->starts.data());
    for (unsigned number = 0; number < 16; ++number)
      attempt([&](Stream& s) { s.starts[index].state.gpr[number] = 0; });
    for (unsigned number = 0; number < 32; ++number)
      attempt([&](Stream& s) { s.starts[index].state.zmm[number] = {}; });
    attempt([&](Stream& s) { s.starts[index].state.k = {}; });
    attempt([&](Stream& s) { s.starts[index].state.mxcsr = 0x1f80; });
    attempt([&](Stream& s) { s.starts[index].state.fcw = 0x37f; });
    attempt([&](Stream& s) { s.starts[index].state.ftw = 0; });
    attempt([&](Stream& s) { s.starts[index].state.st = {}; });
    attempt([&](Stream& s) { s.starts[index].state.rflags = 0x202; });
    attempt([&](Stream& s) { std::memset(s.starts[index].memory.data(), 0, kWritableSize); });
  }
  still_fails(*stream, mismatch);
}

std::string Fuzzer::report(const Stream& stream, const Mismatch& m) {
  std::string text = fmt::format("MISMATCH seed {} mode {} form {} start {}\n", stream.seed, stream.code_bits,
                                 m.form, m.start);
  text += without_nops(disassemble(stream.bytes, stream.rip, stream.code_bits));
  text += fmt::format("  {:x}: f4   hlt\nstart state:\n{}", stream.rip + stream.bytes.size(),
                      describe(stream.starts[m.start].state));
  auto ended = [&](const char* who, const Outcome& o) {
    text += fmt::format("{} ended by vector {} error {:#x} cr2 {:#x} at {:x}:\n{}", who, o.vector, o.error,
                        o.cr2, o.state.rip, describe(o.state));
  };
  ended("host CPU", m.native);
  ended("translator", m.guest);
  text += "differences:\n" + m.lines;
  for (unsigned at : stream.instructions)
    text += m_guest.host_code(stream.rip + at, stream.code_bits, m.translation);
  return text;
}

}  // namespace anykvm::isa
