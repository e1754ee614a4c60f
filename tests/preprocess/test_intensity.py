import numpy as np

from kitsattn.preprocess.intensity import clip_hu, normalise


def test_clip_and_normalise_by_hand() -> None:
    """-1000 HU clips to -300; minus a mean of 100, over a deviation of 80, that is -5."""
    hu = clip_hu(np.array([-1000, 180, 900], np.int16), (-300.0, 300.0))

    assert hu.tolist() == [-300, 180, 300]
    assert normalise(hu, 100.0, 80.0).tolist() == [-5, 1, 2.5]
