"""Criss-cross attention: every position attends to its row and its column, several times in a row."""

import torch
from torch import Tensor, nn


class CrissCrossAttention(nn.Module):
    """Every position receives the softmax-weighted average of its row and column; repeated, of the whole map.

        average[i] = sum_j softmax_j(<q[i], k[j]>) v[j]        j in the row and the column of i, i itself once
        out[i] = x[i] + gate * average[i]                      q, k, v = three 1 x 1 convolutions of x

    Huang et al., CCNet: Criss-Cross Attention for Semantic Segmentation, ICCV 2019, equations 1 and 2. As there,
    queries and keys have an eighth of the channels, scores are not scaled, and all passes share their weights. Two
    passes connect any two positions, for N (H + W - 1) scores each instead of N^2. The gate is zero at the start.

    Args:
        channels: Channels of the input and of the output.
        recurrence: How often it is applied.
    """

    def __init__(self, channels: int, *, recurrence: int = 2) -> None:
        """Build one 1 x 1 convolution that yields queries, keys and values."""
        super().__init__()
        key_channels = max(channels // 8, 1)
        self.sizes = (key_channels, key_channels, channels)
        self.recurrence = recurrence
        self.projection = nn.Conv2d(channels, sum(self.sizes), kernel_size=1)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to the same shape."""
        for _ in range(self.recurrence):
            average = criss_cross_average(*self.projection(x).split(self.sizes, dim=1))
            x = x + (self.gate * average).to(x.dtype)
        return x


def criss_cross_average(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return for each position the average of the values in its row and column, weighted by one joint softmax.

    Args:
        q: Queries, (batch, dim, height, width).
        k: Keys, the same shape.
        v: Values, (batch, channels, height, width).

    Returns:
        (batch, channels, height, width), in the dtype of the values. Softmax is computed in fp32 or more.
    """
    height, width = q.shape[2:]
    # [b, x, y, y'] and [b, y, x, x']: products of rows and columns as batches of matrices.
    columns = q.permute(0, 3, 2, 1) @ k.permute(0, 3, 1, 2)
    rows = q.permute(0, 2, 3, 1) @ k.permute(0, 2, 1, 3)
    itself = torch.eye(height, dtype=torch.bool, device=q.device)  # it is in the row already
    scores = torch.cat([columns.masked_fill(itself, float("-inf")).transpose(1, 2), rows], dim=3)
    weights = scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(dim=3).to(v.dtype)
    of_columns, of_rows = weights.split([height, width], dim=3)
    from_columns: Tensor = of_columns.transpose(1, 2) @ v.permute(0, 3, 2, 1)  # [b, x, y, c]
    from_rows: Tensor = of_rows @ v.permute(0, 2, 3, 1)  # [b, y, x, c]
    return from_columns.permute(0, 3, 2, 1) + from_rows.permute(0, 3, 1, 2)
