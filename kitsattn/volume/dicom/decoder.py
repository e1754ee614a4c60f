"""Compressed DICOM slices, decoded by GDCM in a process of its own.

GDCM comes with SimpleITK and decodes RLE, JPEG, JPEG-LS and JPEG 2000. Damaged data can crash it: 5 of 600 JPEG slices
with one to four changed bytes did. Others announce another size than the header, and it asks for the memory: 3.4 GB
for one of 64 x 72 voxels. So it runs in a helper process, started at the first compressed slice; there a crash is an
error about one file, and memory is limited to what the header's size needs, where the system can do that. A slice goes
there through a temporary folder, alone and with nothing but its pixel format.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitsattn.volume.dicom.headers import Image

_SECONDS_A_SLICE = 60
"""When the helper is stopped: 512 x 512 voxels of JPEG 2000 took 0.05 s."""

_BYTES_A_VOXEL = 64
_SPARE_BYTES = 1 << 28
"""What the helper may ask for beside that."""

_DECODED = "decoded"
_REFUSED = "refused"


class Decoder:
    """A helper process that decodes slices; made by `open_decoder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None

    def decode(self, encoded: bytes, image: Image) -> NDArray[Any]:
        """Decode a slice.

        Args:
            encoded: Its compressed bytes.
            image: States size, pixel format and transfer syntax.

        Returns:
            The stored values, (rows, columns), integers, without slope and intercept.

        Raises:
            ValueError: If the bytes cannot be decoded, or are not of the size that the header states.
        """
        source, target = self._folder / "slice.dcm", self._folder / "slice.npy"
        _write_slice(source, encoded, image)
        if self._ask(f"{image.rows * image.columns} {source}") != _DECODED:
            msg = f"the bytes are no {image.syntax}"
            raise ValueError(msg)
        stored: NDArray[Any] = np.load(target, allow_pickle=False)
        if stored.size != image.rows * image.columns or stored.dtype.kind not in "iu":
            msg = (
                f"{stored.shape} values of {stored.dtype} where {image.rows} x {image.columns} whole numbers are stated"
            )
            raise ValueError(msg)
        return stored.reshape(image.rows, image.columns)

    def close(self) -> None:
        """Stop the helper if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ask(self, question: str) -> str:
        if self._process is None:
            # -P: a file of the working folder is not imported in the place of a library.
            command = [sys.executable, "-P", "-m", __name__]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, encoding="utf-8"
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        patience = Timer(_SECONDS_A_SLICE, self._process.kill)
        patience.start()
        try:
            self._process.stdin.write(f"{question}\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline().strip()
        except BrokenPipeError:
            answer = ""
        finally:
            patience.cancel()
        if not answer:
            self.close()
        return answer


@contextmanager
def open_decoder() -> Iterator[Decoder]:
    """Give a decoder; at the end its process is stopped and its temporary folder removed, whatever happens."""
    with TemporaryDirectory(prefix="kitsattn-", ignore_cleanup_errors=True) as folder:
        decoder = Decoder(Path(folder))
        try:
            yield decoder
        finally:
            decoder.close()


def _write_slice(file: Path, encoded: bytes, image: Image) -> None:
    """Write a slice as a file of its own, that states no slope and intercept: GDCM would apply them."""
    from pydicom.dataset import Dataset, FileMetaDataset  # noqa: PLC0415 - who reads no DICOM need not wait for it
    from pydicom.encaps import encapsulate  # noqa: PLC0415
    from pydicom.uid import UID, SecondaryCaptureImageStorage, generate_uid  # noqa: PLC0415

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(image.syntax)
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = image.rows, image.columns
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = image.bits_allocated, image.bits_stored, image.high_bit
    dataset.PixelRepresentation = int(image.signed)
    dataset.PixelData = encapsulate([encoded])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(file, enforce_file_format=True)


def serve() -> None:
    """Decode each file that standard input names into a .npy file beside it, and answer whether that went well.

    A line holds the number of voxels that the file states, a space, and its path.
    """
    import SimpleITK  # noqa: PLC0415 - only the helper decodes

    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    for line in sys.stdin:
        voxels, _, source = line.rstrip("\n").partition(" ")
        _limit_memory(int(voxels))
        try:
            image = SimpleITK.ReadImage(source, imageIO="GDCMImageIO")
        except (RuntimeError, MemoryError):
            answer = _REFUSED
        else:
            np.save(Path(source).with_suffix(".npy"), SimpleITK.GetArrayViewFromImage(image))
            answer = _DECODED
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


def _limit_memory(voxels: int) -> None:
    import psutil  # noqa: PLC0415 - only the helper limits itself

    with suppress(ImportError, OSError, ValueError):  # not every system can
        import resource  # noqa: PLC0415 - POSIX only

        limit = psutil.Process().memory_info().vms + _BYTES_A_VOXEL * voxels + _SPARE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    serve()
