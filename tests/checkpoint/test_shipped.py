"""The trained networks that come with the package."""

import importlib.resources
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import kitsattn
from kitsattn.checkpoint import shipped
from kitsattn.checkpoint.file import load_checkpoint, load_model
from kitsattn.checkpoint.header import describe_quality, read_header
from kitsattn.errors import KitsattnError

PROJECT = Path(__file__).parents[2]
REPAIR = "install kitsattn again, or name another model"
MOST_BYTES = 10_000_000

# Taken before any test sets another folder.
REAL = shipped.FOLDER
needs_weights = pytest.mark.skipif(
    not (PROJECT / "kitsattn" / "weights" / "starter.safetensors").is_file(), reason="the checkout has no weights yet"
)


def test_a_name_gives_the_file_after_its_checksum(shipped_folder: Path) -> None:
    """The weights file and the card are found by the name."""
    assert shipped.find_weights("starter") == shipped_folder / "starter.safetensors"
    assert shipped.read_card("starter").startswith("# starter")


def test_a_file_is_named_by_its_path(shipped_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that is a shipped name means the shipped model; a path object or a folder in the text means a file."""
    monkeypatch.chdir(tmp_path)
    Path("starter").write_bytes(b"my own")
    Path("other").write_bytes(b"my own")
    assert shipped.find_weights("starter") == shipped_folder / "starter.safetensors"
    assert shipped.find_weights(Path("starter")) == Path("starter")
    assert shipped.find_weights("./starter").read_bytes() == b"my own"
    assert shipped.find_weights("other") == Path("other")
    assert shipped.find_weights("gone.safetensors") == Path("gone.safetensors")
    assert shipped.find_weights("folder/stater") == Path("folder/stater")


@pytest.mark.parametrize(("named", "near"), [("stater", " (did you mean 'starter'?)"), ("xyz", "")])
def test_an_unknown_name_suggests_the_nearest(named: str, near: str) -> None:
    """The error lists the shipped models."""
    with pytest.raises(KitsattnError) as caught:
        shipped.find_weights(named)
    assert str(caught.value) == (
        f"there is no model and no file named {named!r}{near}: name a .safetensors file that `kitsattn train` wrote, "
        "or a model that comes with kitsattn (starter)"
    )


def _remove_weights(folder: Path) -> None:
    (folder / "starter.safetensors").unlink()


def _remove_card(folder: Path) -> None:
    (folder / "starter.md").unlink()


def _flip_a_bit(folder: Path) -> None:
    path = folder / "starter.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _cut_short(folder: Path) -> None:
    path = folder / "starter.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def _remove_checksum(folder: Path) -> None:
    (folder / "starter.md").write_text("# starter\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove_weights, "the weights of the shipped model 'starter' are missing"),
        (_remove_card, "the card of the shipped model 'starter' cannot be read"),
        (_flip_a_bit, "the weights of the shipped model 'starter' are damaged"),
        (_cut_short, "the weights of the shipped model 'starter' are damaged"),
        (_remove_checksum, "the weights of the shipped model 'starter' are damaged"),
    ],
    ids=["no weights", "no card", "bit", "short", "no checksum"],
)
def test_a_damaged_installation_is_one_clear_line(
    shipped_folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    """The error names the file and the repair."""
    damage(shipped_folder)
    with pytest.raises(KitsattnError) as caught:
        shipped.find_weights("starter")
    told = str(caught.value)
    assert told.startswith(message)
    assert str(shipped_folder) in told
    assert told.endswith(REPAIR)
    assert "\n" not in told


def test_a_version_without_weights_says_so(shipped_folder: Path) -> None:
    """Its card has a checksum of zeros; the error names what to do instead."""
    (shipped_folder / "starter.safetensors").unlink()
    (shipped_folder / "starter.md").write_text(f"# starter\n\nSHA-256: `{shipped.NO_WEIGHTS}`\n")
    with pytest.raises(KitsattnError) as caught:
        shipped.find_weights("starter")
    assert "this version of kitsattn comes without the weights of 'starter'" in str(caught.value)
    assert "--model FILE" in str(caught.value)


def test_names_hold_no_folders(shipped_folder: Path) -> None:
    """A shipped model has its name, a network of a run its run and fold, another file its file name."""
    assert shipped.model_name(shipped_folder / "starter.safetensors") == "starter"
    assert shipped.model_name(Path("/home/me/runs/first/fold_0/best.safetensors")) == "first/fold_0"
    assert shipped.model_name(Path("/home/me/mine.safetensors")) == "mine.safetensors"
    assert shipped.model_name(Path("fold_0/best.safetensors")) == "best.safetensors"


def test_the_installed_package_has_card_and_licence() -> None:
    """Card and licence of the weights are package files; the card has a line with a SHA-256."""
    folder = importlib.resources.files("kitsattn.weights")
    card = folder.joinpath("starter.md").read_text(encoding="utf-8")
    assert shipped._CHECKSUM.search(card)
    for text in (card, folder.joinpath("LICENSE.md").read_text(encoding="utf-8")):
        assert "CC BY-NC-SA 4.0" in text
        assert "research use only" in text.lower()


def test_wheel_and_sdist_list_the_weights_room() -> None:
    """The build includes every file of the weights room, and the licence of the weights is one of the package's."""
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="needs hatchling")
    sdist = pytest.importorskip("hatchling.builders.sdist", reason="needs hatchling")
    expected = {path.name for path in (PROJECT / "kitsattn" / "weights").iterdir() if path.is_file()}
    assert expected >= {"__init__.py", "LICENSE.md", "starter.md"}
    for builder in (wheel.WheelBuilder(str(PROJECT)), sdist.SdistBuilder(str(PROJECT))):
        files = [Path(file.distribution_path) for file in builder.recurse_included_files()]
        assert {path.name for path in files if path.parent.as_posix().endswith("kitsattn/weights")} == expected
        core = builder.metadata.core
        ships = shipped.weights_path("starter").exists()
        assert ("CC-BY-NC-SA-4.0" in core.license_expression) == ships
        assert core.license_expression.startswith("Apache-2.0 AND CC-BY-4.0")
        assert "kitsattn/weights/LICENSE.md" in core.license_files


@needs_weights
def test_the_real_weights_match_their_card() -> None:
    """The installed file is the one in the checkout, has the SHA-256 of its card, and 10 MB or less."""
    assert shipped.FOLDER == REAL == Path(kitsattn.__file__).parent / "weights"
    path = shipped.verify("starter")
    assert path.read_bytes() == (PROJECT / "kitsattn" / "weights" / "starter.safetensors").read_bytes()
    assert path.stat().st_size <= MOST_BYTES


@needs_weights
def test_the_real_weights_are_described_and_run() -> None:
    """The header says what the network was trained and tested on, and the network labels an empty slab."""
    path = shipped.weights_path("starter")
    header, _ = read_header(path)
    made = header.provenance
    assert not made.synthetic
    assert "NC-SA" in made.licence
    assert made.sources
    assert {score.region for score in made.tests} >= {"kidney", "tumour"}
    assert describe_quality(made).startswith("Dice kidney 0.")
    model = load_model(load_checkpoint(path), str(path))
    with torch.inference_mode():
        logits = model(torch.zeros(1, header.config["slices"], 64, 64))
    assert logits.shape == (1, len(header.labels), 64, 64)
    assert logits.isfinite().all()


def test_names_and_checksums_need_no_torch(shipped_folder: Path) -> None:
    """Which model is used is known before PyTorch is loaded."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from kitsattn.checkpoint import shipped\n"
        "shipped.FOLDER = Path(sys.argv[1])\n"
        "print(shipped.find_weights('starter').name, 'torch' in sys.modules)\n"
    )
    command = [sys.executable, "-c", program, str(shipped_folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "starter.safetensors False\n"
