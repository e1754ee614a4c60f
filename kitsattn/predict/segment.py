"""Prediction from Python, of a file or of an image in memory: `kitsattn.segment`."""

import logging
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from kitsattn.checkpoint.shipped import DEFAULT, find_weights
from kitsattn.errors import KitsattnError
from kitsattn.notices import SYNTHETIC_MODEL_NOTICE
from kitsattn.precision import DeviceChoice, PrecisionChoice, choose_device, choose_precision
from kitsattn.predict.case import DEFAULT_RULES, follow_rules, log_notes
from kitsattn.predict.infer import Ensemble, Inference, load_ensemble
from kitsattn.predict.postprocess import Postprocessing
from kitsattn.predict.scan import predict_volume
from kitsattn.volume import nifti
from kitsattn.volume.ct import check_ct
from kitsattn.volume.formats import from_image, read_scan, to_itk

if TYPE_CHECKING:
    from kitsattn.volume.formats import LabelImage, ScanImage

AnyPath = str | PathLike[str]

_log = logging.getLogger(__name__)


def load_model(*models: AnyPath, device: DeviceChoice = "auto", precision: PrecisionChoice = "auto") -> Ensemble:
    """Load one network, or several whose probabilities are averaged, for many calls of `segment`.

    Args:
        models: Files that `kitsattn train` wrote, or names of shipped models, such as "starter". A path object is
            always a file.
        device: Where to run; `auto` takes a CUDA GPU, else Apple's, else the CPU.
        precision: Number format; `auto` takes bf16 where the device computes it natively.

    Returns:
        The networks. They are only read by `segment`, so that several threads may use them.

    Raises:
        KitsattnError: If no network is named, one is neither a checkpoint nor a shipped model, two do not belong
            together, or the device is missing.
    """
    if not models:
        msg = f"load_model needs a checkpoint: name a file that `kitsattn train` wrote, or {DEFAULT!r}"
        raise KitsattnError(msg)
    chosen = choose_device(device)
    return load_ensemble([find_weights(model) for model in models], chosen, choose_precision(precision, chosen))


def segment(
    image: "AnyPath | ScanImage",
    model: AnyPath | Ensemble = DEFAULT,
    *,
    series: str | None = None,
    assume_hu: bool = False,
    inference: Inference | None = None,
    locator: AnyPath | Ensemble | None = None,
    rules: Postprocessing | None = DEFAULT_RULES,
) -> "LabelImage":
    """Segment kidneys and tumours in a CT scan; research use only, not a medical device.

    Nothing is written or kept; what `kitsattn predict` warns of, the logger `kitsattn` is given. It may be called from
    several threads and processes.

    Args:
        image: A scan in HU: an image of nibabel or SimpleITK, or a path as `kitsattn predict` takes it (NIfTI, NRRD,
            MHA, a folder or archive of DICOM files).
        model: A checkpoint, the name of a shipped model, or what `load_model` returns, which is quicker for many scans.
            The shipped model `starter` is the default; `kitsattn models describe starter` says how accurate it is.
            Unlike `kitsattn predict`, this function does not look for networks in a workspace.
        series: Which series of several in DICOM, by number or UID, see `read_scan`; only for a path.
        assume_hu: Whether the values are taken as HU without a check, for scans that are refused though they are in HU.
        inference: How the networks are run: batch, mirror images, overlap, fast.
        locator: A smaller model that finds the kidneys first, so that `model` predicts only the slices around them;
            a checkpoint, or what `load_model` returns.
        rules: Of post-processing, which is done where the classes are KiTS's; None leaves it out.

    Returns:
        The label map, uint8, on the scan's own grid: an image of SimpleITK for one, else of nibabel. The values are
        `model.headers[0].labels`: kidney 1, tumour 2, and in models of KiTS21 and KiTS23 cyst 3.

    Raises:
        KitsattnError: If the scan or the model cannot be used, or memory is short.
    """
    if isinstance(image, str | PathLike):
        scan = read_scan(Path(image), series)
    elif series is None:
        scan = from_image(image)
    else:
        msg = "an image in memory has no series: leave `series` out"
        raise KitsattnError(msg)
    name = image if isinstance(image, str | PathLike) else "the image"
    scan = log_notes(check_ct(scan, assume_hu=assume_hu), name)
    ensemble = model if isinstance(model, Ensemble) else load_model(model)
    if locator is not None and not isinstance(locator, Ensemble):
        locator = load_ensemble([find_weights(locator)], ensemble.device, ensemble.precision)
    if ensemble.synthetic:
        _log.warning("%s", SYNTHETIC_MODEL_NOTICE)
    labels, _ = predict_volume(ensemble, scan, inference, locator=locator)
    labels, _ = follow_rules(ensemble, labels, rules)
    classes = ensemble.headers[0].labels
    if isinstance(image, str | PathLike) or hasattr(image, "dataobj"):
        return nifti.to_image(labels, classes)
    return to_itk(labels, classes)
