"""Numbers of DICOM headers: absent, readable, or refused with tag, value and file; never their default."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydicom import config
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pydicom.valuerep import validate_value

from kitsattn.errors import KitsattnError
from kitsattn.volume.dicom.series import read_dicom

HU = np.random.default_rng(0).integers(-900, 1500, (3, 5, 6))
SLOPE, INTERCEPT, SPACING, POSITION, ORIENTATION = 0x00281053, 0x00281052, 0x00280030, 0x00200032, 0x00200037
NUMBERS = {
    "RescaleSlope": (SLOPE, ["0.9"]),
    "RescaleIntercept": (INTERCEPT, ["-1000.5"]),
    "PixelSpacing": (SPACING, ["0.7", "0.8"]),
    "ImagePositionPatient": (POSITION, ["-90.5", "-70.25", "{z}"]),
    "ImageOrientationPatient": (ORIENTATION, ["1.0", "0.0", "0.0", "0.0", "1.0", "0.0"]),
}
WriteSlice = Callable[..., Path]
EXPLICIT, IMPLICIT = ExplicitVRLittleEndian, ImplicitVRLittleEndian


def write_series(write: WriteSlice, folder: Path, tag: int, value: bytes, kind: str = "DS", **changes: Any) -> Path:
    """Write three slices whose headers hold `value`, with each one's height in the place of {z}."""
    for number, hu in enumerate(HU):
        own = value.replace(b"{z}", b"%d.0" % (5 * number))
        write(folder / f"IM{number}", hu, 5.0 * number, raw={tag: (kind, own)}, **changes)
    return folder


def is_decimal(text: str) -> bool:
    """Tell whether text is a decimal string of DICOM, by pydicom's rules."""
    try:
        validate_value("DS", text, config.RAISE)
    except ValueError:
        return False
    return bool(text.strip())


@pytest.mark.parametrize("kind", ["DS", "LO", "UT", "UN"])
@pytest.mark.parametrize("name", NUMBERS)
def test_decimal_comma_is_read_with_a_note(write_slice: WriteSlice, tmp_path: Path, name: str, kind: str) -> None:
    """A comma in place of the point gives the same scan, in whatever representation of text, and is noted."""
    tag, parts = NUMBERS[name]
    value = "\\".join(parts)
    with_point = read_dicom(write_series(write_slice, tmp_path / "point", tag, value.encode(), kind))
    folder = write_series(write_slice, tmp_path / "comma", tag, value.replace(".", ",").encode(), kind)

    with_comma = read_dicom(folder)

    assert np.array_equal(with_comma.array, with_point.array)
    assert with_comma.geometry == with_point.geometry
    assert not any("comma" in note for note in with_point.notes)
    (note,) = (note for note in with_comma.notes if "comma" in note)
    assert note.startswith(f"{name} (")


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("wrong", ["{} HU", "{}\\{}", "1_0", "nan", "1e999", "1.0D0", "1.000,5", "\\"])
def test_unreadable_number_is_refused(write_slice: WriteSlice, tmp_path: Path, name: str, wrong: str) -> None:
    """The line names the tag, the value and the file."""
    tag, parts = NUMBERS[name]
    value = "\\".join([wrong.replace("{}", parts[0]), *parts[1:]])

    with pytest.raises(KitsattnError) as caught:
        read_dicom(write_series(write_slice, tmp_path, tag, value.encode()))

    assert f"{name} ({tag >> 16:04X},{tag & 0xFFFF:04X})" in str(caught.value)
    assert value.replace("{z}", "0.0").strip() in str(caught.value)
    assert "IM0" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(("kind", "syntax"), [("FD", EXPLICIT), ("SS", EXPLICIT), ("OB", EXPLICIT), ("FD", IMPLICIT)])
def test_binary_number_is_refused(write_slice: WriteSlice, tmp_path: Path, name: str, kind: str, syntax: UID) -> None:
    """A number that is not text is none of the standard's, even if its bytes are those of digits."""
    tag, parts = NUMBERS[name]
    packed = bytes(8 * len(parts))  # zeros of FD
    value = packed if kind == "FD" else "\\".join(parts).encode()

    with pytest.raises(KitsattnError, match=f"{name} .*, not .* decimal number"):
        read_dicom(write_series(write_slice, tmp_path, tag, value, kind, syntax=syntax))


@pytest.mark.parametrize("value", ["-1,024", "1,024"])
def test_comma_that_may_group_thousands_is_refused(write_slice: WriteSlice, tmp_path: Path, value: str) -> None:
    """An intercept of -1,024 is -1024 for some writers."""
    with pytest.raises(KitsattnError, match=r"RescaleIntercept \(0028,1052\) .* thousands"):
        read_dicom(write_series(write_slice, tmp_path, INTERCEPT, value.encode()))


@pytest.mark.parametrize("value", [b"", b"  "])
def test_empty_number_is_absent(write_slice: WriteSlice, tmp_path: Path, value: bytes) -> None:
    """A slope without a value is 1, as if its element were not there; a position without one is missing."""
    scan = read_dicom(write_series(write_slice, tmp_path / "slope", SLOPE, value))
    assert np.array_equal(scan.array, HU)
    with pytest.raises(KitsattnError, match="does not state where its slices are"):
        read_dicom(write_series(write_slice, tmp_path / "position", POSITION, value))


@pytest.mark.parametrize(
    ("tag", "kind", "value"),
    [
        (0x00280103, "IS", b"1 "),
        (0x00280103, "US", struct.pack("<H", 2)),
        (0x00280101, "US", struct.pack("<2H", 12, 12)),
        (0x00280010, "LO", b"12"),
        (0x00280008, "IS", b"two"),
        (0x00280120, "DS", b"-2000"),
        (0x00280121, "US", b"\1\2\3\4"),
    ],
)
def test_unreadable_whole_number_is_refused(
    write_slice: WriteSlice, tmp_path: Path, tag: int, kind: str, value: bytes
) -> None:
    """What says how voxels are stored is not guessed either."""
    padding = {0x00280120: ("US", b"\0\0")}
    for number, hu in enumerate(HU):
        write_slice(tmp_path / str(number), hu, 5.0 * number, raw=padding | {tag: (kind, value)})

    with pytest.raises(KitsattnError, match=rf"\({tag >> 16:04X},{tag & 0xFFFF:04X}\)"):
        read_dicom(tmp_path)


def test_unreadable_number_of_another_series_stops_nothing(write_slice: WriteSlice, tmp_path: Path) -> None:
    """The series that is read has its own headers."""
    write_series(write_slice, tmp_path / "one", SLOPE, b"1 ")
    for number in range(2):
        other = {"SeriesInstanceUID": "1.2.4", "raw": {SLOPE: ("DS", b"0.9 HU")}}
        write_slice(tmp_path / "other" / str(number), HU[0], 5.0 * number, **other)

    assert np.array_equal(read_dicom(tmp_path).array, HU)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(NUMBERS)),
    st.integers(0, 5),
    st.one_of(
        st.decimals(-9999, 9999, places=3, allow_nan=False).map(str),
        st.decimals(-9, 9, places=2, allow_nan=False).map(lambda value: str(value).replace(".", ",")),
        st.text("0123456789+-.,eE_ HU\\", min_size=1, max_size=8),
        st.text(st.characters(max_codepoint=255, exclude_characters="\n\r\0"), min_size=1, max_size=6),
    ),
)
@example("RescaleSlope", 0, "0,9")
def test_a_number_is_what_it_says_or_refused(
    write_slice: WriteSlice, tmp_path: Path, name: str, place: int, text: str
) -> None:
    """Whatever stands in a number's place: it is read as DICOM or a decimal comma reads it, or the tag is named."""
    tag, parts = NUMBERS[name]
    parts = [*parts]
    parts[place % len(parts)] = text
    value = "\\".join(parts)
    readable = len(value.split("\\")) == len(parts) and all(
        is_decimal(part.replace("{z}", "0").strip().replace(",", ".", 1)) for part in value.split("\\")
    )

    outcome: Any
    try:
        outcome = read_dicom(write_series(write_slice, tmp_path, tag, value.encode("latin-1")))
    except KitsattnError as error:
        outcome = str(error)

    if isinstance(outcome, str):
        assert "\n" not in outcome
        assert not readable or f"{name} (" not in outcome or "thousands" in outcome
        assert readable or f"{name} (" in outcome or not text.strip()
        return
    assert readable or not value.strip(" \\")
    if name == "RescaleSlope":
        slope = np.float32(text.replace(",", ".")) if text.strip() else 1
        assert np.allclose(outcome.array, (HU + 1024) * slope - 1024, rtol=1e-5, atol=1e-3)
