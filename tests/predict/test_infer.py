"""Prediction of blocks and volumes, with networks whose answer is known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kitsattn.predict.run as predict_run
from kitsattn.checkpoint.header import Header, Provenance
from kitsattn.errors import KitsattnError
from kitsattn.labels import KITS19_LABELS
from kitsattn.predict.infer import Ensemble, Member, predict_block, reach
from kitsattn.predict.run import predict_volume
from kitsattn.preprocess.plan import Plan
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.volume import Volume

PLAN = Plan(spacing_mm=(1.0, 1.0), mean_hu=0.0, std_hu=100.0, patch_size=(32, 32))


class Recorder(nn.Module):
    """Says of each pixel what one slice of its slab holds: logits are (0, value, -value)."""

    def __init__(self, slice_of_slab: int) -> None:
        super().__init__()
        self.slice_of_slab = slice_of_slab
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        value = x[:, self.slice_of_slab]
        return torch.stack([torch.zeros_like(value), value, -value], dim=1)


def _ensemble(*members: Member) -> Ensemble:
    made = Provenance(
        kitsattn="0", torch="0", dataset="d", synthetic=True, licence="l", citation="c", recipe="r", precision="fp32",
        fold=0, folds=5, seed=0, epoch=1, created="now",
    )  # fmt: skip
    header = Header(model="m", config={}, plan={}, labels=KITS19_LABELS, provenance=made)
    return Ensemble((Path("a"),), (header,), members, PLAN, torch.device("cpu"), "fp32")


def _expected(slices: np.ndarray) -> Any:
    logits = np.stack([np.zeros_like(slices), slices, -slices])
    weights = np.exp(logits)
    return weights / weights.sum(axis=0)


@pytest.mark.parametrize("shape", [(32, 32), (20, 27), (50, 71)])
def test_windows_together_give_what_one_pass_would(shape: tuple[int, int]) -> None:
    """Smaller, equal or larger than the window: weights cancel, padding is cut away, every pixel has its own answer."""
    slices = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    model = Recorder(1)
    got = predict_block(_ensemble(Member(model, 3, None)), slices, range(4), slice_spacing_mm=1.0, batch_size=3)
    assert got.shape == (3, 4, *shape)
    np.testing.assert_allclose(got, _expected(slices), atol=1e-5)
    assert {seen[1:] for seen in model.shapes} == {(3, 32, 32)}
    assert max(seen[0] for seen in model.shapes) == 3


def test_what_lies_beyond_a_small_slice_is_air() -> None:
    """The window is filled with the plan's air, -300 HU prepared, not with a tissue."""
    model = Recorder(0)
    kept: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, arguments: kept.append(arguments[0]))
    slices = np.ones((1, 20, 20), np.float32)
    predict_block(_ensemble(Member(model, 1, None)), slices, range(1), slice_spacing_mm=1.0, batch_size=1)
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[6:26, 6:26] = True
    assert (kept[0][0, 0, inside] == 1.0).all()
    assert (kept[0][0, 0, ~inside] == -3.0).all()


def test_probabilities_of_several_networks_are_averaged() -> None:
    """Each looks at its own slab: one at its centre, one two slices above it."""
    slices = np.random.default_rng(0).normal(size=(6, 32, 32)).astype(np.float32)
    ensemble = _ensemble(Member(Recorder(0), 1, None), Member(Recorder(2), 3, 10.0))
    assert reach(ensemble, 5.0) == 2
    got = predict_block(ensemble, slices, range(6), slice_spacing_mm=5.0, batch_size=4)
    above = slices[[2, 3, 4, 5, 5, 5]]
    np.testing.assert_allclose(got, (_expected(slices) + _expected(above)) / 2, atol=1e-5)


@pytest.mark.parametrize("block", [1, 4, 100])
def test_blocks_do_not_change_the_label_map(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slab that reaches over the border of a block sees the same slices as in one block."""
    monkeypatch.setattr(predict_run, "BLOCK", block)
    rng = np.random.default_rng(0)
    array = rng.integers(-200, 200, (11, 48, 40)).astype(np.int16)
    scan = Volume(array, Geometry.axial(array.shape, (2.0, 1.0, 1.0)))
    labels = predict_volume(_ensemble(Member(Recorder(4), 5, 4.0)), scan, batch_size=2)
    above = array[np.clip(np.arange(11) + 4, 0, 10)]
    # Logits are (0, value, -value): positive values are class 1, negative ones class 2.
    expected = np.where(above > 0, 1, np.where(above < 0, 2, 0))
    assert labels.array.dtype == np.uint8
    assert labels.geometry == scan.geometry
    np.testing.assert_array_equal(labels.array, expected)


def test_a_batch_that_does_not_fit_is_one_clear_line() -> None:
    """Out of memory names what to lower."""

    class Greedy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError(str(x.shape))

    array = np.zeros((2, 40, 40), np.int16)
    scan = Volume(array, Geometry.axial(array.shape, (2.0, 1.0, 1.0)))
    with pytest.raises(KitsattnError, match="lower --batch-size"):
        predict_volume(_ensemble(Member(Greedy(), 1, None)), scan, batch_size=7)
