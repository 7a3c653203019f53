# SPDX-License-Identifier: Apache-2.0
"""Pictures of the figures, as SVG written by hand: a timeline and bars.

No background, and colours that read on white and on black: the files are looked at in both.
`bench/svg.py FILE.json FOLDER` draws all that there is in what run.py --json has kept."""
import json
import math
import os
import sys
from xml.sax.saxutils import escape

from common import median, paired

TEXT, GRID = "#7a828e", "#8b949e"
OURS, THEIRS = "#1f9d8f", "#e0693a"
FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"


class Svg:
    """Elements in the order in which they are drawn."""

    def __init__(self, width, height, title):
        self.size, self.title, self.parts = (width, height), title, []

    def add(self, name, content=None, **attributes):
        text = "".join(f' {k.replace("_", "-")}="{v:.1f}"' if isinstance(v, float)
                       else f' {k.replace("_", "-")}="{escape(str(v), {chr(34): "&quot;"})}"'
                       for k, v in attributes.items())
        end = "/>" if content is None else f">{escape(content)}</{name}>"
        self.parts.append(f"<{name}{text}{end}")

    def text(self, x, y, content, size=13, anchor="start", fill=TEXT, weight=400):
        self.add("text", content, x=float(x), y=float(y), font_size=size, text_anchor=anchor,
                 fill=fill, font_weight=weight)

    def line(self, x1, y1, x2, y2, opacity=0.25, dash="none", width=1):
        self.add("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), stroke=GRID,
                 stroke_opacity=opacity, stroke_dasharray=dash, stroke_width=width)

    def write(self, path):
        w, h = self.size
        with open(path, "w", encoding="utf-8") as f:
            f.write(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" '
                    f'height="{h}" font-family="{FONT}" role="img">\n'
                    f"<title>{escape(self.title)}</title>\n" + "\n".join(self.parts) + "\n</svg>\n")


def duration(us):
    """A duration as on an axis."""
    for unit, name in ((1e6, "s"), (1e3, "ms")):
        if us >= unit:
            return f"{us / unit:g} {name}"
    return f"{us:g} µs"


# ---- latency over time ------------------------------------------------------

class Axes:
    """Seconds to the right, microseconds upwards, in powers of ten."""

    def __init__(self, svg, seconds, low, high):
        self.svg, self.seconds = svg, seconds
        self.decades = (math.floor(math.log10(low)), math.ceil(math.log10(high)))
        self.left, self.right, self.top, self.bottom = 72, svg.size[0] - 150, 92, svg.size[1] - 56

    def x(self, second):
        return self.left + (self.right - self.left) * min(second, self.seconds) / self.seconds

    def y(self, us):
        low, high = self.decades
        share = (math.log10(max(us, 10 ** low)) - low) / (high - low)
        return self.bottom - (self.bottom - self.top) * share

    def draw(self, origin):
        for power in range(self.decades[0], self.decades[1] + 1):
            y = self.y(10 ** power)
            self.svg.line(self.left, y, self.right, y)
            self.svg.text(self.left - 10, y + 4, duration(10.0 ** power), 12, "end")
        for second in range(0, int(self.seconds) + 1):
            if (second - round(origin)) % 3 == 0:
                x = self.x(second)
                self.svg.line(x, self.bottom, x, self.bottom + 5, 0.6)
                self.svg.text(x, self.bottom + 20, f"{second - round(origin)}", 12, "middle")
        self.svg.text((self.left + self.right) / 2, self.bottom + 42,
                      "seconds since the backup's start", 12, "middle")


def merged(rounds):
    """One run out of several: of every window the medians of what the rounds have there."""
    by_time = [{round(w[0], 2): w for w in got["windows"]} for got in rounds]
    times = sorted(set.intersection(*(set(t) for t in by_time)))
    return {"start": rounds[0]["start"], "end": median([got["end"] for got in rounds]),
            "windows": [[t] + [median([r[t][i] for r in by_time]) for i in (1, 2)]
                        for t in times]}


def draw_run(axes, got, colour):
    """A line of medians, and above it a veil up to the 99th percentiles."""
    points = [(axes.x(w[0]), axes.y(w[1]), axes.y(w[2])) for w in got["windows"]]
    veil = [f"{x:.1f},{m:.1f}" for x, m, _ in points]
    veil += [f"{x:.1f},{p:.1f}" for x, _, p in reversed(points)]
    axes.svg.add("polygon", points=" ".join(veil), fill=colour, fill_opacity=0.18)
    axes.svg.add("polyline", points=" ".join(f"{x:.1f},{m:.1f}" for x, m, _ in points),
                 fill="none", stroke=colour, stroke_width=2.2, stroke_linejoin="round")


def label_runs(axes, runs):
    """The name of each at its right end, apart where the ends are close together."""
    ends = []
    for name, got, colour in runs:
        ends.append([axes.y(median([w[1] for w in got["windows"][-3:]])), name, colour])
    ends.sort()
    for above, below in zip(ends, ends[1:]):
        below[0] = max(below[0], above[0] + 20)
    for y, name, colour in ends:
        axes.svg.text(axes.right + 10, y + 4, name, 13, fill=colour, weight=600)


def latency(runs, path):
    """@runs: name to what timeline.py has measured, ours first."""
    svg = Svg(920, 440, "A guest's write latency through a full backup to a slow target")
    start = max(r["start"] for r in runs.values())
    end = max(r["end"] for r in runs.values())
    values = [w[i] for r in runs.values() for w in r["windows"] for i in (1, 2)]
    axes = Axes(svg, min(r["windows"][-1][0] for r in runs.values()), min(values), max(values))
    svg.text(axes.left, 30, "What a guest's writes wait for, while it is backed up", 18,
             weight=600)
    svg.text(axes.left, 52, "4 KiB random writes, one at a time; full backup to a target that "
             "takes 20 ms for every write.")
    svg.text(axes.left, 70, "Line: median of every quarter of a second; veil: up to the 99th "
             "percentile; medians of the runs.")
    svg.add("rect", x=axes.x(start), y=float(axes.top), width=axes.x(end) - axes.x(start),
            height=float(axes.bottom - axes.top), fill=GRID, fill_opacity=0.10)
    axes.draw(start)
    for second, name, anchor, shift in ((start, "backup starts", "start", 7),
                                        (end, "backup ends", "end", -7)):
        x = axes.x(second)
        svg.line(x, axes.top, x, axes.bottom, 0.8, "4 4")
        svg.text(x + shift, axes.top + 15, name, 12, anchor)
    drawn = [(name, r, OURS if n == 0 else THEIRS) for n, (name, r) in enumerate(runs.items())]
    for _, r, colour in reversed(drawn):
        draw_run(axes, r, colour)
    label_runs(axes, [("QEMU" if name.startswith("qemu") else "Stillpoint", r, colour)
                      for name, r, colour in drawn])
    svg.write(path)


# ---- bars -------------------------------------------------------------------

def bars(title, subtitle, groups, path):
    """@groups: label to {name: figures of the rounds}, higher is better; the first name is ours.
    Each group has a scale of its own, from nothing to its highest."""
    left, row, gap, width = 200, 19, 26, 920
    height = 84 + sum(row * len(g) + gap for g in groups.values())
    svg = Svg(width, height, title)
    svg.text(24, 30, title, 18, weight=600)
    svg.text(24, 52, subtitle)
    y = 80
    for label, group in groups.items():
        svg.text(24, y + 13, label, 13, weight=600)
        mine, top = next(iter(group.values())), max(median(v) for v in group.values())
        for n, (name, values) in enumerate(group.items()):
            value = median(values)
            length = (width - left - 240) * value / top
            colour, weight = (TEXT, 400) if n else (OURS, 600)
            svg.text(left + 80, y + 13, name, 12, "end", colour, weight)
            svg.add("rect", x=float(left + 90), y=float(y + 2), width=float(max(length, 1)),
                    height=float(row - 5), rx=2, fill=GRID if n else OURS,
                    fill_opacity=0.5 if n else 1)
            ratio = f" · {paired(mine, values):.2f}×" if n else ""
            svg.text(left + 97 + length, y + 13, f"{value:,.0f}{ratio}", 12, "start", colour,
                     weight)
            y += row
        y += gap
    svg.write(path)


def groups_of(figures):
    """"LABEL | NAME" to values, as the suites give them, into label to {name: values}. The
    floor serves or copies nobody's disk: it is for the tables."""
    out = {}
    for key, values in figures.items():
        label, _, name = key.partition(" | ")
        if name != "floor":
            out.setdefault(label, {})[name] = values
    return out


def draw(figures, folder):
    """All that can be drawn of run.py's @figures."""
    os.makedirs(folder, exist_ok=True)
    for key, suite in figures.items():
        name, _, where = key.partition(" ")
        path = os.path.join(folder, f"{name}-{where}.svg")
        if name == "timeline":
            latency({k: merged(v) for k, v in suite.items()}, path)
        elif name == "nbd":
            bars(f"Requests a second over NBD, raw file, {where}",
                 "Higher is better; ×: how many times Stillpoint's figure is the other's.",
                 groups_of(suite), path)
        elif name == "copy":
            bars(f"Full copies, MiB/s until all is on the disk, {where}",
                 "Higher is better; ×: how many times the figure of Stillpoint's job is the "
                 "other's.",
                 {f"raw to {k}": v for k, v in groups_of(suite).items()}, path)
        else:
            continue
        print(f"drawn: {path}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: svg.py FILE.json FOLDER")
    with open(sys.argv[1], encoding="utf-8") as source:
        draw(json.load(source)["figures"], sys.argv[2])
