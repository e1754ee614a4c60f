"""Short parts of the proofs in this folder, and disks that are full or may not be written."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from kitsattn.synthesis.prepare import PreparedMaterial

FOLDER = Path(__file__).parent

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals, limits and forks of POSIX")

COMMANDS = """
import json, resource, sys
from pathlib import Path
from kitsattn.cli.app import main

for folder in Path(".").glob("full"):
    try:
        with (folder / "filler").open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
    except OSError:
        pass
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for limit, words in json.loads(sys.argv.pop()):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit or hard, hard))
    sys.argv[1:] = ["-q", "predict", *words]
    try:
        main()
    except SystemExit as end:
        print("exit code", end.code, file=sys.stderr)
print(*sorted(str(path) for path in Path().rglob("*") if path.is_file()))
"""
"""Runs `kitsattn predict` several times, each under its own limit of a file's bytes, and prints the files it left."""

OUTPUTS = {"--statistics": "s.json", "--preview": "p.png", "--probabilities": "p.nii.gz", "--report": "r.html"}


@pytest.fixture(scope="module")
def killing(load_script: Callable[[Path], ModuleType]) -> ModuleType:
    """The script `kill_predict.py` as a module."""
    return load_script(FOLDER / "kill_predict.py")


def test_a_killed_prediction_leaves_whole_files_and_goes_on(killing: ModuleType, tmp_path: Path) -> None:
    """Three times: while a file is being written, after a time, and while another one is."""
    runs = killing.prove(tmp_path, kills=3, seed=1, scans=2, shape=(5, 32, 40))
    assert [fault for run in runs for fault in run.faults] == []
    assert sum(run.code < 0 for run in runs) == 3
    assert runs[-1].code == 0
    assert runs[-1].finished == 2


def test_what_a_killed_run_could_do_wrong_is_seen(killing: ModuleType, tmp_path: Path) -> None:
    """A file that is cut short, another one, one of no case, and a label map before what belongs to it."""
    work = tmp_path / "work"
    killing.make_scans(work / "labels", 1, shape=(5, 32, 40))
    label = work / "labels" / "scan0.nii.gz"
    for name in killing.beside("labels/scan0.nii.gz"):
        (work / name).parent.mkdir()
        (work / name).write_text("{}")
    reference = {
        "labels/scan0.nii.gz": killing.read_whole(label),
        "statistics/scan0.json": killing.read_whole(work / "statistics" / "scan0.json"),
    }
    (work / "probabilities" / "scan0.nii.gz").unlink()
    label.write_bytes(label.read_bytes()[:-100])
    (work / "statistics" / "scan0.json").write_text("[]")
    (work / "labels" / ".0123abcd.part.scan1.nii.gz").write_bytes(b"half")

    faults = killing.find_faults(work, reference)

    assert [fault.partition(":")[0] for fault in faults] == [
        "labels/scan0.nii.gz is not whole",
        "previews/scan0.png is no file of the run without interruption",
        "statistics/scan0.json differs",
        "labels/scan0.nii.gz is there without probabilities/scan0.nii.gz",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory in /proc, and forks")
def test_changed_inputs_are_refused_in_one_line_or_predicted_rightly() -> None:
    """A hundred of them; in a process of its own, for one with threads should not be forked."""
    command = [sys.executable, str(FOLDER / "fuzz_predict.py"), "--count", "105", "--seed", "7"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert (run.returncode, run.stderr) == (0, ""), run.stdout + run.stderr
    kind, refused, right, wrong, _ = run.stdout.splitlines()[-2].split()
    assert kind == "all"
    assert int(refused) > 20
    assert int(right) > 20
    assert int(refused) + int(right) == 105
    assert wrong == "0"


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory in /proc, and forks")
def test_a_label_map_that_does_not_fit_a_changed_input_is_seen(
    load_script: Callable[[Path], ModuleType], tmp_path: Path
) -> None:
    """Of a tenth of the voxels."""
    fuzzing = load_script(FOLDER / "fuzz_predict.py")
    ensemble = fuzzing.make_ensemble()
    scan = tmp_path / "scan.nii"
    scan.write_bytes(fuzzing.make_originals(tmp_path)["nii"][0])
    case = fuzzing.PredictionCase(name="case", source=scan, target=tmp_path / "labels.nii")
    fuzzing.predict_cases(ensemble, [case], rules=None)
    assert fuzzing.find_fault("nii", case, ensemble) == ""

    content = bytearray(scan.read_bytes())
    middle, part = len(content) // 2, len(content) // 20
    content[middle : middle + 2 * part] = np.full(part, 250, np.int16).tobytes()
    scan.write_bytes(content)
    assert "wrong voxels" in fuzzing.find_fault("nii", case, ensemble)


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory in /proc, and forks")
def test_a_study_that_is_read_wrongly_is_seen(load_script: Callable[[Path], ModuleType], tmp_path: Path) -> None:
    """Another voxel, and a scan where there should be a refusal."""
    fuzzing = load_script(FOLDER / "fuzz_predict.py")
    drawn = (random.Random(seed) for seed in range(100))  # noqa: S311 - what is wanted is that it can be repeated
    studies = (fuzzing.write_study(rng, tmp_path / str(number)) for number, rng in enumerate(drawn))
    study = next(study for study in studies if study.hu is not None)
    scan = fuzzing.read_scan(study.source, study.series)
    assert fuzzing.compare_study(scan, study) == ""

    changed = study.hu.copy()
    changed[2, 10, 10] += 2
    assert fuzzing.compare_study(scan, replace(study, hu=changed)) == "1 wrong voxels"
    assert "read, although" in fuzzing.compare_study(scan, replace(study, hu=None))


def _predict(folder: Path, commands: list[tuple[int, list[str]]], within: list[str]) -> tuple[list[str], list[str]]:
    """Run commands in a folder; return the lines of stderr, and the files they left."""
    program = [*within, sys.executable, "-c", COMMANDS, json.dumps(commands)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stderr.splitlines(), run.stdout.split()


def _mounted(folder: Path, options: str) -> list[str]:
    """Return the start of a command that sees a file system of its own on a folder; skip where that may not be."""
    start = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o {options} none "$0" && exec "$@"', str(folder)]
    try:
        subprocess.run([*start, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("file systems may not be mounted here")
    return start


@pytest.fixture
def scan(killing: ModuleType, tmp_path: Path) -> Path:
    """A small scan."""
    killing.make_scans(tmp_path, 1, shape=(5, 32, 40))
    return tmp_path / "scan0.nii.gz"


def _words(killing: ModuleType, output: str, *more: str) -> list[str]:
    return ["scan0.nii.gz", output, *more, "--model", str(killing.CHECKPOINT), "--device", "cpu", "--no-postprocess"]


def test_files_that_outgrow_their_limit_are_one_line(killing: ModuleType, scan: Path) -> None:
    """No label map says that a case is finished that is not, and nothing half is left; a report costs no label map."""
    limits = {"--statistics": 64, "--preview": 64, "--probabilities": 64, "--report": 4096}
    commands = [
        (limits[option], _words(killing, f"{number}.nii.gz", option, name))
        for number, (option, name) in enumerate(OUTPUTS.items())
    ]
    told, files = _predict(scan.parent, commands, [])
    assert [line for line in told if not line.startswith("warning: ")] == [
        line
        for name in OUTPUTS.values()
        for line in (
            f"error: no space left to write {name}: free some disk space and run the command again",
            "exit code 1",
        )
    ]
    assert files == ["3.nii.gz", "scan0.nii.gz"]


def test_a_full_disk_is_one_line(killing: ModuleType, scan: Path) -> None:
    """A disk without a free byte, for the label map and each file beside it."""
    (scan.parent / "full").mkdir()
    commands = [(0, _words(killing, "full/out.nii.gz"))]
    commands += [
        (0, _words(killing, f"{number}.nii.gz", option, f"full/{name}"))
        for number, (option, name) in enumerate(OUTPUTS.items())
    ]
    told, files = _predict(scan.parent, commands, _mounted(scan.parent / "full", "size=64k"))
    assert [line for line in told if not line.startswith("warning: ")] == [
        line
        for name in ("out.nii.gz", *OUTPUTS.values())
        for line in (
            f"error: no space left to write full/{name}: free some disk space and run the command again",
            "exit code 1",
        )
    ]
    assert files == ["3.nii.gz", "full/filler", "scan0.nii.gz"]


def test_a_folder_that_may_not_be_written_is_refused_before_any_work(killing: ModuleType, scan: Path) -> None:
    """For the label map and each file beside it, before the model is looked at."""
    folder = scan.parent / "locked"
    folder.mkdir(mode=0o555)
    within = _mounted(folder, "ro") if os.access(folder, os.W_OK) else []
    commands = [(0, ["scan0.nii.gz", "locked/out.nii.gz", "--model", "none"])]
    commands += [
        (0, ["scan0.nii.gz", "out.nii.gz", option, f"locked/{name}", "--model", "none"])
        for option, name in OUTPUTS.items()
    ]
    told, files = _predict(scan.parent, commands, within)
    for name, line, code in zip(("out.nii.gz", *OUTPUTS.values()), told[::2], told[1::2], strict=True):
        assert line.startswith(f"error: locked/{name} cannot be written: ")
        assert line.endswith("locked is not a folder that you may write to; name another output")
        assert code == "exit code 1"
    assert files == ["scan0.nii.gz"]


@pytest.fixture(scope="module")
def sources(load_script: Callable[[Path], ModuleType]) -> ModuleType:
    """The script `starter_sources.py` as a module."""
    return load_script(FOLDER / "starter_sources.py")


def test_sources_of_made_scans_are_measured(sources: ModuleType, material: PreparedMaterial) -> None:
    """Ten draws of each: the table has every statistic of every region, finite and different from draw to draw."""
    table = sources.draw_table(material.open(), 10, seed=1, size=(96, 128))
    assert table.labels == ("painted", "bodies", "slices")
    assert table.values.shape == (30, len(table.names))
    assert np.isfinite(table.values).all()
    assert len(np.unique(table.values, axis=0)) > 25  # a body that fills the small frame leaves nothing to measure
    assert {name.partition(":")[0] for name in table.names} == set(sources.REGIONS)
    again = sources.draw_table(material.open(), 10, seed=1, size=(96, 128))
    np.testing.assert_array_equal(table.values, again.values)


def test_a_frame_that_gives_its_source_away_is_seen(sources: ModuleType) -> None:
    """Sources that differ by 40 HU in the corners are told apart by that statistic, equal ones are not."""
    rng = np.random.default_rng(0)
    y, x = np.indices((96, 128))
    body = np.hypot((y - 48) / 24, (x - 64) / 36) <= 1
    corner = np.hypot(np.minimum(y, 95 - y), np.minimum(x, 127 - x)) < 30
    rows = []
    for number in range(80):
        image = np.where(body, 50.0, -200.0) + rng.normal(0, 5, (5, 96, 128))
        image += 40.0 * corner * (number % 2)
        rows.append(sources.measure_frame(image.astype(np.float32)))
    names = tuple(rows[0])
    values = np.array([[row[name] for name in names] for row in rows])
    table = sources.Table(names, values, np.arange(80) % 2, ("one", "other"))
    assert min(sources.tell_apart(table).values()) > 0.9
    best, *_, worst = sources.rank_statistics(table)
    assert best[0] > 0.95
    assert best[1].startswith("corners: ")
    assert worst[0] < 0.75
    shuffled = sources.Table(names, values, rng.permutation(table.sources), table.labels)
    assert max(sources.tell_apart(shuffled).values()) < 0.75
