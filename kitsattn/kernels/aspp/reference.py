"""Atrous spatial pyramid pooling in plain PyTorch: the definition, the CPU path, the truth in tests.

    y_b    = relu(bn_b(conv_b(x)))                      for each branch b: a 1 x 1 and the atrous 3 x 3 convolutions
    y_pool = relu(bn_pool(conv_pool(mean_hw(x))))       one value a channel and image
    out    = relu(bn_out(conv_out(concat(y_b..., y_pool))))

Chen et al., Rethinking Atrous Convolution for Semantic Image Segmentation, 2017, section 3.3. The pooled branch is
constant over the image, so its part of the projection is one bias an image and channel: it is neither resized nor
concatenated.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d, relu

from kitsattn.kernels.aspp.statistics import BatchNormParameters, BatchStatistics, unite

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

    Arguments and result are those of `operation.aspp`, which has checked them.
    """
    statistics: list[BatchStatistics] = []

    def normalise(values: Tensor, norm: BatchNormParameters) -> Tensor:
        normalised, seen = _batch_norm(values, norm, training=training, group=group)
        statistics.extend([seen] if seen is not None else [])
        return relu(normalised)

    branches = []
    for weight, rate, norm in zip(branch_weights, rates, norms[:-2], strict=True):
        padding = rate * (weight.shape[-1] // 2)
        branches.append(normalise(conv2d(x, weight, padding=padding, dilation=rate), norm))
    pooled = normalise(conv2d(x.mean((2, 3), keepdim=True), pool_weight), norms[-2])

    stacked = torch.cat(branches, dim=1)
    local_weight, pooled_weight = project_weight.split([stacked.shape[1], pooled.shape[1]], dim=1)
    projected = conv2d(stacked, local_weight) + conv2d(pooled, pooled_weight)
    return normalise(projected, norms[-1]), statistics


def _batch_norm(
    x: Tensor, norm: BatchNormParameters, *, training: bool, group: "ProcessGroup | None"
) -> tuple[Tensor, BatchStatistics | None]:
    """Normalise (batch, channels, height, width) over all but the channels; statistics in fp32."""
    if not training:
        mean, var = norm.running_mean, norm.running_var
        return batch_norm(x, mean, var, norm.weight, norm.bias, training=False, eps=norm.eps), None
    count = x.numel() // x.shape[1]
    if group is not None:
        values = x.to(norm.weight.dtype)
        var, mean = torch.var_mean(values, (0, 2, 3), correction=0)
        seen = unite(BatchStatistics(mean, var, count), group)
        mean, scale, bias = (
            channel.reshape(1, -1, 1, 1)
            for channel in (seen.mean, norm.weight * torch.rsqrt(seen.var + norm.eps), norm.bias)
        )
        return ((values - mean) * scale + bias).to(x.dtype), seen.detached()
    # Momentum 1 makes PyTorch leave the batch's own mean and unbiased variance in the two buffers.
    mean, var = torch.zeros_like(norm.running_mean), torch.ones_like(norm.running_var)
    y = batch_norm(x, mean, var, norm.weight, norm.bias, training=True, momentum=1.0, eps=norm.eps)
    return y, BatchStatistics(mean, var * ((count - 1) / count), count)
