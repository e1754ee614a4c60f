"""Prediction of blocks and volumes, with networks whose answer is known."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kitsattn.predict.scan as predict_scan
from kitsattn.blocks import packing
from kitsattn.blocks.packing import PackedConv2d
from kitsattn.checkpoint.file import Checkpoint, save_checkpoint
from kitsattn.checkpoint.header import TTA, Header, Provenance
from kitsattn.config import to_json
from kitsattn.errors import KitsattnError
from kitsattn.labels import KITS19_LABELS
from kitsattn.models import build_model, model_entry
from kitsattn.precision import Precision
from kitsattn.predict.infer import Ensemble, Inference, Member, load_ensemble, predict_block, reach
from kitsattn.predict.scan import CERTAIN, predict_volume
from kitsattn.predict.windows import cover
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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_convolutions_are_packed_for_bf16_on_a_cpu_only(tmp_path: Path, precision: Precision) -> None:
    """Where PyTorch can; what is computed in fp32 stays as it is."""
    torch.manual_seed(0)
    name, header = "attention-deeplab-tiny", _ensemble().headers[0]
    header = replace(header, model=name, config=to_json(model_entry(name).config), plan=to_json(PLAN))
    save_checkpoint(tmp_path / "a.safetensors", Checkpoint(header, build_model(name).state_dict(), {}))
    ensemble = load_ensemble([tmp_path / "a.safetensors"], torch.device("cpu"), precision)
    packed = any(isinstance(module, PackedConv2d) for module in ensemble.members[0].model.modules())
    assert packed == (precision == "bf16" and packing._can_pack())


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
    monkeypatch.setattr(predict_scan, "BLOCK", block)
    rng = np.random.default_rng(0)
    array = rng.integers(-200, 200, (11, 48, 40)).astype(np.int16)
    scan = Volume(array, Geometry.axial(array.shape, (2.0, 1.0, 1.0)))
    ensemble = _ensemble(Member(Recorder(4), 5, 4.0))
    labels, _ = predict_volume(ensemble, scan, Inference(batch_size=2))
    above = array[np.clip(np.arange(11) + 4, 0, 10)]
    # Logits are (0, value, -value): positive values are class 1, negative ones class 2.
    expected = np.where(above > 0, 1, np.where(above < 0, 2, 0))
    assert labels.array.dtype == np.uint8
    assert labels.geometry == scan.geometry
    np.testing.assert_array_equal(labels.array, expected)


class Greedy(Recorder):
    """Holds no more than some slabs at a time."""

    def __init__(self, most: int) -> None:
        super().__init__(0)
        self.most = most

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError(str(x.shape))
        return super().forward(x)


def _scan(slices: int) -> Volume:
    array = np.random.default_rng(0).integers(-200, 200, (slices, 40, 40)).astype(np.int16)
    return Volume(array, Geometry.axial(array.shape, (2.0, 1.0, 1.0)))


def test_a_named_batch_that_does_not_fit_is_one_clear_line() -> None:
    """Out of memory names what to lower."""
    with pytest.raises(KitsattnError, match="lower --batch-size"):
        predict_volume(_ensemble(Member(Greedy(2), 1, None)), _scan(8), Inference(batch_size=7))
    with pytest.raises(KitsattnError, match="not even one slice fits into the memory of cpu"):
        predict_volume(_ensemble(Member(Greedy(0), 1, None)), _scan(8))


def test_a_batch_of_our_own_choice_is_halved_until_it_fits() -> None:
    """Nothing is lost of the label map, and what was found to fit is kept."""
    greedy = Greedy(1)
    labels, _ = predict_volume(_ensemble(Member(greedy, 1, None)), _scan(40))
    expected, _ = predict_volume(_ensemble(Member(Recorder(0), 1, None)), _scan(40))
    np.testing.assert_array_equal(labels.array, expected.array)
    assert {len_ for len_, *_ in greedy.shapes} == {1}


class Leaning(nn.Module):
    """Says something else of a mirrored slice: its logits are the values times a ramp along rows and columns."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        value = x[:, 0] * torch.linspace(0, 1, height)[:, None] + torch.linspace(0, 2, width)
        return torch.stack([torch.zeros_like(value), value, -value], dim=1)


def test_mirror_images_are_averaged() -> None:
    """The mean over the four of what each, predicted on its own, gives when it is mirrored back."""
    slices = np.random.default_rng(0).normal(size=(3, 32, 32)).astype(np.float32)
    ensemble = _ensemble(Member(Leaning(), 1, None))
    settings = {"slice_spacing_mm": 1.0, "batch_size": 2}

    def mirrored(*axes: int) -> np.ndarray:
        flipped = np.ascontiguousarray(np.flip(slices, axes)) if axes else slices
        return np.flip(predict_block(ensemble, flipped, range(3), **settings), axes)  # type: ignore[arg-type]

    got = predict_block(ensemble, slices, range(3), tta="flips", **settings)  # type: ignore[arg-type]
    expected = np.mean([mirrored(), mirrored(-1), mirrored(-2), mirrored(-2, -1)], axis=0)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert np.abs(got - mirrored()).max() > 0.01


def test_a_network_asks_for_its_mirror_images() -> None:
    """Each of an ensemble is averaged over its own, unless one choice is made for all; all networks weigh alike."""
    slices = np.random.default_rng(0).normal(size=(3, 32, 32)).astype(np.float32)
    settings = {"slice_spacing_mm": 1.0, "batch_size": 2}
    plain, sided = Member(Leaning(), 1, None), Member(Leaning(), 1, None, tta="sides")

    def predict(*members: Member, tta: TTA | None = None) -> np.ndarray:
        return predict_block(_ensemble(*members), slices, range(3), tta=tta, **settings)  # type: ignore[arg-type]

    np.testing.assert_array_equal(predict(sided), predict(plain, tta="sides"))
    np.testing.assert_array_equal(predict(sided, tta="none"), predict(plain))
    np.testing.assert_allclose(predict(plain, sided), (predict(plain) + predict(sided)) / 2, atol=1e-6)
    np.testing.assert_allclose(predict(plain, sided).sum(axis=0), 1, atol=1e-6)
    assert np.abs(predict(sided) - predict(plain)).max() > 0.01


def test_probabilities_are_kept_where_asked_for() -> None:
    """On the scan's grid, in sixteen bits; their largest is the label, and outside the body all is background."""
    scan = _scan(3)
    scan.array[:, :12] = -1000
    labels, probabilities = predict_volume(_ensemble(Member(Recorder(0), 1, None)), scan, keep_probabilities=True)
    assert probabilities is not None
    assert probabilities.dtype == np.uint16
    np.testing.assert_allclose(probabilities.sum(axis=0, dtype=np.int64), CERTAIN, atol=2)
    np.testing.assert_array_equal(probabilities.argmax(axis=0), labels.array)
    assert (probabilities[0, :, 0] == CERTAIN).all()
    assert predict_volume(_ensemble(Member(Recorder(0), 1, None)), scan)[1] is None


class Finder(Recorder):
    """Finds class 1 where the scan is above 100 HU, and background elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        value = x[:, self.slice_of_slab] - 1.0
        return torch.stack([torch.zeros_like(value), value, value - 1], dim=1)


def _torso(bright: list[range]) -> Volume:
    array = np.zeros((60, 40, 40), np.int16)
    for slices in bright:
        array[slices.start : slices.stop, 8:32, 8:32] = 200
    return Volume(array, Geometry.axial(array.shape, (2.5, 1.0, 1.0)))


@pytest.mark.parametrize(
    ("bright", "most"),
    [
        ([range(20, 36)], 60 // 4 + 36),
        ([range(16)], 60 // 4 + 24),
        ([range(52, 60), range(30, 35)], 60),
        ([range(20, 24), range(27, 39)], 60 // 4 + 40),
    ],
    ids=["middle", "lowest", "two", "gap"],
)
def test_a_fast_prediction_finds_what_a_full_one_does_with_fewer_slices(bright: list[range], most: int) -> None:
    """Kidneys in the middle, at an end, apart from each other, interrupted."""
    scan, finder = _torso(bright), Finder(0)
    fast, _ = predict_volume(_ensemble(Member(finder, 1, None)), scan, Inference(fast=True))
    full, _ = predict_volume(_ensemble(Member(Finder(0), 1, None)), scan)
    np.testing.assert_array_equal(fast.array, full.array)
    assert fast.array.any()
    windows = len(cover((40, 40), (32, 32), 0.5))
    assert sum(shape[0] for shape in finder.shapes) / windows <= most


def test_a_fast_prediction_that_finds_no_kidney_looks_everywhere() -> None:
    """5 ml between two of its first slices are found because nothing else was."""
    scan, finder = _torso([range(27, 30)]), Finder(0)
    fast, _ = predict_volume(_ensemble(Member(finder, 1, None)), scan, Inference(fast=True))
    assert np.flatnonzero(fast.array.any(axis=(1, 2))).tolist() == [27, 28, 29]
    assert sum(shape[0] for shape in finder.shapes) == 60 * len(cover((40, 40), (32, 32), 0.5))


def _locator(finder: Finder) -> Ensemble:
    """Return networks with a plan of their own; a look for kidneys does without the mirror images they ask for."""
    plan = Plan(spacing_mm=(2.0, 2.0), mean_hu=50.0, std_hu=50.0, patch_size=(32, 32))
    return replace(_ensemble(Member(finder, 1, None, tta="sides")), plan=plan)


def _slices_seen(model: Recorder, slice_size: int, window: int) -> float:
    windows = len(cover((slice_size, slice_size), (window, window), 0.5))
    return sum(shape[0] for shape in model.shapes) / windows


@pytest.mark.parametrize(
    ("bright", "most"),
    [
        ([range(20, 36)], 12 + 13 + 12),
        ([range(16)], 15 + 12),
        ([range(50, 60), range(30, 35)], 12 + 30),
        ([range(60)], 60),
    ],
    ids=["middle", "lowest", "two", "everywhere"],
)
def test_a_located_prediction_finds_what_a_full_one_does_with_fewer_slices(bright: list[range], most: int) -> None:
    """The locator sees every 4th slice; the large networks predict all from 12 below its findings to 12 above."""
    scan, large, small = _torso(bright), Finder(0), Finder(0)
    located, probabilities = predict_volume(
        _ensemble(Member(large, 1, None)), scan, locator=_locator(small), keep_probabilities=True
    )
    full, expected = predict_volume(_ensemble(Member(Finder(0), 1, None)), scan, keep_probabilities=True)
    np.testing.assert_array_equal(located.array, full.array)
    assert located.array.any()
    assert _slices_seen(large, 40, 32) == most
    assert _slices_seen(small, 20, 32) == 60 // 4
    assert probabilities is not None
    assert expected is not None
    done = np.flatnonzero((probabilities[0] != CERTAIN).any(axis=(1, 2)))
    assert len(done) == most
    np.testing.assert_array_equal(probabilities[:, done], expected[:, done])
    np.testing.assert_array_equal(probabilities.sum(axis=0, dtype=np.int64) > CERTAIN - 3, np.ones(full.array.shape))


def test_a_locator_that_finds_no_kidney_leaves_all_slices_to_the_networks() -> None:
    """What the networks find themselves is kept."""
    scan, large, small = _torso([range(27, 30)]), Finder(0), Finder(0)
    located, _ = predict_volume(_ensemble(Member(large, 1, None)), scan, locator=_locator(small))
    assert np.flatnonzero(located.array.any(axis=(1, 2))).tolist() == [27, 28, 29]
    assert _slices_seen(large, 40, 32) == 60
    assert _slices_seen(small, 20, 32) == 60 // 4


class Blind(Finder):
    """Finds only what is above 250 HU where one standard deviation is 50 HU and the mean 50 HU."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - 3.0)


def test_what_the_networks_find_at_the_edge_is_followed() -> None:
    """A tumour that the locator does not see is predicted whole where it goes on beyond the 30 mm."""
    scan = _torso([range(20, 57)])
    scan.array[20:36][scan.array[20:36] == 200] = 300
    large = Finder(0)
    located, _ = predict_volume(_ensemble(Member(large, 1, None)), scan, locator=_locator(Blind(0)))
    full, _ = predict_volume(_ensemble(Member(Finder(0), 1, None)), scan)
    np.testing.assert_array_equal(located.array, full.array)
    assert _slices_seen(large, 40, 32) == 60 - 10


def test_slices_far_from_what_was_located_are_background() -> None:
    """What the networks alone would find there is left out: the price of fewer slices."""
    scan = _torso([range(20), range(50, 60)])
    scan.array[:20][scan.array[:20] == 200] = 300
    located, _ = predict_volume(_ensemble(Member(Finder(0), 1, None)), scan, locator=_locator(Blind(0)))
    assert np.flatnonzero(located.array.any(axis=(1, 2))).tolist() == list(range(20))


def test_a_locator_and_a_fast_prediction_exclude_each_other() -> None:
    """Both choose the slices."""
    ensemble = _ensemble(Member(Finder(0), 1, None))
    with pytest.raises(KitsattnError, match="leave out either `fast` or the locator"):
        predict_volume(ensemble, _torso([]), Inference(fast=True), locator=ensemble)


def test_progress_of_the_search_has_a_label_of_its_own() -> None:
    """Both labels begin at 0 and end with all slices."""
    ensemble, seen = _ensemble(Member(Finder(0), 1, None)), []
    predict_volume(
        ensemble, _torso([range(20, 36)]), locator=ensemble, progress=lambda *one: seen.append(one), label="a"
    )
    for label in ("a: find kidneys", "a"):
        own = [(done, total) for name, done, total in seen if name == label]
        assert (own[0], own[-1]) == ((0, 60), (60, 60))
        assert own == sorted(own)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"overlap": 1.0}, {"overlap": -0.1}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    """Each names itself."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Inference(**wrong)
