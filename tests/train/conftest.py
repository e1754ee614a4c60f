"""A finished training that tests look at, or go on from."""

import pytest
import torch

from kitsattn.models import model_entry
from kitsattn.preprocess.store import PreparedDataset
from kitsattn.train.fold import train_fold
from kitsattn.train.folds import make_splits
from kitsattn.train.job import FoldJob
from kitsattn.train.recipe import Recipe


@pytest.fixture(scope="session")
def trained(prepared: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> FoldJob:
    """A short training of the registered tiny network on the painted cases; it is finished."""
    splits = make_splits(prepared.cases)
    job = FoldJob(
        dataset=prepared,
        split=splits[0],
        fold=0,
        folds=len(splits),
        model="attention-deeplab-tiny",
        config=model_entry("attention-deeplab-tiny").config,
        recipe_name="test",
        recipe=Recipe(
            epochs=2,
            batches_per_epoch=2,
            validation_batches=1,
            batch_size=4,
            patch_size=(64, 64),
            learning_rate=5e-3,
            schedule="polynomial",
        ),
        seed=1,
        device=torch.device("cpu"),
        precision="fp32",
        workers=0,
        folder=tmp_path_factory.mktemp("trained"),
    )
    train_fold(job)
    return job
