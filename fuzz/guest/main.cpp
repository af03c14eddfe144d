// guest_fuzz: random code in ring 0 of every mode, on one or several CPUs (docs/howto/fuzz.md).
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "process.h"
#include "virtual_machine.h"

using namespace anykvm;
using namespace anykvm::fuzz;

int main(int argc, char** argv) {
  u64 seed = 1, machines = 0;
  double seconds = 20;
  unsigned cpus = 0, programs = 24;
  CLI::App app{"Runs random ring 0 code in random machines"};
  app.add_option("--seed", seed, "number of the first machine")->capture_default_str();
  app.add_option("--machines", machines, "stop after so many");
  app.add_option("--time", seconds, "stop after so many seconds")->capture_default_str();
  app.add_option("--cpus", cpus, "CPUs of each machine; 1 to 4 by turns if not given");
  app.add_option("--programs", programs, "programs on each CPU")->capture_default_str();
  CLI11_PARSE(app, argc, argv);

  report_crashes("machine");
  Watchdog watchdog;
  Counts counts;
  u64 start = milliseconds_now();
  long descriptors = open_descriptors();
  u64 done = 0, resident_early = 0;
  auto elapsed = [&] { return static_cast<double>(milliseconds_now() - start) / 1000; };
  while (machines ? done < machines : elapsed() < seconds) {
    u64 number = seed + done;
    now_running(number);
    unsigned with = cpus ? cpus : number % 3 ? 1 : 2 + static_cast<unsigned>(number % 9 / 3);
    std::string failure = VirtualMachine(number, with, watchdog, counts).run(programs);
    if (!failure.empty()) {
      fmt::print("FAILED with {} CPUs: {}\n", with, failure);
      return 1;
    }
    // The engine may keep some of its own from its first VM on.
    if (++done == 1) descriptors = open_descriptors();
    if (done == 10) resident_early = resident_kib();
  }
  fmt::print(
      "guest_fuzz: machines {} to {}, {} programs, {} exits, {} kicks, {} shutdowns, {} internal errors, "
      "{} refused, {:.0f} s\n",
      seed, seed + done - 1, counts.programs.load(), counts.exits.load(), counts.kicks.load(),
      counts.shutdowns.load(), counts.errors.load(), counts.refused.load(), elapsed());
  fmt::print("  descriptors {} then {}, resident memory {} KiB then {} KiB\n", descriptors,
             open_descriptors(), resident_early, resident_kib());
  return open_descriptors() == descriptors ? 0 : 1;
}
