"""nnU-Net's prediction of one case with its 2d configuration, step by step; run by the peer's interpreter, not by hand.

python peer_nnunet_prediction.py DATASET_ID IMAGE.nii.gz THREADS TILES OUT.json

The dataset must be planned. It does what `nnUNetv2_predict -device cpu --disable_tta` does: reads and prepares the
image, runs the network of the plan (random weights) tile by tile, and exports; but of all tiles only TILES are run, and
their median is the time of one.
"""

import json
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image  # type: ignore[import-not-found]
from measure import cost_of_call
from nnunetv2.inference.export_prediction import export_prediction_from_logits  # type: ignore[import-not-found]
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # type: ignore[import-not-found]
from nnunetv2.paths import nnUNet_preprocessed  # type: ignore[import-not-found]
from nnunetv2.preprocessing.preprocessors.default_preprocessor import (  # type: ignore[import-not-found]
    DefaultPreprocessor,
)
from nnunetv2.utilities.dataset_name_id_conversion import (  # type: ignore[import-not-found]
    maybe_convert_to_dataset_name,
)
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans  # type: ignore[import-not-found]
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager  # type: ignore[import-not-found]


def main() -> None:
    """Time the steps and write them."""
    dataset, threads, tiles = int(sys.argv[1]), int(sys.argv[3]), int(sys.argv[4])
    image, out = Path(sys.argv[2]), Path(sys.argv[5])
    torch.set_num_threads(threads)
    folder = Path(nnUNet_preprocessed) / maybe_convert_to_dataset_name(dataset)
    description = json.loads((folder / "dataset.json").read_text())
    plans = PlansManager(str(folder / "nnUNetPlans.json"))
    settings, classes = plans.get_configuration("2d"), len(description["labels"])
    network = get_network_from_plans(
        settings.network_arch_class_name,
        settings.network_arch_init_kwargs,
        settings.network_arch_init_kwargs_req_import,
        1,
        classes,
        deep_supervision=False,
    )
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(network, plans, settings, None, description, "nnUNetTrainer", None)
    predictor.network.eval()
    worker = DefaultPreprocessor(verbose=False)
    (data, _, properties), prepare = cost_of_call(
        lambda: worker.run_case([str(image)], None, plans, settings, description)
    )
    prepared, _ = pad_nd_image(torch.from_numpy(data), settings.patch_size, "constant", {"value": 0}, True, None)  # noqa: FBT003
    slicers = predictor._internal_get_sliding_window_slicers(prepared.shape[1:])
    middle = len(slicers) // 2
    seconds = []
    with torch.inference_mode():
        for number, slicer in enumerate(slicers[middle : middle + tiles + 2]):
            started = time.perf_counter()
            predictor._internal_maybe_mirror_and_predict(torch.clone(prepared[slicer][None]))
            if number > 1:  # the first two warm up
                seconds.append(time.perf_counter() - started)
    logits = torch.zeros((classes, *data.shape[1:]), dtype=torch.half)
    logits[1, :, 200:260, 150:200] = 1
    target = str(out.with_suffix(""))
    _, export = cost_of_call(
        lambda: export_prediction_from_logits(
            logits, properties, settings, plans, description, target, num_threads_torch=threads
        )
    )
    answer = {
        "prepare": asdict(prepare),
        "export": asdict(export),
        "tile_s": statistics.median(seconds),
        "tiles_run": len(seconds),
        "tiles": len(slicers),
        "tile": list(settings.patch_size),
        "shape": list(prepared.shape[1:]),
    }
    out.write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
