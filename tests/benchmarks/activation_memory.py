"""Memory that one training step of each network needs, computed without running it.

    python tests/benchmarks/activation_memory.py [--size 512] [--batch-size 8]

Counts every tensor that autograd saves for the backward pass (each storage once, on the meta device), and weights,
gradients and Adam's two moments. Temporary buffers of the running operation and cuDNN's workspace come on top. bf16 and
fp16 halve what convolutions save.
"""

import argparse

import torch
from torch import Tensor

from kitsattn.models import build_model, model_entry, model_names
from kitsattn.train.losses import segmentation_loss


def saved_bytes(name: str, batch_size: int, size: int, dtype: torch.dtype) -> tuple[int, int]:
    """Return bytes of saved activations and of weights, gradients and moments.

    Args:
        name: A registered network.
        batch_size: Samples.
        size: Height and width.
        dtype: Of weights and activations; moments are counted in fp32.
    """
    config = model_entry(name).config
    with torch.device("meta"):
        model = build_model(name).to(dtype)
        images = torch.empty(batch_size, config.slices, size, size, dtype=dtype)
        labels = torch.empty(batch_size, size, size, dtype=torch.int64)
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    seen: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            seen[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = segmentation_loss(model(images), labels)
    del loss
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return sum(seen.values()), 16 * parameters


def main() -> None:
    """Print one row a network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=8)
    arguments = parser.parse_args()
    print(f"batch {arguments.batch_size}, {arguments.size} x {arguments.size}, GiB")
    print(f"{'network':<26}{'fp32':>8}{'bf16':>8}{'weights, gradients, Adam':>28}")
    for name in model_names():
        full, weights = saved_bytes(name, arguments.batch_size, arguments.size, torch.float32)
        half, _ = saved_bytes(name, arguments.batch_size, arguments.size, torch.bfloat16)
        print(f"{name:<26}{full / 2**30:>8.2f}{half / 2**30:>8.2f}{weights / 2**30:>28.2f}")


if __name__ == "__main__":
    main()
