"""Reading a CT: a scan whose values are HU, with notes on what a reader should know of them."""

from pathlib import Path

from kitsattn.volume.cuts import note_cuts
from kitsattn.volume.formats import read_scan
from kitsattn.volume.hu import check_hu
from kitsattn.volume.volume import Volume


def read_ct(path: Path, series: str | None = None, *, assume_hu: bool = False) -> Volume:
    """Read a CT scan in HU.

    Args:
        path: In any format that `read_scan` reads.
        series: Which series of several in DICOM, see `read_scan`.
        assume_hu: Whether the values are taken as HU without a check.

    Returns:
        The scan, (z, y, x), with notes on corrected and lost values.

    Raises:
        KitsattnError: If the file cannot be read, or its values are not HU, see `check_hu`.
    """
    return check_ct(read_scan(path, series), assume_hu=assume_hu)


def check_ct(scan: Volume, *, assume_hu: bool = False) -> Volume:
    """Return a scan in HU that was read already, as `read_ct` does."""
    return note_cuts(check_hu(scan, assume=assume_hu))
