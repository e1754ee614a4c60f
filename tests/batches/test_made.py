"""Batches of made scans, and of the real slices that validate their training."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from kitsattn.batches.loader import BatchSettings, SlabBatch
from kitsattn.batches.made import HeldOutSlices, MadeBatches
from kitsattn.batches.processes import load_batches
from kitsattn.errors import KitsattnError
from kitsattn.preprocess.plan import Plan
from kitsattn.synthesis.data import find_starter_data
from kitsattn.synthesis.draw import Shares
from kitsattn.synthesis.prepare import PLAN, PreparedMaterial
from kitsattn.synthesis.slices import plain_slab

SHARES: Shares = (1.0, 1.0, 1.0, 0.0)
SMALL: Plan = replace(PLAN, patch_size=(64, 96))
SETTINGS = BatchSettings(
    batch_size=4, patch_size=(64, 96), slices=5, slab_step_mm=5.0, air=SMALL.air, seed=3, augment=True
)


@pytest.fixture(scope="module")
def batches(material: PreparedMaterial) -> MadeBatches:
    """Batches of small samples."""
    return MadeBatches(material, SHARES, SMALL, SETTINGS)


def test_a_batch_is_normalised_slabs_with_labels(batches: MadeBatches) -> None:
    """Values are those of HU from -300 to 300, as the plan normalises them; each sample says its source."""
    sources = set()
    for index in range(4):
        batch = batches[0, 0, index]
        assert batch.images.shape == (4, 5, 64, 96)
        assert batch.images.dtype == torch.float32
        assert batch.labels.shape == (4, 64, 96)
        assert batch.labels.dtype == torch.uint8
        assert float(batch.images.min()) >= (-300 - 50) / 150 - 1e-6
        assert float(batch.images.max()) <= (300 - 50) / 150 + 1e-6
        assert int(batch.labels.max()) <= 2
        sources |= set(batch.cases)
    assert sources == {"painted", "bodies", "slices"}


def test_a_number_gives_the_same_batch_always(batches: MadeBatches, material: PreparedMaterial) -> None:
    """Seed, stream, epoch and index decide, not what was drawn before."""
    first = batches[0, 2, 7]
    again = MadeBatches(material, SHARES, SMALL, SETTINGS)[0, 2, 7]
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    for other in ((0, 2, 8), (0, 3, 7), (1, 2, 7)):
        assert not torch.equal(batches[other].images, first.images)
    assert not torch.equal(
        MadeBatches(material, SHARES, SMALL, replace(SETTINGS, seed=4))[0, 2, 7].images, first.images
    )


def test_worker_processes_draw_the_same(
    batches: MadeBatches, material: PreparedMaterial, check_processes: Callable[[Sequence[Dataset[SlabBatch]]], None]
) -> None:
    """Two processes give what this one gives, in the same order, from both streams."""
    check_processes([batches, HeldOutSlices(material.data.held_out_slices, SMALL, SETTINGS)])


def test_processes_share_a_batch(batches: MadeBatches, material: PreparedMaterial) -> None:
    """Each of two draws every second sample, of training and of validation; together they are the batch of one."""
    held_out = material.data.held_out_slices
    parts = [
        (MadeBatches(material, SHARES, SMALL, settings), HeldOutSlices(held_out, SMALL, settings))
        for settings in (replace(SETTINGS, rank=rank, ranks=2) for rank in (0, 1))
    ]
    whole = batches, HeldOutSlices(held_out, SMALL, SETTINGS)
    for stream, one in enumerate(whole):
        for rank, part in enumerate(parts):
            own, batch = part[stream][stream, 1, 2], one[stream, 1, 2]
            assert torch.equal(own.images, batch.images[rank::2])
            assert torch.equal(own.labels, batch.labels[rank::2])
            assert own.cases == batch.cases[rank::2]


def test_held_out_slices_come_in_turn(material: PreparedMaterial) -> None:
    """As they are, one after the other and from the beginning again, whatever the epoch; three slices, two a batch."""
    held_out = material.data.held_out_slices
    names = [one.name for one in held_out]
    assert len(names) == 3
    batches = HeldOutSlices(held_out, SMALL, replace(SETTINGS, batch_size=2))
    cases = [batches[1, 0, index].cases for index in range(3)]
    assert cases == [(names[0], names[1]), (names[2], names[0]), (names[1], names[2])]
    batch = batches[1, 5, 0]
    image, labels = plain_slab(held_out[0], (64, 96))
    np.testing.assert_allclose(batch.images[0], (np.clip(image, -300, 300) - 50) / 150, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(batch.labels[0], labels)


def test_opened_material_stays_in_its_process(batches: MadeBatches) -> None:
    """What is sent to a worker process is where the material is, not its voxels."""
    _ = batches[0, 0, 0]
    assert batches._opened is not None
    sent = batches.__getstate__()
    assert sent["_opened"] is None
    assert sent["_material"] is batches._material
    assert batches._opened is not None


def test_damaged_material_ends_the_training_in_one_line(starter_folder: Path, tmp_path: Path) -> None:
    """The error of the process that draws comes through the loader as it is."""
    material = PreparedMaterial(tmp_path, tmp_path / "painted", find_starter_data(starter_folder))
    batches = MadeBatches(material, SHARES, SMALL, SETTINGS)
    with pytest.raises(KitsattnError, match="holds no finished data set"):
        next(load_batches([batches], [(0, 0, 0)], workers=0))
