"""Charts of costs that could grow, as SVG files, from what `scripts/bench --engine --json FILE` measured.

    scripts/bench --engine --only / --json growth.json && python3 bench/plots.py growth.json docs/plots

Both axes are logarithmic: a line that lies flat is a cost that does not grow, one that rises like the dotted one grows in
proportion."""

import json
import sys
from dataclasses import dataclass
from math import ceil, floor, log10
from pathlib import Path

WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 40, 50
COLORS = ["#1b6ca8", "#c8553d", "#3a7d44"]


@dataclass
class Chart:
    file: str
    title: str
    x_name: str
    y_name: str
    lines: dict  # name in the legend -> name of the benchmark
    unit: float = 1.0  # in ns


CHARTS = [
    Chart("slots", "Memory slots", "slots", "microseconds",
          {"change of a slot": "change_of_a_slot", "MMIO exit": "exit_mmio_beside_slots"}, 1e3),
    Chart("ram", "A virtual machine made, run and closed", "GiB that nobody touches", "milliseconds",
          {"sparse RAM": "virtual_machine_of_gib"}, 1e6),
    Chart("code", "Guest code, per instruction", "KiB of code", "ns",
          {"run again and again": "code_of_kib", "loaded and run once": "code_loaded_kib"}),
    Chart("address-spaces", "Changes of the address space", "address spaces", "ns",
          {"MOV to CR3 and sixteen loads": "address_spaces"}),
    Chart("flush", "TLB filled and flushed, per page", "pages between two flushes", "ns",
          {"load and its part of the flush": "flush_after_pages"}),
]


def points(costs, benchmark, unit):
    """(argument, cost) by argument; of the first program measured."""
    found = []
    for name, programs in costs.items():
        base, _, argument = name.partition("/")
        if base == benchmark and argument.isdigit():
            found.append((int(argument), next(iter(programs.values()))["ns"] / unit))
    return sorted(found)


class Axes:
    """From values to places on the picture."""

    def __init__(self, lines):
        xs = [x for line in lines for x, _ in line]
        ys = [y for line in lines for _, y in line]
        self.x_first, self.x_last = log10(min(xs)), log10(max(xs))
        self.y_first, self.y_last = floor(log10(min(ys))), ceil(log10(max(ys)) + 0.01)

    def x(self, value):
        return LEFT + (log10(value) - self.x_first) / (self.x_last - self.x_first) * (WIDTH - LEFT - RIGHT)

    def y(self, value):
        return HEIGHT - BOTTOM - (log10(value) - self.y_first) / (self.y_last - self.y_first) * (HEIGHT - TOP - BOTTOM)


def text(x, y, words, anchor="middle", more=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{words}</text>'


def grid(axes, arguments):
    for power in range(axes.y_first, axes.y_last + 1):
        y = axes.y(10.0**power)
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        yield text(LEFT - 8, y + 4, f"{10.0 ** power:g}", "end")
    for argument in arguments:
        yield text(axes.x(argument), HEIGHT - BOTTOM + 18, f"{argument:,}")


def in_proportion(axes):
    """From the lower left corner, as far as it fits."""
    decades = min(axes.x_last - axes.x_first, axes.y_last - axes.y_first)
    x, y = 10**axes.x_first, 10.0**axes.y_first
    return (f'<line x1="{axes.x(x):.1f}" y1="{axes.y(y):.1f}" x2="{axes.x(x * 10**decades):.1f}" '
            f'y2="{axes.y(y * 10**decades):.1f}" stroke="#999" stroke-dasharray="2 4"/>')


def draw(chart, costs):
    lines = {name: points(costs, benchmark, chart.unit) for name, benchmark in chart.lines.items()}
    missing = [benchmark for name, benchmark in chart.lines.items() if len(lines[name]) < 2]
    if missing:
        sys.exit(f"==> {chart.file}: nothing was measured of {', '.join(missing)}")
    axes = Axes(lines.values())
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
             'font-size="12">', '<rect width="100%" height="100%" fill="white"/>',
             text(WIDTH / 2, 20, chart.title, more='font-size="15"'),
             text(WIDTH / 2, HEIGHT - 12, chart.x_name),
             text(0, 0, chart.y_name, more=f'transform="translate(18 {HEIGHT / 2}) rotate(-90)"')]
    parts += grid(axes, sorted({x for line in lines.values() for x, _ in line}))
    parts.append(in_proportion(axes))
    for (name, line), color, row in zip(lines.items(), COLORS, range(len(lines))):
        places = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in line)
        parts.append(f'<polyline points="{places}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="3" fill="{color}"/>' for x, y in line]
        parts.append(text(WIDTH - RIGHT - 8, TOP + 16 + 16 * row, name, "end", f'fill="{color}"'))
    return "\n".join([*parts, "</svg>", ""])


def main():
    if len(sys.argv) != 3:
        sys.exit(f"usage: plots.py FILE.json DIRECTORY\n\n{__doc__}")
    costs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    directory = Path(sys.argv[2])
    directory.mkdir(parents=True, exist_ok=True)
    for chart in CHARTS:
        (directory / f"{chart.file}.svg").write_text(draw(chart, costs), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
