"""What `kitsattn doctor` measures, and the benchmark's dry run."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kitsattn.config import to_json
from kitsattn.errors import KitsattnError
from kitsattn.kernels import dispatch, measure
from kitsattn.kernels.problems import Comparison, Problem, compare, make_problem
from kitsattn.kernels.shapes import AsppShape, AttentionShape

CPU = torch.device("cpu")
ATTENTION = AttentionShape(2, 20, 17, 16, 32)
ASPP = AsppShape(3, 2, 5, 64, 64, 64, (1, 3), (1, 2))
ROOT = Path(__file__).parents[2]

_PARTS = ("inference", "training", "gradients")
_MISSING = """
import sys
for name in ("nibabel", "SimpleITK", "batchgenerators", "scipy", "psutil", "joblib", "blosc2", "sklearn", "matplotlib"):
    sys.modules[name] = None
"""

interpreted = pytest.mark.skipif(not dispatch.interpreting(), reason="compiled kernels need a GPU")


@interpreted
def test_the_self_test_passes_and_names_each_operation_and_pass() -> None:
    """Doctor's self-test runs both operations, in inference and training, and finds them right."""
    rows = measure.self_test(CPU)
    operations = [f"{operation} {part}" for operation in ("attention", "aspp") for part in _PARTS]
    assert [name for name, _, _ in rows] == operations
    assert all(0 <= error <= tolerance for _, error, tolerance in rows)


@interpreted
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [ATTENTION, ASPP], ids=["attention", "aspp"])
def test_a_wrong_kernel_is_found(shape: dispatch.Shape, *, training: bool) -> None:
    """A result that is off by a hundredth is wrong, and so is one with a value that is no number."""
    problem = make_problem(shape, CPU, torch.float32, training=training)
    assert all(result.right for result in compare(problem, CPU))

    def off(inputs: Sequence[Tensor]) -> Tensor:
        return problem.fused(inputs) * 1.01

    def hollow(inputs: Sequence[Tensor]) -> Tensor:
        out = problem.fused(inputs)
        mask = torch.zeros_like(out)
        mask[(0,) * mask.ndim] = torch.nan
        return out + mask

    wrong = compare(replace(problem, fused=off), CPU)
    assert not any(result.right for result in wrong)
    assert [result.error for result in wrong] == pytest.approx([0.01] * len(wrong), rel=0.05)
    assert not compare(replace(problem, fused=hollow), CPU)[0].right


def test_the_tolerance_bounds_the_error() -> None:
    """An error as large as the tolerance is right; a greater one, or none at all, is not."""
    assert Comparison("output", 0.1, 0.1).right
    assert not Comparison("output", 0.11, 0.1).right
    assert not Comparison("output", float("nan"), 0.1).right


@interpreted
def test_measuring_returns_a_row_a_shape_and_pass() -> None:
    """Each row says what was measured, where, with which versions and when; progress counts up to the end."""
    seen: list[tuple[int, int]] = []
    one_image = replace(ASPP, batch=1)
    rows = measure.measure_kernels(
        CPU, shapes=[ATTENTION, one_image], progress=lambda _, done, total: seen.append((done, total))
    )
    # One image cannot be normalised behind the pooling, so the ASPP is not trained with it.
    assert [(row.operation, row.training) for row in rows] == [
        ("attention", False),
        ("attention", True),
        ("aspp", False),
    ]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert {row.gpu for row in rows} == {"cpu"}
    assert rows[0].shape == {"batch": 2, "queries": 20, "keys": 17, "dim": 16, "value_dim": 32}
    assert all(row.fused_ms > 0 and row.reference_ms > 0 for row in rows)
    assert all(row.torch == torch.__version__ and row.triton and len(row.date) == len("2026-01-31") for row in rows)


@interpreted
def test_what_was_measured_can_be_read_again(tmp_path: Path) -> None:
    """Rows that were written to a table come back, so that dispatch can go by them."""
    rows = measure.measure_kernels(CPU, shapes=[replace(ASPP, batch=1), ATTENTION])
    dispatch.write_table(tmp_path / "table.json", rows)
    assert [to_json(row) for row in dispatch.read_table(tmp_path / "table.json")] == [to_json(row) for row in rows]


@interpreted
def test_a_wrong_kernel_is_an_error_and_never_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring stops at a wrong kernel and says which result is off, and how to go on."""
    monkeypatch.setattr(measure, "compare", lambda *_: [Comparison("gradient of q", 0.5, 0.01)])
    with pytest.raises(KitsattnError, match=r"gradient of q is off by 5\.0e-01.*KITSATTN_KERNELS=reference"):
        measure.measure_kernels(CPU, shapes=[ATTENTION])


@interpreted
def test_what_does_not_fit_the_memory_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shape for which memory runs out is dropped, and the others are measured."""

    def choosy(problem: Problem, device: torch.device) -> list[Comparison]:
        if problem.training:
            raise torch.OutOfMemoryError
        return compare(problem, device)

    monkeypatch.setattr(measure, "compare", choosy)
    assert [row.training for row in measure.measure_kernels(CPU, shapes=[ATTENTION])] == [False]


def test_a_device_without_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU there is nothing to measure, and without Triton it says how to get it."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(KitsattnError, match="the device is cpu"):
        measure.measure_kernels(CPU)
    with pytest.raises(KitsattnError, match="the device is cpu"):
        measure.self_test(CPU)
    monkeypatch.setattr(dispatch, "triton_missing", lambda: True)
    with pytest.raises(KitsattnError, match=r"pip install 'kitsattn\[gpu\]'"):
        measure.measure_kernels(CPU)


def test_a_gpu_on_which_the_kernels_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU without tensor cores for Triton has no kernels, and the interpreter's times are not a GPU's."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(KitsattnError, match="unset it"):
        measure.require_kernels(torch.device("cuda"))
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(KitsattnError, match="Tesla T4 has no tensor cores that Triton can use"):
        measure.require_kernels(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    measure.require_kernels(torch.device("cuda"))


@pytest.mark.parametrize("quick", [False, True])
def test_kernels_can_run_at_every_measured_shape(*, quick: bool) -> None:
    """No shape that is measured has an obstacle, none comes twice, and quick measuring has a part of them."""
    shapes = measure.measured_shapes(quick=quick)
    assert len(set(shapes)) == len(shapes)
    assert [shape.obstacle() for shape in shapes] == [None] * len(shapes)
    assert set(shapes) <= set(measure.measured_shapes())
    assert {shape.operation for shape in shapes} == {"attention", "aspp"}


def test_inputs_take_turns() -> None:
    """Copies of the inputs have other activations and the same parameters, and gradients of both."""
    problem = make_problem(ATTENTION, CPU, torch.float32, training=True)
    first, second, *_ = measure.rotated_inputs(problem, CPU)
    for mine, other in zip(first[:4], second[:4], strict=True):
        assert mine.shape == other.shape
        assert mine.stride() == other.stride()
        assert not torch.equal(mine, other)
    assert first[4] is second[4]
    assert all(values.requires_grad for values in first + second)


@interpreted
def test_the_benchmark_runs_dry(tmp_path: Path) -> None:
    """Every step of the benchmark runs on a CPU, also where the libraries for images are missing, and says so."""
    (tmp_path / "sitecustomize.py").write_text(_MISSING)
    command = [
        sys.executable,
        str(ROOT / "tests" / "benchmarks" / "kernels.py"),
        "--dry-run",
        "--json",
        str(tmp_path / "report.json"),
    ]
    command += ["--write-table", str(tmp_path / "table.json")]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("This was a dry run: its figures mean nothing.\n")
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report["answers"]) == ["3", "1", "2", "4", "5"]
    assert report["machine"]["gpu"] == "cpu"
    assert all(row["right"] for row in report["answers"]["3"])
    assert not [row for row in report["answers"]["4"] if "error" in row]
    assert {row["rival"] for row in report["ratios"]} >= {"eager", "torch.compile", "default SDPA", "best padded SDPA"}
    assert json.loads((tmp_path / "table.json").read_text())["measurements"]


def test_the_benchmark_runs_dry_without_kernels() -> None:
    """Where Triton does not interpret, the dry run leaves the kernels out, says so, and measures the rest."""
    command = [sys.executable, str(ROOT / "tests" / "benchmarks" / "kernels.py"), "--dry-run", "--only", "3", "1"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The kernels are left out")
    assert "skipped: no kernel can run here" in done.stdout
    assert "dense TFLOP/s" in done.stdout
