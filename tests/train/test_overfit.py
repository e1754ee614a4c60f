"""The whole way from scans to scores, where the right answer is known by heart."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kitsattn.datasets.find import find_dataset
from kitsattn.files import write_json
from kitsattn.jobs import HERE
from kitsattn.labels import KITS19_LABELS
from kitsattn.models import model_entry
from kitsattn.preprocess.run import preprocess_dataset
from kitsattn.train.folds import Split
from kitsattn.train.job import FoldJob
from kitsattn.train.recipe import Recipe
from kitsattn.train.run import train_run
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.nifti import write_nifti
from kitsattn.volume.volume import Volume

SHAPE = (8, 128, 144)


def _paint(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scan and labels of a body with two large kidneys, one of them with a tumour, that taper along z."""
    generator = np.random.default_rng(seed)
    z, y, x = np.indices(SHAPE)
    radius = np.hypot((y - 64) / 58, (x - 72) / 68)
    scan = np.where(radius < 0.85, 40, np.where(radius < 1, -100, -1000))
    labels = np.zeros(SHAPE, np.uint8)
    taper = 1 - 0.08 * np.abs(z - 3.5)
    for centre_x in (42, 102):
        shift_y, shift_x = generator.integers(-4, 5, 2)
        kidney = np.hypot((y - 70 - shift_y) / 24, (x - centre_x - shift_x) / 18) < taper
        scan[kidney], labels[kidney] = 190, 1
    tumour = np.hypot((y - 54 - shift_y) / 13, (x - 102 - shift_x) / 13) < taper
    scan[tumour], labels[tumour] = 110, 2
    return (scan + generator.normal(0, 10, SHAPE)).round().astype(np.int16), labels


@pytest.mark.slow
def test_two_cases_are_learnt_by_heart(tmp_path: Path) -> None:
    """Dice above 0.98 in both regions, whole scans through the prediction that users run."""
    for number in range(2):
        scan, labels = _paint(number)
        geometry = Geometry.axial(SHAPE, (5.0, 2.5, 2.5))
        case = tmp_path / "raw" / f"case_{number:05}"
        write_nifti(case / "imaging.nii.gz", Volume(scan, geometry), axes="IPL")
        write_nifti(case / "segmentation.nii.gz", Volume(labels, geometry), axes="IPL")
    description = {"name": "two", "synthetic": True, "labels": dict(KITS19_LABELS), "licence": "CC0-1.0"}
    write_json(tmp_path / "raw" / "kitsattn-dataset.json", {**description, "citation": "painted for this test"})
    dataset = preprocess_dataset(find_dataset(tmp_path / "raw"), tmp_path / "prepared", workers=HERE).dataset
    job = FoldJob(
        dataset=dataset,
        split=Split(dataset.cases, dataset.cases),
        fold=0,
        folds=1,
        model="attention-deeplab-tiny",
        config=model_entry("attention-deeplab-tiny").config,
        recipe_name="by heart",
        recipe=Recipe(
            epochs=4,
            batches_per_epoch=100,
            validation_batches=2,
            batch_size=4,
            optimizer="adamw",
            weight_decay=1e-3,
            learning_rate=4e-3,
            schedule="polynomial",
            warmup_share=0.05,
            ema_decay=0.95,
            augment=False,
        ),
        seed=0,
        device=torch.device("cpu"),
        precision="fp32",
        workers=0,
        folder=tmp_path / "run",
    )
    (result,) = train_run([job])
    for region, metrics in result.scores.mean.items():
        assert metrics["dice"] > 0.98, (region, result.scores.mean)
