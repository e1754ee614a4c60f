"""Sources (a) and (d): slabs of prepared cases, painted phantoms or real scans with label maps."""

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from kitsattn.labels import BACKGROUND, CYST, KIDNEY
from kitsattn.preprocess.store import StoredCase
from kitsattn.synthesis.frame import AIR_HU, SLICE_MM, SLICES, draw_frame
from kitsattn.synthesis.masses import paint_distractors
from kitsattn.synthesis.textures import Textures


def draw_volume(
    rng: Generator, cases: Sequence[StoredCase], textures: Textures
) -> tuple[NDArray[np.float32], NDArray[np.uint8], str]:
    """Draw a slab of one case.

    Returns:
        HU, (slices, height, width), clipped as the case is; labels of the centre slice; the case's name.
    """
    case = cases[int(rng.integers(len(cases)))]
    depth, height, width = case.shape
    places = [voxels for value, voxels in case.locations.items() if value != BACKGROUND and len(voxels)]
    if places and rng.random() < 0.6:
        kind = places[int(rng.integers(len(places)))]
        centre = int(kind[int(rng.integers(len(kind))), 0])
    else:
        centre = int(rng.integers(depth))
    step = SLICE_MM * np.exp(rng.normal(0.0, 0.15)) / case.spacing_mm[0]
    positions = centre + step * (np.arange(SLICES) - SLICES // 2)
    planes = np.clip(np.rint(positions), 0, depth - 1).astype(int)
    with case.opened() as (image, label_map):
        stack = np.stack([image[int(plane)] for plane in planes]).astype(np.float32)
        own = np.stack([label_map[int(plane)] for plane in planes])
    kidneys = np.argwhere(own[SLICES // 2])
    towards = tuple(kidneys[int(rng.integers(len(kidneys)))]) if len(kidneys) else None
    middle = ((height - 1) / 2, (width - 1) / 2)
    frame = draw_frame(rng, textures, pixel_mm=case.spacing_mm[1:], centre=middle, towards=towards)
    # Prepared cases are clipped at -300 HU. Air gets its own value back, so that noise does not show there.
    floor = float(stack.min(initial=0.0))
    hu = frame.linear(stack, floor)
    hu[hu < floor + 1.0] = AIR_HU
    labels = frame.nearest(own, 0)
    labels[labels == CYST] = KIDNEY
    if rng.random() < 0.3:
        paint_distractors(rng, hu, labels, hu > -200.0, textures)
    return hu, labels[SLICES // 2], case.case_id
