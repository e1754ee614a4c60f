"""`kitsattn doctor`, on machines without a GPU, with an interpreted and with a pretended one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import Result

from kitsattn.kernels import dispatch, measure
from kitsattn.kernels.dispatch import Measurement, read_table, user_table
from kitsattn.kernels.shapes import AttentionShape

Command = Callable[..., Result]

pytestmark = pytest.mark.usefixtures("_own_cache")


@pytest.fixture
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(dispatch, "interpreting", lambda: False)
    dispatch._measured.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_machine_without_a_gpu_is_told_so_plainly(command: Command) -> None:
    """The reference runs every block, and there is no kernel to test; that is no mistake."""
    result = command("doctor")
    assert result.exit_code == 0
    assert "GPU:      none that is used; networks run on cpu in" in result.stdout
    assert "attention-deeplab-r50, 8 x 512 x 512" in result.stdout
    assert "8 x 32 x 32, 2048 to 256, rates 6, 12, 18" in result.stdout
    assert "8 x 1024 queries of 64, 1024 keys, values of 256" in result.stdout
    assert result.stdout.count("no CUDA device") == 4
    assert "self-test of the kernels: none, the device is cpu" in result.stdout
    assert f"torch {torch.__version__}" in result.stdout


def test_json_holds_all_that_the_text_says(command: Command) -> None:
    """With the sizes of the network that was asked for."""
    arguments = ("--model", "attention-deeplab-tiny", "--size", "128", "--batch-size", "2", "--device", "cpu")
    result = command("doctor", *arguments, "--json")
    content: dict[str, Any] = json.loads(result.stdout)
    assert content["device"] == {"type": "cpu", "precision": content["device"]["precision"]}
    assert content["versions"]["torch"] == torch.__version__
    aspp, attention = content["blocks"]
    assert aspp["shape"] | {"sizes": 0, "rates": 0} == {
        "batch": 2,
        "height": 8,
        "width": 8,
        "in_channels": 192,
        "channels": 64,
        "out_channels": 64,
        "sizes": 0,
        "rates": 0,
    }
    assert attention["shape"] == {"batch": 2, "queries": 64, "keys": 64, "dim": 16, "value_dim": 64}
    assert attention["training"] == {"path": "reference", "why": "no CUDA device"}
    assert content["self_test"] == {"results": [], "why_not": content["self_test"]["why_not"]}


def test_a_demanded_kernel_that_cannot_run_is_shown(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a run would end with an error, doctor says which."""
    monkeypatch.setenv("KITSATTN_KERNELS", "fused")
    result = command("doctor", "--device", "cpu", "--json")
    assert result.exit_code == 0
    path = json.loads(result.stdout)["blocks"][0]["training"]
    assert path["path"] == "none"
    assert "KITSATTN_KERNELS=fused, but aspp cannot" in path["why"]


def test_kernels_that_are_wrong_are_an_error(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to do until they are fixed."""
    monkeypatch.setattr(measure, "require_kernels", lambda _: None)
    results = [("attention inference", 1e-4, 1e-3), ("aspp gradients", float("nan"), 1e-3)]
    monkeypatch.setattr(measure, "self_test", lambda _: results)
    result = command("doctor", "--device", "cpu")
    assert result.exit_code == 1
    assert "self-test of attention inference: right, error 1.0e-04 of 1.0e-03" in result.stdout
    assert "self-test of aspp gradients: WRONG" in result.stdout
    assert "the kernels are wrong on this machine (aspp gradients): set KITSATTN_KERNELS=reference" in result.stderr


def test_measuring_needs_a_gpu(command: Command) -> None:
    """And says so."""
    result = command("doctor", "--measure", "--device", "cpu")
    assert result.exit_code == 1
    assert "there is no NVIDIA GPU to measure: on cpu the reference is used anyway" in result.stderr


def test_what_is_measured_is_kept_and_used(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of this GPU are replaced, those of others stay, and the kernel is taken where it was faster."""

    def row(gpu: str, fused_ms: float) -> Measurement:
        return Measurement(
            gpu=gpu,
            operation="attention",
            shape={"batch": 8, "queries": 1024, "keys": 1024, "dim": 64, "value_dim": 256},
            dtype="bfloat16",
            training=False,
            fused_ms=fused_ms,
            reference_ms=1.0,
            torch="2.13.0",
            triton="3.9.0",
            date="2026-11-25",
        )

    class Properties:
        name = "Pretended"
        major, minor = 9, 0
        total_memory = 80_000_000_000

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Pretended")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    monkeypatch.setattr(measure, "self_test", lambda _: [])
    monkeypatch.setattr(measure, "measure_kernels", lambda *_, **__: [row("Pretended", 0.5)])
    user_table().parent.mkdir()
    user_table().write_text("damaged")
    first = command("doctor", "--measure", "--device", "cuda", "--precision", "bf16")
    assert first.exit_code == 0, first.stderr
    assert "measured: 1 shapes and passes, the kernel was faster at 1; kept in" in first.stderr
    assert "it is replaced" in first.stderr
    dispatch.write_table(user_table(), [row("Another", 0.5), row("Pretended", 2.0)])

    result = command("doctor", "--measure", "--device", "cuda", "--precision", "bf16", "--json")

    attention = json.loads(result.stdout)["blocks"][1]
    assert attention["inference"]["path"] == "kernel"
    assert attention["inference"]["why"].startswith("2.00 times as fast as the reference at the nearest measured shape")
    assert attention["training"]["path"] == "reference"
    assert [one.gpu for one in read_table(user_table())] == ["Another", "Pretended"]
    assert AttentionShape(**read_table(user_table())[1].shape).queries == 1024
