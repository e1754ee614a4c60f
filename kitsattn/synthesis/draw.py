"""Training samples made while a network is trained: one source after the other, as a scanner would show them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from kitsattn.preprocess.store import StoredCase
from kitsattn.synthesis.bodies import Body, draw_body
from kitsattn.synthesis.frame import PIXEL_MM, SLICE_MM
from kitsattn.synthesis.kidneys import KidneyCrop
from kitsattn.synthesis.scanner import scan
from kitsattn.synthesis.slices import RealSlice, draw_slice
from kitsattn.synthesis.textures import Textures
from kitsattn.synthesis.volumes import draw_volume

SOURCES = ("painted", "bodies", "slices", "volumes")
Shares = tuple[float, float, float, float]


@dataclass(frozen=True)
class Material:
    """What samples are drawn from; an empty source is left out.

    Attributes:
        painted: Phantoms painted around label maps.
        bodies: Bodies made from label maps of organs.
        kidneys: Kidneys with their masses that are put into bodies.
        slices: Single real slices.
        volumes: Real scans with label maps.
    """

    painted: Sequence[StoredCase] = ()
    bodies: Sequence[Body] = ()
    kidneys: Sequence[KidneyCrop] = ()
    slices: Sequence[RealSlice] = ()
    volumes: Sequence[StoredCase] = ()


@dataclass(frozen=True)
class Sample:
    """One training sample.

    Attributes:
        image: HU, (slices, height, width), float32.
        labels: Of the centre slice, (height, width), uint8: kidney 1, tumour 2.
        source: One of `SOURCES`.
    """

    image: NDArray[np.float32]
    labels: NDArray[np.uint8]
    source: str


@dataclass
class Synthesis:
    """Draws samples of five slices 5 mm apart with pixels of 1.5 mm.

    Attributes:
        material: What they are drawn from.
        shares: How often each of `SOURCES` is drawn; those without material are left out.
        size: Height and width of a sample.
    """

    material: Material
    shares: Shares
    size: tuple[int, int]
    textures: Textures = field(init=False)

    def __post_init__(self) -> None:
        """Compute the noise."""
        self.textures = Textures(self.size, PIXEL_MM, SLICE_MM)
        there = [bool(getattr(self.material, name)) for name in SOURCES]
        shares = np.array(self.shares) * there
        if not shares.sum():
            msg = f"none of the sources {', '.join(SOURCES)} with a share above 0 has any material"
            raise ValueError(msg)
        self._shares = shares / shares.sum()

    def draw(self, rng: Generator) -> Sample:
        """Draw one sample; equal generators give equal samples."""
        cut_at_zero = False
        source = SOURCES[int(rng.choice(len(SOURCES), p=self._shares))]
        if source == "bodies":
            hu, labels = draw_body(rng, self.material.bodies, self.material.kidneys, self.textures)
            real = False
        elif source == "slices":
            hu, labels, restored = draw_slice(rng, self.material.slices, self.textures)
            real = True
            cut_at_zero = not restored
        else:
            real = source == "volumes"
            cases = self.material.volumes if real else self.material.painted
            hu, labels, _ = draw_volume(rng, cases, self.textures)
        hu = scan(rng, hu, labels, self.textures, real=real, cut_at_zero=cut_at_zero)
        if rng.random() < 0.5:
            hu, labels = hu[:, :, ::-1], labels[:, ::-1]
        if rng.random() < 0.03:
            hu, labels = hu[:, ::-1], labels[::-1]
        if rng.random() < 0.5:  # slabs have no direction
            hu = hu[::-1]
        return Sample(np.ascontiguousarray(hu, np.float32), np.ascontiguousarray(labels), source)
