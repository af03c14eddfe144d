// isa_fuzz: random user-mode instruction streams on the host CPU and by the translator (docs/howto/fuzz.md).
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>

#include "fuzzer.h"

using namespace anykvm;
using namespace anykvm::isa;

namespace {

struct Options {
  u64 seed = 1;
  u64 instructions = 2'000'000;
  u64 streams = 0;  // 0: as many as the instructions need
  double seconds = 0;
  unsigned mode = 0;  // 0: both
  unsigned tolerated = 0;
  u64 interrupts = 0;
  bool minimize = false, coverage = false, undefined = false;
  bool step = false, block = false, linked = false;
};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void print_totals(const Fuzzer& fuzzer, u64 first, u64 next, double seconds, unsigned mismatches) {
  const Fuzzer::Totals& t = fuzzer.totals();
  fmt::print(
      "isa_fuzz: {} instructions in {} runs of {} streams (seeds {} to {}), {} mismatches, {:.0f} s, "
      "{:.0f}/s\n",
      t.instructions, t.runs, t.streams, first, next - 1, mismatches, seconds,
      static_cast<double>(t.instructions) / seconds);
  fmt::print(
      "  {} encodings; left out: {} runs, {} of which killed the child; {} mismatches were not there when "
      "the stream ran again\n  ended by vector:",
      fuzzer.opcodes(), t.left_out, fuzzer.deaths(), t.unrepeatable);
  for (unsigned vector = 0; vector < t.by_vector.size(); ++vector)
    if (t.by_vector[vector]) fmt::print(" {}: {}", vector, t.by_vector[vector]);
  fmt::print("\n");
  std::fflush(stdout);
}

int fuzz(const Options& options) {
  Forms forms;
  if (options.undefined) {
    NativeBatch host;
    fmt::print("{}", defined_by_the_host(host));
    return 0;
  }
  if (options.step || options.block || options.linked)
    forms = {options.step, options.block, options.linked, false};
  forms.interrupts = options.interrupts;
  Fuzzer fuzzer(forms);
  if (options.coverage) fuzzer.keep_coverage();
  auto start = std::chrono::steady_clock::now();
  u64 next = options.seed;
  unsigned mismatches = 0;
  auto wanted = [&] {
    if (mismatches > options.tolerated) return false;
    if (options.seconds > 0 && seconds_since(start) > options.seconds) return false;
    if (options.streams) return next - options.seed < options.streams;
    return fuzzer.totals().instructions < options.instructions;
  };
  double reported = 0;
  constexpr double kReportEvery = 300;
  while (wanted()) {
    // Odd batches are 32-bit code, unless one mode is asked for.
    constexpr unsigned kBatch = 16;
    unsigned bits = options.mode ? options.mode : (next / kBatch) % 3 == 2 ? 32 : 64;
    auto count = static_cast<unsigned>(kBatch - next % kBatch);
    if (options.streams)
      count = static_cast<unsigned>(std::min<u64>(count, options.seed + options.streams - next));
    std::string report = fuzzer.run(next, count, bits, options.minimize);
    if (!report.empty()) {
      ++mismatches;
      fmt::print("{}\n", report);
      std::fflush(stdout);
    }
    next += count;
    if (seconds_since(start) - reported > kReportEvery) {
      reported = seconds_since(start);
      print_totals(fuzzer, options.seed, next, reported, mismatches);
    }
  }
  print_totals(fuzzer, options.seed, next, seconds_since(start), mismatches);
  if (options.coverage) fmt::print("{}", fuzzer.coverage());
  return mismatches ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app{"Compares the translator with the host CPU on random instruction streams"};
  app.add_option("--seed", options.seed, "number of the first stream")->capture_default_str();
  app.add_option("--instructions", options.instructions, "stop after so many")->capture_default_str();
  app.add_option("--streams", options.streams, "stop after so many streams instead");
  app.add_option("--time", options.seconds, "stop after so many seconds");
  app.add_option("--mode", options.mode, "code size; both by turns if not given")
      ->check(CLI::IsMember({32u, 64u}));
  app.add_flag("--step", options.step, "only one instruction a block (these three add up)");
  app.add_flag("--block", options.block, "only blocks right after translation");
  app.add_flag("--linked", options.linked, "only blocks that jump to each other");
  app.add_flag("--minimize", options.minimize, "shrink a mismatch before it is printed");
  app.add_option("--interrupt", options.interrupts,
                 "interrupt the guest whenever so many microseconds are over")
      ->check(CLI::Range(10, 100'000));
  app.add_flag("--coverage", options.coverage,
               "say at the end which encodings that the host runs were there");
  app.add_flag("--undefined", options.undefined, "only list what is #UD here and not on the host");
  app.add_option("--tolerate", options.tolerated, "go on after so many mismatches");
  CLI11_PARSE(app, argc, argv);
  return fuzz(options);
}
