"""nnU-Net's steps of preparing one case, each timed on its own; run by the peer's interpreter, not by hand.

python peer_nnunet.py DATASET_ID IMAGE.npy RESAMPLED.npy OUT.json

The dataset must be planned. IMAGE.npy is the float32 array, (z, y, x), that "resample image" works on, the same that
kitsattn is given; RESAMPLED.npy is what kitsattn made of it, to compare. The other steps read the dataset's only case.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
from measure import Cost, blas, cost_of_call
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw  # type: ignore[import-not-found]
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero  # type: ignore[import-not-found]
from nnunetv2.preprocessing.preprocessors.default_preprocessor import (  # type: ignore[import-not-found]
    DefaultPreprocessor,
)
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape  # type: ignore[import-not-found]
from nnunetv2.utilities.dataset_name_id_conversion import (  # type: ignore[import-not-found]
    maybe_convert_to_dataset_name,
)
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager  # type: ignore[import-not-found]
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets  # type: ignore[import-not-found]


def main() -> None:
    """Do what `DefaultPreprocessor.run_case` does, in its order, and write what each step cost."""
    dataset, (image_file, resampled_file, out) = int(sys.argv[1]), map(Path, sys.argv[2:])
    name = maybe_convert_to_dataset_name(dataset)
    folder = Path(nnUNet_preprocessed) / name
    description = json.loads((folder / "dataset.json").read_text())
    plans = PlansManager(str(folder / "nnUNetPlans.json"))
    settings = plans.get_configuration("2d")
    (case,) = get_filenames_of_train_images_and_targets(str(Path(nnUNet_raw) / name), description).values()
    reader = plans.image_reader_writer_class()
    costs: dict[str, Cost] = {}
    (data, properties), costs["read image"] = cost_of_call(lambda: reader.read_images(case["images"]))
    (labels, _), costs["read labels"] = cost_of_call(lambda: reader.read_seg(case["label"]))
    axes = [0, *(axis + 1 for axis in plans.transpose_forward)]
    data, costs["transpose"] = cost_of_call(lambda: data.astype(np.float32).transpose(axes))
    labels = np.copy(labels).transpose(axes)
    (data, labels, _), costs["crop"] = cost_of_call(lambda: crop_to_nonzero(data, labels))
    worker = DefaultPreprocessor(verbose=False)
    _, costs["normalise"] = cost_of_call(
        lambda: worker._normalize(data, labels, settings, plans.foreground_intensity_properties_per_channel)
    )
    spacing = [properties["spacing"][axis] for axis in plans.transpose_forward]
    target = [spacing[0], *settings.spacing]
    shape = compute_new_shape(data.shape[1:], spacing, target)
    data = np.load(image_file)[None]
    resampled, costs["resample image"] = cost_of_call(lambda: settings.resampling_fn_data(data, shape, spacing, target))
    labels, costs["resample labels"] = cost_of_call(lambda: settings.resampling_fn_seg(labels, shape, spacing, target))
    values = plans.get_label_manager(description).foreground_labels
    _, costs["foreground locations"] = cost_of_call(lambda: worker._sample_foreground_locations(labels, values))
    difference = np.abs(resampled[0] - np.load(resampled_file))
    answer = {
        "steps": {step: asdict(cost) for step, cost in costs.items()},
        "resampled_shape": difference.shape,
        "difference_hu_max": float(difference.max()),
        "difference_hu_mean": float(difference.mean()),
        "blas": blas(),
    }
    out.write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
