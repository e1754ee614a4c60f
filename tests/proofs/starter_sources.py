"""Whether the frame around the body gives away which source a made scan comes from.

    python tests/proofs/starter_sources.py --data DATA [--workspace FOLDER] [--draws 300] [--maps N] [--seed 0]

A network that can recognise the source of a sample by what is around the body may learn which masses that source
labels, instead of what a mass looks like. The script draws as many samples from each source, clips them to the training
window, and measures the pixels outside the body in three regions: the outer 16 pixels, the four corners of 32 x 32
pixels, and a ring of 4 pixels around the body. Two plain classifiers then try to tell the sources apart, each with
5-fold cross-validation. Chance is 1 / (number of sources). It prints

- the accuracy of both classifiers, on all statistics and on those of each region,
- the confusion of the better one,
- how well each statistic alone tells the sources apart (a tree of depth 3), the best ones first.

`--maps` uses only so many KiTS label maps, evenly spaced, which makes the preparation shorter.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from kitsattn.synthesis.data import find_starter_data
from kitsattn.synthesis.draw import SOURCES, Material, Synthesis
from kitsattn.synthesis.prepare import PLAN, prepare_material
from kitsattn.workspace import Workspace

BORDER_PX, CORNER_PX, RING_PX = 16, 32, 4
REGIONS = ("border", "corners", "ring")
QUANTILES = (5, 25, 50, 75, 95)
FOLDS = 5
_ABOVE_DARKEST_HU = 60.0
_FEWEST_PIXELS = 50
_SHOWN = 12

Classifiers = Mapping[str, float]
"""Accuracy by the classifier's name."""


@dataclass(frozen=True)
class Table:
    """Statistics of many samples.

    Attributes:
        names: Of the statistics, as "region: statistic".
        values: (samples, statistics).
        sources: Number of each sample's source in `labels`, (samples,).
        labels: Names of the sources.
    """

    names: tuple[str, ...]
    values: NDArray[np.float64]
    sources: NDArray[np.intp]
    labels: tuple[str, ...]

    def region(self, name: str) -> "Table":
        """Return the statistics of one region."""
        chosen = [index for index, own in enumerate(self.names) if own.startswith(f"{name}:")]
        return replace(self, names=tuple(self.names[index] for index in chosen), values=self.values[:, chosen])


def find_regions(image: NDArray[np.float32]) -> dict[str, NDArray[np.bool_]]:
    """Return where each region is in a slab (slices, height, width): masks of the centre slice without the body.

    The body is the largest object that is brighter than the darkest value by 60 HU, with its holes.
    """
    centre = ndimage.gaussian_filter(image[len(image) // 2], 1.5)
    parts, count = ndimage.label(centre > image.min() + _ABOVE_DARKEST_HU)
    body = np.zeros(centre.shape, bool)
    if count:
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        body = ndimage.binary_fill_holes(parts == sizes.argmax())
    border, corners = np.zeros((2, *centre.shape), bool)
    border[:BORDER_PX], border[-BORDER_PX:], border[:, :BORDER_PX], border[:, -BORDER_PX:] = True, True, True, True
    for rows in (slice(CORNER_PX), slice(-CORNER_PX, None)):
        for columns in (slice(CORNER_PX), slice(-CORNER_PX, None)):
            corners[rows, columns] = True
    near = ndimage.binary_dilation(body, iterations=2)  # the blurred edge belongs to the body
    ring = ndimage.binary_dilation(near, iterations=RING_PX)
    return {"border": border & ~near, "corners": corners & ~near, "ring": ring & ~near}


def measure_frame(image: NDArray[np.float32]) -> dict[str, float]:
    """Return the statistics of a slab (slices, height, width) in HU, clipped as in training."""
    clipped = np.clip(image, *PLAN.clip_hu)
    darkest = float(clipped.min())
    middle = len(clipped) // 2
    across = np.abs(np.diff(clipped[middle], axis=1, append=clipped[middle][:, -1:]))
    along = np.abs(clipped[middle + 1] - clipped[middle])
    measured: dict[str, float] = {}
    for name, mask in find_regions(clipped).items():
        values = clipped[:, mask]
        if mask.sum() < _FEWEST_PIXELS:  # the body fills it: no statistics, all equal
            values = np.full((len(clipped), 1), darkest, np.float32)
        own = {
            "mean": values.mean(),
            "deviation": values.std(),
            "minimum": values.min(),
            "maximum": values.max(),
            "share at the minimum": (values <= values.min() + 0.5).mean(),
            "above the darkest of the slab": values.mean() - darkest,
            "difference of neighbours": across[mask].mean() if mask.any() else 0.0,
            "difference of slices": along[mask].mean() if mask.any() else 0.0,
            "share of the region": mask.mean(),
        }
        quantiles = np.percentile(values, QUANTILES)
        own |= {f"quantile {share} %": value for share, value in zip(QUANTILES, quantiles, strict=True)}
        measured |= {f"{name}: {key}": float(value) for key, value in own.items()}
    return measured


def draw_table(material: Material, draws: int, seed: int, size: tuple[int, int] = PLAN.patch_size) -> Table:
    """Draw so many samples of each source that has material, and measure them."""
    synthesis = Synthesis(material, (1.0, 1.0, 1.0, 1.0), size)
    labels = tuple(name for name in SOURCES if getattr(material, name))
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in labels}
    number = 0
    while min(len(own) for own in rows.values()) < draws:
        sample = synthesis.draw(np.random.default_rng((seed, number)))
        number += 1
        if len(rows[sample.source]) < draws:
            rows[sample.source].append(measure_frame(sample.image))
    every = [row for name in labels for row in rows[name]]
    names = tuple(every[0])
    values = np.array([[row[name] for name in names] for row in every])
    return Table(names, values, np.repeat(np.arange(len(labels)), draws), labels)


def predict_sources(table: Table, kind: str, seed: int = 0) -> NDArray[np.intp]:
    """Return the sources that a classifier predicts for samples it was not fitted on."""
    classifiers = {
        "logistic regression": make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        "random forest": RandomForestClassifier(100, max_depth=8, random_state=seed),
        "tree": DecisionTreeClassifier(max_depth=3, random_state=seed),
    }
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    predicted: NDArray[np.intp] = cross_val_predict(classifiers[kind], table.values, table.sources, cv=folds)
    return predicted


def tell_apart(table: Table, kinds: Sequence[str] = ("logistic regression", "random forest")) -> Classifiers:
    """Return how often each classifier finds the source."""
    return {kind: float((predict_sources(table, kind) == table.sources).mean()) for kind in kinds}


def rank_statistics(table: Table) -> list[tuple[float, str]]:
    """Return how often each statistic alone finds the source, the best ones first."""
    single = [
        (tell_apart(replace(table, names=(name,), values=table.values[:, [index]]), ["tree"])["tree"], name)
        for index, name in enumerate(table.names)
    ]
    return sorted(single, reverse=True)


def report(table: Table) -> None:
    """Print how well the sources can be told apart."""
    print(f"{len(table.values)} samples of {', '.join(table.labels)}; chance {1 / len(table.labels):.3f}")
    for name, part in [("all", table), *((region, table.region(region)) for region in REGIONS)]:
        found = ", ".join(f"{kind} {share:.3f}" for kind, share in tell_apart(part).items())
        print(f"{name:8} {found}")
    predicted = predict_sources(table, "random forest")
    print("random forest: share of each source (rows) that is taken for each (columns)")
    for number, name in enumerate(table.labels):
        shares = (
            np.bincount(predicted[table.sources == number], minlength=len(table.labels))
            / (table.sources == number).sum()
        )
        print(f"{name:8} " + " ".join(f"{share:.2f}" for share in shares))
    print("statistics alone; median of each source")
    for share, name in rank_statistics(table)[:_SHOWN]:
        column = table.values[:, table.names.index(name)]
        medians = ", ".join(
            f"{label} {np.median(column[table.sources == number]):.2f}" for number, label in enumerate(table.labels)
        )
        print(f"{share:.3f} {name}: {medians}")


def main() -> None:
    """Prepare the material, draw, measure, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the data folder of `kitsattn train --recipe starter`")
    parser.add_argument("--workspace", type=Path, default=None, help="where prepared material is kept")
    parser.add_argument("--draws", type=int, default=300, help="samples of each source")
    parser.add_argument("--maps", type=int, default=None, help="KiTS label maps that are used (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = find_starter_data(options.data)
    if options.maps is not None:
        step = max(1, len(found.label_maps) // options.maps)
        found = replace(found, label_maps=found.label_maps[::step][: options.maps])
    material = prepare_material(found, Workspace.choose(options.workspace)).open()
    report(draw_table(material, options.draws, options.seed))


if __name__ == "__main__":
    main()
