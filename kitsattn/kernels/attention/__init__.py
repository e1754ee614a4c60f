"""Self-attention over all positions: what `blocks.attention` calls."""

from kitsattn.kernels.attention.operation import attention

__all__ = ["attention"]
