"""Known labels, and how they are scored."""

from collections.abc import Mapping

import pytest

from kitsattn.errors import KitsattnError
from kitsattn.labels import (
    KITS19,
    KITS19_LABELS,
    KITS23,
    KITS23_LABELS,
    Region,
    ScoringProtocol,
    check_labels,
    protocol_of,
)


def test_known_labels_pass() -> None:
    """Any subset of the data set's labels is fine, an empty map too."""
    check_labels([0, 2], KITS19_LABELS, "a.nii.gz")
    check_labels([], KITS19_LABELS, "a.nii.gz")
    check_labels([0, 1, 2, 3], KITS23_LABELS, "a.nii.gz")


def test_an_unknown_label_is_refused_with_the_known_ones() -> None:
    """The error names the file, the value, and what would be right."""
    with pytest.raises(KitsattnError, match=r"a\.nii\.gz holds the unknown labels \[3, 7\].*2 tumour"):
        check_labels([7, 0, 3], KITS19_LABELS, "a.nii.gz")


def test_cysts_in_kits19s_labels_point_to_the_other_challenges() -> None:
    """A folder of KiTS23 may look like one of KiTS19 until a cyst is met; no other value says so."""
    with pytest.raises(KitsattnError, match=r"\[3\].*KiTS23 call 3 cyst: .* --layout kits21 or kits23$"):
        check_labels([3], KITS19_LABELS, "a.nii.gz")
    for values, known in (([4], KITS19_LABELS), ([3], {"background": 0, "kidney": 1}), ([4], KITS23_LABELS)):
        with pytest.raises(KitsattnError) as refusal:
            check_labels(values, known, "a.nii.gz")
        assert "layout" not in str(refusal.value)


def _reversed(labels: Mapping[str, int]) -> dict[str, int]:
    return dict(reversed(list(labels.items())))


@pytest.mark.parametrize("protocol", [KITS19, KITS23], ids=lambda protocol: protocol.key)
def test_a_challenges_labels_are_scored_as_the_challenge_does(protocol: ScoringProtocol) -> None:
    """The order in which a file lists the labels does not matter."""
    assert protocol_of(_reversed(protocol.labels)) == protocol


def test_regions_of_kits23() -> None:
    """The hierarchical evaluation classes are kidney with all masses, the masses, and the tumour."""
    regions = {region.key: region.labels for region in KITS23.regions}
    assert regions == {"kidney_and_masses": (1, 2, 3), "masses": (2, 3), "tumour": (2,)}


@pytest.mark.parametrize(
    "labels",
    [{"background": 0, "kidney": 1}, {"background": 0, "kidney": 1, "cyst": 2}, {**KITS23_LABELS, "vein": 4}],
    ids=" ".join,
)
def test_other_labels_are_scored_one_by_one_in_the_order_of_their_values(labels: dict[str, int]) -> None:
    """Each label but the background is a region, whatever the order in which they are listed."""
    protocol = protocol_of(_reversed(labels))

    assert (protocol.key, protocol.labels) == ("labels", labels)
    expected = tuple(
        Region(name, (value,), lesions=name in {"tumour", "cyst"}) for name, value in labels.items() if value
    )
    assert protocol.regions == expected
