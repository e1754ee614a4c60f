"""A small picture of a prepared case with its labels, for people who look through a data set."""

import numpy as np
from numpy.typing import NDArray

from kitsattn.figures.overlay import LABELLED, View, compact_sheet
from kitsattn.figures.slices import choose_slices
from kitsattn.volume.geometry import Geometry, Triple

_AXIAL = 3


def draw_preview(hu: NDArray[np.int16], labels: NDArray[np.uint8], *, spacing_mm: Triple, case_id: str) -> bytes:
    """Draw whole prepared slices with the outlines of what is labelled: three axial ones and a coronal one.

    The axial slices are those with the largest area of tumour, of the right and of the left kidney, the coronal one
    that with the largest area of all that is labelled.

    Args:
        hu: (z, height, width) on the prepared grid, in HU. Only the slices that are drawn are read, so a stored array
            that unpacks what it is asked for, such as blosc2's, will do.
        labels: Of the same shape; they are read slice by slice, and may be stored too.
        spacing_mm: Of the prepared grid, (z, y, x).
        case_id: The case; "nothing labelled" is added to the headline where that is so.

    Returns:
        A WebP.

    Raises:
        ValueError: If labels and scan differ in shape.
    """
    depth, height, _ = shape = labels.shape
    if tuple(hu.shape) != shape:
        msg = f"labels of shape {shape} on a scan of shape {tuple(hu.shape)}"
        raise ValueError(msg)
    z_step, y_step, x_step = spacing_mm
    slices = choose_slices([labels], Geometry.axial(shape, spacing_mm), most=_AXIAL)
    views = [View(f"axial {z + 1} of {depth}", hu[z], ((LABELLED, labels[z]),), (y_step, x_step)) for z in slices.axial]
    y = slices.coronal
    # z grows upwards in the patient, rows grow downwards in the picture.
    coronal, outlined = hu[:, y][::-1], labels[:, y][::-1]
    views.append(View(f"coronal {y + 1} of {height}", coronal, ((LABELLED, outlined),), (z_step, x_step)))
    return compact_sheet(views, title=case_id if slices.kidney_found else f"{case_id}: nothing labelled")
