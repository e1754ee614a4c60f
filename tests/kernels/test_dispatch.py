"""Which path is taken, and what is said about it; with pretended GPUs."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kitsattn.errors import KitsattnError
from kitsattn.kernels import dispatch
from kitsattn.kernels.dispatch import Choice, Measurement, choose, read_table, write_table
from kitsattn.kernels.shapes import AsppShape, AttentionShape

CUDA = torch.device("cuda")
GPU = "NVIDIA Pretended"
ATTENTION = AttentionShape(batch=16, queries=1024, keys=1024, dim=64, value_dim=256)
ASPP = AsppShape(
    batch=16,
    height=32,
    width=32,
    in_channels=512,
    channels=256,
    out_channels=256,
    sizes=(1, 3, 3, 3),
    rates=(1, 6, 12, 18),
)


def measured(shape: AttentionShape | AsppShape, **change: Any) -> Measurement:
    """Return a row that says the kernel is twice as fast."""
    fields = {name: getattr(shape, name) for name in shape.__dataclass_fields__ if name != "operation"}
    row = Measurement(
        gpu=GPU,
        operation=shape.operation,
        shape=fields,
        dtype="bfloat16",
        training=False,
        fused_ms=1.0,
        reference_ms=2.0,
        torch="2.13.0",
        triton="3.9.0",
        date="2026-11-25",
    )
    return replace(row, **change)


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pretend a GPU of the newest kind, and a user without measurements."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("KITSATTN_KERNELS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: GPU)
    monkeypatch.setattr(dispatch, "triton_missing", lambda: False)
    dispatch._measured.cache_clear()
    dispatch._tell.cache_clear()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Where the user's measurements lie."""
    return tmp_path / "kitsattn" / "kernels.json"


def test_a_gpu_that_was_not_measured_takes_the_reference() -> None:
    """And is told how to measure."""
    choice = choose(ATTENTION, CUDA, torch.bfloat16, training=False)
    assert not choice.fused
    assert choice.reason == f"nothing was measured on {GPU}: `kitsattn doctor --measure` does it, in minutes"


@pytest.mark.parametrize("shape", [ATTENTION, ASPP], ids=["attention", "aspp"])
def test_what_was_measured_decides(shape: AttentionShape | AsppShape, table: Path) -> None:
    """The kernel where it was faster, the reference where it was not, at this pass and in this number format."""
    write_table(table, [measured(shape), measured(shape, training=True, reference_ms=0.9)])
    faster = choose(shape, CUDA, torch.bfloat16, training=False)
    found = "times as fast as the reference at the nearest measured shape"
    assert faster == Choice(fused=True, reason=f"2.00 {found}, on {GPU}, 2026-11-25, Triton 3.9.0")
    slower = choose(shape, CUDA, torch.bfloat16, training=True)
    assert slower == Choice(fused=False, reason=f"0.90 {found}, on {GPU}, 2026-11-25, Triton 3.9.0")
    assert "no shape within a factor of two" in choose(shape, CUDA, torch.float16, training=False).reason


@pytest.mark.parametrize(
    ("shape", "near"),
    [
        (replace(ATTENTION, batch=8), True),
        (replace(ATTENTION, batch=7), False),
        (replace(ATTENTION, queries=900, keys=900), True),
        (replace(ATTENTION, keys=256), False),
        (replace(ASPP, batch=32), True),
        (replace(ASPP, in_channels=2048), False),
        (replace(ASPP, height=16, width=64), True),
        (replace(ASPP, height=128, width=128), False),
    ],
)
def test_a_measurement_counts_within_a_factor_of_two(
    *, shape: AttentionShape | AsppShape, near: bool, table: Path
) -> None:
    """In each of the numbers."""
    write_table(table, [measured(ATTENTION), measured(ASPP)])
    assert choose(shape, CUDA, torch.bfloat16, training=False).fused is near


def test_the_nearest_measurement_counts(table: Path) -> None:
    """Of two within reach."""
    write_table(
        table, [measured(replace(ATTENTION, batch=32), reference_ms=0.5), measured(replace(ATTENTION, batch=12))]
    )
    assert choose(ATTENTION, CUDA, torch.bfloat16, training=False).fused


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        (ATTENTION, torch.float64, "float64: the kernels multiply float16 and bfloat16"),
        (ATTENTION, torch.float32, "float32: the kernels multiply float16 and bfloat16"),
        (replace(ATTENTION, dim=48), torch.bfloat16, "dim is 48, and the kernel has 16, 32, 64, 128, 256"),
        (replace(ATTENTION, value_dim=512), torch.bfloat16, "value_dim is 512"),
        (replace(ATTENTION, batch=2**13, queries=2**12), torch.bfloat16, "more than 2.31 elements"),
        (
            replace(ATTENTION, batch=70_000, queries=1, keys=1),
            torch.bfloat16,
            "70000 images, and the kernel takes 65535",
        ),
        (replace(ASPP, batch=64, height=512, width=512, out_channels=2048), torch.bfloat16, "more than 2.31 elements"),
        (replace(ASPP, in_channels=100), torch.bfloat16, "in_channels is 100, and the kernels take multiples of 64"),
        (replace(ASPP, channels=96), torch.bfloat16, "channels is 96"),
        (replace(ASPP, sizes=(1, 5, 3, 3)), torch.bfloat16, "a kernel size is 5"),
        (replace(ASPP, batch=2**13, height=64, width=64), torch.bfloat16, "more than 2.31 elements"),
    ],
)
def test_what_the_kernels_cannot_do_is_the_references(
    shape: AttentionShape | AsppShape, dtype: torch.dtype, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And an error where the kernels are demanded."""
    choice = choose(shape, CUDA, dtype, training=False)
    assert not choice.fused
    assert choice.reason.startswith(reason.replace("2.31", "2^31"))
    monkeypatch.setenv("KITSATTN_KERNELS", "fused")
    with pytest.raises(KitsattnError, match=rf"KITSATTN_KERNELS=fused, but {shape.operation} cannot: {reason}"):
        choose(shape, CUDA, dtype, training=False)


def test_old_gpus_take_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton has no tensor cores below 8.0."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    choice = choose(ATTENTION, CUDA, torch.float16, training=False)
    assert choice == Choice(fused=False, reason="compute capability 7.5, and Triton's tensor cores begin at 8.0")


def test_without_triton_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not an error: the reference is always there."""
    monkeypatch.setattr(dispatch, "triton_missing", lambda: True)
    choice = choose(ATTENTION, CUDA, torch.bfloat16, training=False)
    assert choice == Choice(fused=False, reason="Triton is not installed: pip install 'kitsattn[gpu]'")


def test_a_cpu_takes_the_reference_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where Triton could interpret the kernels; demanded, they need the interpreter."""
    cpu = torch.device("cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose(ATTENTION, cpu, torch.bfloat16, training=False) == Choice(fused=False, reason="no CUDA device")
    monkeypatch.setenv("KITSATTN_KERNELS", "fused")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(
        KitsattnError, match="the device is cpu: kernels run on CUDA, or with TRITON_INTERPRET=1 on the CPU"
    ):
        choose(ATTENTION, cpu, torch.bfloat16, training=False)


def test_the_variable_chooses_the_reference(monkeypatch: pytest.MonkeyPatch, table: Path) -> None:
    """Whatever was measured."""
    write_table(table, [measured(ATTENTION)])
    monkeypatch.setenv("KITSATTN_KERNELS", "reference")
    choice = choose(ATTENTION, CUDA, torch.bfloat16, training=False)
    assert choice == Choice(fused=False, reason="KITSATTN_KERNELS=reference")


def test_an_unknown_value_of_the_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the values there are."""
    monkeypatch.setenv("KITSATTN_KERNELS", "triton")
    with pytest.raises(KitsattnError, match="KITSATTN_KERNELS is 'triton': set it to auto, fused, reference, or unset"):
        choose(ATTENTION, torch.device("cpu"), torch.float32, training=False)


def test_a_choice_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """One line at the level DEBUG, with shape, path and reason."""
    caplog.set_level(logging.DEBUG)
    for _ in range(3):
        choose(ATTENTION, CUDA, torch.bfloat16, training=True)
    (record,) = caplog.records
    assert record.getMessage().startswith('attention {"batch": 16, "queries": 1024, "keys": 1024, ')
    assert record.getMessage().endswith(
        f"bfloat16, training: reference (nothing was measured on {GPU}: "
        "`kitsattn doctor --measure` does it, in minutes)"
    )


@pytest.mark.parametrize(
    "content",
    [
        "{",
        {"format": "kitsattn-kernels/0", "measurements": []},
        {"measurements": 1},
        {"fused_ms": 0},
        {"fused_ms": None},
        {"reference_ms": float("nan")},
        {"shape": {"batch": 0, "queries": 1, "keys": 1, "dim": 1, "value_dim": 1}},
        {"shape": {"batch": 1}},
        {"colour": "red"},
    ],
)
def test_a_damaged_table_is_told_and_left_out(
    content: str | dict[str, Any], table: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The reference is right without it."""
    write_table(table, [measured(ATTENTION)])
    whole = json.loads(table.read_text())
    if isinstance(content, str) or "measurements" in content:
        table.write_text(content if isinstance(content, str) else json.dumps(content))
    else:
        whole["measurements"][0] |= content
        table.write_text(json.dumps(whole))
    dispatch._measured.cache_clear()
    assert not choose(ATTENTION, CUDA, torch.bfloat16, training=False).fused
    assert f"{table} " in caplog.text


def test_a_home_that_cannot_be_looked_at_costs_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A cluster's job may have none."""
    monkeypatch.delenv("XDG_CACHE_HOME")

    def homeless() -> Path:
        msg = "Could not determine home directory."
        raise RuntimeError(msg)

    monkeypatch.setattr(Path, "home", homeless)
    assert not choose(ATTENTION, CUDA, torch.bfloat16, training=False).fused
    assert "Could not determine home directory" in caplog.text


def test_the_users_own_rows_replace_the_packages(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the same GPU: even if the package has measured a nearer shape."""
    package = [measured(ATTENTION), measured(ATTENTION, gpu="Another")]
    write_table(table, [measured(replace(ATTENTION, batch=12), reference_ms=0.5)])
    read = dispatch.read_table
    monkeypatch.setattr(dispatch, "read_table", lambda path: read(path) if path == table else package)
    assert not choose(ATTENTION, CUDA, torch.bfloat16, training=False).fused
    assert [row.gpu for row in dispatch.measurements()] == [GPU, "Another"]


def test_interpreted_kernels_do_not_take_the_gpus_place(monkeypatch: pytest.MonkeyPatch, table: Path) -> None:
    """With TRITON_INTERPRET=1 Triton would compute on the CPU what was measured on the GPU."""
    write_table(table, [measured(ATTENTION)])
    monkeypatch.setenv("TRITON_INTERPRET", "true")
    assert "the device is cuda" in choose(ATTENTION, CUDA, torch.bfloat16, training=False).reason


def test_gpus_of_amd_take_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch calls them cuda, too."""
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert "AMD" in choose(ATTENTION, CUDA, torch.bfloat16, training=False).reason


def test_the_packages_own_table_can_be_read() -> None:
    """It is part of what is installed."""
    path = Path(dispatch.__file__).with_name("measured.json")
    assert path.is_file()
    assert isinstance(read_table(path), list)
