"""Ratios, medians, spreads and tables out of the times of all rounds; what both programs here share."""

import os
import subprocess
from math import exp, log
from statistics import median, quantiles

# Averages that are printed: title and groups.
AVERAGES = [
    ("integer loops", ["integer"]),
    ("vector loops", ["vector"]),
    ("all loops", ["integer", "vector", "float"]),
    ("small programs", ["program"]),
    ("kernel work", ["kernel"]),
]


def start_first(command, **options):
    """A process that other work on the machine disturbs less, if we may have that (root may). Linux shares CPU time among
    sessions first ("autogroup"), so it gets a session of its own; nice values count only within one."""
    process = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               **options)
    try:
        os.setpriority(os.PRIO_PROCESS, process.pid, -15)
        with open(f"/proc/{process.pid}/autogroup", "w", encoding="ascii") as file:
            file.write("-15")
    except OSError:
        pass
    return process


def geometric_mean(values):
    return exp(sum(log(v) for v in values) / len(values))


def summary(values):
    """Median, and half the distance between the quartiles, if there is more than one value."""
    spread = None
    if len(values) > 1:
        first, _, third = quantiles(values, n=4, method="inclusive")
        spread = (third - first) / 2
    return {"median": median(values), "spread": spread}


class Table:
    """times[engine][workload]: a list with one number for each round; the first engine is what others are compared with."""

    def __init__(self, engines, groups, times, operations, minimum=False):
        self.engines, self.groups, self.times, self.operations = engines, groups, times, operations
        self.minimum = minimum
        self.base = engines[0]
        self.rivals = [e for e in engines[1:] if e.startswith("tcg")]

    def ratios(self, engine, workload, base=None):
        """engine / base, round by round: what slows the machine down for a while slows down both."""
        mine, others = self.times[engine].get(workload), self.times[base or self.base].get(workload)
        if not mine or not others:
            return []
        if self.minimum:
            return [min(mine) / min(others)]
        return [a / b for a, b in zip(mine, others)]

    def ratio(self, engine, workload, base=None):
        values = self.ratios(engine, workload, base)
        return summary(values) if values else None

    def workloads(self, groups):
        return [w for w, g in self.groups.items() if g in groups and any(w in self.times[e] for e in self.engines)]

    def mean(self, engine, groups, base=None):
        found = [self.ratio(engine, w, base) for w in self.workloads(groups)]
        found = [r["median"] for r in found if r]
        return geometric_mean(found) if found else None

    def faster_columns(self):
        """(engine, TCG) pairs: how many times faster than TCG."""
        return [(e, t) for t in self.rivals for e in self.engines[1:] if e not in self.rivals]

    def as_dict(self):
        out = {"baseline": self.base, "workloads": {}, "means": {}}
        for w, group in self.groups.items():
            row = {e: {"ns": self.times[e][w], "ratio": self.ratio(e, w)} for e in self.engines if w in self.times[e]}
            if row:
                out["workloads"][w] = {"group": group, "operations": self.operations.get(w), "engines": row}
        for title, groups in AVERAGES:
            out["means"][title] = {e: self.mean(e, groups) for e in self.engines[1:]}
            out["means"][title + ", faster than TCG"] = {
                f"{e} against {t}": self.mean(t, groups, e) for e, t in self.faster_columns()}
        return out

    def rows(self):
        def cells(label, time, ratio, faster):
            return [label, time, *map(ratio, self.engines[1:]), *[faster(e, t) for e, t in self.faster_columns()]]

        yield cells("", self.base, lambda e: e, lambda e, t: f"{t} / {e}")
        for title, groups in AVERAGES:
            workloads = self.workloads(groups)
            if title != "all loops":
                for w in workloads:
                    yield self.row(w, cells)
            else:
                for w in self.workloads(["float"]):
                    yield self.row(w, cells)
            if len(workloads) > 1:
                yield cells(f"= {title}", "", lambda e: number(self.mean(e, groups)),
                            lambda e, t: number(self.mean(t, groups, e)))
                yield []

    def row(self, workload, cells):
        return cells(workload, self.time_per_operation(workload),
                     lambda e: with_spread(self.ratio(e, workload)),
                     lambda e, t: with_spread(self.ratio(t, workload, e)))

    def time_per_operation(self, workload):
        times = self.times[self.base].get(workload)
        if not times:
            return "-"
        ns = (min if self.minimum else median)(times) / self.operations[workload]
        return f"{ns:.2f} ns" if ns < 100 else f"{ns / 1000:.2f} us"


def number(value):
    return "-" if value is None else f"{value:.2f}"


def with_spread(result):
    if result is None:
        return "-"
    if result["spread"] is None:
        return f"{result['median']:.2f}"
    return f"{result['median']:6.2f} ±{100 * result['spread'] / result['median']:2.0f} %"


def align(rows):
    rows = list(rows)
    columns = max((len(r) for r in rows), default=0)
    widths = [max((len(r[c]) for r in rows if c < len(r)), default=0) for c in range(columns)]
    return "\n".join(
        "  ".join(cell.ljust(w) if c == 0 else cell.rjust(w) for c, (cell, w) in enumerate(zip(row, widths))).rstrip()
        for row in rows)


def boot_rows(engines, boots):
    """boots[engine]: seconds until the first program, one for each round."""
    engines = [e for e in engines if boots.get(e)]
    if not engines:
        return []
    rivals = [e for e in engines if e.startswith("tcg")]
    rows = [["boot to first program", "ms", *[f"/ {t}" for t in rivals]]]
    for e in engines:
        mine = summary([1000 * s for s in boots[e]])
        rows.append([e, f"{mine['median']:.0f}" + ("" if mine["spread"] is None else f" ±{mine['spread']:.0f}"),
                     *[number(median(a / b for a, b in zip(boots[e], boots[t]))) for t in rivals]])
    return rows


def memory_rows(engines, memory):
    """memory[engine]: MiB beyond the guest's RAM, one for each round."""
    found = [e for e in engines if memory.get(e)]
    rows = [["memory of the VMM beyond the guest's RAM", "MiB"]]
    return rows + [[e, f"{median(memory[e]):.0f}"] for e in found] if found else []


def scaling_rows(engines, times, counts):
    """How much more N threads on N CPUs get done than one thread: N is perfect, as far as the host has cores."""
    rows = [["work of N threads on N CPUs / work of one", *map(str, counts)]]
    for e in engines:
        values = []
        for n in counts:
            one, all_ = times[e].get(f"busy-1@{n}"), times[e].get(f"busy-{n}@{n}")
            values.append(with_spread(summary([n * a / b for a, b in zip(one, all_)])) if one and all_ else "-")
        if any(v != "-" for v in values):
            rows.append([e, *values])
    return rows if len(rows) > 1 else []
