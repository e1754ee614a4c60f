"""A small network learns the same with the kernels as with the reference."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from kitsattn.blocks.aspp import ASPP
from kitsattn.blocks.attention import SelfAttention

STEPS = 30


class Tiny(nn.Module):
    """Two convolutions, ASPP, attention, classes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU()
        )
        self.aspp = ASPP(64, 64, (2, 4))
        self.attention = SelfAttention(64, 16)
        self.classes = nn.Conv2d(64, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits at a quarter of the size."""
        logits: torch.Tensor = self.classes(self.attention(self.aspp(self.encoder(x))))
        return logits


def losses(path: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Train and return the loss of every step."""
    monkeypatch.setenv("KITSATTN_KERNELS", path)
    torch.manual_seed(0)
    model = Tiny().to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 24, 20, generator=generator).to(device)
    # Quadrants of positive and negative signs: what a position is depends on where it lies.
    rows, columns = torch.meshgrid(torch.arange(6), torch.arange(5), indexing="ij")
    target = ((rows > 2).long() + (columns > 1).long()).expand(2, 6, 5).to(device)
    seen = []
    for _ in range(STEPS):
        loss = cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    return seen


def test_thirty_steps_have_the_same_losses(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step to 1 %: differences of 1e-7 grow as Adam divides small gradients by their size."""
    reference = losses("reference", device, monkeypatch)
    fused = losses("fused", device, monkeypatch)
    assert reference[-1] < 0.5 * reference[0]
    assert fused == pytest.approx(reference, rel=0.01)
    assert fused[:3] == pytest.approx(reference[:3], rel=1e-5)
