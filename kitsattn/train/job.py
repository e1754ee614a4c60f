"""What decides the training of one fold."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kitsattn.labels import ScoringProtocol, protocol_of
from kitsattn.models.registry import ModelConfig
from kitsattn.precision import Precision
from kitsattn.preprocess.plan import Plan
from kitsattn.preprocess.store import PreparedDataset
from kitsattn.ranks import ALONE, Ranks
from kitsattn.synthesis.prepare import PreparedMaterial
from kitsattn.train.folds import Split
from kitsattn.train.recipe import Recipe

_MOST_WORKERS = 12
"""nnU-Net's number; there are two batches in memory for each worker."""
_CORES_TO_SHARE = 4
"""On two cores a worker beside one thread trained 1.6 images/s (5 x 512 x 512), two threads without it 2.7."""


@dataclass(frozen=True, kw_only=True)
class FoldJob:
    """Everything that decides the training of one fold.

    Attributes:
        dataset: The prepared data set.
        split: Which cases to learn from and which are held out.
        fold: Number of the fold.
        folds: Number of folds.
        model: Registered name of the network.
        config: Its settings.
        recipe_name: Name of the recipe, for the checkpoint.
        recipe: Numbers of the training.
        seed: Seed of weights and batches.
        device: Where to train.
        precision: Number format of convolutions and matrix products; weights and losses stay fp32.
        workers: Processes that draw batches; 0 draws in the training process.
        folder: Where checkpoints and journal go.
        encoder_weights: File of published weights of the encoder by torchvision's names; None initialises it randomly.
        initial_weights: Checkpoint whose weights are the start (fine-tuning); None initialises the network randomly.
        ranks: The processes that train together.
        made: What scans are made from while the network is trained; None trains on prepared cases.
    """

    dataset: PreparedDataset
    split: Split
    fold: int
    folds: int
    model: str
    config: ModelConfig
    recipe_name: str
    recipe: Recipe
    seed: int
    device: torch.device
    precision: Precision
    workers: int
    folder: Path
    encoder_weights: Path | None = None
    initial_weights: Path | None = None
    ranks: Ranks = ALONE
    made: PreparedMaterial | None = None

    @property
    def plan(self) -> Plan:
        """The data set's plan, with the recipe's patch size where it has one of its own."""
        size = self.recipe.patch_size
        return self.dataset.plan if size is None else replace(self.dataset.plan, patch_size=size)

    @property
    def protocol(self) -> ScoringProtocol:
        """Which regions are scored."""
        return protocol_of(self.dataset.labels)


def default_workers(device: torch.device, ranks: Ranks = ALONE, *, made: bool = False) -> int:
    """Return how many processes should draw batches for each one that trains.

    For a GPU all cores but its own, at most 12. On a CPU one core draws faster than many train, and on few of them
    training wants each: none below four cores, else one. Made scans cost more, so that a second core draws them.
    """
    if device.type == "cpu":
        return int(ranks.cores >= (2 if made else _CORES_TO_SHARE))
    return min(_MOST_WORKERS, ranks.cores - 1)
