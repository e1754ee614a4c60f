"""Draws docs/images/network.svg, the parts of `attention-deeplab-r50` with their channels, from its settings.

`python docs/generate_network_figure.py` needs nothing but the package.
"""

from itertools import pairwise
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from kitsattn.models.attention_deeplab import AttentionDeeplabConfig

PICTURE = Path(__file__).with_name("images") / "network.svg"
SIZE_IN = (11.0, 3.0)
PAPER, TEXT, LINE = "#ffffff", "#1b1f24", "#5c6670"
PARTS = {"data": "#e9eef2", "normaliser": "#cfe5f5", "encoder": "#d7ecd9", "context": "#fde3c8", "decoder": "#e7dcf2"}
WIDTH, HEIGHT, STEP = 1.5, 1.15, 1.98


def draw_box(ax: Axes, place: tuple[float, float], title: str, text: str, colour: str) -> None:
    """Draw a part of the network, centred on a place."""
    corner = place[0] - WIDTH / 2, place[1] - HEIGHT / 2
    ax.add_patch(
        FancyBboxPatch(corner, WIDTH, HEIGHT, boxstyle="round,pad=0,rounding_size=0.09", fc=colour, ec=LINE, lw=0.9)
    )
    ax.text(place[0], place[1] + 0.3, title, ha="center", va="center", fontsize=9.5, fontweight="bold", color=TEXT)
    ax.text(place[0], place[1] - 0.14, text, ha="center", va="center", fontsize=7.3, color=TEXT, linespacing=1.4)


def draw_arrow(ax: Axes, points: list[tuple[float, float]]) -> None:
    """Draw a line through points with a head at its end."""
    for start, end in pairwise(points[:-1]):
        ax.plot(*zip(start, end, strict=True), color=LINE, lw=1.2, solid_capstyle="round")
    ax.add_patch(FancyArrowPatch(*points[-2:], arrowstyle="-|>", mutation_scale=11, color=LINE, lw=1.2, shrinkA=0))


def main() -> None:
    """Draw the picture."""
    config = AttentionDeeplabConfig()
    columns = [(0.85 + STEP * number, 1.0) for number in range(6)]
    texts = [
        ("Input", f"{config.slices} neighbouring\nslices, [-300, 300] HU", "data"),
        ("U-Net", f"normalises the slab\n{', '.join(map(str, config.normalizer_channels))} channels", "normaliser"),
        ("ResNet-50", f"atrous encoder,\noutput stride {config.output_stride}", "encoder"),
        ("ASPP", f"rates {', '.join(map(str, config.aspp_rates))},\n{config.aspp_channels} channels", "context"),
        ("Self-attention", "over all positions,\nthrough a learnt gate", "context"),
        ("Decoder", "joins stride 4;\nlabels of the centre slice", "decoder"),
    ]
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "kitsattn"}):
        figure = Figure(figsize=SIZE_IN, facecolor=PAPER)
        ax = figure.add_axes((0, 0, 1, 1))
        ax.set_xlim(0, SIZE_IN[0] + 0.6)
        ax.set_ylim(-0.25, 3.2)
        ax.set_axis_off()
        for place, (title, text, part) in zip(columns, texts, strict=True):
            draw_box(ax, place, title, text, PARTS[part])
        for left, right in pairwise(columns):
            draw_arrow(ax, [(left[0] + WIDTH / 2 + 0.03, left[1]), (right[0] - WIDTH / 2, right[1])])
        top, encoder, decoder = 2.05, columns[2], columns[5]
        edge = encoder[1] + HEIGHT / 2
        draw_arrow(ax, [(encoder[0], edge), (encoder[0], top), (decoder[0], top), (decoder[0], edge)])
        middle = (encoder[0] + decoder[0]) / 2
        ax.text(middle, top + 0.12, "features at stride 4", ha="center", fontsize=8, color=TEXT)
        for first, last, text in ((1, 1, "low-capacity U-Net"), (2, 5, "DeepLabv3+ with self-attention")):
            ends = columns[first][0] - WIDTH / 2, columns[last][0] + WIDTH / 2
            ax.plot(ends, (2.62, 2.62), color=LINE, lw=1.0)
            ax.text(sum(ends) / 2, 2.74, text, ha="center", fontsize=9.5, color=TEXT)
        ax.text(0.1, 0.0, "Trained end to end.", fontsize=8.5, color=TEXT)
        figure.savefig(PICTURE, metadata={"Date": None}, facecolor=PAPER)


if __name__ == "__main__":
    main()
