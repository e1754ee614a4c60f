"""Makes the sample CT that ships in kitsattn/datasets/sample/ from subject s0009 of the TotalSegmentator data set, v2.

`python docs/generate_sample.py s0009/ct.nii.gz s0009/segmentations` writes ct.nii.gz and labels.nii.gz. The data set is
https://zenodo.org/records/10047292 (CC BY 4.0). Instead of the folder of masks, one label map is accepted, with the
names of its values in a labels.json beside it. ATTRIBUTION.md in the sample's folder lists the changes that this script
makes.
"""

import argparse
import gzip
import io
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

FOLDER = Path(__file__).parents[1] / "kitsattn" / "datasets" / "sample"
KIDNEY_PARTS = ("kidney_left", "kidney_right", "kidney_cyst_left", "kidney_cyst_right")
"""All of them become kidney: KiTS19 counts cysts as kidney, too."""
MARGIN_MM = 40.0
"""How much of the scan is kept below the kidneys; above them the scan ends after 18 mm."""
CLIP_HU = (-1024, 1500)
AIR_HU = -1000
BODY_HU = -300
"""What is denser than this belongs to the body, or to the table behind it."""
RIM_VOXELS = 2
"""How much of the air around the skin stays as it was scanned."""


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description="Make the sample CT that ships with kitsattn.")
    parser.add_argument("ct", type=Path, help="ct.nii.gz of subject s0009")
    parser.add_argument("segmentation", type=Path, help="its folder of masks, or one label map beside a labels.json")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to (default: the package's)")
    arguments = parser.parse_args()
    image: Any = nib.load(arguments.ct)
    if nib.aff2axcodes(image.affine) != ("R", "A", "S"):
        parser.error(f"{arguments.ct} does not run to Right, Anterior and Superior")
    kidneys = read_kidneys(arguments.segmentation)
    first = first_slice(kidneys, float(image.header.get_zooms()[2]))
    scan = np.clip(np.asarray(image.dataobj), *CLIP_HU).astype(np.int16)[..., first:]
    scan[air_behind(scan)] = AIR_HU
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, 2] * first
    write(arguments.out / "ct.nii.gz", scan, affine)
    write(arguments.out / "labels.nii.gz", kidneys.astype(np.uint8)[..., first:], affine)


def read_kidneys(segmentation: Path) -> NDArray[np.bool_]:
    """Return where the kidneys are, from a folder of masks or from one label map."""
    if segmentation.is_dir():
        masks = [np.asarray(_load(segmentation / f"{part}.nii.gz").dataobj) > 0 for part in KIDNEY_PARTS]
        kidneys: NDArray[np.bool_] = np.logical_or.reduce(masks)
        return kidneys
    names = json.loads((segmentation.parent / "labels.json").read_text(encoding="utf-8"))
    values = [int(value) for value, name in names.items() if name in KIDNEY_PARTS]
    return np.isin(np.asarray(_load(segmentation).dataobj), values)


def first_slice(kidneys: NDArray[np.bool_], spacing_mm: float) -> int:
    """Return the lowest slice that is kept."""
    lowest = int(np.flatnonzero(kidneys.any(axis=(0, 1)))[0])
    return max(0, lowest - int(np.ceil(MARGIN_MM / spacing_mm)))


def air_behind(scan: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Return the voxels behind the patient's back, the table among them; the second axis runs to Anterior."""
    parts, _ = ndimage.label(scan > BODY_HU)
    body = parts == np.bincount(parts[parts > 0]).argmax()
    grown = ndimage.binary_dilation(body, iterations=RIM_VOXELS)
    return ~np.logical_or.accumulate(grown, axis=1)


def write(path: Path, array: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write NIfTI as small as gzip makes it, and without a time stamp: the same image has the same bytes."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="aligned")
    image.set_qform(affine, code="aligned")
    packed = io.BytesIO()
    with gzip.GzipFile("", "wb", compresslevel=9, fileobj=packed, mtime=0) as stream:
        stream.write(image.to_bytes())
    path.write_bytes(packed.getvalue())
    print(f"{path}: {array.shape}, {path.stat().st_size} bytes")


def _load(path: Path) -> Any:  # noqa: ANN401 - nibabel's
    return nib.load(path)


if __name__ == "__main__":
    main()
