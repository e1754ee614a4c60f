"""Networks for other programs: ONNX and PyTorch's exported program."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner, Result

import kitsattn
from kitsattn.blocks.attention import AttentionKind, build_attention
from kitsattn.checkpoint import export
from kitsattn.checkpoint.export import METADATA_FILE, METADATA_KEY, export_checkpoint
from kitsattn.checkpoint.file import Checkpoint, load_checkpoint, load_model, save_checkpoint
from kitsattn.cli.app import app
from kitsattn.config import to_json
from kitsattn.errors import KitsattnError
from kitsattn.kernels.dispatch import VARIABLE
from kitsattn.models import build_model, model_entry
from kitsattn.notices import SYNTHETIC_MODEL_NOTICE

GOLDEN = Path(__file__).with_name("golden.safetensors")
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "export.md"
# Even, odd, and no larger than one position of the features.
SIZES = ((1, 64, 96), (3, 70, 51), (1, 33, 32), (2, 81, 38))

OTHER_SETTINGS = {
    "slices": 3,
    "normalizer_channels": (4, 4, 8, 8, 8),
    "encoder_block": "bottleneck",
    "encoder_width": 4,
    "output_stride": 8,
    "aspp_channels": 16,
    "attention": "ocnet",
    "pooled_keys": True,
    "separable_decoder": False,
}

# A program that has no kitsattn: what it loads runs without.
ALONE = "import sys; sys.modules['kitsattn'] = None\n"


def _write_checkpoint(path: Path, name: str, **settings: Any) -> Path:
    """Write a network whose every part moves its logits: normalisations fit their input, the gate is open."""
    torch.manual_seed(0)
    config = replace(model_entry(name).config, **settings)  # type: ignore[type-var]  # the protocol of a dataclass
    model = build_model(name, config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
        if isinstance(gate := getattr(module, "gate", None), nn.Parameter):
            nn.init.ones_(gate)
        if getattr(module, "out_channels", None) == config.classes and isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight)
    with torch.no_grad():
        model(torch.randn(4, config.slices, 64, 64))
    header = replace(load_checkpoint(GOLDEN).header, model=name, config=to_json(config))
    save_checkpoint(path, Checkpoint(header, model.state_dict(), {}))
    return path


def _load(path: Path) -> Callable[[Tensor], Tensor]:
    """Load an exported file."""
    if path.suffix == ".pt2":
        return torch.inference_mode()(torch.export.load(path).module())
    session = onnxruntime.InferenceSession(path)
    return lambda slabs: torch.from_numpy(session.run(["logits"], {"slabs": slabs.numpy()})[0])


def _metadata(path: Path) -> Any:
    if path.suffix == ".pt2":
        extra = {METADATA_FILE: ""}
        torch.export.load(path, extra_files=extra)
        return json.loads(extra[METADATA_FILE])
    return json.loads(onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map[METADATA_KEY])


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of the exporter, which `export_checkpoint` keeps to itself
@pytest.mark.parametrize("kind", ["criss-cross", "interlaced", "psa"])
def test_kinds_of_attention_that_cut_the_map_are_exported_for_every_size(tmp_path: Path, kind: AttentionKind) -> None:
    """The block alone, which is traced in seconds: no size of the map, nor of the batch, is kept in the graph."""
    torch.manual_seed(0)
    block = build_attention(kind, 16, 4, block=8, reach=20).eval()
    for name, parameter in block.named_parameters():
        if name.endswith("gate") or not parameter.any():  # zero at the start, so that a fresh block does nothing
            nn.init.normal_(parameter, 0.3, 0.1)
    export._write_onnx(export._trace(block, 16), "{}", tmp_path / "block.onnx")
    exported = export._load_onnx(tmp_path / "block.onnx")
    for batch, height, width in ((1, 33, 32), (3, 32, 40), (2, 41, 35)):
        x = torch.randn(batch, 16, height, width)
        with torch.inference_mode():
            torch.testing.assert_close(exported(x), block(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "suffix"),
    [
        pytest.param({}, ".onnx", id="tiny-.onnx"),
        pytest.param({}, ".pt2", id="tiny-.pt2"),
        pytest.param(OTHER_SETTINGS, ".onnx", id="other-settings-.onnx"),
        pytest.param(OTHER_SETTINGS, ".pt2", id="other-settings-.pt2"),
    ],
)
def test_an_exported_network_is_the_original_at_every_size(
    tmp_path: Path, settings: dict[str, Any], suffix: str
) -> None:
    """One file predicts what the checkpoint's network does, for any batch, height and width."""
    source = _write_checkpoint(tmp_path / "a.safetensors", "attention-deeplab-tiny", **settings)
    target = tmp_path / f"a{suffix}"
    result = export_checkpoint(source, target, {})
    assert result.difference < 1e-3
    network, original = _load(target), load_model(load_checkpoint(source), str(source))
    for batch, height, width in SIZES:
        slabs = torch.randn(batch, result.slices, height, width)
        with torch.inference_mode():
            expected = original(slabs)
        assert expected.std() > 1  # or there would be nothing to compare
        torch.testing.assert_close(network(slabs), expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint as ONNX, by the command."""
    return _export_golden(tmp_path_factory.mktemp("onnx") / "new" / "a.onnx")


@pytest.fixture(scope="module")
def pt2_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint as an exported program, by the command."""
    return _export_golden(tmp_path_factory.mktemp("pt2") / "new" / "a.pt2")


def _command(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def _export_golden(target: Path) -> Path:
    assert _command("models", "export", GOLDEN, target).exit_code == 0
    return target


def test_the_graph_of_onnx_has_named_axes_and_standard_operators(onnx_file: Path) -> None:
    """Any runtime can load the file, and its input and output explain themselves."""
    model = onnx.load(onnx_file)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert {entry.domain for entry in model.opset_import} == {""}
    assert not model.functions
    session = onnxruntime.InferenceSession(onnx_file)
    (slabs,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (slabs.name, slabs.shape, slabs.type) == ("slabs", ["batch", 3, "height", "width"], "tensor(float)")
    assert (logits.name, logits.shape, logits.type) == ("logits", ["batch", 3, "height", "width"], "tensor(float)")


def test_an_exported_program_runs_without_kitsattn(pt2_file: Path) -> None:
    """A .pt2 file holds PyTorch's own operators only and is loaded where the package is not."""
    program = ALONE + (
        "import torch\n"
        "program = torch.export.load(sys.argv[1])\n"
        "targets = [node.target for node in program.graph.nodes]\n"
        "print({target.namespace for target in targets if isinstance(target, torch._ops.OpOverload)})\n"
        "print(tuple(program.module()(torch.zeros(1, 3, 40, 48)).shape))\n"
    )
    words = [sys.executable, "-W", "ignore", "-c", program, str(pt2_file)]
    run = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    assert run.stdout == "{'aten'}\n(1, 3, 40, 48)\n"


def test_no_path_of_this_machine_travels(onnx_file: Path, pt2_file: Path) -> None:
    """The file names no source file of the place where it was made."""
    with zipfile.ZipFile(pt2_file) as archive:
        contents = [onnx_file.read_bytes(), *(archive.read(name) for name in archive.namelist())]
    for folder in (Path(kitsattn.__file__).parent, Path(torch.__file__).parent, GOLDEN.parent):
        assert not any(str(folder).encode() in content for content in contents)


def test_the_file_says_what_describe_says(onnx_file: Path, pt2_file: Path) -> None:
    """How scans are prepared, the labels and the provenance go with the network; the folder does not."""
    described = json.loads(_command("models", "describe", GOLDEN, "--json").stdout)
    found = _metadata(onnx_file)
    assert found == _metadata(pt2_file) == {**described, "file": "golden.safetensors"}
    assert found["plan"]["clip_hu"] == [-300.0, 300.0]
    assert found["provenance"]["licence"] == "CC0-1.0"
    assert (found["config"]["slices"], found["config"]["slab_step_mm"]) == (3, None)


def test_kernels_are_never_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """KITSATTN_KERNELS=fused would put operators of this package into the graph; it is put back afterwards."""
    monkeypatch.setenv(VARIABLE, "fused")
    export_checkpoint(GOLDEN, tmp_path / "a.pt2", {})
    nodes = torch.export.load(tmp_path / "a.pt2").graph.nodes
    assert not [node for node in nodes if "kitsattn" in str(node.target)]
    assert os.environ[VARIABLE] == "fused"


@pytest.mark.parametrize("factor", [1.1, float("nan")])
def test_a_network_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """A file that predicts something else at one size, or no numbers, never gets its name; an earlier one is kept."""
    (tmp_path / "a.pt2").write_bytes(b"precious")
    golden = load_model(load_checkpoint(GOLDEN), "golden")
    monkeypatch.setattr(export, "_trace", lambda *_: None)
    monkeypatch.setattr(export, "_write_pt2", lambda *_: None)
    monkeypatch.setattr(export, "_load_pt2", lambda _: lambda slabs: golden(slabs) * (factor if len(slabs) == 3 else 1))
    message = r"a\.pt2 was not written: it would differ from .*golden\.safetensors by (0\.1|nan) of the largest logit"
    with pytest.raises(KitsattnError, match=message) as error:
        export_checkpoint(GOLDEN, tmp_path / "a.pt2", {}, overwrite=True)
    assert "\n" not in str(error.value)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.pt2", b"precious")]


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of phantoms, in the folder where the test runs."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(GOLDEN, "best.safetensors"))


def test_the_command_says_one_line_and_the_notice(checkpoint: Path) -> None:
    """What was written is on stdout, that it was made of phantoms on stderr, and nothing of the exporters."""
    words = [sys.executable, "-m", "kitsattn", "models", "export", str(checkpoint), "a.onnx"]
    run = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    said = r"a\.onnx: \(batch, 3, height, width\) to 3 logits a pixel; differs from best\.safetensors by \S+ of .*\n"
    assert re.fullmatch(said, run.stdout)
    assert run.stderr == f"warning: {SYNTHETIC_MODEL_NOTICE}\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_full_disk(checkpoint: Path, suffix: str) -> None:
    """What does not fit is one line, and nothing is left of it."""
    program = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "from kitsattn.cli.app import main\n"
        "main()\n"
    )
    words = [sys.executable, "-B", "-c", program, "models", "export", str(checkpoint), f"a{suffix}"]
    run = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert run.stderr == f"error: no space left to write a{suffix}: free some disk space and run the command again\n"
    assert (run.returncode, run.stdout) == (1, "")
    assert [path.name for path in Path().iterdir()] == [checkpoint.name]


def test_an_existing_file_is_replaced_and_the_result_is_json(checkpoint: Path) -> None:
    """--json prints one value, --overwrite replaces an earlier file, and networks of patients need no notice."""
    read = load_checkpoint(checkpoint)
    header = replace(read.header, provenance=replace(read.header.provenance, synthetic=False))
    save_checkpoint(checkpoint, replace(read, header=header))
    Path("a.pt2").write_text("old", encoding="utf-8")
    result = _command("models", "export", checkpoint, "a.pt2", "--overwrite", "--json")
    assert result.stderr == ""
    assert json.loads(result.stdout) == {
        "input": "best.safetensors",
        "output": "a.pt2",
        "slices": 3,
        "classes": 3,
        "difference": 0.0,
        "synthetic": False,
    }
    assert not _metadata(Path("a.pt2"))["provenance"]["synthetic"]


def _nothing() -> None:
    """Prepare nothing."""


@pytest.mark.parametrize(
    ("source", "target", "prepare", "message"),
    [
        ("best.safetensors", "a.trt", _nothing, "a.trt has no suffix that can be exported to: name a file that ends"),
        ("best.safetensors", "a", _nothing, "name a file that ends in .onnx or .pt2"),
        ("best.safetensors", "a.pt2", lambda: Path("a.pt2").write_text("precious"), "add --overwrite to replace it"),
        ("best.safetensors", "a.onnx", lambda: Path("a.onnx").write_text("precious"), "add --overwrite to replace it"),
        ("none.safetensors", "a.pt2", _nothing, "none.safetensors does not exist: name a checkpoint"),
        ("x.bin", "a.pt2", lambda: Path("x.bin").write_text("x"), "x.bin is not a kitsattn checkpoint"),
        ("best.safetensors", "file/a.pt2", lambda: Path("file").write_text("x"), "file/a.pt2 cannot be written"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    checkpoint: Path, source: str, target: str, prepare: Callable[[], object], message: str
) -> None:
    """One line says what is wrong and how to fix it; no file is new, and none is changed."""
    prepare()
    before = {path: path.read_bytes() for path in Path().iterdir()}
    result = _command("models", "export", source, target)
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert {path: path.read_bytes() for path in Path().iterdir()} == before


@pytest.mark.parametrize("package", ["onnxruntime", "onnxscript"])
def test_without_the_extra_onnx_says_what_to_install(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    """A missing package is told before any work."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    result = _command("models", "export", checkpoint, "a.onnx")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"error: ONNX needs the package {package}: pip install 'kitsattn[export]'\n"
    assert [path.name for path in Path().iterdir()] == [checkpoint.name]


def test_the_example_of_the_documentation_runs(onnx_file: Path, tmp_path: Path) -> None:
    """The page's program reads the metadata and runs one slab, where kitsattn is not installed."""
    shutil.copy(onnx_file, tmp_path / "demo.onnx")
    program = ALONE + re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
    words = [sys.executable, "-c", program]
    run = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert (run.returncode, run.stderr) == (0, "")
    lines = [re.fullmatch(r"(background|kidney|tumour): (\d+) pixels", line) for line in run.stdout.splitlines()]
    assert sum(int(line[2]) for line in lines if line) == 96 * 120
