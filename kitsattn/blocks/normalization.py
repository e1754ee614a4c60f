"""Batch normalisation over the samples of several processes."""

import torch
from torch import Tensor, distributed, nn

from kitsattn.kernels.aspp.statistics import BatchStatistics, unite


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the samples of all processes of the default group, on any device.

    PyTorch's own `nn.SyncBatchNorm` is faster, and needs a GPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (batch, channels, height, width); statistics are fp32 at least, the output has the dtype of `x`."""
        group = group_of(self) if self.training else None
        if group is None:
            return super().forward(x)
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        var, mean = torch.var_mean(exact, (0, 2, 3), correction=0)
        seen = unite(BatchStatistics(mean, var, exact.numel() // exact.shape[1]), group)
        update_running(self, seen.detached())
        scale = self.weight * torch.rsqrt(seen.var + self.eps)
        shift = self.bias - seen.mean * scale
        return (exact * scale[:, None, None] + shift[:, None, None]).to(x.dtype)


def synchronize_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Return a network whose normalisations take the statistics of all processes; parameters stay the same tensors."""
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return converted
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                other = SyncBatchNorm2d(child.num_features, child.eps, child.momentum)
                other.weight, other.bias = child.weight, child.bias
                for buffer, tensor in child.named_buffers():
                    setattr(other, buffer, tensor)
                parent.add_module(name, other.train(child.training))
    return model


def group_of(norm: nn.Module) -> "distributed.ProcessGroup | None":
    """Return the processes that a normalisation is shared with; None where it is this process's own."""
    if not isinstance(norm, (nn.SyncBatchNorm, SyncBatchNorm2d)):
        return None
    if not distributed.is_available() or not distributed.is_initialized():
        return None
    group = getattr(norm, "process_group", None) or distributed.group.WORLD
    return group if distributed.get_world_size(group) > 1 else None


@torch.no_grad()
def update_running(norm: nn.BatchNorm2d, seen: BatchStatistics) -> None:
    """Move the running statistics towards the batch's, with the unbiased variance, as PyTorch does."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(seen.mean.to(norm.running_mean.dtype), momentum)
    unbiased = seen.var * (seen.values / (seen.values - 1))
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), momentum)
