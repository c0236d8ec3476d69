#!/usr/bin/env python3
"""Draws the figures of the benchmarks as one SVG: the goals, and postbox beside its peers.

    cargo bench --bench goals -- --json goals.json
    cargo run --release --manifest-path benches/peers/Cargo.toml -- --json peers.json
    python3 benches/chart.py --goals goals.json --peers peers.json --out benches/chart.svg

The standard library is enough. Either file may be left out.
"""

import argparse
import json
import math
from xml.sax.saxutils import escape

WIDTH = 900
MARGIN = 28
ROW = 23
BAR = 12

# A card of its own, so that the page's colour does not matter; a dark one where the reader asks for that.
STYLE = """
text { font: 12px system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; fill: #24292f }
.card { fill: #ffffff; stroke: #d0d7de }
.title { font-size: 17px; font-weight: 600 }
.group { font-size: 13px; font-weight: 600 }
.quiet { fill: #626c77 }
.good { fill: #1a7f64 } .bad { fill: #c4551c } .peer { fill: #9aa7b5 }
.track { fill: #eef1f4 }
.line { stroke: #24292f; stroke-width: 1.5 }
.spread { stroke: #24292f; stroke-opacity: .55; stroke-width: 1 }
.mark { fill: none; stroke-width: 2; stroke-linecap: round; stroke-linejoin: round }
.mark.good { fill: none; stroke: #1a7f64 } .mark.bad { fill: none; stroke: #c4551c }
.strong { font-weight: 600 }
.less { fill-opacity: .5 }
.gap { stroke: #ffffff; stroke-width: 2 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .card { fill: #14181e; stroke: #30363d } .quiet { fill: #9aa5b1 }
  .good { fill: #3fb68f } .bad { fill: #e8843c } .peer { fill: #5d6b7a } .track { fill: #20262d }
  .line, .spread { stroke: #e6edf3 } .gap { stroke: #14181e }
  .mark.good { stroke: #3fb68f } .mark.bad { stroke: #e8843c }
}
"""


class Drawing:
    """Elements from the top down; `y` is where the next one goes."""

    def __init__(self):
        self.elements = []
        self.y = MARGIN

    def text(self, x, y, text, kind="", anchor="start"):
        self.elements.append(
            f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'
        )

    def box(self, x, y, width, height, kind):
        if width > 0:
            self.elements.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" rx="2" class="{kind}"/>'
            )

    def line(self, x1, y1, x2, y2, kind):
        self.elements.append(f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" class="{kind}"/>')

    def mark(self, x, y, met):
        """A tick or a cross, so that colour is not all that tells them apart."""
        path = "l3 3l6 -7" if met else "m1 -4l7 7m0 -7l-7 7"
        self.elements.append(f'<path d="M{x:.1f} {y:.1f}{path}" class="mark {"good" if met else "bad"}"/>')

    def heading(self, title, below):
        self.y += 16
        self.text(MARGIN, self.y, title, "title")
        self.y += 19
        self.text(MARGIN, self.y, below, "quiet")
        self.y += 12

    def svg(self):
        height = self.y + MARGIN / 2
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" '
                f'viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="Benchmarks of postbox">',
                f"<style>{STYLE}</style>",
                f'<rect x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1:.0f}" rx="8" class="card"/>',
                *self.elements,
                "</svg>\n",
            ]
        )


# ---- goals ---------------------------------------------------------------------------------------------------------

LABELS = 360
VALUES = 168
LEFT = MARGIN + LABELS
RIGHT = WIDTH - MARGIN - VALUES


def draw_goals(drawing, goals):
    rows = [row for row in goals["rows"] if row["goal"]]
    machine = goals["machine"]
    met = sum(row["met"] for row in rows)
    drawing.heading(
        f"Goals: {met} of {len(rows)} met",
        f"postbox {machine['postbox']}, SQLite {machine['sqlite']}, {machine['processor']}, "
        f"{machine['cores']} cores, {machine['kernel']}" + ("; a short run, noisy" if goals["quick"] else ""),
    )
    least = [row for row in rows if "ratio_at_least" in row["goal"]]
    most = [row for row in rows if "ratio_at_least" not in row["goal"]]
    draw_scale(drawing, "Speed against raw rusqlite: the bar reaches the line", least, 1.5)
    draw_scale(drawing, "Costs: the bar stays short of the line", most, 2)


def draw_scale(drawing, title, rows, end):
    """Each bar is a share of its own goal, and the goals stand on one line. A bar that would be longer ends open."""
    if not rows:
        return
    drawing.y += 24
    drawing.text(MARGIN, drawing.y, title, "group")
    goal_x = LEFT + (RIGHT - LEFT) / end
    drawing.text(goal_x, drawing.y, "goal", "quiet", "middle")
    drawing.y += 8
    top = drawing.y
    for row in rows:
        draw_goal(drawing, row, end)
    drawing.line(goal_x, top, goal_x, drawing.y - 2, "line")


def draw_goal(drawing, row, end):
    kind, goal = next(iter(row["goal"].items()))
    value = row["ours"] if kind == "at_most" else row["ratio"]
    share = share_of(value, goal)
    y = drawing.y
    baseline = y + BAR + 1.5
    drawing.text(MARGIN, baseline, row["what"].split(" (floor")[0])
    drawing.box(LEFT, y + 3, RIGHT - LEFT, BAR, "track")
    width = min(share / end, 1) * (RIGHT - LEFT)
    drawing.box(LEFT, y + 3, width, BAR, "good" if row["met"] else "bad")
    if share > end:
        for x in (RIGHT - 16, RIGHT - 10):
            drawing.line(x, y + BAR + 4, x + 4, y + 2, "gap")
    drawing.mark(RIGHT + 12, y + 9.5, row["met"])
    drawing.text(RIGHT + 30, baseline, value_of(row, kind, value), "strong")
    sign = "≥" if kind == "ratio_at_least" else "≤"
    drawing.text(WIDTH - MARGIN, baseline, f"{sign} {goal:g}", "quiet", "end")
    drawing.y += ROW


def share_of(value, goal):
    if value is None or value <= 0:
        return 0
    return value / goal if goal > 0 else math.inf


def value_of(row, kind, value):
    if value is None:
        return "not measured"
    if kind == "at_most":
        return f"{figure(value)} {row['unit']}"
    # As fine as the harness prints it: what misses its goal does not look like it.
    return f"{value:.3f} × floor" if abs(value) < 1.1 else f"{value:.2f} × floor"


def figure(value):
    return f"{value:,.0f}" if abs(value) >= 100 or value == 0 else f"{value:.2f}"


# ---- peers ---------------------------------------------------------------------------------------------------------

GAP = 36
NAMES = 168
COLUMNS = ("one-by-one", "at-once", "in-batches", "drain")


def draw_peers(drawing, peers):
    machine, work = peers["machine"], peers["work"]
    drawing.heading(
        "Peers: events a second, synced commits",
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}; median of {peers['rounds']} "
        "rounds, with the least and the most" + ("; a short run, noisy" if peers["quick"] else ""),
    )
    titles = {
        "one-by-one": "Stored one by one",
        "at-once": f"Stored from {work['threads']} threads or tasks at once",
        "in-batches": f"Stored {work['batch']} in a transaction",
        "drain": f"A backlog of {work['drain']:,} handled",
    }
    tables = {table["column"]: table for table in peers["tables"]}
    columns = [column for column in COLUMNS if column in tables]
    for pair in (columns[:2], columns[2:]):
        below = drawing.y
        for place, column in enumerate(pair):
            left = MARGIN + place * ((WIDTH - 2 * MARGIN + GAP) / 2)
            below = max(below, draw_table(drawing, left, titles[column], column, tables[column]))
        drawing.y = below


def draw_table(drawing, left, title, column, table):
    """The fastest first. Returns where it ends."""
    rows = [row for row in table["rows"] if not row["unsynced"] and row["median"] is not None]
    rows.sort(key=lambda row: -row["median"])
    right = left + (WIDTH - 2 * MARGIN - GAP) / 2
    y = drawing.y + 24
    drawing.text(left, y, title, "group")
    y += 8
    start, end = left + NAMES, right - 58
    most = max((row["max"] for row in rows), default=1)
    for row in rows:
        ours = row["library"] == "postbox"
        # Its default, which syncs less of this than the peers do: the row beside it is the one to hold against them.
        less = column == "drain" and "acks NORMAL" in row["durability"]
        name = f"{row['name']}, acks unsynced" if less else row["name"]
        baseline, middle = y + BAR + 1.5, y + 3 + BAR / 2
        drawing.text(left, baseline, name, "strong" if ours else "")
        scale = (end - start) / most
        drawing.box(start, y + 3, row["median"] * scale, BAR, ("good" if ours else "peer") + " less" * less)
        drawing.line(start + row["min"] * scale, middle, start + row["max"] * scale, middle, "spread")
        drawing.text(right, baseline, f"{row['median']:,.0f}", "strong" if ours else "", "end")
        y += ROW
    return y


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--goals", help="what `cargo bench --bench goals -- --json` wrote")
    parser.add_argument("--peers", help="what benches/peers wrote with --json")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    if not (arguments.goals or arguments.peers):
        parser.error("nothing to draw: --goals, --peers or both")
    drawing = Drawing()
    for path, draw in ((arguments.goals, draw_goals), (arguments.peers, draw_peers)):
        if path:
            if drawing.elements:
                drawing.y += 26
            with open(path, encoding="utf-8") as file:
                draw(drawing, json.load(file))
    with open(arguments.out, "w", encoding="utf-8") as file:
        file.write(drawing.svg())


if __name__ == "__main__":
    main()
