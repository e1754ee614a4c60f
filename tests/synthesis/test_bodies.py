"""Bodies made from label maps of organs."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from kitsattn.errors import KitsattnError
from kitsattn.labels import KIDNEY, TUMOUR
from kitsattn.synthesis import bodies
from kitsattn.synthesis.bodies import draw_body, kidney_depth, prepare_body, read_body
from kitsattn.synthesis.draw import Material
from kitsattn.synthesis.frame import erode
from kitsattn.synthesis.masses import paint_distractors
from kitsattn.synthesis.textures import Textures
from kitsattn.synthesis.tissues import Palette, Tissue, draw_palette
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.volume import Volume

NAMES = {1: "kidney_right", 2: "kidney_left", 3: "liver", 4: "spleen"}


def box_labels() -> Volume:
    """Return a liver and a spleen with two kidneys between them, boxes in 30 x 40 x 60 voxels; the left one is cut."""
    labels = np.zeros((30, 40, 60), np.uint8)
    labels[:, 10:30, 5:15], labels[:, 10:30, 45:55] = 3, 4
    labels[5:25, 15:25, 18:26] = 1
    labels[5:30, 15:25, 34:42] = 2
    labels[7] = 0
    return Volume(labels, Geometry.axial(labels.shape, (3.0, 2.0, 2.0)))


def test_a_body_has_tissues_hull_and_depth(tmp_path: Path) -> None:
    """Worked out by hand: the hull of the organs is a rectangle, and distances are in mm."""
    prepare_body(box_labels(), NAMES, tmp_path / "s0001.npz")
    body = read_body(tmp_path / "s0001.npz")
    assert body.name == "s0001"
    assert body.spacing_mm == (3.0, 2.0, 2.0)
    assert body.tissues[10, 20, 10] == Tissue.LIVER
    assert body.tissues[10, 20, 20] == Tissue.RIGHT_KIDNEY
    skin = body.skin_mm[10]
    assert skin.dtype == np.int8
    assert (skin[10:30, 5:55] < 0).all()
    assert (skin[15, 4], skin[15, 0], skin[9, 20], skin[12, 30]) == (2, 10, 2, -6)
    assert (body.skin_mm[7] == 100).all()  # a slice without organs
    assert body.depth[14, 19, 21] == 32  # 8 mm from the nearest voxel beyond, (18 - 1) to 21, in quarters
    assert not body.depth[body.tissues == Tissue.LIVER].any()
    assert body.kidney_planes.tolist() == [5, 6, *range(8, 30)]
    assert body.kidney_centres == ((14, 19, 21), None)


def test_depth_is_that_of_a_distance_transform() -> None:
    """Whole numbers of quarters, rounded down, on any spacing."""
    kidney = np.random.default_rng(0).random((12, 20, 20)) < 0.9
    kidney[0], kidney[-1] = False, False
    depth = kidney_depth(kidney, (3.0, 1.5, 1.0))
    wanted = ndimage.distance_transform_edt(kidney, sampling=(3.0, 1.5, 1.0)) / 0.25
    np.testing.assert_array_equal(depth, wanted.astype(np.uint8))


def test_a_damaged_body_is_one_line(tmp_path: Path) -> None:
    """It says what to delete."""
    path = tmp_path / "s0001.npz"
    prepare_body(box_labels(), NAMES, path)
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:60] + bytes(100) + whole[160:]):
        path.write_bytes(content)
        with pytest.raises(KitsattnError) as refusal:
            read_body(path)
        assert str(refusal.value).startswith(f"{path} is damaged (")
        assert str(refusal.value).endswith("): delete it, and the training prepares it again")


def test_labels_agree_with_the_picture(opened: Material, textures: Textures) -> None:
    """Within what is labelled, a pixel off its border, there is neither fat nor air, in nearly all draws all over."""
    shares, kidneys, tumours = [], 0, 0
    for seed in range(60):
        hu, labels = draw_body(np.random.default_rng(seed), opened.bodies, opened.kidneys, textures)
        assert hu.shape == (5, 224, 288)
        assert hu.dtype == np.float32
        assert labels.shape == (224, 288)
        assert labels.dtype == np.uint8
        assert np.isfinite(hu).all()
        assert -1100 < hu.min() < -900
        assert set(np.unique(labels).tolist()) <= {0, KIDNEY, TUMOUR}
        inside = erode((labels == KIDNEY)[None])[0]
        kidneys, tumours = kidneys + inside.any(), tumours + (labels == TUMOUR).any()
        if inside.any():
            shares.append(float((hu[2][inside] > -60).mean()))
    assert kidneys > 25
    assert 5 < tumours < 50
    assert np.mean(shares) > 0.98
    assert np.median(shares) == 1


def test_kidneys_come_from_kits_or_are_the_body_s_own(
    opened: Material, textures: Textures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without painted masses, a tumour is drawn only with a kidney that was cut out of a label map of KiTS."""
    monkeypatch.setattr(bodies, "paint_kidney_mass", lambda *_, **__: None)
    tumours = 0
    for seed in range(40):
        _, labels = draw_body(np.random.default_rng(seed), opened.bodies, [], textures)
        assert not (labels == TUMOUR).any()
        _, labels = draw_body(np.random.default_rng(seed), opened.bodies, opened.kidneys, textures)
        tumours += (labels == TUMOUR).any()
    assert tumours > 2


def test_distractors_leave_labels_alone(opened: Material, textures: Textures, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is painted beside kidneys gets nothing that is labelled, and finds no label in the air."""
    painted = 0

    def watched(
        rng: np.random.Generator, hu: np.ndarray, labels: np.ndarray, inside: np.ndarray, *more: Textures
    ) -> None:
        nonlocal painted
        before = hu.copy(), labels.copy()
        paint_distractors(rng, hu, labels, inside, *more)
        np.testing.assert_array_equal(labels, before[1])
        np.testing.assert_array_equal(hu[labels > 0], before[0][labels > 0])
        painted += bool((hu != before[0]).any())

    monkeypatch.setattr(bodies, "paint_distractors", watched)
    for seed in range(20):
        draw_body(np.random.default_rng(seed), opened.bodies, opened.kidneys, textures)
    assert painted > 3


def mark(tissue: Tissue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw a tissue at 3000 HU, and bodies without masses: it is then seen wherever a picture has more than 2500."""

    def marked(rng: np.random.Generator) -> Palette:
        palette = draw_palette(rng)
        palette.mean_hu[tissue] = 3000
        return palette

    monkeypatch.setattr(bodies, "draw_palette", marked)
    monkeypatch.setattr(bodies, "paint_distractors", lambda *_: None)
    monkeypatch.setattr(bodies, "paint_kidney_mass", lambda *_, **__: None)


def test_medulla_lies_within_kidneys(opened: Material, textures: Textures, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is seen in kidneys and nowhere else, and leaves them their cortex."""
    mark(Tissue.MEDULLA, monkeypatch)
    seen = 0
    for seed in range(20):
        hu, labels = draw_body(np.random.default_rng(seed), opened.bodies, opened.kidneys, textures)
        medulla = hu[2] > 2500  # in a thick slice, of both planes: beside bone one of them comes to 2000
        seen += bool(medulla.any())
        assert (labels[medulla] == KIDNEY).all()
        assert not medulla.any() or medulla.sum() < 0.9 * (labels == KIDNEY).sum()
    assert seen > 5


def test_a_wide_renal_pelvis_is_no_kidney(
    opened: Material, textures: Textures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no label, though kidney lies on both sides of it in some draws."""
    mark(Tissue.URETER, monkeypatch)
    within = 0
    for seed in range(40):
        hu, labels = draw_body(np.random.default_rng(seed), opened.bodies, opened.kidneys, textures)
        pelvis = hu[2] > 2500
        assert not labels[pelvis].any()
        within += int((pelvis & ndimage.binary_fill_holes(labels == KIDNEY)).sum()) > 20
    assert within > 2
