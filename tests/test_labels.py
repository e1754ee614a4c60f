"""Known labels."""

import pytest

from kitsattn.errors import KitsattnError
from kitsattn.labels import KITS19_LABELS, KITS23_LABELS, check_labels


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
