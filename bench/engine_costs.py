"""The program behind `scripts/bench --engine`: runs build/engine_bench several times and prints medians."""

import argparse
import json
import os
import re
import subprocess
import sys
from statistics import median

import report


def parse_arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench --engine", description=__doc__)
    parser.add_argument("count", nargs="?", type=int, metavar="ROUNDS", help="the same as --rounds")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--only", default=".", metavar="REGEX", help="benchmarks whose name matches")
    parser.add_argument("--program", action="append", metavar="FILE",
                        help="default build/engine_bench; given twice, two builds are compared")
    parser.add_argument("--json", metavar="FILE", help="write all medians there")
    return parser.parse_args()


def results_of(command):
    """name -> (seconds, TSC cycles) for one operation."""
    process = report.start_first(command, stderr=subprocess.DEVNULL, text=True)
    output = process.communicate()[0]
    if process.returncode:
        sys.exit(f"==> {' '.join(command)} failed: run it to see why")
    if not output.strip():  # no name matches
        return {}
    return {b["name"].split("/iterations")[0]: (b["per_op"], b["cycles"]) for b in json.loads(output)["benchmarks"]}


def run(program, only):
    found = results_of([program, f"--benchmark_filter={only}", "--benchmark_min_time=0.1", "--benchmark_format=json"])
    directory = os.path.dirname(program)
    for client in (os.path.join(directory, name) for name in ("exec_bench", "exec_bench_static")):
        if not os.path.exists(client):
            continue
        outside = results_of([os.path.join(directory, "anykvm"), "exec", "--", client])
        found |= {name: costs for name, costs in outside.items() if re.search(only, name)}
    return found


def main():
    arguments = parse_arguments()
    programs = arguments.program or ["build/engine_bench"]
    rounds = {p: [] for p in programs}
    for number in range(1, (arguments.count or arguments.rounds) + 1):
        for program in programs:
            print(f"==> round {number}: {program}", file=sys.stderr)
            rounds[program].append(run(os.path.abspath(program), arguments.only))
    rows = [["", "ns", "TSC cycles", *[f"ns of {p}" for p in programs[1:]], *["ratio" for _ in programs[1:]]]]
    medians = {}
    for name in rounds[programs[0]][0]:
        middle = {p: [median(r[name][i] for r in rounds[p]) for i in (0, 1)] for p in programs}
        medians[name] = {p: {"ns": 1e9 * m[0], "cycles": m[1]} for p, m in middle.items()}
        first = middle[programs[0]]
        others = [middle[p][0] for p in programs[1:]]
        rows.append([name, f"{1e9 * first[0]:,.1f}", f"{first[1]:,.1f}", *[f"{1e9 * o:,.1f}" for o in others],
                     *[f"{o / first[0]:.2f}" for o in others]])
    print(report.align(rows))
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(medians, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
