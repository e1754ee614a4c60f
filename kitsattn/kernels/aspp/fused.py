"""The ASPP as operators of PyTorch whose work the Triton kernels do.

There are three in training: the branches with the statistics of their outputs, the projection with those of its own,
and the last normalisation. What is between, from statistics to the scale and shift of a channel, is a few vectors: it
is left to PyTorch and its gradients, so that synchronised normalisation is a sum over processes of these vectors.
Outside training the normalisations are folded into the two products. The operators are opaque to `torch.compile` and
`torch.export`. Triton is imported when one is first launched. The gradients have none of their own.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import linear, relu

from kitsattn.kernels.aspp.statistics import BatchNormParameters, BatchStatistics, unite
from kitsattn.kernels.aspp.tiles import Branch, make_branches
from kitsattn.kernels.operators import TAGS, refuse_second_gradient

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@torch.library.custom_op("kitsattn::aspp_branches", mutates_args=(), tags=TAGS)
def branches_operator(
    x: Tensor, w: Tensor, sizes: Sequence[int], rates: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return all branches' outputs, their mean and variance, and the mean of each image; see `kernels.branches`."""
    from kitsattn.kernels.aspp.kernels import branches

    out, mean, variance = branches(x, w.to(x.dtype), _layout(sizes, rates))
    return out, mean, variance, _image_mean(x)


@branches_operator.register_fake
def _(x: Tensor, w: Tensor, sizes: Sequence[int], rates: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    del rates
    channels = len(sizes) * w.shape[2]
    vector = x.new_empty(channels, dtype=torch.float32)
    pooled = x.new_empty((x.shape[0], x.shape[3]), dtype=torch.float32)
    return x.new_empty((*x.shape[:3], channels)), vector, torch.empty_like(vector), pooled


@torch.library.custom_op("kitsattn::aspp_branches_backward", mutates_args=(), tags=TAGS)
def branches_backward_operator(
    grads: Sequence[Tensor], x: Tensor, w: Tensor, z: Tensor, mean: Tensor, sizes: Sequence[int], rates: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the gradients of input and weights; see `kernels.branches_backward`."""
    from kitsattn.kernels.aspp.kernels import branches_backward

    grad, mean_grad, variance_grad, pooled_grad = grads
    weights = w.to(x.dtype)
    return branches_backward(grad, mean_grad, variance_grad, pooled_grad, x, weights, z, mean, _layout(sizes, rates))


@branches_backward_operator.register_fake
def _(
    grads: Sequence[Tensor], x: Tensor, w: Tensor, z: Tensor, mean: Tensor, sizes: Sequence[int], rates: Sequence[int]
) -> tuple[Tensor, Tensor]:
    del grads, z, mean, sizes, rates
    return torch.empty_like(x), w.new_empty(w.shape, dtype=torch.float32)


def _save_branches(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, w, ctx.sizes, ctx.rates = inputs
    z, mean, _, _ = output
    ctx.save_for_backward(x, w, z, mean)


def _branches_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
    dx, dw = branches_backward_operator(list(grads), *ctx.saved_tensors, ctx.sizes, ctx.rates)
    return dx, dw, None, None


branches_operator.register_autograd(_branches_backward, setup_context=_save_branches)


@torch.library.custom_op("kitsattn::aspp_project", mutates_args=(), tags=TAGS)
def project_operator(
    z: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, u: Tensor, image_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the projection of the normalised branches, its mean and variance; see `kernels.project`."""
    from kitsattn.kernels.aspp.kernels import project

    return project(z, mean, scale, bias, u.to(z.dtype), image_bias)


@project_operator.register_fake
def _(
    z: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, u: Tensor, image_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    del scale, bias, image_bias
    vector = mean.new_empty(u.shape[0])
    return z.new_empty((*z.shape[:3], u.shape[0])), vector, torch.empty_like(vector)


@torch.library.custom_op("kitsattn::aspp_project_backward", mutates_args=(), tags=TAGS)
def project_backward_operator(
    grads: Sequence[Tensor],
    z: Tensor,
    mean: Tensor,
    scale: Tensor,
    bias: Tensor,
    u: Tensor,
    out: Tensor,
    out_mean: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of z, scale, bias, u and image_bias; see `kernels.project_backward`."""
    from kitsattn.kernels.aspp.kernels import project_backward

    grad, mean_grad, variance_grad = grads
    return project_backward(grad, mean_grad, variance_grad, z, mean, scale, bias, u.to(z.dtype), out, out_mean)


@project_backward_operator.register_fake
def _(
    grads: Sequence[Tensor],
    z: Tensor,
    mean: Tensor,
    scale: Tensor,
    bias: Tensor,
    u: Tensor,
    out: Tensor,
    out_mean: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    del grads, mean, out, out_mean
    u_grad = u.new_empty(u.shape, dtype=torch.float32)
    image_grad = scale.new_empty((z.shape[0], u.shape[0]))
    return torch.empty_like(z), torch.empty_like(scale), torch.empty_like(bias), u_grad, image_grad


def _save_project(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    z, mean, scale, bias, u, _ = inputs
    out, out_mean, _ = output
    ctx.save_for_backward(z, mean, scale, bias, u, out, out_mean)


def _project_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
    saved = ctx.saved_tensors  # once: recomputed activations can be unpacked one time only
    dz, scale_grad, bias_grad, u_grad, image_grad = project_backward_operator(list(grads), *saved)
    scale = saved[2]
    return dz, -scale * bias_grad, scale_grad, bias_grad, u_grad, image_grad


project_operator.register_autograd(_project_backward, setup_context=_save_project)


@torch.library.custom_op("kitsattn::aspp_normalise", mutates_args=(), tags=TAGS)
def normalise_operator(values: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Return `relu((values - mean) scale + bias)`; see `kernels.normalise`."""
    from kitsattn.kernels.aspp.kernels import normalise

    return normalise(values, mean, scale, bias)


@normalise_operator.register_fake
def _(values: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    del mean, scale, bias
    return torch.empty_like(values)


@torch.library.custom_op("kitsattn::aspp_normalise_backward", mutates_args=(), tags=TAGS)
def normalise_backward_operator(
    grad: Tensor, values: Tensor, mean: Tensor, scale: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of values, scale and bias; see `kernels.normalise_backward`."""
    from kitsattn.kernels.aspp.kernels import normalise_backward

    return normalise_backward(grad, values, mean, scale, bias)


@normalise_backward_operator.register_fake
def _(grad: Tensor, values: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    del grad, mean
    return torch.empty_like(values), torch.empty_like(scale), torch.empty_like(bias)


def _save_normalise(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    del output
    ctx.save_for_backward(*inputs)


def _normalise_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    saved = ctx.saved_tensors
    values_grad, scale_grad, bias_grad = normalise_backward_operator(grad, *saved)
    scale = saved[2]
    return values_grad, -scale * bias_grad, scale_grad, bias_grad


normalise_operator.register_autograd(_normalise_backward, setup_context=_save_normalise)

for _operator in (branches_backward_operator, project_backward_operator, normalise_backward_operator):
    _operator.register_autograd(refuse_second_gradient)


@torch.library.custom_op("kitsattn::aspp_folded", mutates_args=(), tags=TAGS)
def folded_operator(
    x: Tensor, w: Tensor, scale: Tensor, bias: Tensor, sizes: Sequence[int], rates: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return all branches' outputs, normalised, and the mean of each image; see `kernels.branches_folded`."""
    from kitsattn.kernels.aspp.kernels import branches_folded

    return branches_folded(x, w.to(x.dtype), scale, bias, _layout(sizes, rates)), _image_mean(x)


@folded_operator.register_fake
def _(
    x: Tensor, w: Tensor, scale: Tensor, bias: Tensor, sizes: Sequence[int], rates: Sequence[int]
) -> tuple[Tensor, Tensor]:
    del scale, bias, rates
    out = x.new_empty((*x.shape[:3], len(sizes) * w.shape[2]))
    return out, x.new_empty((x.shape[0], x.shape[3]), dtype=torch.float32)


@torch.library.custom_op("kitsattn::aspp_project_folded", mutates_args=(), tags=TAGS)
def project_folded_operator(y: Tensor, u: Tensor, image_bias: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Return the projection of the branches, normalised; see `kernels.project_folded`."""
    from kitsattn.kernels.aspp.kernels import project_folded

    return project_folded(y, u.to(y.dtype), image_bias, scale, bias)


@project_folded_operator.register_fake
def _(y: Tensor, u: Tensor, image_bias: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    del image_bias, scale, bias
    return y.new_empty((*y.shape[:3], u.shape[0]))


def fused_aspp(
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
    """Do what `reference.aspp` does; outside training without gradients."""
    x = x.permute(0, 2, 3, 1).contiguous()
    sizes = [weight.shape[-1] for weight in branch_weights]
    w = torch.cat([weight.permute(2, 3, 1, 0).flatten(0, 1) for weight in branch_weights])
    channels = pool_weight.shape[0]
    u, pooled_u = _rows(project_weight).split([channels * len(sizes), channels], dim=1)
    # The pooled branch has one row an image: it is computed in fp32, as the vectors of the normalisations are.
    pool_weight, pooled_u = _rows(pool_weight).float(), pooled_u.float()
    norms = [_in_fp32(norm) for norm in norms]
    if not training:
        widths = [channels * len(sizes), channels, project_weight.shape[0]]
        (scale, pool_scale, out_scale), (shift, pool_shift, out_shift) = (part.split(widths) for part in _fold(norms))
        y, pooled = folded_operator(x, w, scale, shift, sizes, rates)
        pooled = relu(torch.addcmul(pool_shift, linear(pooled, pool_weight), pool_scale))
        out = project_folded_operator(y, u.contiguous(), linear(pooled, pooled_u), out_scale, out_shift)
        return out.permute(0, 3, 1, 2), []
    weight, bias = (torch.cat(parts) for parts in zip(*((norm.weight, norm.bias) for norm in norms[:-2]), strict=True))
    *_, pool_norm, out_norm = norms
    z, mean, variance, pooled = branches_operator(x, w, sizes, rates)
    pixels = z.numel() // z.shape[-1]
    seen = unite(BatchStatistics(mean, variance, pixels), group)
    scale = weight * torch.rsqrt(seen.var + _eps(norms[:-2]))
    pooled = linear(pooled, pool_weight)
    variance, mean = torch.var_mean(pooled, 0, correction=0)
    pool_seen = unite(BatchStatistics(mean, variance, pooled.shape[0]), group)
    pooled = relu((pooled - pool_seen.mean) * _scale(pool_norm, pool_seen) + pool_norm.bias)
    projected, mean, variance = project_operator(z, seen.mean, scale, bias, u.contiguous(), linear(pooled, pooled_u))
    out_seen = unite(BatchStatistics(mean, variance, pixels), group)
    out = normalise_operator(projected, out_seen.mean, _scale(out_norm, out_seen), out_norm.bias)
    parts = zip(seen.mean.detach().split(channels), seen.var.detach().split(channels), strict=True)
    statistics = [BatchStatistics(*part, seen.values) for part in parts]
    statistics += [pool_seen.detached(), out_seen.detached()]
    return out.permute(0, 3, 1, 2), statistics


def _layout(sizes: Sequence[int], rates: Sequence[int]) -> tuple[Branch, ...]:
    return tuple(make_branches(sizes, rates))


def _rows(weight: Tensor) -> Tensor:
    """View the weight of a 1 x 1 convolution as a matrix; its gradient comes back in channels-last order."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def _image_mean(x: Tensor) -> Tensor:
    return x.mean((1, 2), dtype=torch.float32)


def _in_fp32(norm: BatchNormParameters) -> BatchNormParameters:
    """Return a normalisation in fp32; where it is already, the same tensors."""
    return BatchNormParameters(
        norm.weight.float(), norm.bias.float(), norm.running_mean.float(), norm.running_var.float(), norm.eps
    )


def _fold(norms: Sequence[BatchNormParameters]) -> tuple[Tensor, Tensor]:
    """Return scale and shift of the channels of all normalisations by their running statistics."""
    weight, bias, mean, var = (
        torch.cat([getattr(norm, name) for norm in norms]) for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight * torch.rsqrt(var + _eps(norms))
    return scale, torch.addcmul(bias, mean, scale, value=-1)


def _scale(norm: BatchNormParameters, seen: BatchStatistics) -> Tensor:
    return norm.weight * torch.rsqrt(seen.var + norm.eps)


def _eps(norms: Sequence[BatchNormParameters]) -> float | Tensor:
    """Return what is added to the variances of all channels: one number where it is the same."""
    if len({norm.eps for norm in norms}) == 1:
        return norms[0].eps
    return torch.cat([torch.full_like(norm.bias, norm.eps) for norm in norms])
