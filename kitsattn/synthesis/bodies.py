"""Source (b): bodies made from label maps of many organs, with kidneys of KiTS's label maps in place of their own.

A label map of organs leaves skin, fat and the wall of the abdomen open. They follow from how far a voxel is from
the convex hull of the organs in its slice, which is stored beside the tissues.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from kitsattn.errors import KitsattnError
from kitsattn.files import atomic_path
from kitsattn.labels import KIDNEY, TUMOUR
from kitsattn.synthesis.frame import AIR_HU, FLOOR_HU, PIXEL_MM, SLICE_MM, SLICES, blur, draw_frame, erode
from kitsattn.synthesis.kidneys import KidneyCrop
from kitsattn.synthesis.masses import draw_cyst_hu, draw_solid, paint_distractors, paint_kidney_mass
from kitsattn.synthesis.textures import Textures
from kitsattn.synthesis.tissues import BONES, BOWEL, KIDNEY_TISSUES, Palette, Tissue, draw_palette, tissue_table
from kitsattn.volume.archive import READ_ERRORS
from kitsattn.volume.geometry import Triple
from kitsattn.volume.volume import Volume

_FAR_MM = 100
_LEAST_PIXELS = 50
_DEPTH_UNIT_MM = 0.25
_SIDES = (Tissue.RIGHT_KIDNEY, Tissue.LEFT_KIDNEY)
_PELVIC_BONE = 0.02
_LEAST_KIDNEY_PIXELS = 150

_LABELS = np.zeros(len(Tissue), np.uint8)
_LABELS[list(KIDNEY_TISSUES)] = KIDNEY
_LABELS[Tissue.KIDNEY_TUMOUR] = TUMOUR


@dataclass(frozen=True)
class Body:
    """A patient's tissues.

    Attributes:
        name: Of the label map.
        tissues: `Tissue` of each voxel, (z, y, x), uint8.
        skin_mm: Distance from the hull of the organs in the slice, below 0 inside, (z, y, x), int8.
        depth: Distance from the kidney's surface within it, in units of 0.25 mm, (z, y, x), uint8.
        spacing_mm: Along z, y, x.
        kidney_planes: Slices with a kidney.
        kidney_centres: Centroid of the right and the left kidney as z, y, x; None where it is missing or cut.
    """

    name: str
    tissues: NDArray[np.uint8]
    skin_mm: NDArray[np.int8]
    depth: NDArray[np.uint8]
    spacing_mm: Triple
    kidney_planes: NDArray[np.intp]
    kidney_centres: tuple[tuple[int, int, int] | None, tuple[int, int, int] | None]


def prepare_body(labels: Volume, names: Mapping[int, str], target: Path) -> None:
    """Write a body as .npz.

    Args:
        labels: Label map of organs, uint8, (z, y, x).
        names: Organ by value.
        target: The file.

    Raises:
        KitsattnError: If no organ is a kidney.
    """
    table = tissue_table(names)
    tissues = table[labels.array]
    spacing_mm = labels.geometry.spacing_mm
    skin = np.full(tissues.shape, _FAR_MM, np.int8)
    for plane, distance in zip(tissues, skin, strict=True):
        hull = _hull(plane > 0)
        if hull is None:
            continue
        outside = ndimage.distance_transform_edt(~hull, sampling=spacing_mm[1:])
        inside = ndimage.distance_transform_edt(hull, sampling=spacing_mm[1:])
        distance[:] = np.clip(np.rint(outside - inside), -_FAR_MM, _FAR_MM)
    kidney = np.isin(tissues, _SIDES)
    with atomic_path(target) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(
            stream,
            tissues=tissues,
            skin_mm=skin,
            depth=kidney_depth(kidney, spacing_mm),
            spacing_mm=np.array(spacing_mm),
        )


def kidney_depth(kidney: NDArray[np.bool_], spacing_mm: Triple) -> NDArray[np.uint8]:
    """Return how deep each voxel is in the kidney, in units of 0.25 mm."""
    depth = np.zeros(kidney.shape, np.uint8)
    for box in ndimage.find_objects(kidney.astype(np.uint8)):
        grown = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)
        distance = ndimage.distance_transform_edt(kidney[grown], sampling=spacing_mm)
        depth[grown] = np.clip(distance / _DEPTH_UNIT_MM, 0, 255)
    return depth


def read_body(path: Path) -> Body:
    """Read what `prepare_body` wrote.

    Raises:
        KitsattnError: If the file is damaged.
    """
    try:
        with path.open("rb") as stream, np.load(stream) as stored:
            tissues, skin, depth = stored["tissues"], stored["skin_mm"], stored["depth"]
            spacing = stored["spacing_mm"]
    except (*READ_ERRORS, KeyError) as error:
        msg = f"{path} is damaged ({error}): delete it, and the training prepares it again"
        raise KitsattnError(msg) from error
    centres: list[tuple[int, int, int] | None] = []
    for side in _SIDES:
        places = np.argwhere(tissues == side)
        cut = not len(places) or places[:, 0].min() == 0 or places[:, 0].max() == len(tissues) - 1
        z, y, x = (0, 0, 0) if cut else (int(value) for value in places.mean(axis=0))
        centres.append(None if cut else (z, y, x))
    planes = np.flatnonzero(np.isin(tissues, _SIDES).any(axis=(1, 2)))
    z_mm, y_mm, x_mm = (float(value) for value in spacing)
    return Body(path.stem, tissues, skin, depth, (z_mm, y_mm, x_mm), planes, (centres[0], centres[1]))


def draw_body(
    rng: Generator, bodies: Sequence[Body], crops: Sequence[KidneyCrop], textures: Textures
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Draw a slab through a body, before noise and the scanner's other doings.

    Args:
        rng: Source of randomness.
        bodies: One of them is drawn.
        crops: Kidneys that may take the place of the body's own.
        textures: Noise.

    Returns:
        HU, (slices, height, width), and labels of the centre slice, (height, width).
    """
    body = bodies[int(rng.integers(len(bodies)))]
    depth = len(body.tissues)
    on_kidney = len(body.kidney_planes) and rng.random() < 0.5
    centre = int(rng.choice(body.kidney_planes)) if on_kidney else int(rng.integers(depth))
    step = SLICE_MM * np.exp(rng.normal(0.0, 0.15)) / body.spacing_mm[0]
    positions = centre + step * (np.arange(SLICES) - SLICES // 2)
    # A thick slice averages over what is within it: a second plane, some mm away, has a third of the weight.
    thick = rng.random() < 0.4
    apart = rng.uniform(1.0, 5.0) * (1 if rng.random() < 0.5 else -1) / body.spacing_mm[0]
    wanted = np.concatenate([positions, positions + apart]) if thick else positions
    planes = np.clip(np.rint(wanted), 0, depth - 1).astype(int)
    tissues, depths = body.tissues[planes], body.depth[planes]
    _replace_kidneys(rng, body, crops, planes, tissues, depths)

    labelled = np.argwhere(tissues[SLICES // 2] > 0)
    middle = tuple(labelled.min(axis=0) + np.ptp(labelled, axis=0) / 2) if len(labelled) else _middle(tissues)
    kidneys = np.argwhere(np.isin(tissues[SLICES // 2], KIDNEY_TISSUES))
    towards = tuple(kidneys[int(rng.integers(len(kidneys)))]) if len(kidneys) else None
    frame = draw_frame(rng, textures, pixel_mm=body.spacing_mm[1:], centre=middle, towards=towards)
    skin = frame.nearest(body.skin_mm[planes].view(np.uint8), _FAR_MM).view(np.int8)
    tissues, depths = frame.nearest(tissues, 0), frame.nearest(depths, 0)

    palette = draw_palette(rng)
    pelvis = float(np.mean(tissues == Tissue.SPONGY_BONE)) > _PELVIC_BONE
    _fill_body(rng, tissues, skin, textures, pelvis=pelvis)
    _fill_sinus(rng, tissues, textures)
    _draw_hila(rng, tissues, textures)
    _divide_kidneys(rng, tissues, depths, textures)
    hu = palette.mean_hu[tissues]
    if thick:
        hu = np.float32(0.65) * hu[:SLICES] + np.float32(0.35) * hu[SLICES:]
        tissues, skin = tissues[:SLICES], skin[:SLICES]
    _add_texture(rng, hu, tissues, palette, textures)
    _fill_bowel(rng, hu, tissues, textures)
    _paint_masses(rng, hu, tissues, palette, textures)
    labels = _LABELS[tissues]
    if rng.random() < 0.22 and labels[SLICES // 2].any():
        paint_kidney_mass(rng, hu, labels, textures, phase=palette.phase)
    if rng.random() < 0.45:
        paint_distractors(rng, hu, labels, skin < 0, textures)
    air = hu < 2 * FLOOR_HU
    hu = blur(np.maximum(hu, np.float32(FLOOR_HU)), rng.uniform(0.35, 0.8))
    hu[air] = AIR_HU
    return hu, labels[SLICES // 2]


def _hull(mask: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """Return the convex hull of a plane's voxels, or None where there are few."""
    places = np.argwhere(mask)
    if len(places) < _LEAST_PIXELS:
        return None
    try:
        hull = ConvexHull(places)
    except QhullError:
        return None
    rows, columns = np.indices(mask.shape)
    inside = np.ones(mask.shape, bool)
    for a, b, c in hull.equations:
        inside &= a * rows + b * columns + c <= 1e-9
    return inside


def _middle(tissues: NDArray[np.uint8]) -> tuple[float, float]:
    return (tissues.shape[1] - 1) / 2, (tissues.shape[2] - 1) / 2


def _replace_kidneys(
    rng: Generator,
    body: Body,
    crops: Sequence[KidneyCrop],
    planes: NDArray[np.intp],
    tissues: NDArray[np.uint8],
    depths: NDArray[np.uint8],
) -> None:
    """Put kidneys of KiTS's label maps in place of the body's own, or take one or both away."""
    missing = rng.random() < 0.06  # removed by surgery, or never there
    missing_side = int(rng.integers(2))
    exchange = rng.random() < 0.55
    for number, (side, place) in enumerate(zip(_SIDES, body.kidney_centres, strict=True)):
        gone = missing and number == missing_side
        if gone:
            own = tissues == side
            tissues[own], depths[own] = Tissue.UNLABELLED, 0
        if gone or not exchange or place is None or not crops or rng.random() < 0.15:
            continue
        own = tissues == side
        tissues[own], depths[own] = Tissue.UNLABELLED, 0
        crop = crops[int(rng.integers(len(crops)))]
        shift = rng.normal(0.0, (8.0, 4.0, 4.0)) / np.array(body.spacing_mm)
        crop.insert(tissues, depths, planes, np.array(place) + shift, side, body.spacing_mm)


def _fill_body(
    rng: Generator, tissues: NDArray[np.uint8], skin: NDArray[np.int8], textures: Textures, *, pelvis: bool
) -> None:
    """Fill what is not labelled: skin, fat of drawn thickness, the wall of the abdomen, strands and blobs within."""
    open_ = tissues == Tissue.UNLABELLED
    fat_mm = rng.uniform(3.0, 40.0)
    wall_mm = rng.uniform(4.0, 18.0)
    distance = skin.astype(np.float32)
    distance += np.float32(1.5) * textures.field(rng, 16.0, len(distance))
    tissues[open_ & (distance < fat_mm + 2.0)] = Tissue.SKIN
    tissues[open_ & (distance < fat_mm)] = Tissue.SUBCUTANEOUS_FAT
    tissues[open_ & (distance < 3.0)] = Tissue.WALL
    inner = open_ & (distance < 3.0 - wall_mm)
    tissues[inner] = Tissue.VISCERAL_FAT
    count = len(distance)
    amount = rng.uniform(-0.2, 0.8) if pelvis else rng.uniform(0.5, 1.8)
    blobs = textures.field(rng, rng.choice((4.0, 8.0)), count) > amount
    strands = np.abs(textures.field(rng, 4.0, count)) < rng.uniform(0.0, 0.08)
    tissues[inner & (blobs | strands)] = Tissue.SOFT_TISSUE
    if rng.random() < 0.6:  # muscles of the old are streaked with fat
        streaks = textures.field(rng, 2.0, count) > rng.uniform(0.6, 2.5)
        tissues[(tissues == Tissue.MUSCLE) & streaks] = Tissue.VISCERAL_FAT
    if rng.random() < 0.5:  # vessels of the mesentery
        vessels = textures.field(rng, 2.0, count) > rng.uniform(2.2, 3.0)
        tissues[inner & vessels] = Tissue.VEIN


def _fill_sinus(rng: Generator, tissues: NDArray[np.uint8], textures: Textures) -> None:
    """Put vessels and the renal pelvis into the hollow of each kidney, beside its fat; they are not kidney."""
    kidney = np.isin(tissues, KIDNEY_TISSUES)
    if not kidney.any() or rng.random() < 0.25:
        return
    reach = int(rng.integers(5, 10))
    hollow = erode(~erode(~kidney, reach), reach) & ~kidney
    hollow &= (tissues == Tissue.VISCERAL_FAT) | (tissues == Tissue.SOFT_TISSUE)
    content = textures.field(rng, float(rng.choice((2.0, 4.0))), len(tissues))
    tissues[hollow] = Tissue.VISCERAL_FAT
    tissues[hollow & (content > rng.uniform(-0.5, 1.0))] = Tissue.VEIN
    tissues[hollow & (content < rng.uniform(-1.5, -0.2))] = Tissue.URETER


def _draw_hila(rng: Generator, tissues: NDArray[np.uint8], textures: Textures) -> None:
    """Lead a vein, an artery or the renal pelvis from each kidney's middle towards the spine; none of it is kidney.

    Without contrast medium they look like kidney, and only their shape tells them apart.
    """
    count, height, width = tissues.shape
    middle = np.isin(tissues[SLICES // 2], KIDNEY_TISSUES)
    parts, _ = ndimage.label(middle)
    spine = np.flatnonzero((tissues[SLICES // 2] == Tissue.SPONGY_BONE).any(axis=0))
    midline = float(np.median(spine)) if len(spine) else width / 2
    rows, columns = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    for number, box in enumerate(ndimage.find_objects(parts), 1):
        if (parts[box] == number).sum() < _LEAST_KIDNEY_PIXELS or rng.random() < 0.15:
            continue
        row, column = (side.start + (side.stop - side.start - 1) / 2 for side in box)
        rise, run = rng.uniform(-25.0, 8.0) / PIXEL_MM, midline - column
        length = float(np.hypot(rise, run)) or 1.0
        kind = rng.choice((Tissue.VEIN, Tissue.URETER, Tissue.ARTERY), p=(0.3, 0.6, 0.1))
        wide = kind == Tissue.URETER  # a renal pelvis may be as wide as it is long
        reach = min(length, rng.uniform(20.0, 45.0 if wide else 60.0) / PIXEL_MM)
        along = ((rows - row) * rise + (columns - column) * run) / length
        across = np.abs((rows - row) * run - (columns - column) * rise) / length
        radius = rng.uniform(2.0, 16.0 if wide else 7.0) / PIXEL_MM * (1 + 0.3 * textures.field(rng, 8.0, count))
        tube = (across < radius) & (along > 0) & (along < reach)
        planes = np.arange(count) % SLICES
        near = np.abs(planes - rng.integers(SLICES)) * SLICE_MM <= rng.uniform(4.0, 16.0)
        replaced = [Tissue.VISCERAL_FAT, Tissue.SOFT_TISSUE, Tissue.VEIN, Tissue.URETER]
        if wide and rng.random() < 0.5:  # it begins within the kidney
            replaced += _SIDES
        tissues[tube & np.isin(tissues, replaced) & near[:, None, None]] = kind


def _divide_kidneys(rng: Generator, tissues: NDArray[np.uint8], depths: NDArray[np.uint8], textures: Textures) -> None:
    """Divide kidneys into cortex, pyramids of medulla, and calyces, by depth and noise.

    Calyces count as kidney, as in most label maps; what is dilated does not.
    """
    kidney = np.isin(tissues, _SIDES)
    if not kidney.any():
        return
    depth_mm = depths * np.float32(_DEPTH_UNIT_MM)
    count = len(tissues)
    cortex_mm = rng.uniform(4.0, 9.0)
    pyramids = textures.field(rng, 4.0, count)
    tissues[kidney & (depth_mm + 2.0 * pyramids > cortex_mm) & (pyramids > rng.uniform(-1.0, 0.3))] = Tissue.MEDULLA
    if rng.random() < 0.4:
        dilated = rng.random() < 0.25  # hydronephrosis
        calyx_mm = rng.uniform(6.0, 12.0) if dilated else rng.uniform(9.0, 16.0)
        inside = kidney & (depth_mm + 2.5 * textures.field(rng, 4.0, count) > calyx_mm)
        tissues[inside] = Tissue.URETER if dilated else Tissue.CALYX


def _add_texture(
    rng: Generator, hu: NDArray[np.float32], tissues: NDArray[np.uint8], palette: Palette, textures: Textures
) -> None:
    hu += palette.coarse_hu[tissues] * textures.field(rng, 4.0 if rng.random() < 0.5 else 8.0, SLICES)
    hu += palette.fine_hu[tissues] * textures.field(rng, 2.0, SLICES)
    if rng.random() < 0.85:  # the shell of a bone is denser than its middle
        bone = np.isin(tissues, BONES)
        hu[bone & ~erode(bone, int(rng.integers(1, 3)))] += np.float32(rng.uniform(80.0, 700.0))


def _fill_bowel(rng: Generator, hu: NDArray[np.float32], tissues: NDArray[np.uint8], textures: Textures) -> None:
    """Put gas, or contrast medium that was drunk, into parts of the bowel, within a wall."""
    drunk = rng.random() < 0.2
    contrast = rng.uniform(120.0, 450.0)
    for organ in BOWEL:
        part = tissues == organ
        if not part.any() or rng.random() < 0.3:
            continue
        inside = erode(part, int(rng.integers(1, 3)))
        field = textures.field(rng, 8.0, len(hu))
        if drunk:
            hu[inside & (field < rng.uniform(-0.5, 1.0))] = contrast
        if rng.random() < 0.7:
            hu[inside & (field > rng.uniform(0.2, 1.4))] = rng.uniform(-990.0, -700.0)


def _paint_masses(
    rng: Generator, hu: NDArray[np.float32], tissues: NDArray[np.uint8], palette: Palette, textures: Textures
) -> None:
    """Give the tumours and cysts that came with a kidney their own texture."""
    kidney_hu = float(palette.mean_hu[Tissue.RIGHT_KIDNEY])
    tumour = tissues == Tissue.KIDNEY_TUMOUR
    if tumour.any():
        hu[tumour] = draw_solid(rng, kidney_hu, palette.phase, textures, len(hu))[tumour]
    cyst = tissues == Tissue.KIDNEY_CYST
    if cyst.any():
        hu[cyst] = draw_cyst_hu(rng) + 2.0 * textures.field(rng, 2.0, len(hu))[cyst]
