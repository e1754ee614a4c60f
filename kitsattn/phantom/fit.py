"""Fitting a phantom patient into a field of view, or to the kidneys of a given label map."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kitsattn.errors import KitsattnError
from kitsattn.labels import BACKGROUND, KIDNEY
from kitsattn.phantom.kidneys import kidney_axes, mass_centre
from kitsattn.phantom.outline import Outline, direction_bins
from kitsattn.phantom.patient import Kidney, Patient, Purpose, stream
from kitsattn.volume.geometry import Triple

_SAMPLE_MM = 3.0
"""Label maps are sampled this densely to find out where the patient is."""
_KIDNEY_X_MM, _KIDNEY_Y_MM, _KIDNEY_Z_MM = 75.0, 17.0, 6.0
"""Where kidneys are on average, in body coordinates."""
_BACK_OF_CAVITY_MM = 45.0
_BACK_FROM_AXIS_MM = 30.0
_MOST_VISCERAL_MM = 75.0
_LEAST_SUBCUTANEOUS_MM = 5.0
_AIR_MM = 4.0


def fit_to_field(patient: Patient, width_mm: float) -> Patient:
    """Take fat, first from under the skin, from a patient who is wider than the field of view."""
    patient = _thin(patient, width_mm)
    excess_mm = max(_excess_mm(patient, width_mm), 0.0)
    return replace(patient, visceral_mm=max(patient.visceral_mm - excess_mm, 0.0))


def height_of_kidneys(patient: Patient, extent_mm: float) -> float:
    """Return where the middle of a scan is: amid the kidneys, or nearer to the greatest tumour if it is short.

    Args:
        patient: With at least one tumour.
        extent_mm: Length of the scan along z.

    Returns:
        A body coordinate z in mm.
    """
    middle = float(np.mean([kidney.centre_mm[0] for kidney in patient.kidneys]))
    middle += float(stream(patient.seed, Purpose.FIELD_OF_VIEW).uniform(-15.0, 15.0))
    masses = [(kidney, mass) for kidney in patient.kidneys for mass in kidney.tumours]
    kidney, mass = max(masses, key=lambda pair: pair[1].radii_mm[0])
    tumour = kidney.centre_mm[0] + float((kidney_axes(kidney).T @ mass_centre(kidney, mass))[0])
    slack = 0.3 * extent_mm
    return float(np.clip(middle, tumour - slack, tumour + slack))


def fit_to_labels(labels: NDArray[np.uint8], spacing_mm: Triple, drawn: Patient) -> tuple[Patient, Triple]:
    """Lay a patient so that the kidneys and tumours of a label map are in the right place.

    Args:
        labels: (z, y, x).
        spacing_mm: Of the grid.
        drawn: A patient whose kidneys, size and fat may be changed.

    Returns:
        The patient, and where its body coordinates begin, in mm from the centre of voxel (0, 0, 0).

    Raises:
        KitsattnError: If the map holds no kidney or tumour.
    """
    kidney, everything = _sample(labels, spacing_mm)
    width_mm = labels.shape[2] * spacing_mm[2]
    middle_mm = 0.5 * (width_mm - spacing_mm[2])
    sides = {side: kidney[(kidney[:, 2] - middle_mm) * side > 0] for side in (-1, 1)}
    centres = {side: np.median(at, axis=0) for side, at in sides.items() if len(at) > 0.1 * len(kidney)}
    frame = drawn.frame
    if centres.keys() == {-1, 1}:
        frame = float(np.clip((centres[1][2] - centres[-1][2]) / (2.0 * _KIDNEY_X_MM), 0.9, 1.08))
        spine_x = 0.5 * (centres[1][2] + centres[-1][2])
    else:
        ((side, centre),) = centres.items()
        spine_x = float(np.clip(middle_mm, *sorted(centre[2] - side * beside for beside in (55.0, 100.0))))
    y_mm = np.median([centre[1] for centre in centres.values()]) - _KIDNEY_Y_MM * frame
    y_mm = max(y_mm, np.percentile(everything[:, 1], 98.0) - _BACK_OF_CAVITY_MM * frame)
    z_mm = np.median([centre[0] for centre in centres.values()]) - _KIDNEY_Z_MM * frame
    origin = np.array([z_mm, y_mm, spine_x])
    kidneys = tuple(_plain_kidney(side, centre - origin) for side, centre in centres.items())
    patient = _widen(replace(drawn, frame=frame, kidneys=kidneys), everything - origin)
    return _thin(patient, 2.0 * min(spine_x, width_mm - spine_x)), (float(z_mm), float(y_mm), float(spine_x))


def _sample(labels: NDArray[np.uint8], spacing_mm: Triple) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return places, (count, 3) in mm, in kidneys, and in kidneys and masses."""
    steps = [max(1, int(_SAMPLE_MM / spacing)) for spacing in spacing_mm]
    for coarse in (steps, [1, 1, 1]):
        thinned = labels[:: coarse[0], :: coarse[1], :: coarse[2]]
        indices = np.nonzero(thinned != BACKGROUND)
        if len(indices[0]):
            places = np.stack(indices, axis=1) * (np.array(coarse) * np.array(spacing_mm))
            kidney = places[thinned[indices] == KIDNEY]
            return (kidney if len(kidney) else places), places
    msg = "the label map holds neither kidney nor tumour: a scan cannot be painted around it, choose another"
    raise KitsattnError(msg)


def _plain_kidney(side: int, centre: NDArray[np.float64]) -> Kidney:
    """Return a kidney for the anatomy around it, whose vessels run to it."""
    z, y, x = centre.tolist()
    return Kidney(side, (z, y, x), (55.0, 28.0, 23.0), (15.0, 8.0, 30.0), 7.0)


def _widen(patient: Patient, places: NDArray[np.float64]) -> Patient:
    """Give the patient as much visceral fat as it takes for the cavity to hold all places, (count, 3) in mm."""
    outline = Outline(patient)
    needed = 0.0
    for z_mm in np.unique(places[:, 0]):
        _, y_mm, x_mm = places[places[:, 0] == z_mm].T
        from_axis = y_mm - outline.axis_y_mm
        room = outline.layers(float(z_mm)).cavity[direction_bins(from_axis, x_mm)]
        beyond = np.sqrt(from_axis * from_axis + x_mm * x_mm) + 3.0 - room
        # More fat moves the wall to the sides and to the front, not to the back.
        needed = max(needed, float(np.max(beyond, where=from_axis < _BACK_FROM_AXIS_MM, initial=0.0)))
    return replace(patient, visceral_mm=min(patient.visceral_mm + needed, _MOST_VISCERAL_MM))


def _thin(patient: Patient, width_mm: float) -> Patient:
    """Take as much fat from under the skin as a field of view asks for, down to a thin layer."""
    excess_mm = max(_excess_mm(patient, width_mm), 0.0)
    thin_mm = max(patient.subcutaneous_mm - excess_mm, min(patient.subcutaneous_mm, _LEAST_SUBCUTANEOUS_MM))
    return replace(patient, subcutaneous_mm=thin_mm)


def _excess_mm(patient: Patient, width_mm: float) -> float:
    return Outline(patient).half_width_mm + _AIR_MM - 0.5 * width_mm
