"""Batches from prepared cases."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kitsattn.batches.augment import source_size
from kitsattn.batches.loader import BatchSettings, SlabBatches
from kitsattn.batches.slabs import slab_indices
from kitsattn.preprocess.store import PreparedDataset

SETTINGS = BatchSettings(
    batch_size=4, patch_size=(32, 40), slices=5, slab_step_mm=None, air=-5.0, seed=3, augment=False
)


def _batches(prepared: PreparedDataset, settings: BatchSettings = SETTINGS) -> SlabBatches:
    return SlabBatches([prepared.open_case(case) for case in prepared.cases], settings)


def test_a_batch_is_slabs_with_the_labels_of_their_centres(prepared: PreparedDataset) -> None:
    """Every sample is found in its case: the slab at the place where the centre's labels are."""
    batch = _batches(prepared)[0, 0, 0]
    assert batch.images.shape == (4, 5, 32, 40)
    assert batch.images.dtype == torch.float32
    assert batch.labels.shape == (4, 32, 40)
    assert batch.labels.dtype == torch.uint8
    found = 0
    for image, labels, case_id in zip(batch.images.numpy(), batch.labels.numpy(), batch.cases, strict=True):
        case = prepared.open_case(case_id)
        depth = case.shape[0]
        for centre in range(depth):
            slab = case.read_slices(slab_indices(centre, depth, 5, 1))
            windows = np.lib.stride_tricks.sliding_window_view(slab[2], (32, 40))
            for top, left in np.argwhere((windows == image[2]).all(axis=(2, 3))):
                np.testing.assert_array_equal(slab[:, top : top + 32, left : left + 40], image)
                np.testing.assert_array_equal(case.read_labels(centre)[top : top + 32, left : left + 40], labels)
                found += 1
    assert found == 4


def test_the_last_third_of_a_batch_holds_foreground(prepared: PreparedDataset) -> None:
    """One of four samples is centred on kidney or tumour, in every batch."""
    batches = _batches(prepared)
    for index in range(10):
        assert batches[0, 0, index].labels[-1].any()


def test_patches_that_reach_beyond_the_slice_are_filled_with_air(prepared: PreparedDataset) -> None:
    """Its value is the plan's, its label background."""
    batch = _batches(prepared, replace(SETTINGS, patch_size=(96, 96)))[0, 0, 0]
    assert (batch.images[:, :, 0, :] == -5.0).all()
    assert not batch.labels[:, 0, :].any()
    assert (batch.images[:, 2].amax((1, 2)) > -4.0).all()


def test_patches_reach_every_part_of_the_slice_with_augmentation_too(prepared: PreparedDataset) -> None:
    """The larger cut-out may reach beyond the slice, the patch in its middle goes from border to border."""
    case = prepared.open_case(prepared.cases[0])
    _, height, width = case.shape
    size = (height - 6, width - 4)
    source = source_size(size)
    assert source[0] > height
    batches = SlabBatches([case], replace(SETTINGS, patch_size=size, augment=True))
    top, left = ((cut - kept) // 2 for cut, kept in zip(source, size, strict=True))

    def keep_the_middle(data: np.ndarray, seg: np.ndarray) -> dict[str, np.ndarray]:
        middle = (..., slice(top, top + size[0]), slice(left, left + size[1]))
        return {"data": data[middle], "seg": seg[middle]}

    batches.transform = keep_the_middle
    slices = case.read_slices(range(case.shape[0]))
    places = set()
    for index in range(40):
        for image in batches[0, 0, index].images.numpy():
            windows = np.lib.stride_tricks.sliding_window_view(slices, size, axis=(1, 2))
            places |= {(int(y), int(x)) for _, y, x in np.argwhere((windows == image[2]).all(axis=(3, 4)))}
    assert {y for y, _ in places} == set(range(7))
    assert {x for _, x in places} == set(range(5))


@pytest.mark.parametrize("augment", [True, False])
def test_a_number_gives_the_same_batch_always(prepared: PreparedDataset, *, augment: bool) -> None:
    """Seed, stream, epoch and index decide, nothing else: not what was drawn before, not the global generators."""
    settings = replace(SETTINGS, augment=augment)
    first = _batches(prepared, settings)
    np.random.seed(99)  # noqa: NPY002 - the generator that augmentation uses
    before = np.random.get_state()[1][:5].tolist()  # type: ignore[index] # noqa: NPY002
    batch = first[0, 2, 7]
    assert np.random.get_state()[1][:5].tolist() == before  # type: ignore[index] # noqa: NPY002
    again = _batches(prepared, settings)
    assert torch.equal(again[0, 2, 7].images, batch.images)
    for other in ((0, 2, 8), (0, 3, 7), (1, 2, 7)):
        assert not torch.equal(again[other].images, batch.images)
    assert not torch.equal(_batches(prepared, replace(settings, seed=4))[0, 2, 7].images, batch.images)


def test_augmentation_keeps_size_labels_and_most_of_the_picture(prepared: PreparedDataset) -> None:
    """Patches come out at their size, labels stay whole, and the slices of a slab turn together."""
    batches = _batches(prepared, replace(SETTINGS, augment=True, batch_size=16))
    assert source_size((32, 40)) == (48, 48)
    images, labels = batches[0, 0, 0].images, batches[0, 0, 0].labels
    assert images.shape == (16, 5, 32, 40)
    assert set(labels.unique().tolist()) <= {0, 1, 2}
    assert labels.any()
    kidney = images[:, 2][labels == 1]
    background = images[:, 2][labels == 0]
    assert kidney.mean() > background.mean() + 1
    # Neighbouring slices of the painted kidneys look alike; turned or mirrored apart they would not.
    alike = [np.corrcoef(image[2].flatten(), image[3].flatten())[0, 1] for image in images]
    assert np.mean(alike) > 0.75
