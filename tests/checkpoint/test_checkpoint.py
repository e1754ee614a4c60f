"""The format kitsattn/1."""

import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kitsattn.checkpoint import header as headers
from kitsattn.checkpoint.file import Checkpoint, load_checkpoint, load_model, save_checkpoint
from kitsattn.checkpoint.header import FORMAT, Header, Provenance, TrainingSource, describe_quality, read_header
from kitsattn.checkpoint.state import (
    TrainingState,
    optimizer_state,
    restore_optimizer,
    training_state_from_json,
    training_state_to_json,
)
from kitsattn.checkpoint.weights import read_weights
from kitsattn.config import to_json
from kitsattn.errors import KitsattnError
from kitsattn.labels import KITS19_LABELS
from kitsattn.models import build_model
from kitsattn.models.attention_deeplab import AttentionDeeplabConfig

GOLDEN = Path(__file__).with_name("golden.safetensors")

CONFIG = AttentionDeeplabConfig(
    slices=3,
    normalizer_channels=(2, 2),
    encoder_block="basic",
    encoder_depths=(1, 1, 1, 1),
    encoder_width=2,
    aspp_channels=4,
    aspp_rates=(2,),
    key_channels=2,
    low_level_channels=2,
    decoder_channels=4,
)
HEADER = Header(
    model="attention-deeplab-tiny",
    config=to_json(CONFIG),
    plan={
        "spacing_mm": [0.78, 0.78],
        "clip_hu": [-300.0, 300.0],
        "mean_hu": 100.0,
        "std_hu": 75.0,
        "patch_size": [64, 64],
    },
    labels=KITS19_LABELS,
    provenance=Provenance(
        kitsattn="0.1.0",
        torch="2.13.0",
        dataset="phantom",
        synthetic=True,
        licence="CC0-1.0",
        citation="procedural phantom",
        recipe="demo",
        precision="fp32",
        fold=0,
        folds=5,
        seed=0,
        epoch=3,
        scores={"tumour": 0.5},
        created="2026-11-23T00:00:00+00:00",
    ),
)


def _checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    model = build_model(HEADER.model, CONFIG)
    return Checkpoint(HEADER, model.state_dict(), {})


def _rewrite(path: Path, change: dict[str, object]) -> None:
    """Save a checkpoint whose header's JSON is changed."""
    content = {**to_json(HEADER), **change}
    save_file({"model/x": torch.zeros(1)}, path, {"format": FORMAT, "kitsattn": json.dumps(content)})


def test_a_checkpoint_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    """Header, weights and training tensors survive, and the network predicts the same."""
    written = replace(_checkpoint(), training={"optimizer/0/step": torch.tensor(5.0)})
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, written)
    read = load_checkpoint(path)
    assert read.header == HEADER
    assert read.training.keys() == {"optimizer/0/step"}
    assert all(torch.equal(read.model[name], tensor) for name, tensor in written.model.items())
    original = build_model(HEADER.model, CONFIG).eval()
    original.load_state_dict(dict(written.model))
    x = torch.randn(1, 3, 33, 40)
    assert torch.equal(load_model(read, str(path))(x), original(x))


def test_the_golden_file_is_still_read() -> None:
    """A file of this format from the first version means the same for ever: header, names, and what it predicts.

    Settings of the network that came later have the values that give the network of then.
    """
    checkpoint = load_checkpoint(GOLDEN)
    later = {"pooled_keys": False, "attention_recurrence": 2, "attention_block": 8, "attention_reach": 31}
    assert replace(checkpoint.header, config={**checkpoint.header.config, **later}) == HEADER
    model = load_model(checkpoint, str(GOLDEN))
    x = torch.linspace(-2, 2, 3 * 32 * 32).reshape(1, 3, 32, 32)
    with torch.inference_mode():
        logits = model(x)[0, :, 16, 16]
    expected = torch.tensor(json.loads(GOLDEN.with_suffix(".json").read_text())["logits"])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_a_network_is_loaded_without_pytorchs_compiler() -> None:
    """Which takes a second and 140 MB; filling weights on the meta device would load it."""
    program = (
        "import sys; from pathlib import Path; from kitsattn.checkpoint.file import load_checkpoint, load_model; "
        "load_model(load_checkpoint(Path(sys.argv[1])), 'golden'); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(GOLDEN)], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_header_is_read_without_torch() -> None:
    """Describing a file must be quick, and possible where torch is not."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from kitsattn.checkpoint.header import read_header\n"
        "header, tensors = read_header(Path(sys.argv[1]))\n"
        "print(header.model, tensors['model/encoder.conv1.weight'].shape, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(GOLDEN)], capture_output=True, text=True, check=True)
    assert done.stdout == "attention-deeplab-tiny (2, 3, 7, 7) False\n"


def _other_format(path: Path) -> None:
    save_file({"x": torch.zeros(1)}, path, {"format": "nnunet/2"})


def _plain_safetensors(path: Path) -> None:
    save_file({"x": torch.zeros(1)}, path)


def _cut_short(path: Path) -> None:
    save_checkpoint(path, _checkpoint())
    os.truncate(path, path.stat().st_size - 10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Path.exists, "does not exist: name a checkpoint, or train one"),
        (lambda path: path.write_bytes(b""), "is not a kitsattn checkpoint"),
        (lambda path: path.write_bytes(b"not a checkpoint at all"), "is not a kitsattn checkpoint"),
        (lambda path: path.write_bytes(struct.pack("<Q", 5) + b"[1,2]"), "is not a kitsattn checkpoint"),
        (lambda path: path.mkdir(), "cannot be read"),
        (_other_format, "has the format 'nnunet/2', this version reads 'kitsattn/1'"),
        (_plain_safetensors, "names no format"),
        (_cut_short, r"is cut short \(10 bytes are missing\)"),
        (lambda path: _rewrite(path, {"colour": "red"}), "unknown key 'colour'"),
        (lambda path: _rewrite(path, {"model": "unet-9000"}), "there is no model named 'unet-9000'"),
        (lambda path: _rewrite(path, {"config": {"depth": 3}}), "model settings: unknown key 'depth'"),
        (lambda path: _rewrite(path, {"labels": {"background": 0}}), "predicts 3 classes and names 1"),
        (lambda path: _rewrite(path, {}), "does not fit the network 'attention-deeplab-tiny'"),
    ],
    ids=[
        "missing",
        "empty",
        "text",
        "list",
        "folder",
        "foreign",
        "plain",
        "short",
        "key",
        "network",
        "setting",
        "labels",
        "weights",
    ],
)
def test_a_file_that_is_no_checkpoint_is_one_clear_line(tmp_path: Path, make: object, message: str) -> None:
    """Missing, foreign, damaged, unknown: each is named with the file."""
    path = tmp_path / "a.safetensors"
    make(path)  # type: ignore[operator]
    with pytest.raises(KitsattnError, match=message) as caught:
        load_model(load_checkpoint(path), str(path))
    assert "\n" not in str(caught.value)


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    """Where the disk takes no more, the file of that name is as it was, and nothing else is left."""
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, _checkpoint())
    before = path.read_bytes()
    program = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from kitsattn.checkpoint.file import load_checkpoint, save_checkpoint\n"
        "path = Path(sys.argv[1])\n"
        "checkpoint = load_checkpoint(path)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))\n"
        "save_checkpoint(path, checkpoint)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)
    assert "KitsattnError" in done.stderr
    assert "disk" in done.stderr
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


def test_an_optimizer_goes_on_as_if_it_had_not_stopped() -> None:
    """State through tensors and JSON gives the same next step as the optimiser that went on."""
    models = [torch.nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    first = torch.optim.Adam(models[0].parameters(), lr=0.1, weight_decay=0.01)
    x = torch.randn(4, 3)

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()

    step(models[0], first)
    tensors, groups = optimizer_state(first)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}  # saving to a file does as much
    state = TrainingState(epoch=1, best=0.5, optimizer_groups=groups)
    read = training_state_from_json(training_state_to_json(state), "here")
    models[1].load_state_dict(models[0].state_dict())
    second = torch.optim.Adam(models[1].parameters(), lr=0.9)
    restore_optimizer(second, tensors, read.optimizer_groups)
    step(models[0], first)
    step(models[1], second)
    assert torch.equal(models[0].weight, models[1].weight)
    assert read.best == 0.5


def test_published_weights_that_are_none_are_refused(tmp_path: Path) -> None:
    """A missing file and a pickle are one clear line each."""
    with pytest.raises(KitsattnError, match="does not exist"):
        read_weights(tmp_path / "gone.safetensors")
    (tmp_path / "a.pth").write_bytes(b"PK\x03\x04 not safetensors")
    with pytest.raises(KitsattnError, match="not a safetensors file"):
        read_weights(tmp_path / "a.pth")


def test_header_tensors_have_their_shapes() -> None:
    """Type and shape of every tensor are told without reading it."""
    _, tensors = read_header(GOLDEN)
    assert tensors["model/attention.gate"].shape == (1,)
    assert tensors["model/attention.gate"].dtype == "F32"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_a_storage_format(tmp_path: Path, dtype: torch.dtype) -> None:
    """Weights that are stored in half precision are read as float32 with the same values; integers stay integers."""
    stored = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in _checkpoint().model.items()
    }
    path = tmp_path / "half.safetensors"
    save_checkpoint(path, Checkpoint(HEADER, stored, {"optimizer/0/step": torch.tensor(5.0, dtype=torch.float64)}))
    read = load_checkpoint(path)
    assert {str(tensor.dtype) for tensor in read.model.values()} == {"torch.float32", "torch.int64"}
    assert all(torch.equal(read.model[name], tensor.to(read.model[name].dtype)) for name, tensor in stored.items())
    assert read.training["optimizer/0/step"].dtype == torch.float64
    assert load_model(read, str(path))(torch.zeros(1, 3, 32, 32)).dtype == torch.float32


def test_sources_and_test_scores_survive(tmp_path: Path) -> None:
    """Training sources, hours and test scores are read back as they were written; without them a file has none."""
    made = replace(
        HEADER.provenance,
        sources=(TrainingSource(name="a", count=3, unit="scans", licence="CC0", citation="who"),),
        hours=0.5,
        tests=(
            headers.TestScore(data="ward", region="kidney", dice=0.9, low=0.8, high=1.0, patients=4),
            headers.TestScore(data="ward", region="tumour", dice=0.5, patients=1),
        ),
    )
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, replace(_checkpoint(), header=replace(HEADER, provenance=made)))
    assert read_header(path)[0].provenance == made
    old = read_header(GOLDEN)[0].provenance
    assert (old.sources, old.hours, old.tests) == ((), None, ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dice": 93.0}, r"dice must be in \[0, 1\], got 93.0"),
        ({"patients": 0}, "patients must be 1 or more, got 0"),
        ({"low": 0.8}, "low and high must be given together, got 0.8 and None"),
    ],
)
def test_impossible_test_scores_are_refused(tmp_path: Path, change: dict[str, float], message: str) -> None:
    """A percentage, no patients, or half an interval is an error that names the file."""
    content = {"data": "ward", "region": "kidney", "dice": 0.9, "patients": 1, **change}
    provenance = {**to_json(HEADER.provenance), "tests": [content]}
    path = tmp_path / "a.safetensors"
    _rewrite(path, {"provenance": provenance})
    with pytest.raises(KitsattnError, match=f"a.safetensors: provenance: tests: {message}"):
        read_header(path)


def test_quality_is_one_line() -> None:
    """Test scores by data, else the validation Dice with a remark; then the licence and the use."""
    made = replace(HEADER.provenance, synthetic=False, licence="CC BY-NC-SA 4.0")
    tests = (
        headers.TestScore(data="ward A", region="kidney", dice=0.934, low=0.9, high=0.95, patients=7),
        headers.TestScore(data="ward A", region="tumour", dice=0.701, patients=7),
        headers.TestScore(data="ward B", region="kidney", dice=0.5, patients=1),
    )
    assert describe_quality(replace(made, tests=tests)) == (
        "Dice kidney 0.93, tumour 0.70 (ward A, 7 patients); Dice kidney 0.50 (ward B, 1 patient); CC BY-NC-SA 4.0; "
        "research use only"
    )
    validated = replace(made, scores={"kidney_and_tumour": 0.9}, licence="unknown")
    assert describe_quality(validated) == (
        "validation Dice kidney and tumour 0.90 (phantom); no test scores; licence unknown; research use only"
    )
    assert describe_quality(replace(made, scores={})) == "no test scores; CC BY-NC-SA 4.0; research use only"
    assert describe_quality(HEADER.provenance) == (
        "trained on synthetic phantoms; validation Dice tumour 0.50 (phantom); no test scores; CC0-1.0; "
        "research use only"
    )
