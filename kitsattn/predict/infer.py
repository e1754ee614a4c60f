"""Networks at work: an ensemble of checkpoints that turns prepared slices into mean probabilities."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import pad

from kitsattn.batches.slabs import slab_indices, slice_step, window_overlap
from kitsattn.blocks.folding import fold_batch_norm
from kitsattn.blocks.packing import pack_convolutions
from kitsattn.checkpoint.file import Checkpoint, load_checkpoint, load_model
from kitsattn.checkpoint.header import TTA, Header
from kitsattn.config import from_json
from kitsattn.errors import KitsattnError
from kitsattn.models import model_entry
from kitsattn.precision import Precision, mixed_precision, to_device
from kitsattn.predict.windows import cover, importance
from kitsattn.preprocess.plan import Plan

_log = logging.getLogger(__name__)

_TRIED_SIZE = (64, 64)
_MOST_ERROR, _MOST_ERROR_BF16 = 1e-3, 0.1
"""Of logits, by their spread: folding rounds in the seventh digit, bf16 in the third, and a wrong pair errs by 1."""

_MIRRORED: Mapping[TTA, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "sides": ((), (-1,)),
    "flips": ((), (-1,), (-2,), (-2, -1)),
}
"""The axes that test-time augmentation flips; training mirrors the same ones."""


@dataclass(frozen=True, kw_only=True)
class Inference:
    """How networks are run over a scan.

    Attributes:
        batch_size: Slabs in one forward pass; None takes what suits the device, and less where its memory is short.
        tta: Mirror images in-plane over which the probabilities are averaged; None takes each network's own.
        overlap: Share of a window that is in its neighbour too, where a slice needs several; in [0, 1).
        fast: Whether slices far from any kidney are left out; `predict.scan` says how they are found.
    """

    batch_size: int | None = None
    tta: TTA | None = None
    overlap: float = 0.5
    fast: bool = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: If one of them is out of range.
        """
        if self.batch_size is not None and self.batch_size < 1:
            msg = f"batch_size must be 1 or more, got {self.batch_size}"
            raise ValueError(msg)
        if not 0 <= self.overlap < 1:
            msg = f"overlap must be in [0, 1), got {self.overlap}"
            raise ValueError(msg)


@dataclass(frozen=True)
class Member:
    """One network of an ensemble: the network, the slices it looks at, how far apart they are, and its own `tta`."""

    model: nn.Module
    slices: int
    slab_step_mm: float | None
    tta: TTA = "none"


@dataclass(frozen=True)
class Ensemble:
    """Networks whose probabilities are averaged; all were trained with the same plan and labels.

    Attributes:
        paths: The checkpoints.
        headers: What they say of themselves.
        members: The networks.
        plan: Their preprocessing plan.
        device: Where they run.
        precision: In which number format.
    """

    paths: tuple[Path, ...]
    headers: tuple[Header, ...]
    members: tuple[Member, ...]
    plan: Plan
    device: torch.device
    precision: Precision

    @property
    def synthetic(self) -> bool:
        """Whether any of the networks was trained on phantoms."""
        return any(header.provenance.synthetic for header in self.headers)

    @property
    def classes(self) -> int:
        """Number of classes, background included."""
        return len(self.headers[0].labels)


def load_ensemble(paths: Sequence[Path], device: torch.device, precision: Precision) -> Ensemble:
    """Load checkpoints onto a device, their batch normalisations folded into the convolutions before them.

    For bf16 on a CPU the convolutions are packed, too. A network whose logits change by that is used as it is.

    Raises:
        KitsattnError: If a file is not a checkpoint, or two of them were trained with different plans or labels.
    """
    checkpoints = [load_checkpoint(path) for path in paths]
    first = checkpoints[0].header
    members = []
    for path, checkpoint in zip(paths, checkpoints, strict=True):
        header = checkpoint.header
        if header.plan != first.plan or header.labels != first.labels:
            msg = f"{paths[0]} and {path} have different preprocessing plans or labels: name models of one run"
            raise KitsattnError(msg)
        config = model_entry(header.model).read_config(header.config, f"{path}: model settings")
        model = _load_for_prediction(checkpoint, str(path), config.slices, device, precision)
        members.append(Member(to_device(model, device), config.slices, config.slab_step_mm, header.tta))
    plan = from_json(Plan, first.plan, f"{paths[0]}: plan")
    headers = tuple(checkpoint.header for checkpoint in checkpoints)
    return Ensemble(tuple(paths), headers, tuple(members), plan, device, precision)


@torch.no_grad()  # and not inference mode, which would mark the weights
def _load_for_prediction(
    checkpoint: Checkpoint, where: str, slices: int, device: torch.device, precision: Precision
) -> nn.Module:
    """Load a network in the form that is fastest on a device; the form is tried on a slab of noise first."""
    model = load_model(checkpoint, where)
    slab = torch.randn((1, slices, *_TRIED_SIZE), generator=torch.Generator().manual_seed(0))
    expected = model(slab)
    packs = device.type == "cpu" and precision == "bf16"
    fold_batch_norm(model)
    if packs:
        pack_convolutions(model)
    with mixed_precision(torch.device("cpu"), "bf16" if packs else "fp32"):
        error = (model(slab).float() - expected).square().mean().sqrt() / expected.std()
    if error < (_MOST_ERROR_BF16 if packs else _MOST_ERROR):
        return model
    _log.warning(
        "%s: the network %s predicts otherwise with batch normalisations folded into its convolutions: "
        "it is used as it is, which is slower. docs/how-to/add-a-network.md tells which CHAINS its blocks may declare",
        where,
        checkpoint.header.model,
    )
    return load_model(checkpoint, where)


def reach(ensemble: Ensemble, slice_spacing_mm: float) -> int:
    """Return how many slices beyond its centre the widest slab of the ensemble looks."""
    return max((member.slices // 2) * slice_step(member.slab_step_mm, slice_spacing_mm) for member in ensemble.members)


@torch.inference_mode()
def predict_block(
    ensemble: Ensemble,
    slices: NDArray[np.float32],
    centres: Sequence[int],
    *,
    slice_spacing_mm: float,
    batch_size: int,
    tta: TTA | None = None,
    overlap: float = 0.5,
) -> NDArray[np.float32]:
    """Predict centre slices of a block.

    Args:
        ensemble: The networks.
        slices: Prepared slices, (n, height, width): the centres and, as far as the scan has them, `reach` more on
            either side.
        centres: Which of them to predict.
        slice_spacing_mm: Distance of the slices.
        batch_size: Slabs in one forward pass.
        tta: See `Inference`.
        overlap: See `Inference`.

    Returns:
        Mean probabilities over networks, mirror images and windows, (classes, centres, height, width), float32.
    """
    height, width = slices.shape[1:]
    size = ensemble.plan.patch_size
    weights = torch.from_numpy(importance(size)).to(ensemble.device)
    total = torch.zeros((len(centres), ensemble.classes, height, width), device=ensemble.device)
    weight_sum = torch.zeros((height, width), device=ensemble.device)
    data = torch.from_numpy(slices).to(ensemble.device)
    for window in cover((height, width), size, overlap):
        rows, own_rows = window_overlap(window.top, size[0], height)
        columns, own_columns = window_overlap(window.left, size[1], width)
        inside = weights[own_rows, own_columns]
        missing = (own_columns.start, size[1] - own_columns.stop, own_rows.start, size[0] - own_rows.stop)
        cut = pad(data[:, rows, columns], missing, value=ensemble.plan.air)
        for member in ensemble.members:
            mirrored = _MIRRORED[tta or member.tta]
            share = inside / len(mirrored)
            for batch, slabs in _batches(member, cut, centres, slice_spacing_mm, batch_size):
                for axes in mirrored:
                    with mixed_precision(ensemble.device, ensemble.precision):
                        logits = member.model(_flip(slabs, axes).contiguous(memory_format=torch.channels_last))
                    own = _flip(logits, axes)[..., own_rows, own_columns]
                    total[batch, :, rows, columns] += torch.softmax(own.float(), dim=1) * share
        weight_sum[rows, columns] += inside * len(ensemble.members)
    return total.div_(weight_sum).transpose(0, 1).cpu().numpy()


def _flip(slab: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Flip some axes; PyTorch would copy where there are none."""
    return slab.flip(axes) if axes else slab


def _batches(
    member: Member, cut: Tensor, centres: Sequence[int], slice_spacing_mm: float, batch_size: int
) -> Iterator[tuple[slice, Tensor]]:
    """Yield which of the centres, and their slabs, (batch, slices, height, width)."""
    step = slice_step(member.slab_step_mm, slice_spacing_mm)
    for start in range(0, len(centres), batch_size):
        chosen = centres[start : start + batch_size]
        indices = np.stack([slab_indices(centre, len(cut), member.slices, step) for centre in chosen])
        yield slice(start, start + len(chosen)), cut[torch.from_numpy(indices).to(cut.device)]
