"""The program behind scripts/bench: runs every engine in turns, compares results, prints the tables.

Each round starts every engine once for each number of CPUs; the guest program itself takes the best of several runs of a
workload. The tables show medians over the rounds, and after the sign ± half the distance between the quartiles."""

import argparse
import json
import os
import platform
import re
import subprocess
import sys

import engines as engine_module
import report

SMP_COUNTS = [2, 4]
GROUPS = ["integer", "vector", "float", "program", "kernel", "smp", "boot"]


def parse_arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, metavar="ROUNDS", help="the same as --rounds")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--only", default="", metavar="NAME,...", help="workloads or groups; default: all")
    parser.add_argument("--engines", default="native,anykvm,qemu-anykvm,tcg", metavar="ENGINE,...",
                        help=f"of {', '.join(engine_module.KINDS)}; the first is what the others are compared with. "
                             "anykvm:PROGRAM takes another build, anykvm:VARIABLE=VALUE sets its environment")
    parser.add_argument("--best", type=int, default=3, help="the guest takes the best of at least so many runs; default 3")
    parser.add_argument("--json", metavar="FILE", help="write all times and ratios there")
    parser.add_argument("--minimum", action="store_true",
                        help="compare the best rounds, not medians: for machines that have other work to do")
    parser.add_argument("--list", action="store_true", help="print workloads and groups, and stop")
    parser.add_argument("--anykvm", default="build/anykvm", help="the program to measure; default build/anykvm")
    for name in ("--guest-bench", "--kernel", "--initrd"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.rounds = arguments.count or arguments.rounds
    if arguments.rounds < 1 or arguments.best < 1:
        parser.error("at least one round, and the best of at least one")
    return parser, arguments


def list_workloads(guest_bench):
    """name -> group, in the program's order."""
    output = subprocess.run([guest_bench, "--list"], check=True, capture_output=True, text=True).stdout
    return dict(line.split() for line in output.splitlines())


def choose(all_workloads, only, parser):
    if not only:
        return dict(all_workloads), True
    chosen, wants_boot = {}, False
    for word in only.split(","):
        found = {w: g for w, g in all_workloads.items() if word in (w, g) or (word == "loops" and g in GROUPS[:3])}
        if not found and word != "boot":
            parser.error(f"--only {word}: no such workload or group; see --list")
        chosen.update(found)
        wants_boot |= word == "boot"
    return {w: g for w, g in all_workloads.items() if w in chosen}, wants_boot


def plan(workloads, wants_boot):
    """Lists of (CPUs, workloads): one run of the guest each."""
    single = [w for w, g in workloads.items() if g != "smp"]
    runs = [(1, single)] if single or wants_boot else []
    if any(g == "smp" for g in workloads.values()):
        runs += [(n, ["busy-1", f"busy-{n}"]) for n in SMP_COUNTS]
    return runs


class Results:
    def __init__(self, engines):
        self.times = {e.label: {} for e in engines}
        self.boots = {e.label: [] for e in engines}
        self.memory = {e.label: [] for e in engines}
        self.operations, self.values, self.wrong = {}, {}, []

    def add(self, engine, cpus, outcome):
        if outcome.boot is not None and cpus == 1:
            self.boots[engine.label].append(outcome.boot)
        if outcome.memory is not None and cpus == 1:
            self.memory[engine.label].append(outcome.memory)
        for name, nanoseconds in outcome.times.items():
            key = f"{name}@{cpus}" if cpus > 1 else name
            self.times[engine.label].setdefault(key, []).append(nanoseconds)
            self.operations[key] = outcome.operations[name]
            expected = self.values.setdefault(name, outcome.values[name])
            if outcome.values[name] != expected:
                self.wrong.append(f"{name} under {engine.label}: {outcome.values[name]}, expected {expected}")


def run_all(arguments, files, engines, runs):
    results = Results(engines)
    for number in range(1, arguments.rounds + 1):
        for cpus, workloads in runs:
            for engine in engines:
                print(f"==> round {number} of {arguments.rounds}: {engine.label}, {cpus} CPU(s)", file=sys.stderr)
                try:
                    if engine.kind == "native" and not workloads:
                        continue
                    results.add(engine, cpus, engine.run(files, workloads, cpus, arguments.best))
                except engine_module.RunFailed as failure:
                    sys.exit(f"==> {engine.label}, {cpus} CPU(s): {failure}")
    return results


def first_line(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def describe_machine(arguments):
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = re.search(r"^model name\s*: (.*)$", file.read(), re.MULTILINE)
    return {
        "processor": model.group(1) if model else "unknown",
        "cpus": len(os.sched_getaffinity(0)),
        "host_kernel": platform.release(),
        "guest_kernel": os.path.basename(os.path.realpath(arguments.kernel)),
        "qemu": first_line("qemu-system-x86_64", "--version"),
        "commit": first_line("git", "rev-parse", "--short", "HEAD"),
        "rounds": arguments.rounds,
        "best_of": arguments.best,
        "load_at_end": os.getloadavg()[0],
    }


def main():
    parser, arguments = parse_arguments()
    all_workloads = list_workloads(arguments.guest_bench)
    if arguments.list:
        for group in GROUPS:
            print(f"{group}: {' '.join(w for w, g in all_workloads.items() if g == group)}".rstrip(": "))
        return 0
    workloads, wants_boot = choose(all_workloads, arguments.only, parser)
    program = os.path.abspath(arguments.anykvm)
    programs = {"anykvm": program, "qemu-anykvm": program, "qemu-anykvm-shared": program, "tcg": "qemu-system-x86_64"}
    try:
        engines = [engine_module.Engine.parse(text, programs) for text in arguments.engines.split(",")]
    except ValueError as error:
        parser.error(f"--engines {error}")
    files = engine_module.Files(arguments.guest_bench, arguments.kernel, arguments.initrd)
    results = run_all(arguments, files, engines, plan(workloads, wants_boot))

    labels = [e.label for e in engines]
    machine = describe_machine(arguments)
    table = report.Table(labels, workloads, results.times, results.operations, arguments.minimum)
    boots = report.boot_rows(labels, results.boots)
    scaling = report.scaling_rows(labels, results.times, SMP_COUNTS)
    print("\n".join(f"{name}: {value}" for name, value in machine.items()))
    what = "the best rounds" if arguments.minimum else "median ± half the quartile distance"
    print(f"\nTime per operation under {labels[0]}; then time / {labels[0]}'s time: {what}\n")
    print(report.align(table.rows()))
    for rows in (boots, report.memory_rows(labels, results.memory), scaling):
        if rows:
            print("\n" + report.align(rows))
    if arguments.json:
        details = {"machine": machine, **table.as_dict(), "boot_seconds": results.boots,
                   "memory_mib": results.memory,
                   "smp_ns": {e: {w: t for w, t in times.items() if "@" in w} for e, times in results.times.items()}}
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(details, file, indent=1)
    for line in results.wrong:
        print(f"==> WRONG RESULT: {line}", file=sys.stderr)
    return 1 if results.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
