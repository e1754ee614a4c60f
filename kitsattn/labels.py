"""The classes in label maps, the regions that challenges evaluate, and their JSON keys."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kitsattn.errors import KitsattnError

BACKGROUND = 0
KIDNEY = 1
TUMOUR = 2
CYST = 3

KITS19_LABELS: Mapping[str, int] = {"background": BACKGROUND, "kidney": KIDNEY, "tumour": TUMOUR}
KITS23_LABELS: Mapping[str, int] = {**KITS19_LABELS, "cyst": CYST}


@dataclass(frozen=True)
class Region:
    """A union of classes that is evaluated as one.

    Attributes:
        key: The region's name in JSON, tables and reports.
        labels: The label values that belong to it.
    """

    key: str
    labels: tuple[int, ...]


KIDNEY_AND_TUMOUR = Region("kidney_and_tumour", (KIDNEY, TUMOUR))
TUMOUR_ONLY = Region("tumour", (TUMOUR,))
KITS19_REGIONS = (KIDNEY_AND_TUMOUR, TUMOUR_ONLY)


def check_labels(found: Iterable[int], known: Mapping[str, int], where: str) -> None:
    """Refuse label values that the data set does not define.

    Args:
        found: The distinct values in a label map.
        known: Class name to value.
        where: The file that is named in the error.

    Raises:
        KitsattnError: If a value is not among `known`.
    """
    unknown = sorted(set(found) - set(known.values()))
    if unknown:
        names = ", ".join(f"{value} {name}" for name, value in known.items())
        msg = f"{where} holds the unknown labels {unknown}: the labels of this data set are {names}"
        if CYST in unknown and dict(known) == KITS19_LABELS:
            msg += "; KiTS21 and KiTS23 call 3 cyst: if it is one of them, prepare it with --layout kits21 or kits23"
        raise KitsattnError(msg)
