"""What all tests share: the data they may use, a file server, and the proof that what is installed is under test."""

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import kitsattn
from kitsattn.checkpoint import header, shipped
from kitsattn.checkpoint.file import Checkpoint, load_checkpoint, save_checkpoint
from kitsattn.datasets.find import find_dataset
from kitsattn.files import sha256, write_json
from kitsattn.jobs import HERE
from kitsattn.labels import KITS19_LABELS
from kitsattn.preprocess.run import preprocess_dataset
from kitsattn.preprocess.store import PreparedDataset
from kitsattn.synthesis.data import find_starter_data
from kitsattn.synthesis.prepare import PreparedMaterial, prepare_material
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.nifti import write_nifti
from kitsattn.volume.volume import Volume
from kitsattn.workspace import Workspace

# Chosen before anything imports Triton, as PyTorch does now and then: its own functions are interpreted or compiled
# from then on. On a machine with a GPU the kernels' tests run them compiled.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The same examples on every machine: a failure can be repeated, and a slow machine is no failure.
hypothesis.settings.register_profile("kitsattn", derandomize=True, deadline=None)
hypothesis.settings.load_profile("kitsattn")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Stop if a built wheel is to be tested (`KITSATTN_TEST_WHEEL=1`) but the checkout would be."""
    package = Path(kitsattn.__file__).resolve().parent
    if os.environ.get("KITSATTN_TEST_WHEEL") == "1" and package == session.config.rootpath.resolve() / "kitsattn":
        pytest.exit(f"kitsattn is imported from the checkout, {package}, not from the installed wheel", returncode=1)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Let torch use one core: threads that wait for each other on a busy machine take longer than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window; without it, its driver or selenium the test is skipped."""
    webdriver: Any = pytest.importorskip("selenium.webdriver", reason="needs selenium to steer a browser")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver on PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # Selenium gets both paths, so that it downloads nothing.
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real CT and label maps that `KITSATTN_TEST_DATA` names; without it the test is skipped."""
    folder = os.environ.get("KITSATTN_TEST_DATA")
    if not folder:
        pytest.skip("needs real data: set KITSATTN_TEST_DATA to its folder")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"KITSATTN_TEST_DATA={folder} is not a folder")
    return path


def paint_case(seed: int, shape: tuple[int, int, int] = (14, 64, 72)) -> tuple[np.ndarray, np.ndarray]:
    """Return scan and labels, (z, y, x), of a body reduced to the least: fat, muscle, two kidneys, one tumour."""
    generator = np.random.default_rng(seed)
    z, y, x = np.indices(shape)
    centre_y, centre_x = shape[1] / 2, shape[2] / 2
    radius = np.hypot((y - centre_y) / (0.42 * shape[1]), (x - centre_x) / (0.42 * shape[2]))
    scan = np.where(radius < 0.85, 50, np.where(radius < 1, -100, -1000))
    labels = np.zeros(shape, np.uint8)
    for side in (-1, 1):
        kidney_x = centre_x + side * 0.18 * shape[2] + generator.integers(-2, 3)
        distance = np.sqrt(((z - 7) / 5.5) ** 2 + ((y - centre_y - 4) / 8) ** 2 + ((x - kidney_x) / 6) ** 2)
        scan[distance < 1], labels[distance < 1] = 180, 1
    tumour = np.sqrt(((z - 7) / 3.5) ** 2 + ((y - centre_y + 4) / 5) ** 2 + ((x - kidney_x) / 5) ** 2) < 1
    scan[tumour], labels[tumour] = 100, 2
    return (scan + generator.normal(0, 12, shape)).round().astype(np.int16), labels


@pytest.fixture(scope="session")
def kits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A KiTS19 folder of six small painted cases, anisotropic, with a description that calls them synthetic."""
    folder = tmp_path_factory.mktemp("raw") / "painted"
    for number in range(6):
        scan, labels = paint_case(number)
        geometry = Geometry.axial(scan.shape, (5.0, 2.0, 2.5), (number * 7.0, -30.0, 12.5))
        case = folder / f"case_{number:05}"
        write_nifti(case / "imaging.nii.gz", Volume(scan, geometry), axes="IPL")
        write_nifti(case / "segmentation.nii.gz", Volume(labels, geometry), axes="IPL")
    description = {"name": "painted", "synthetic": True, "labels": dict(KITS19_LABELS)}
    write_json(folder / "kitsattn-dataset.json", {**description, "licence": "CC0-1.0", "citation": "painted for tests"})
    return folder


@pytest.fixture(scope="session")
def prepared(kits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """The painted cases, prepared."""
    folder = tmp_path_factory.mktemp("preprocessed") / "painted"
    return preprocess_dataset(find_dataset(kits_folder), folder, workers=HERE).dataset


def _ellipsoid(
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    centre_mm: tuple[float, float, float],
    radii_mm: tuple[float, float, float],
) -> np.ndarray:
    """Return the voxels of an ellipsoid; its centre is given from the middle of the grid, z, y, x."""
    places = [
        (np.arange(count) - (count - 1) / 2) * step - centre
        for count, step, centre in zip(shape, spacing_mm, centre_mm, strict=True)
    ]
    z, y, x = (place / radius for place, radius in zip(places, radii_mm, strict=True))
    return (z * z)[:, None, None] + (y * y)[None, :, None] + (x * x)[None, None] <= 1


def _kits_labels(number: int, *, cyst: bool) -> Volume:
    """Return two kidneys of 50 x 25 x 25 mm (radii) 130 mm apart, a tumour on the left one, and maybe a cyst."""
    shape, spacing = (27, 80, 96), (5.0, 4.0, 4.0)
    labels = np.zeros(shape, np.uint8)
    for x in (-65.0, 65.0):
        labels[_ellipsoid(shape, spacing, (0.0, 20.0, x), (50.0, 25.0, 25.0))] = 1
    labels[_ellipsoid(shape, spacing, (5.0 * number - 10.0, 0.0, 70.0), (18.0, 16.0, 16.0))] = 2
    if cyst:
        labels[_ellipsoid(shape, spacing, (20.0, 10.0, -80.0), (12.0, 12.0, 12.0))] = 3
    return Volume(labels, Geometry.axial(shape, spacing))


ORGANS: Mapping[int, str] = {
    1: "kidney_right",
    2: "kidney_left",
    3: "liver",
    4: "spleen",
    5: "vertebrae_L2",
    6: "aorta",
    7: "colon",
    8: "autochthon_left",
}
"""The names of `organ_labels`; the values differ from TotalSegmentator's, since the names decide."""


def organ_labels(spacing_mm: tuple[float, float, float] = (3.0, 1.5, 1.5)) -> Volume:
    """Return a body of 8 organs, 300 mm wide and 210 mm deep: a ring of muscle and what is in it, 120 mm high."""
    shape = tuple(round(length / step) for length, step in zip((120, 240, 330), spacing_mm, strict=True))
    z, y, x = shape
    size = (z, y, x)
    labels = np.zeros(size, np.uint8)
    labels[_ellipsoid(size, spacing_mm, (0, 0, 0), (1e6, 105, 150))] = 8
    labels[_ellipsoid(size, spacing_mm, (0, 0, 0), (1e6, 97, 142))] = 0
    for value, centre, radii in (
        (3, (15, -25, -75), (40, 50, 45)),
        (4, (25, -5, 110), (30, 35, 22)),
        (7, (0, -60, 40), (50, 22, 40)),
        (5, (0, 60, 0), (1e6, 22, 25)),
        (6, (0, 25, 12), (1e6, 10, 10)),
        (1, (0, 40, -65), (50, 24, 22)),
        (2, (5, 40, 65), (50, 24, 22)),
    ):
        labels[_ellipsoid(size, spacing_mm, centre, radii)] = value
    return Volume(labels, Geometry.axial(size, spacing_mm))


def _painted_slice(size: tuple[int, int], pixel_mm: float, kidney: int, tumour: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a slice as it is stored, 0 to 255 HU, and its labels: muscle within a dark ring of fat, two kidneys."""
    shape, spacing = (1, *size), (1.0, pixel_mm, pixel_mm)
    image, labels = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    for radii, hu in (((1, 70, 100), 55), ((1, 62, 92), 0), ((1, 50, 80), 60)):
        image[_ellipsoid(shape, spacing, (0, 0, 0), radii)[0]] = hu
    for x in (-45, 45):
        inside = _ellipsoid(shape, spacing, (0, 15, x), (1, 22, 20))[0]
        image[inside], labels[inside] = 180, kidney
    if tumour:
        inside = _ellipsoid(shape, spacing, (0, -5, 50), (1, 14, 14))[0]
        image[inside], labels[inside] = 100, tumour
    noise = np.random.default_rng(size[1]).integers(0, 9, size, np.uint8)
    return np.where(image > 0, image + noise, 0).astype(np.uint8), labels


@pytest.fixture(scope="session")
def starter_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete data folder for `train --recipe starter`, all of it computed; some of each source is held out.

    Nothing in it may be changed.
    """
    folder = tmp_path_factory.mktemp("data")
    for name, number, cyst in (
        ("kits19-labels/case_00003", 0, False),
        ("kits19-labels/case_00158", 1, False),
        ("kits19-labels/case_00159", 2, False),
        ("starter/kits23-labels/case_00400", 2, True),
    ):
        write_nifti(folder / f"{name}.nii.gz", _kits_labels(number, cyst=cyst), axes="IPL")
    starter = folder / "starter"
    for name in ("s0001", "s0009", "s0328"):
        write_nifti(starter / "totalsegmentator" / f"{name}_seg.nii.gz", organ_labels(), axes="RAS")
    write_json(starter / "totalsegmentator" / "labels.json", {str(value): name for value, name in ORGANS.items()})
    write_nifti(starter / "spl-atlas" / "spl_seg.nii.gz", organ_labels((4.0, 3.0, 3.0)), axes="RAS")
    renamed = {"1": "right_kidney", "2": "left_kidney", "3": "liver", "5": "L2_vertebra", "8": "psoas_muscle"}
    write_json(starter / "spl-atlas" / "labels.json", renamed)
    slices = starter / "real-slices"
    slices.mkdir()
    drawn = [_painted_slice((256, 272), 0.8, 2, 0) for _ in range(4)]
    np.savez_compressed(
        slices / "curvas_108slices.npz",
        images=np.stack([image for image, _ in drawn]),
        labels=np.stack([labels for _, labels in drawn]),
        patient_index=np.array([10001, 10012, 10002, 10014]),
        slice=np.array([40, 50, 60, 70]),
        annotator=np.ones(4, int),
    )
    drawn = [_painted_slice((240, 264), 0.9, 1, 2) for _ in range(3)]
    np.savez_compressed(
        slices / "kits19_train_slices.npz",
        images=np.stack([image for image, _ in drawn]),
        labels=np.stack([labels for _, labels in drawn]),
        case=np.array([4, 158, 160]),
        slice=np.array([20, 30, 40]),
        spacing_zyx=np.array([[5.0, 0.9, 0.9]] * 3),
    )
    return folder


@pytest.fixture(scope="session")
def material(starter_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedMaterial:
    """The material that samples are drawn from, prepared from `starter_folder`. Nothing in it may be changed."""
    workspace = Workspace(tmp_path_factory.mktemp("material"))
    return prepare_material(find_starter_data(starter_folder), workspace)


@pytest.fixture(scope="session")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small network in place of the shipped one: half precision, sources, test scores, and its card.

    Nothing in it may be changed.
    """
    folder = tmp_path_factory.mktemp("standin")
    golden = load_checkpoint(Path(__file__).parent / "checkpoint" / "golden.safetensors")
    made = replace(
        golden.header.provenance,
        dataset="starter",
        synthetic=False,
        licence="CC BY-NC-SA 4.0",
        scores={},
        hours=1.5,
        sources=(
            header.TrainingSource(
                name="KiTS23", count=9, unit="label maps", licence="CC BY-NC-SA 4.0", citation="Heller"
            ),
        ),
        tests=(
            header.TestScore(data="ward A", region="kidney", dice=0.934, low=0.9, high=0.95, patients=7),
            header.TestScore(data="ward A", region="tumour", dice=0.701, low=0.5, high=0.8, patients=7),
            header.TestScore(data="ward B", region="kidney", dice=0.5, patients=1),
        ),
    )
    weights = {
        name: tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor
        for name, tensor in golden.model.items()
    }
    save_checkpoint(folder / "starter.safetensors", Checkpoint(replace(golden.header, provenance=made), weights, {}))
    card = f"# starter\n\nA stand-in.\n\nSHA-256: `{sha256(folder / 'starter.safetensors')}`\n"
    (folder / "starter.md").write_text(card, encoding="utf-8")
    return folder


@pytest.fixture
def shipped_folder(standin: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in's folder as the one of the shipped models; the test may change what is in it."""
    folder = tmp_path_factory.mktemp("weights")
    for path in standin.iterdir():
        shutil.copy(path, folder)
    monkeypatch.setattr(shipped, "FOLDER", folder)
    return folder


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """A Dask cluster of two worker processes on loopback, in another folder; yields the scheduler's address."""
    pytest.importorskip("distributed", reason="needs the extra cluster")
    address = tmp_path / "address"
    script = (
        "import sys; from pathlib import Path; from distributed import LocalCluster\n"
        "if __name__ == '__main__':\n"
        "    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:\n"
        "        Path(sys.argv[1] + '.part').write_text(cluster.scheduler_address)\n"
        "        Path(sys.argv[1] + '.part').rename(sys.argv[1]); sys.stdin.read()\n"
    )
    (tmp_path / "cluster.py").write_text(script)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [sys.executable, str(tmp_path / "cluster.py"), str(address)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=elsewhere) as process:
        while process.poll() is None and not address.exists():
            time.sleep(0.05)
        yield address.read_text()
        process.communicate(timeout=30)


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request.

    Attributes:
        status: An answer instead of the file.
        headers: More headers of the answer, or others.
        cut: The connection ends after so many bytes of the body.
        hold: The connection falls silent there instead, until the server is told to go on.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    hold: bool = False


@dataclass
class Served:
    """One file of the server.

    Attributes:
        content: Its bytes.
        etag: Its ETag; None sends none.
        ranges: Whether a part of it can be had.
        headers: More headers, or others; a None leaves one out.
        faults: What goes wrong, one for each request that comes.
    """

    content: bytes
    etag: str | None = '"one"'
    ranges: bool = True
    headers: dict[str, str | None] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def fail(self, *, times: int = 1, **fault: Any) -> "Served":
        """Let one more request, or several, go wrong in the way that the attributes of a `Fault` say."""
        self.faults += [Fault(**fault)] * times
        return self


class FileServer(ThreadingHTTPServer):
    """A server of files on loopback that behaves well, or as badly as a test wants it to.

    Attributes:
        files: By path, such as `/images/case_00000.nii.gz`.
        redirects: From path to address.
        requests: The path and headers of each request, in the order they came.
        go_on: Ends the silence of `Fault.hold`.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _FileHandler)
        self.files: dict[str, Served] = {}
        self.redirects: dict[str, str] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.go_on = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def serve(self, path: str, content: bytes, **options: Any) -> Served:
        """Serve a file; the options are the attributes of `Served`."""
        self.files[path] = Served(content, **options)
        return self.files[path]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that have gone away."""


class _FileHandler(BaseHTTPRequestHandler):
    server: FileServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name it has there
        """Keep the tests' output clean."""

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        if self.path in self.server.redirects:
            self._answer(302, {"Location": self.server.redirects[self.path]})
            return
        served = self.server.files.get(self.path)
        if served is None:
            self._answer(404)
            return
        fault = served.faults.pop(0) if served.faults else Fault()
        if fault.status is not None:
            self._answer(fault.status, fault.headers)
            return
        self._send(served, fault)

    def _answer(self, status: int, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": "0", **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()

    def _send(self, served: Served, fault: Fault) -> None:
        begin, total = 0, len(served.content)
        if served.ranges and "Range" in self.headers and self.headers["If-Range"] in {None, served.etag}:
            begin = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        body = served.content[begin:]
        headers = {"Content-Length": str(len(body)), "ETag": served.etag}
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{total - 1}/{total}"
        self.send_response(206 if begin else 200)
        for key, value in {**headers, **served.headers, **fault.headers}.items():
            if value is not None:
                self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body[: fault.cut])
        if fault.hold:
            self.server.go_on.wait(60)
        self.close_connection = True


@pytest.fixture
def file_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A running server without files; it is asked directly, whatever the machine's proxy is."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with FileServer() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.go_on.set()
        server.shutdown()


@pytest.fixture(scope="session")
def load_script() -> Callable[[Path], ModuleType]:
    """A function that loads a script among the tests as a module, by its path."""

    def load(path: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def trained_alike() -> Callable[[nn.Module], nn.Module]:
    """Return a network in evaluation, whose statistics and normalisations are not those of a new one."""

    def change(model: nn.Module) -> nn.Module:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2.0)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.1)
        return model.eval()

    return change


ABDOMEN_SHAPE = (12, 60, 80)
ABDOMEN_SPACING_MM = (5.0, 4.0, 4.0)
BODY_RADII_MM = (80.0, 120.0)
CENTRE_MM = (110.0, 160.0)


def draw_abdomen() -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Draw air, an elliptic body of fat around muscle, two kidneys of which one has a tumour, and a table."""
    y = np.arange(ABDOMEN_SHAPE[1])[:, None] * ABDOMEN_SPACING_MM[1] - CENTRE_MM[0]
    x = np.arange(ABDOMEN_SHAPE[2])[None, :] * ABDOMEN_SPACING_MM[2] - CENTRE_MM[1]
    radius = np.hypot(y / BODY_RADII_MM[0], x / BODY_RADII_MM[1])
    noise = np.random.default_rng(7).normal(0, 10, ABDOMEN_SHAPE)
    scan = np.full(ABDOMEN_SHAPE, -1000.0)
    scan[:, radius < 1] = -100
    scan[:, radius < 0.85] = 50
    scan[:, 52:54, 10:70] = 200
    labels = np.zeros(ABDOMEN_SHAPE, np.uint8)
    for side in (-60, 60):
        labels[2:10, np.hypot(y, x - side) < 30] = 1
    labels[4:7, np.hypot(y, x - 60) < 14] = 2
    scan[labels == 1] = 160
    scan[labels == 2] = 90
    return np.rint(scan + noise).astype(np.int16), labels


@pytest.fixture
def abdomen() -> tuple[Volume, Volume]:
    """Scan and label map of the small abdomen."""
    scan, labels = draw_abdomen()
    geometry = Geometry.axial(ABDOMEN_SHAPE, ABDOMEN_SPACING_MM)
    return Volume(scan, geometry), Volume(labels, geometry)
