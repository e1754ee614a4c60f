"""Interlaced sparse self-attention: attention among far positions, then among near ones."""

import torch
from torch import Tensor, nn

from kitsattn.kernels.attention import attention

_MASKED = -3e4
"""A key's last channel where it is padding; fp16 holds it, and its weight is exactly zero in every number format."""


class InterlacedAttention(nn.Module):
    """Two self-attentions whose groups together connect any two positions.

    The map is cut into blocks of P x P positions. The first attention is within groups of the positions that have the
    same place in their block, which are far apart; the second is within each block. Both are the attention of the kind
    `full`, with weights of their own:

        out[i] = x[i] + gate * sum_j softmax_j(<q[i], k[j]> / root of the key size) v[j]        j in the group of i

    Huang et al., Interlaced Sparse Self-Attention for Semantic Segmentation, 2019, arXiv:1907.12273; its blocks have
    8 x 8 positions. A map whose sides are not multiples of P is padded, and no position attends to padding: the last
    channel of queries is 1, that of keys is 0, or very low where they are padding, which needs no mask in the kernel.

    Args:
        channels: Channels of the input and of the output.
        key_channels: Channels of queries and keys, the one for padding included; 2 or more.
        block: P.
    """

    def __init__(self, channels: int, key_channels: int, *, block: int = 8) -> None:
        """Build the two attentions."""
        super().__init__()
        self.block = block
        self.far = GroupedAttention(channels, key_channels)
        self.near = GroupedAttention(channels, key_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to the same shape."""
        batch, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        for attend, far in ((self.far, True), (self.near, False)):
            members, inside, back = group_positions(height, width, self.block, x.device, far=far)
            groups, size = members.shape
            grouped = tokens.index_select(1, members.flatten()).reshape(batch * groups, size, channels)
            mask = inside.to(x.dtype).expand(batch, -1, -1).reshape(batch * groups, size, 1)
            attended = attend(grouped, mask)
            tokens = attended.reshape(batch, groups * size, channels).index_select(1, back)
        return tokens.transpose(1, 2).reshape(x.shape)


def group_positions(
    height: int, width: int, block: int, device: torch.device, *, far: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the positions of a map in groups, as numbers row x width + column.

    It is arithmetic on ranges, which an exported network does for any size; views of a padded map would bind it to one.

    Args:
        height: Of the map.
        width: Of the map.
        block: Side of the blocks.
        device: Of the result.
        far: Whether a group has one position of each block, or all positions of one block.

    Returns:
        The members of each group, (groups, members), int64; whether they are inside the map, bool, since the blocks at
        its lower and right ends may reach beyond; and where in the groups each position is, (height x width,), int64.
    """
    # Two blocks at least, of which one may be outside: of an axis of length 1, an exported network keeps the length.
    rows, columns = (torch.sym_max((side + block - 1) // block, 2) for side in (height, width))
    place = torch.arange(block, device=device)
    down, right = (block * torch.arange(count, device=device) for count in (rows, columns))
    if far:
        y = place[:, None, None, None] + down[None, None, :, None]
        x = place[None, :, None, None] + right[None, None, None, :]
    else:
        y = down[:, None, None, None] + place[None, None, :, None]
        x = right[None, :, None, None] + place[None, None, None, :]
    inside = (y < height) & (x < width)
    members = y.clamp(max=height - 1) * width + x.clamp(max=width - 1)
    row, column = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)[None]
    if far:
        back = (row % block) * (block * rows * columns) + (row // block) * columns
        back = back + (column % block) * (rows * columns) + column // block
    else:
        back = (row // block) * (columns * block**2) + (row % block) * block
        back = back + (column // block) * block**2 + column % block
    return members.flatten(2).flatten(0, 1), inside.flatten(2).flatten(0, 1), back.flatten()


class GroupedAttention(nn.Module):
    """Self-attention with residual and gate within groups of tokens, of which some are padding.

    Args:
        channels: Channels of the tokens.
        key_channels: Channels of queries and keys, the one for padding included.
    """

    def __init__(self, channels: int, key_channels: int) -> None:
        """Build one linear map that yields queries, keys and values."""
        super().__init__()
        self.sizes = (key_channels - 1, key_channels - 1, channels)
        self.scale = key_channels**-0.5
        self.projection = nn.Linear(channels, sum(self.sizes))
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor, inside: Tensor) -> Tensor:
        """Return (groups, tokens, channels) of the same shape.

        Args:
            tokens: (groups, tokens, channels).
            inside: 1 for a token, 0 for padding, (groups, tokens, 1).
        """
        q, k, v = self.projection(tokens).split(self.sizes, dim=2)
        q = torch.cat([q, torch.ones_like(q[:, :, :1])], dim=2)
        k = torch.cat([k, ((1 - inside) * _MASKED).to(k.dtype)], dim=2)
        attended: Tensor = attention(q, k, v, scale=self.scale, residual=tokens, gate=self.gate)
        return attended
