"""Atrous spatial pyramid pooling: the check of its input, and the choice of its path."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kitsattn.kernels import dispatch
from kitsattn.kernels.aspp import reference
from kitsattn.kernels.aspp.fused import fused_aspp
from kitsattn.kernels.aspp.statistics import BatchNormParameters, BatchStatistics
from kitsattn.kernels.shapes import AsppShape
from kitsattn.precision import autocast_enabled, compute_dtype, without_autocast

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def aspp(
    x: Tensor,
    branch_weights: Sequence[Tensor],
    pool_weight: Tensor,
    project_weight: Tensor,
    norms: Sequence[BatchNormParameters],
    *,
    rates: Sequence[int],
    training: bool,
    group: "ProcessGroup | None" = None,
) -> tuple[Tensor, list[BatchStatistics]]:
    """Apply the branches, the image pooling and the projection.

    The definition is `reference.aspp`; `dispatch.choose` says which path is taken. Outside training gradients are the
    reference's: with running statistics the kernels have none.

    Args:
        x: (batch, in_channels, height, width).
        branch_weights: One (channels, in_channels, k, k) a branch, k odd.
        pool_weight: (channels, in_channels, 1, 1).
        project_weight: (out_channels, channels * (branches + 1), 1, 1); the pooled branch's columns are the last.
        norms: One a branch, then the pooled branch's, then the projection's.
        rates: Dilation of each branch.
        training: Whether to normalise with the batch's own statistics.
        group: Processes whose batches are one batch to the normalisation, as in `nn.SyncBatchNorm`.

    Returns:
        The output (batch, out_channels, height, width), and in training the statistics in the order of `norms`
        (an empty list otherwise).

    Raises:
        ValueError: In training with a single image, whose pooled branch has one value a channel; or if shapes, dtypes
            or devices do not go together.
        KitsattnError: If `KITSATTN_KERNELS` is wrong, or demands kernels that cannot run.
    """
    _check(x, branch_weights, pool_weight, project_weight, norms, rates)
    if training and x.shape[0] == 1 and group is None:
        msg = "the image pooling of the ASPP cannot be trained with one image a batch: use a batch size of 2 or more"
        raise ValueError(msg)
    dtype = compute_dtype(x)
    batch, in_channels, height, width = x.shape
    shape = AsppShape(
        batch,
        height,
        width,
        in_channels,
        pool_weight.shape[0],
        project_weight.shape[0],
        tuple(weight.shape[-1] for weight in branch_weights),
        tuple(rates),
    )
    differentiated = torch.is_grad_enabled() and any(
        tensor.requires_grad
        for tensor in (x, pool_weight, project_weight, *branch_weights, *(v for n in norms for v in (n.weight, n.bias)))
    )
    arguments = (branch_weights, pool_weight, project_weight, norms)
    fused = dispatch.choose(shape, x.device, dtype, training=training).fused
    if not fused or (differentiated and not training):
        return reference.aspp(x, *arguments, rates=rates, training=training, group=group)
    with without_autocast(x):
        return fused_aspp(x.to(dtype), *arguments, rates=rates, training=training, group=group)


def _check(
    x: Tensor,
    branch_weights: Sequence[Tensor],
    pool_weight: Tensor,
    project_weight: Tensor,
    norms: Sequence[BatchNormParameters],
    rates: Sequence[int],
) -> None:
    if x.ndim != 4 or 0 in x.shape:  # noqa: PLR2004 - batch, channels, height, width
        msg = f"x has the shape {tuple(x.shape)}: the ASPP takes (batch, channels, height, width), none of them 0"
        raise ValueError(msg)
    branches = len(branch_weights)
    if len(rates) != branches or len(norms) != branches + 2:
        msg = (
            f"{branches} branches come with {len(rates)} rates and {len(norms)} normalisations: give one rate a "
            "branch, and one normalisation a branch and for pooling and projection"
        )
        raise ValueError(msg)
    channels = pool_weight.shape[0]
    kernels = [(weight, (channels, x.shape[1], weight.shape[-1], weight.shape[-1])) for weight in branch_weights]
    kernels.append((pool_weight, (channels, x.shape[1], 1, 1)))
    kernels.append((project_weight, (project_weight.shape[0], channels * (branches + 1), 1, 1)))
    for weight, shape in kernels:
        if weight.shape != shape or weight.shape[-1] % 2 == 0:
            msg = f"a weight has the shape {tuple(weight.shape)}: with x {tuple(x.shape)} it takes {shape}, odd kernels"
            raise ValueError(msg)
        if weight.device != x.device:
            msg = f"x is on {x.device} and a weight on {weight.device}: move them to one device"
            raise ValueError(msg)
        if weight.dtype != x.dtype and not autocast_enabled(x):
            msg = f"x is {x.dtype} and a weight {weight.dtype}: give them one dtype, or use autocast"
            raise ValueError(msg)
    _check_norms(x, norms, [channels] * (branches + 1) + [project_weight.shape[0]])
    if min(rates) < 1:
        msg = f"a rate is {min(rates)}: rates are 1 or more"
        raise ValueError(msg)


def _check_norms(x: Tensor, norms: Sequence[BatchNormParameters], widths: Sequence[int]) -> None:
    for norm, width in zip(norms, widths, strict=True):
        for vector in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            if vector.shape != (width,) or vector.device != x.device:
                msg = f"a normalisation has {tuple(vector.shape)} on {vector.device}: it takes {(width,)} on {x.device}"
                raise ValueError(msg)
