"""Samples: what a draw depends on, and what it gives."""

import functools
import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from kitsattn.labels import KIDNEY
from kitsattn.synthesis import draw
from kitsattn.synthesis.draw import SOURCES, Material, Sample, Shares, Synthesis
from kitsattn.synthesis.prepare import PreparedMaterial
from kitsattn.synthesis.textures import Textures

SIZE = (128, 160)
ONLY: dict[str, Shares] = {
    "painted": (1, 0, 0, 0),
    "bodies": (0, 1, 0, 0),
    "slices": (0, 0, 1, 0),
    "volumes": (0, 0, 0, 1),
}

SCRIPT = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from test_draw import checksum, synthesis_of
from kitsattn.synthesis.data import find_starter_data
from kitsattn.synthesis.prepare import PreparedMaterial

folder, painted = Path(sys.argv[2]), Path(sys.argv[3])
material = PreparedMaterial(folder, painted, find_starter_data(Path(sys.argv[4]))).open()
for source in sys.argv[5:]:
    print(source, checksum(synthesis_of(material, source), range(3)))
"""


_cached_textures = functools.cache(Textures)


def synthesis_of(material: Material, source: str) -> Synthesis:
    """Return what draws from one source; painted cases stand for real volumes. Noise is made once."""
    with mock.patch.object(draw, "Textures", _cached_textures):
        return Synthesis(replace(material, volumes=material.painted), ONLY[source], SIZE)


def checksum(synthesis: Synthesis, seeds: range) -> str:
    """Return a checksum of some draws."""
    digest = hashlib.sha256()
    for seed in seeds:
        sample = synthesis.draw(np.random.default_rng(seed))
        digest.update(sample.image.tobytes() + sample.labels.tobytes())
    return digest.hexdigest()


def check(sample: Sample) -> None:
    """Check what holds for every sample."""
    assert sample.image.shape == (5, *SIZE)
    assert sample.image.dtype == np.float32
    assert sample.labels.shape == SIZE
    assert sample.labels.dtype == np.uint8
    assert sample.image.flags.c_contiguous
    assert sample.labels.flags.c_contiguous
    assert np.isfinite(sample.image).all()
    assert set(np.unique(sample.labels).tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("source", SOURCES)
def test_a_seed_decides_a_sample(opened: Material, source: str) -> None:
    """Equal generators give equal samples, whatever was drawn before; others give others, with kidneys in many."""
    synthesis, fresh = synthesis_of(opened, source), synthesis_of(opened, source)
    samples = [synthesis.draw(np.random.default_rng(seed)) for seed in range(12)]
    again = fresh.draw(np.random.default_rng(7))
    np.testing.assert_array_equal(again.image, samples[7].image)
    np.testing.assert_array_equal(again.labels, samples[7].labels)
    for sample in samples:
        check(sample)
        assert sample.source == source
    assert len({sample.image.tobytes() for sample in samples}) == len(samples)
    assert sum(bool((sample.labels == KIDNEY).any()) for sample in samples) >= 4


def test_another_process_draws_the_same(opened: Material, material: PreparedMaterial, starter_folder: Path) -> None:
    """From each source, bit by bit."""
    folder = str(Path(__file__).parent)
    arguments = [folder, str(material.folder), str(material.painted), str(starter_folder), *SOURCES]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    told = dict(line.split() for line in run.stdout.splitlines())
    assert told == {source: checksum(synthesis_of(opened, source), range(3)) for source in SOURCES}


def test_sources_are_drawn_by_their_shares(opened: Material) -> None:
    """Of 100 draws about half are bodies; a source without material is left out."""
    synthesis = Synthesis(replace(opened, painted=()), (5.0, 2.0, 2.0, 9.0), (32, 48))
    sources = [synthesis.draw(np.random.default_rng(seed)).source for seed in range(100)]
    assert set(sources) == {"bodies", "slices"}
    assert 35 < sources.count("bodies") < 65


def test_shares_of_empty_sources_are_refused(opened: Material) -> None:
    """Nothing could be drawn."""
    with pytest.raises(ValueError, match="none of the sources painted, bodies, slices, volumes"):
        Synthesis(opened, (0, 0, 0, 1), (32, 48))
    with pytest.raises(ValueError, match="has any material"):
        Synthesis(Material(), (1, 1, 1, 1), (32, 48))
