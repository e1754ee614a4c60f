"""Slabs of prepared cases."""

import numpy as np

from kitsattn.labels import CYST, KIDNEY, TUMOUR
from kitsattn.synthesis.draw import Material
from kitsattn.synthesis.frame import erode
from kitsattn.synthesis.textures import Textures
from kitsattn.synthesis.volumes import draw_volume


def test_labels_agree_with_the_picture(opened: Material, textures: Textures) -> None:
    """Kidneys are neither fat nor air, a pixel off their border; air has its own value, and cysts count as kidney."""
    kidneys, tumours, names = 0, 0, set()
    for seed in range(60):
        hu, labels, name = draw_volume(np.random.default_rng(seed), opened.painted, textures)
        names.add(name)
        assert hu.shape == (5, 224, 288)
        assert hu.dtype == np.float32
        assert labels.shape == (224, 288)
        assert labels.dtype == np.uint8
        assert hu.min() == -1000
        assert not ((hu > -1000) & (hu < -299)).any()
        assert set(np.unique(labels).tolist()) <= {0, KIDNEY, TUMOUR}
        inside = erode((labels > 0)[None], 2)[0]
        kidneys, tumours = kidneys + inside.any(), tumours + (labels == TUMOUR).any()
        if inside.any():
            assert (hu[2][inside] > -60).mean() > 0.98
    assert names == {case.case_id for case in opened.painted}
    assert kidneys > 30
    assert tumours > 10


def test_cysts_are_kidney(opened: Material, textures: Textures) -> None:
    """In a case with cysts, places of cysts get the label 1: with cysts as background there would be less of it."""
    case = next(one for one in opened.painted if CYST in one.locations)
    with case.opened() as (_, stored):
        height = stored.shape[0]
        with_cyst = [index for index in range(height) if (stored[index] == CYST).any()]
    assert with_cyst
    for seed in range(20):
        _, labels, _ = draw_volume(np.random.default_rng(seed), [case], textures)
        assert labels.max() <= TUMOUR
        assert KIDNEY in labels or not (labels > 0).any() or TUMOUR in labels


def test_beyond_the_scan_is_background(opened: Material, textures: Textures) -> None:
    """A sample larger than the slice has air and no label there."""
    for seed in range(20):
        hu, labels, _ = draw_volume(np.random.default_rng(seed), opened.painted, textures)
        outside = np.ones(labels.shape, bool)
        outside[8:-8, 8:-8] = False
        assert not labels[outside & (hu[2] == -1000)].any()
