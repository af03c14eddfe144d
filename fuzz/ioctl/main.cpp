// ioctl_fuzz: random calls of the KVM interface by several threads (docs/howto/fuzz.md).
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstring>

#include "process.h"
#include "session.h"

using namespace anykvm;
using namespace anykvm::fuzz;

int main(int argc, char** argv) {
  u64 seed = 1, calls = 1'000'000, per_session = 20'000;
  double seconds = 0;
  unsigned threads = 0;
  CLI::App app{"Calls the KVM interface at random"};
  app.add_option("--seed", seed, "number of the first session")->capture_default_str();
  app.add_option("--calls", calls, "stop after so many")->capture_default_str();
  app.add_option("--time", seconds, "stop after so many seconds");
  app.add_option("--threads", threads, "1 to 4 by turns if not given; one is reproducible");
  app.add_option("--per-session", per_session, "calls before everything is closed")->capture_default_str();
  CLI11_PARSE(app, argc, argv);

  report_crashes("session");
  Watchdog watchdog;
  Totals totals;
  u64 start = milliseconds_now(), sessions = 0, early_kib = 0;
  long descriptors = open_descriptors();
  auto elapsed = [&] { return static_cast<double>(milliseconds_now() - start) / 1000; };
  while (totals.calls < calls && (seconds <= 0 || elapsed() < seconds)) {
    u64 number = seed + sessions;
    now_running(number);
    {
      Session session(number, watchdog, totals);
      session.run(threads ? threads : 1 + static_cast<unsigned>(number % 4), per_session);
    }
    long now = open_descriptors();
    // The engine may keep some of its own from its first VM on.
    if (sessions == 0) descriptors = now;
    if (now > descriptors) {
      fmt::print("FAILED: session {} leaves {} descriptors open\n", number, now - descriptors);
      print_descriptors();
      return 1;
    }
    constexpr u64 kWarm = 10;
    if (++sessions == kWarm) early_kib = resident_kib();
  }
  fmt::print("ioctl_fuzz: {} calls ({} of KVM_RUN, {} without an error) in sessions {} to {}, {:.0f} s\n",
             totals.calls.load(), totals.runs.load(), totals.good.load(), seed, seed + sessions - 1,
             elapsed());
  fmt::print("  descriptors {}, resident memory {} KiB then {} KiB\n  errors:", open_descriptors(), early_kib,
             resident_kib());
  for (unsigned error = 0; error < 160; ++error)
    if (totals.by_error[error])
      fmt::print(" {} {}", totals.by_error[error].load(), strerrorname_np(static_cast<int>(error)));
  fmt::print("\n");
  constexpr u64 kTolerated = 64 << 10;
  bool grows = early_kib && resident_kib() > 2 * early_kib + kTolerated;
  if (grows) fmt::print("FAILED: memory is not given back\n");
  return grows ? 1 : 0;
}
