"""Kidneys cut out of KiTS's label maps, with their tumours and cysts, to be put into bodies."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kitsattn.errors import KitsattnError
from kitsattn.files import atomic_path
from kitsattn.labels import CYST, KIDNEY, TUMOUR
from kitsattn.synthesis.tissues import Tissue
from kitsattn.volume.archive import READ_ERRORS
from kitsattn.volume.geometry import Triple, voxel_ml
from kitsattn.volume.volume import Volume

SPACING_MM: Triple = (3.0, 1.5, 1.5)
"""Grid of a cut-out kidney."""

_LEAST_ML, _MOST_ML = 40.0, 700.0
_DEPTH_UNIT_MM = 0.25


@dataclass(frozen=True)
class KidneyCrop:
    """One kidney.

    Attributes:
        labels: 1 kidney, 2 tumour, 3 cyst, 0 around, (z, y, x) on a grid of 3 x 1.5 x 1.5 mm.
        depth: Distance from the kidney's surface within it, in units of 0.25 mm.
        centre: Centroid of kidney and masses, z, y, x.
        left: Whether it is a left kidney; put on the other side it is mirrored.
    """

    labels: NDArray[np.uint8]
    depth: NDArray[np.uint8]
    centre: tuple[float, float, float]
    left: bool

    def insert(
        self,
        tissues: NDArray[np.uint8],
        depths: NDArray[np.uint8],
        planes: NDArray[np.intp],
        place: NDArray[np.float64],
        side: Tissue,
        spacing_mm: Triple,
    ) -> None:
        """Put the kidney into some planes of a body.

        Args:
            tissues: (n, y, x), changed in place.
            depths: Likewise.
            planes: Which slices of the body these are, (n,).
            place: Where the kidney's centroid goes, z, y, x in the body's voxels.
            side: The kidney it stands for.
            spacing_mm: Of the body; its pixels are taken for 1.5 mm long, which scales the kidney a little.
        """
        labels, depth = self.labels, self.depth
        centre_z, centre_y, centre_x = self.centre
        if self.left != (side == Tissue.LEFT_KIDNEY):
            labels, depth = labels[:, :, ::-1], depth[:, :, ::-1]
            centre_x = labels.shape[2] - 1 - centre_x
        table = np.array([0, side, Tissue.KIDNEY_TUMOUR, Tissue.KIDNEY_CYST], np.uint8)
        top, left = round(place[1] - centre_y), round(place[2] - centre_x)
        rows = slice(max(top, 0), min(top + labels.shape[1], tissues.shape[1]))
        columns = slice(max(left, 0), min(left + labels.shape[2], tissues.shape[2]))
        own = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
        for index, plane in enumerate(planes):
            z = round((plane - place[0]) * spacing_mm[0] / SPACING_MM[0] + centre_z)
            if not 0 <= z < len(labels):
                continue
            inside = labels[z][own]
            here = inside > 0
            tissues[index, rows, columns][here] = table[inside[here]]
            depths[index, rows, columns][here] = depth[z][own][here]


def cut_kidneys(labels: Volume) -> Iterator[KidneyCrop]:
    """Yield the kidneys of a label map, (z, y, x), of KiTS's labels: objects of 40 to 700 ml that are not cut."""
    thin = _resample(labels)
    objects, _ = ndimage.label(thin > 0, np.ones((3, 3, 3)))
    for number, box in enumerate(ndimage.find_objects(objects), 1):
        own = objects[box] == number
        crop = np.where(own, thin[box], 0).astype(np.uint8)
        cut = box[0].start == 0 or box[0].stop == len(thin)
        if cut or not _LEAST_ML <= own.sum() * voxel_ml(SPACING_MM) <= _MOST_ML or not (crop == KIDNEY).any():
            continue
        left = (box[2].start + box[2].stop) / 2 > thin.shape[2] / 2
        padded = np.pad(crop > 0, 1)
        distance = ndimage.distance_transform_edt(padded, sampling=SPACING_MM)[1:-1, 1:-1, 1:-1]
        depth = np.where(crop == KIDNEY, np.clip(distance / _DEPTH_UNIT_MM, 0, 255), 0).astype(np.uint8)
        z, y, x = (float(value) for value in np.argwhere(crop > 0).mean(axis=0))
        yield KidneyCrop(crop, depth, (z, y, x), bool(left))


def _resample(labels: Volume) -> NDArray[np.uint8]:
    """Return the nearest voxels on the grid of `SPACING_MM`."""
    indices = []
    for length, old, new in zip(labels.geometry.shape, labels.geometry.spacing_mm, SPACING_MM, strict=True):
        count = max(1, round(length * old / new))
        indices.append(np.minimum(((np.arange(count) + 0.5) * new / old).astype(int), length - 1))
    thin = labels.array[np.ix_(*indices)]
    assert {0, KIDNEY, TUMOUR, CYST} >= set(np.unique(thin).tolist())
    return thin


def save_kidneys(path: Path, crops: Sequence[KidneyCrop]) -> None:
    """Write kidneys into one .npz."""
    arrays: dict[str, Any] = {}
    for number, crop in enumerate(crops):
        arrays[f"labels_{number}"], arrays[f"depth_{number}"] = crop.labels, crop.depth
        arrays[f"place_{number}"] = np.array([*crop.centre, crop.left])
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def read_kidneys(path: Path) -> list[KidneyCrop]:
    """Read what `save_kidneys` wrote.

    Raises:
        KitsattnError: If the file is damaged.
    """
    try:
        with path.open("rb") as stream, np.load(stream) as stored:
            count = len(stored.files) // 3
            crops = []
            for number in range(count):
                z, y, x, left = stored[f"place_{number}"].tolist()
                crops.append(KidneyCrop(stored[f"labels_{number}"], stored[f"depth_{number}"], (z, y, x), bool(left)))
    except (*READ_ERRORS, KeyError) as error:
        msg = f"{path} is damaged ({error}): delete it, and the training prepares it again"
        raise KitsattnError(msg) from error
    return crops
