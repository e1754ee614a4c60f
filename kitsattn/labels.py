"""The classes in label maps, the regions that challenges evaluate, and their JSON keys."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kitsattn.errors import KitsattnError
from kitsattn.words import name_some

BACKGROUND = 0
KIDNEY = 1
TUMOUR = 2
CYST = 3

KITS19_LABELS: Mapping[str, int] = {"background": BACKGROUND, "kidney": KIDNEY, "tumour": TUMOUR}
KITS23_LABELS: Mapping[str, int] = {**KITS19_LABELS, "cyst": CYST}

LABEL_COLOURS: Mapping[str, str] = {"kidney": "#56b4e9", "tumour": "#f26b1d", "cyst": "#2fd6a0"}
"""Sky blue, vermilion and bluish green of Okabe and Ito (https://jfly.uni-koeln.de/color/), the latter two brightened
for a dark ground: people with any of the common colour vision deficiencies tell them apart."""
OTHER_COLOURS = ("#f0e442", "#cc79a7", "#e69f00", "#0072b2")
"""For classes of other names, in turn: yellow, reddish purple, orange and blue of the same."""


@dataclass(frozen=True)
class Region:
    """A union of classes that is evaluated as one.

    Attributes:
        key: The region's name in JSON, tables and reports.
        labels: The label values that belong to it.
        tolerance_mm: Within which two of its surfaces count as equal.
        lesions: Whether it consists of lesions, which are counted one by one.
    """

    key: str
    labels: tuple[int, ...]
    tolerance_mm: float = 1.0
    lesions: bool = False


@dataclass(frozen=True)
class ScoringProtocol:
    """Which label values there are, and which regions of them are scored.

    Attributes:
        key: Its name in JSON and on the command line.
        title: Its name in tables and reports.
        labels: Class name to value, background included.
        regions: What is scored, in the order of tables.
    """

    key: str
    title: str
    labels: Mapping[str, int]
    regions: tuple[Region, ...]


_KIDNEY_MM, _MASSES_MM, _TUMOUR_MM = 1.0330772532390826, 1.1328796488598762, 1.1498198361434828
"""Tolerances of KiTS21 and KiTS23: how far two annotators' surfaces are apart (kits21/evaluation/metrics.py)."""

_LESIONS = ("tumour", "tumor", "mass", "cyst", "lesion")
"""A class is of lesions if one of these words is in its name."""

KITS19 = ScoringProtocol(
    "kits19",
    "KiTS19",
    KITS19_LABELS,
    (
        Region("kidney_and_tumour", (KIDNEY, TUMOUR), _KIDNEY_MM),
        Region("tumour", (TUMOUR,), _TUMOUR_MM, lesions=True),
    ),
)
"""Its challenge has no surface scores; the tolerances are those of KiTS21."""
KITS23 = ScoringProtocol(
    "kits23",
    "KiTS23",
    KITS23_LABELS,
    (
        Region("kidney_and_masses", (KIDNEY, TUMOUR, CYST), _KIDNEY_MM),
        Region("masses", (TUMOUR, CYST), _MASSES_MM, lesions=True),
        Region("tumour", (TUMOUR,), _TUMOUR_MM, lesions=True),
    ),
)
"""KiTS21 has the same labels and the same hierarchical evaluation classes."""


def protocol_of(labels: Mapping[str, int]) -> ScoringProtocol:
    """Return how a data set with these labels is scored: as its challenge, other labels one by one.

    Args:
        labels: Class name to value, background included.

    Raises:
        KitsattnError: If a class is called `case`, as the key that holds the id of a case in JSON is.
    """
    if "case" in labels:
        msg = "a class is called case, which names a patient in the scores: give the class another name"
        raise KitsattnError(msg)
    for protocol in (KITS19, KITS23):
        if dict(labels) == dict(protocol.labels):
            return protocol
    own = {name: value for name, value in labels.items() if value != BACKGROUND}
    regions = tuple(
        Region(name, (value,), lesions=any(word in name.lower() for word in _LESIONS))
        for name, value in sorted(own.items(), key=lambda item: item[1])
    )
    return ScoringProtocol("labels", "each label on its own", dict(labels), regions)


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
        shown = name_some(map(str, unknown))
        msg = f"{where} holds the unknown labels [{shown}]: the labels of this data set are {names}"
        if CYST in unknown and dict(known) == KITS19_LABELS:
            msg += "; KiTS21 and KiTS23 call 3 cyst: if it is one of them, prepare it with --layout kits21 or kits23"
        raise KitsattnError(msg)
