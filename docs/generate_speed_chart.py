"""Draws docs/images/speed.svg from the measured times in docs/images/speed.json.

`python docs/generate_speed_chart.py` needs nothing but the package. The times are those of docs/benchmarks.md, which
has the commands; whoever measures again updates both.
"""

import json
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

IMAGES = Path(__file__).with_name("images")
SIZE_IN = (10.0, 3.9)
PAPER, TEXT, OURS, PEER = "#ffffff", "#1b1f24", "#2b7bba", "#c3cad1"
BAR = 0.36
WHOLE_FROM = 10
"""Seconds and ratios from here on are shown without decimals."""


def show(value: float) -> str:
    """Return a number as the chart shows it."""
    return f"{value:.0f}" if value >= WHOLE_FROM else f"{value:.2g}"


def main() -> None:
    """Draw two bars for each task on a logarithmic axis."""
    rows = json.loads((IMAGES / "speed.json").read_text("utf-8"))["rows"]
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "kitsattn"}):
        figure = Figure(figsize=SIZE_IN, facecolor=PAPER)
        ax = figure.add_axes((0.27, 0.03, 0.70, 0.87))
        for place, row in enumerate(rows):
            for value, shift, colour in ((row["kitsattn_s"], -BAR / 2, OURS), (row["peer_s"], BAR / 2, PEER)):
                ax.barh(place + shift, value, BAR, left=0.0, color=colour)
            ratio = row["peer_s"] / row["kitsattn_s"]
            text = f"{show(row['kitsattn_s'])} s   ({show(ratio)} times as fast)"
            ax.text(row["kitsattn_s"] * 1.08, place - BAR / 2, text, va="center", fontsize=8, color=TEXT)
            text = f"{show(row['peer_s'])} s   {row['peer']}"
            ax.text(row["peer_s"] * 1.08, place + BAR / 2, text, va="center", fontsize=8, color=TEXT)
        ax.set_xscale("log")
        ax.set_xlim(0.1, 12000)
        ax.set_yticks(range(len(rows)), [row["task"] for row in rows], fontsize=9, color=TEXT)
        ax.invert_yaxis()
        ax.set_xticks([])
        ax.minorticks_off()
        ax.tick_params(length=0)
        for side in ax.spines.values():
            side.set_visible(False)
        figure.text(0.27, 0.935, "kitsattn", fontsize=9.5, fontweight="bold", color=OURS)
        figure.text(0.335, 0.935, "and its peers: seconds on two CPU threads, logarithmic", fontsize=9.5, color=TEXT)
        figure.savefig(IMAGES / "speed.svg", metadata={"Date": None}, facecolor=PAPER)


if __name__ == "__main__":
    main()
