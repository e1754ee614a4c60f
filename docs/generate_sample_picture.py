"""Draws docs/images/sample.webp: the CT that comes with the package, segmented by the starter, and its reference.

`python docs/generate_sample_picture.py` needs nothing but the package.
"""

import tempfile
from pathlib import Path

import torch
from PIL import Image

from kitsattn.checkpoint.shipped import DEFAULT, find_weights
from kitsattn.datasets.sample_ct import find_sample
from kitsattn.precision import choose_precision
from kitsattn.predict.cases import PredictionCase, read_ahead
from kitsattn.predict.infer import load_ensemble
from kitsattn.predict.sample import segment_sample

PICTURE = Path(__file__).with_name("images") / "sample.webp"
WIDTH = 1200


def main() -> None:
    """Segment the sample as `kitsattn demo` does, and keep its picture."""
    sample, device = find_sample(), torch.device("cpu")
    ensemble = load_ensemble([find_weights(DEFAULT)], device, choose_precision("auto", device))
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "sample.nii.gz"
        case = PredictionCase(name="sample", source=sample.scan, target=target, preview=Path(folder) / "sample.png")
        result = segment_sample(ensemble, sample, case, read_ahead(case))
        picture = Image.open(result.picture).convert("RGB")
    height = round(picture.height * WIDTH / picture.width)
    picture.resize((WIDTH, height), Image.Resampling.LANCZOS).save(PICTURE, quality=85, method=6)
    print(PICTURE, result.dice)


if __name__ == "__main__":
    main()
