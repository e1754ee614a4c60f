"""What is drawn from in all tests of this folder: opened material and the noise of one size."""

import pytest

from kitsattn.synthesis.draw import Material
from kitsattn.synthesis.frame import PIXEL_MM, SLICE_MM
from kitsattn.synthesis.prepare import PreparedMaterial
from kitsattn.synthesis.textures import Textures

SIZE = (224, 288)


@pytest.fixture(scope="session")
def textures() -> Textures:
    """Noise for samples of 224 x 288 pixels."""
    return Textures(SIZE, PIXEL_MM, SLICE_MM)


@pytest.fixture(scope="session")
def opened(material: PreparedMaterial) -> Material:
    """The material, opened."""
    return material.open()
