"""Draws sheets of training samples as `kitsattn train --recipe starter` makes them, with contours of their labels.

`python docs/generate_starter_sheet.py DATA OUT` prepares the data folder DATA, as the training does, and writes one
sheet of 24 samples for each source into the folder OUT. They follow the data, so their licences hold for the sheets:
look at them, and do not commit them.

`python docs/generate_starter_sheet.py --phantoms` needs no data. It draws docs/how-to/images/starter-draws.webp, 12
samples of procedural phantoms, which follow no patient.
"""

import argparse
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from kitsattn.config import to_json
from kitsattn.datasets.find import find_dataset
from kitsattn.files import write_json
from kitsattn.jobs import HERE
from kitsattn.labels import KIDNEY, LABEL_COLOURS, TUMOUR
from kitsattn.phantom.paint import write_cohort
from kitsattn.preprocess.run import preprocess_dataset
from kitsattn.synthesis.data import find_starter_data
from kitsattn.synthesis.draw import SOURCES, Material, Sample, Synthesis
from kitsattn.synthesis.prepare import PLAN, prepare_material
from kitsattn.workspace import Workspace

PICTURE = Path(__file__).with_name("how-to") / "images" / "starter-draws.webp"
WINDOW_HU = (-160.0, 240.0)
PAPER, TEXT = "#101214", "#f4f4f4"
SHEET, FIGURE = (6, 4), (4, 3)
"""Columns and rows of a sheet, and of the picture in the documentation."""
PHANTOMS, PHANTOM_SHAPE, PHANTOM_SPACING_MM = 6, (44, 256, 256), (5.0, 1.5, 1.5)
SEED = 4
TITLES = {
    "painted": "synthetic, around label maps of patients",
    "bodies": "synthetic, from label maps of patients",
    "slices": "real slices, changed",
    "volumes": "real scans, changed",
}


def show(ax: Axes, sample: Sample) -> None:
    """Draw the centre slice of a sample, and where its kidneys and tumours are."""
    ax.imshow(sample.image[len(sample.image) // 2], cmap="gray", vmin=WINDOW_HU[0], vmax=WINDOW_HU[1])
    regions = {"kidney": sample.labels >= KIDNEY, "tumour": sample.labels == TUMOUR}
    for name, mask in regions.items():
        if mask.any():
            ax.contour(mask.astype(np.float32), [0.5], colors=[LABEL_COLOURS[name]], linewidths=0.9)
    ax.set_axis_off()


def draw_sheet(samples: Sequence[Sample], columns: int, title: str) -> Image.Image:
    """Return a picture of samples, row by row, with a title and which contour is what."""
    rows = -(-len(samples) // columns)
    height, width = samples[0].labels.shape
    figure = Figure(figsize=(2.6 * columns, 2.6 * rows * height / width + 0.3), facecolor=PAPER)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1 - 0.3 / figure.get_figheight(), wspace=0.02, hspace=0.02)
    for ax, sample in zip(axes, samples, strict=True):
        show(ax, sample)
    top = 1 - 0.15 / figure.get_figheight()
    for place, (name, colour) in zip((0.45, 0.55), list(LABEL_COLOURS.items())[:2], strict=True):
        figure.text(place, top, name, color=colour, ha="center", va="center", fontsize=11)
    figure.text(0.01, top, title, color=TEXT, ha="left", va="center", fontsize=11)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110, facecolor=PAPER)
    return Image.open(drawn).convert("RGB")


def draw_samples(material: Material, source: str, count: int) -> list[Sample]:
    """Draw samples of one source."""
    shares = tuple(float(name == source) for name in SOURCES)
    synthesis = Synthesis(material, (shares[0], shares[1], shares[2], shares[3]), PLAN.patch_size)
    return [synthesis.draw(np.random.default_rng((SEED, number))) for number in range(count)]


def write_sheets(data: Path, folder: Path, workspace: Workspace) -> None:
    """Write a sheet for each source that the data folder has."""
    material = prepare_material(find_starter_data(data), workspace).open()
    folder.mkdir(parents=True, exist_ok=True)
    for source in SOURCES:
        if getattr(material, source):
            path = folder / f"{source}.png"
            draw_sheet(draw_samples(material, source, SHEET[0] * SHEET[1]), SHEET[0], TITLES[source]).save(path)
            print(path)


def draw_phantoms(folder: Path) -> Image.Image:
    """Return the picture of the documentation, whose phantoms are painted and prepared in an empty folder."""
    raw, plan = folder / "phantoms", folder / "plan.json"
    write_cohort(raw, cases=PHANTOMS, shape=PHANTOM_SHAPE, spacing_mm=PHANTOM_SPACING_MM, seed=SEED)
    write_json(plan, to_json(PLAN))
    dataset = preprocess_dataset(find_dataset(raw), folder / "prepared", plan_file=plan, workers=HERE).dataset
    material = Material(painted=[dataset.open_case(case) for case in dataset.cases])
    return draw_sheet(draw_samples(material, "painted", FIGURE[0] * FIGURE[1]), FIGURE[0], "synthetic phantoms")


def main() -> None:
    """Write sheets of real data, or the picture of phantoms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="the data folder of `kitsattn train --recipe starter`")
    parser.add_argument("out", type=Path, nargs="?", help="folder for the sheets")
    parser.add_argument("--workspace", type=Path, default=None, help="where prepared material is kept")
    parser.add_argument("--phantoms", action="store_true", help="draw the picture of the documentation")
    options = parser.parse_args()
    if options.phantoms:
        with tempfile.TemporaryDirectory() as folder:
            draw_phantoms(Path(folder)).save(PICTURE, quality=80)
        print(PICTURE)
    elif options.data is None or options.out is None:
        parser.error("name DATA and OUT, or add --phantoms")
    else:
        write_sheets(options.data, options.out, Workspace.choose(options.workspace))


if __name__ == "__main__":
    main()
