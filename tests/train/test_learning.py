"""Whether a training keeps to its memory: a longer proof."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kitsattn.models.attention_deeplab import AttentionDeeplabConfig
from kitsattn.preprocess.store import PreparedDataset
from kitsattn.train.fold import FoldJob
from kitsattn.train.folds import Split
from kitsattn.train.recipe import Recipe

pytestmark = pytest.mark.slow

CONFIG = AttentionDeeplabConfig(
    slices=3,
    normalizer_channels=(8, 16),
    encoder_block="basic",
    encoder_depths=(1, 1, 1, 1),
    encoder_width=16,
    aspp_channels=32,
    aspp_rates=(1, 2),
    key_channels=16,
    low_level_channels=16,
    decoder_channels=32,
)
RECIPE = Recipe(
    epochs=12,
    batches_per_epoch=60,
    validation_batches=2,
    batch_size=8,
    patch_size=(64, 80),
    learning_rate=4e-3,
    schedule="polynomial",
    augment=False,
)


def job_of(prepared: PreparedDataset, folder: Path) -> FoldJob:
    """Return a training of two cases."""
    cases = prepared.cases[:2]
    return FoldJob(
        dataset=prepared,
        split=Split(cases, cases),
        fold=0,
        folds=1,
        model="attention-deeplab-tiny",
        config=CONFIG,
        recipe_name="test",
        recipe=RECIPE,
        seed=0,
        device=torch.device("cpu"),
        precision="fp32",
        workers=0,
        folder=folder,
    )


SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from test_learning import RECIPE, job_of
from kitsattn.preprocess.store import open_dataset
from kitsattn.train.fold import train_fold

recipe = replace(RECIPE, epochs=22, batches_per_epoch=6, patch_size=(64, 64))
train_fold(replace(job_of(open_dataset(Path(sys.argv[2])), Path(sys.argv[3])), recipe=recipe))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the journal has no memory on Windows")
def test_memory_does_not_grow_over_the_epochs(prepared: PreparedDataset, tmp_path: Path) -> None:
    """Twenty epochs after the second one, the process has at most 5 % more at its peak."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(Path(__file__).parent)]
    command += [str(prepared.folder), str(tmp_path / "fold")]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    lines = (tmp_path / "fold" / "journal.jsonl").read_text().splitlines()
    peaks = [json.loads(line)["peak_memory_bytes"] for line in lines]
    assert len(peaks) == 22
    assert peaks[-1] < 1.05 * peaks[1], peaks
