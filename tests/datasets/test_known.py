import pytest

from kitsattn.datasets.find import LAYOUTS
from kitsattn.datasets.known import _LAYOUT_REMARKS, _REMARKS, known_remarks, layout_remarks


def test_the_odd_shape_is_known() -> None:
    """Case 160 of KiTS19 has wider slices than all others."""
    (remark,) = known_remarks("kits19", "case_00160")
    assert remark == (
        "Its slices have 512 x 796 voxels, those of all other cases 512 x 512 "
        "(KiTS19 issue 6, https://github.com/neheller/kits19/issues/6)."
    )


def test_the_winners_cases_are_known() -> None:
    """Two label maps were replaced and four cases left out by the winners of KiTS19, and no others."""
    said = {number: " ".join(known_remarks("kits19", f"case_{number:05}")) for number in range(300)}
    winners = {number: text for number, text in said.items() if "arXiv:1908.02182" in text}
    assert [number for number, text in winners.items() if "trained on a label map predicted" in text] == [15, 37]
    assert [number for number, text in winners.items() if "left it out" in text] == [23, 68, 125, 133]


def test_what_was_corrected_after_the_challenge_is_known() -> None:
    """The organisers' changelog of December 2019 names four cases."""
    numbers = [n for n in range(300) if any("December 2019" in r for r in known_remarks("kits19", f"case_{n:05}"))]
    assert numbers == [15, 23, 37, 125]


@pytest.mark.parametrize(
    ("layout", "case_id"),
    [("kits19", "case_00000"), ("kits23", "case_00160"), ("pairs", "case_00160"), ("kits19", "00160"), ("x", "y")],
)
def test_nothing_is_known_of_other_cases(layout: str, case_id: str) -> None:
    """Remarks are of one challenge's cases."""
    assert known_remarks(layout, case_id) == ()


def test_the_slice_axis_is_known() -> None:
    """All files of KiTS19 have it first; nothing is said of plain pairs."""
    assert "slice axis first" in layout_remarks("kits19")[0]
    assert layout_remarks("pairs") == ()


def test_every_remark_has_a_source() -> None:
    """Each is one sentence that ends with a link or an arXiv number in brackets, of a layout that exists."""
    assert {*_REMARKS, *_LAYOUT_REMARKS} <= set(LAYOUTS)
    remarks = [remark for cases in _REMARKS.values() for remarks in cases.values() for remark in remarks]
    remarks += [remark for remarks in _LAYOUT_REMARKS.values() for remark in remarks]
    for remark in remarks:
        sentence, _, source = remark.partition(" (")
        assert sentence
        assert source.endswith(").")
        assert "https://github.com/neheller/" in source or "arXiv:" in source
