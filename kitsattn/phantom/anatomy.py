"""The organs of a phantom other than its kidneys, from the bowel to the bones, in the order they are painted.

Places and sizes are those of an average adult, from general anatomical knowledge, in mm: (z, y, x) growing to
Superior, Posterior and Left from the centre of the second lumbar vertebra.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from kitsattn.phantom.outline import DIRECTIONS, Outline
from kitsattn.phantom.patient import Patient, chance
from kitsattn.phantom.shapes import Builder, Ellipsoid, Layer

_LUMBAR_MM = (-107.0, -71.0, -36.0, 0.0, 34.0)
_THORACIC_MM = tuple(34.0 + 29.0 * level for level in range(1, 12))

_COLON = (
    (-125, -40, -100), (-100, -28, -108), (-60, -12, -112), (-15, -22, -108), (-8, -62, -88), (-22, -90, -50),
    (-34, -97, 0), (-18, -92, 48), (22, -72, 88), (52, -28, 106), (30, -5, 112), (-30, 6, 114), (-80, 0, 112),
    (-125, -28, 98), (-150, -40, 55), (-152, -15, 12), (-178, 14, 0), (-225, 34, 0),
)  # fmt: skip
"""Caecum, ascending, transverse, descending and sigmoid colon, rectum."""


def build_anatomy(patient: Patient, outline: Outline) -> Mapping[Layer, list[Ellipsoid]]:
    """Return all organs of a patient but the kidneys, by layer, in the order they are painted."""
    builder = Builder(patient, outline)
    _add_small_bowel(builder)
    _add_upper_abdomen(builder)
    _add_colon(builder)
    _add_vessels_of_the_liver(builder)
    _add_muscles(builder)
    _add_pelvis(builder)
    _add_vertebrae(builder)
    _add_ribs(builder)
    _add_great_vessels(builder)
    return builder.layers


def _add_upper_abdomen(builder: Builder) -> None:
    """Liver, gallbladder, spleen, stomach, duodenum, pancreas."""
    size = float(builder.rng.uniform(0.93, 1.06))
    builder.organ("liver", (95, -22, -82), (80, 82, 72), size=size)
    builder.organ("liver", (30, -5, -92), (62 + builder.rng.uniform(-12, 12), 58, 42), size=size)
    builder.organ("liver", (88, -66, -8), (38, 40, 68), turn_deg=-8, size=size)
    builder.organ("bile", (22, -62, -58), (27, 13, 14), turn_deg=25, mottle_hu=0)
    size = float(builder.rng.uniform(0.85, 1.15))
    arterial = builder.patient.phase == "arterial"
    builder.organ("spleen", (84, 22, 100), (50, 44, 24), turn_deg=68, mottle_hu=16 if arterial else 3, size=size)
    filled = float(builder.rng.uniform(0.75, 1.1))
    level = float(builder.abdominal((0, builder.rng.uniform(-78, -55), 0))[1])
    for tissue, wall_mm, above in (("bowel wall", 0, np.inf), ("chyme", 5, np.inf), ("gas", 5, level)):
        for centre, radii in (((88, -58, 56), (44, 38, 42)), ((108, -24, 64), (34, 36, 36))):
            inner = (radii[0] - wall_mm, radii[1] - wall_mm, radii[2] - wall_mm)
            builder.organ(tissue, centre, inner, turn_deg=-35, size=filled, mottle_hu=12, above=above)
    antrum = [builder.abdominal(point) for point in ((66, -72, 38), (40, -78, 12), (30, -64, -18))]
    builder.tube("bowel wall", antrum, (18, 15, 11), layer="abdomen")
    builder.tube("chyme", antrum, (13, 10, 6), layer="abdomen", mottle_hu=15)
    points = ((28, -58, -30), (18, -38, -46), (-18, -26, -46), (-32, -34, -20), (-26, -42, 18))
    duodenum = [builder.abdominal(point) for point in points]
    builder.tube("bowel wall", duodenum, 12, layer="abdomen")
    builder.tube("chyme", duodenum, 9, layer="abdomen", mottle_hu=15)
    points = ((2, -36, -32), (22, -42, -22), (30, -52, 2), (42, -42, 34), (56, -14, 74))
    pancreas = [builder.abdominal(point) for point in points]
    builder.tube("pancreas", pancreas, (13, 12, 8, 9, 8), layer="abdomen", mottle_hu=18)


def _add_vessels_of_the_liver(builder: Builder) -> None:
    paths = {
        "portal vein": (
            (((10, -44, -2), (32, -36, -18), (58, -32, -42)), (7, 7, 6)),
            (((58, -32, -42), (72, -20, -78), (92, -8, -112)), (6, 4.5, 2.5)),
            (((58, -32, -42), (48, -5, -90), (20, 10, -105)), (5, 4, 2)),
            (((58, -32, -42), (86, -58, -22), (98, -78, -8)), (5, 4, 3)),
            (((10, -44, -2), (34, -38, 30), (56, -6, 78)), (5, 5, 4)),
        ),
        "vein": (
            (((122, -18, -22), (104, -2, -62), (70, 12, -108)), (5.5, 4.5, 2.5)),
            (((122, -20, -24), (108, -50, -56), (84, -78, -76)), (5.5, 4, 2)),
            (((122, -24, -16), (104, -62, 4), (88, -80, 12)), (5, 4, 2)),
        ),
    }
    for tissue, tubes in paths.items():
        for points, radii in tubes:
            builder.tube(tissue, [builder.abdominal(point) for point in points], radii, layer="abdomen")


def _add_small_bowel(builder: Builder) -> None:
    """Loops on a jittered lattice in the middle of the abdomen, with the mesentery's vessels between them."""
    rng = builder.rng
    content = "oral contrast" if chance(rng, 0.15) else "chyme"
    # The great vessels and the kidneys, the transverse colon, liver and stomach.
    occupied = np.array(
        [
            [(-200, -45, -40), (100, 0, 40)],
            [(-60, -45, -150), (100, 0, 150)],
            [(-20, -150, -150), (100, -85, 150)],
            [(0, -150, -150), (100, 0, 25)],
        ]
    )
    lattice = [(z, y, x) for z in range(-165, 51, 25) for y in (-92, -67, -42) for x in range(-84, 94, 28)]
    for z, y, x in lattice:
        place = np.array([z, y, x])
        centre = place + rng.uniform(-7, 7, 3)
        direction = rng.uniform(-1, 1, 3)
        radius = float(rng.uniform(9.5, 14.0))
        gas, present = chance(rng, 0.12), chance(rng, 0.85)
        if not present or any(np.all((low < place) & (place < high)) for low, high in occupied):
            continue
        step = 12.0 * direction / np.sqrt(np.sum(direction * direction))
        loop = [builder.abdominal(centre + share * step) for share in (-1.0, 1.0)]
        builder.tube("bowel wall", loop, radius, layer="abdomen", mottle_hu=8)
        builder.tube("gas" if gas else content, loop, radius - 3.0, layer="abdomen", mottle_hu=15)
        if (x + y) % 3 == 0:
            root = builder.abdominal((np.clip(z + 30, -70, 20), -46, 4))
            builder.tube("vein", [root, 0.4 * root + 0.6 * loop[0], loop[0]], (3, 2.2, 1.2), layer="abdomen")


def _add_colon(builder: Builder) -> None:
    """A chain of haustra: first all walls, then what is in them."""
    rng = builder.rng
    corners = np.array([builder.abdominal(point) for point in _COLON])
    length = np.concatenate(([0.0], np.cumsum(np.sqrt(np.sum(np.diff(corners, axis=0) ** 2, axis=1)))))
    width = float(rng.uniform(0.85, 1.1)) * builder.patient.frame
    gassy = float(rng.uniform(0.1, 0.6))
    haustra = []
    at = 0.0
    while at < length[-1]:
        radius = width * (24.0 - 9.0 * at / length[-1]) * float(rng.uniform(0.85, 1.12))
        centre = np.array([np.interp(at, length, corners[:, axis]) for axis in range(3)]) + rng.uniform(-2, 2, 3)
        level = centre[1] + radius * (3.2 * gassy * float(rng.random()) - 1.0)
        haustra.append((centre, radius, level))
        at += 0.95 * radius
    for tissue, wall_mm, mottle_hu in (("bowel wall", 0.0, 5.0), ("stool", 2.5, 70.0), ("gas", 2.5, 0.0)):
        for centre, radius, level in haustra:
            builder.layers["abdomen"].append(
                Ellipsoid(
                    centre,
                    np.full(3, radius - wall_mm),
                    np.eye(3),
                    builder.patient.hu(tissue),
                    mottle_hu,
                    above_mm=level if tissue == "gas" else np.inf,
                    in_cavity=True,
                )
            )


def _add_muscles(builder: Builder) -> None:
    """Psoas, square muscle of the loin, muscles of the back, crura of the diaphragm, adrenals."""
    lean = float(builder.rng.uniform(0.85, 1.12))
    psoas = np.array([(45, 6, 24), (5, 4, 31), (-35, 0, 38), (-75, -4, 43), (-120, -22, 52), (-215, -78, 86)])
    square = np.array([(40, 34, 52), (-10, 34, 66), (-60, 36, 76), (-95, 30, 84)])
    for side in (-1, 1):
        for path, radii in ((psoas, (5, 13, 18, 22, 20, 16)), (square, (6, 10, 11, 8))):
            points = [builder.on_spine(point) for point in path * (1, 1, side)]
            builder.tube("muscle", points, lean * np.array(radii), mottle_hu=8)
        for z in range(-170, 330, 40):
            upper = min(1.0, max(0.55, 1.0 - 0.0022 * z))
            builder.part("muscle", (z, 55, side * 16), (58, 19 * upper, 13), turn_deg=side * 8, mottle_hu=14)
            builder.part("muscle", (z, 53, side * 46), (58, 22 * upper, 26), turn_deg=side * -8, mottle_hu=14)
        crus = [
            builder.on_spine((z, y, side * x))
            for z, y, x in ((95, -24, 14), (60, -22, 14), (25, -17, 11), (-5, -15, 9))
        ]
        builder.tube("muscle", crus, (4, 5, 4, 2))
        for turn in (25, -35):
            builder.part("adrenal", (46, -4, side * 44), (14, 10, 2.4), turn_deg=side * (90 + turn), mottle_hu=6)


def _add_pelvis(builder: Builder) -> None:
    """Sacrum, iliac wings, hips, gluteal muscles, bladder."""
    builder.part("muscle", (-320, -10, 0), (90, 75, 125), mottle_hu=14)
    for side in (-1, 1):
        builder.part("muscle", (-195, 36, side * 82), (78, 40, 52), turn_deg=side * -30, mottle_hu=14)
        builder.part("muscle", (-160, -18, side * 88), (50, 9, 42), turn_deg=side * -42, mottle_hu=8)
        for hu, thinner in ((560.0, 0.0), (230.0, 2.2)):
            plate = (54 - thinner, 7.5 - thinner, 54 - thinner)
            builder.part("cortical bone", (-158, -14, side * 88), plate, turn_deg=side * -44, hu=hu, mottle_hu=30)
            joint = (34 - thinner, 30 - thinner, 15 - thinner)
            builder.part("cortical bone", (-226, -40, side * 84), joint, turn_deg=side * 20, hu=hu, mottle_hu=30)
            head = (24.0 - thinner,) * 3
            builder.part("cortical bone", (-240, -42, side * 92), head, hu=hu + 60, mottle_hu=30)
    builder.part("urine", (-225, -78, 0), (26, 28, 36), mottle_hu=0)
    for hu, thinner in ((480.0, 0.0), (170.0, 2.0)):
        builder.part("cortical bone", (-152, 4, 0), (36 - thinner, 19 - thinner, 50 - thinner), hu=hu, mottle_hu=30)
        builder.part("cortical bone", (-185, 2, 0), (34 - thinner, 9 - thinner, 28 - thinner), hu=hu, mottle_hu=30)
    builder.part("canal", (-150, 16, 0), (30, 5, 10))


def _add_vertebrae(builder: Builder) -> None:
    patient = builder.patient
    density = 1.0 - 0.011 * (patient.age - 35.0)
    spongy = patient.hu("trabecular bone") * density + 40.0
    levels = (*_LUMBAR_MM, *_THORACIC_MM)
    for level, z in enumerate(levels):
        size = 1.0 if level < len(_LUMBAR_MM) else 0.84
        half = 13.5 if level < len(_LUMBAR_MM) else 11.0
        around, end = (z - half, z + half), z + half + 8.0
        builder.part("disc", (z + half + 4, 0, 0), (60, 15 * size, 21 * size), z=(z + half, end))
        builder.part("cortical bone", (z, 0, 0), (70, 16 * size, 22.5 * size), z=around, hu=420.0)
        inner = (z - half + 1.5, z + half - 1.5)
        builder.part("trabecular bone", (z, 0, 0), (70, 14.5 * size, 21 * size), z=inner, hu=spongy, mottle_hu=35)
        arch = (z - half, z + 4.0)
        for side in (-1, 1):
            builder.part("cortical bone", (z, 18, side * 14), (9, 8, 4.5), hu=380.0, mottle_hu=40)
            builder.part(
                "cortical bone", (z - 10, 32, side * 17), (15, 8, 7), turn_deg=side * 35, hu=430.0, mottle_hu=60
            )
            reach = 22.0 if level < len(_LUMBAR_MM) else 16.0
            builder.part(
                "cortical bone", (z - 3, 25, side * (18 + reach / 2)), (5, 4, reach / 1.7), turn_deg=side * 14, hu=360.0
            )
            builder.part("cortical bone", (z - 6, 36, side * 7), (18, 3.4, 10), turn_deg=side * -38, z=arch, hu=430.0)
        builder.part("cortical bone", (z - 11, 53, 0), (8.5, 17, 3), turn_deg=0.0, hu=380.0, mottle_hu=50)
    top = levels[-1]
    for z in range(-140, int(top), 30):
        builder.part("fat", (z, 26, 0), (45, 9.5, 12.5), mottle_hu=0)
        builder.part("canal", (z, 25, 0), (45, 7.5, 9.5), mottle_hu=0)


def _add_ribs(builder: Builder) -> None:
    """Ribs run down from the spine around the wall; the lower two end free, the others in cartilage."""
    frame = builder.patient.frame
    for level, z in enumerate(_THORACIC_MM):
        sweep_deg, drop = ((62, 36), (100, 62), (128, 84))[min(level, 2)]
        # The head of the rib joins its vertebra.
        ribs = {side: [builder.on_spine((z + 8, 20, side * 24))] for side in (-1, 1)}
        for share in np.linspace(0.08, 1.0, 13):
            height = (z + 8.0 - drop * np.sin(0.5 * np.pi * share)) * frame
            layers = builder.outline.layers(height)
            for side, points in ribs.items():
                turn = np.radians(90.0 - side * (14.0 + (sweep_deg - 14.0) * share))
                place = int((turn + np.pi) / (2.0 * np.pi) * DIRECTIONS) % DIRECTIONS
                radius = 0.5 * (float(layers.cavity[place]) + float(layers.muscle[place]))
                y = builder.outline.axis_y_mm + radius * np.sin(turn)
                points.append(np.array([height, y, radius * np.cos(turn)]))
        for side, points in ribs.items():
            builder.tube("cortical bone", points, 3.1, flat=1.9, mottle_hu=60)
            builder.tube("trabecular bone", points, 1.4, flat=3.0, mottle_hu=40)
            if level > 1:
                end = points[-1] + np.array([0.0, 0.0, -side * 2.0]) * frame
                builder.tube("cartilage", [points[-2], end], 4.0, flat=1.7, mottle_hu=20)


def _add_great_vessels(builder: Builder) -> None:
    """Heart, aorta, vena cava and their branches; lime in the aorta of the old."""
    rng, patient = builder.rng, builder.patient
    builder.part("heart", (172, -84, 26), (62, 46, 54), turn_deg=-30, mottle_hu=8)
    builder.part("muscle", (150, -42, 8), (120, 7, 8))
    for side in (-1, 1):
        for _ in range(18):
            hilum = builder.on_spine((rng.uniform(140, 200), -50, side * 34))
            end = builder.on_spine((rng.uniform(135, 260), rng.uniform(-100, 15), side * rng.uniform(50, 92)))
            builder.tube("vein", [hilum, 0.5 * (hilum + end) + rng.uniform(-6, 6, 3), end], (3.2, 1.8, 0.7))
    aorta = [builder.on_spine(p) for p in ((320, -22, 14), (160, -25, 17), (80, -30, 12), (0, -31, 10), (-72, -29, 6))]
    builder.tube("artery", aorta, (12, 11.5, 11, 10, 8.5))
    cava = [
        builder.on_spine(p)
        for p in ((150, -46, -24), (105, -40, -24), (40, -31, -22), (-20, -29, -18), (-78, -26, -14))
    ]
    builder.tube("vein", cava, (13, 13, 12, 11, 11))
    for side in (-1, 1):
        for tissue, shift, radii in (("vein", 5, (9, 7.5, 7)), ("artery", -3, (7, 6, 5))):
            points = (
                (-72, -28 + shift, side * 6),
                (-118, -28 + shift, side * 30),
                (-165, -46 + shift, side * 55),
                (-235, -108 + shift, side * 72),
            )
            builder.tube(tissue, [builder.on_spine(point) for point in points], (*radii, radii[-1]))
    root = [builder.on_spine(p) for p in ((22, -36, 9), (14, -52, 6), (-30, -58, 2), (-75, -62, -8))]
    builder.tube("artery", root, (4.5, 4, 3.5, 2.5))
    builder.tube("portal vein", [point + np.array([0, 0, -11]) for point in root[1:]], (5.5, 5, 3))
    coeliac = [builder.on_spine(p) for p in ((38, -38, 9), (40, -56, 8), (42, -60, -14))]
    builder.tube("artery", coeliac, (4, 3.5, 3))
    for kidney in patient.kidneys:
        z, y, x = kidney.centre_mm
        hilum = np.array([z, y - 10.0 * patient.frame, x - kidney.side * 24.0 * patient.frame])
        cava_x, aorta_x = (-18, 0) if kidney.side < 0 else (-10, 12)
        vein = [builder.on_spine((16, -36, cava_x)), builder.on_spine((14, -40, kidney.side * 14)), hilum]
        builder.tube("vein", vein, (4.6, 4, 3.4))
        builder.tube("artery", [builder.on_spine((18, -28, aorta_x)), hilum + np.array([4.0, 4.0, 0.0])], (2.6, 2.0))
    _add_calcifications(builder, aorta)


def _add_calcifications(builder: Builder, aorta: Sequence[NDArray[np.float64]]) -> None:
    """Plaques of lime on the wall of the aorta, more of them with age."""
    rng, patient = builder.rng, builder.patient
    path = np.array(aorta)
    for _ in range(int(max(0.0, patient.age - 52.0) * rng.uniform(0.0, 1.2))):
        at, turn = rng.uniform(0.0, len(path) - 1.0), rng.uniform(0.0, 2.0 * np.pi)
        outwards = np.array([0.0, np.sin(turn), np.cos(turn)])
        along = np.array([np.interp(at, range(len(path)), path[:, axis]) for axis in range(3)])
        plaque = np.array([rng.uniform(2.0, 6.0), 1.3, rng.uniform(1.5, 4.0)])
        axes = np.stack([np.array([1.0, 0.0, 0.0]), outwards, np.array([0.0, -np.cos(turn), np.sin(turn)])])
        centre = along + 9.5 * patient.frame * outwards
        builder.layers["retroperitoneum"].append(Ellipsoid(centre, plaque, axes, patient.hu("calcification")))
