"""The package as it is installed: version, requirements, entry point, and how quickly it starts."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import kitsattn

PROJECT = Path(__file__).parents[1]
HEAVY = ("torch", "numpy", "scipy", "nibabel", "pydicom", "SimpleITK")

HELP = f"""
import sys
from kitsattn.cli.app import main
sys.argv = ["kitsattn", "--help"]
try:
    main()
except SystemExit as end:
    loaded = [name for name in {HEAVY} if name in sys.modules]
    sys.exit(f"loaded {{loaded}}" if loaded else end.code)
"""


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=60)


def test_help_loads_no_heavy_library() -> None:
    """`kitsattn --help` imports neither torch nor any array or image library."""
    run = _run("-W", "error", "-c", HELP)
    assert (run.returncode, run.stderr) == (0, "")
    assert "preprocess" in run.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="processor time of child processes is not counted on Windows")
def test_help_is_quick() -> None:
    """`python -m kitsattn --help` takes at most 3.5 times the processor time of importing what draws it.

    A ratio, because seconds differ between machines: it is 2 to 2.6, and 4.3 if NumPy is imported.
    """
    assert _run("-m", "kitsattn", "--help").returncode == 0  # the first run compiles the bytecode
    helps = min(_processor_s("-m", "kitsattn", "--help") for _ in range(3))
    imports = min(_processor_s("-c", "import typer, rich.console") for _ in range(3))
    assert helps <= 3.5 * imports


def _processor_s(*arguments: str) -> float:
    before = os.times()
    _run(*arguments)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_version_is_stated_once() -> None:
    """The installed distribution and `kitsattn --version` both give `kitsattn.__version__`."""
    assert importlib.metadata.version("kitsattn") == kitsattn.__version__
    assert kitsattn.__version__ in _run("-m", "kitsattn", "--version").stdout.split()


def test_entry_point_is_the_command_line() -> None:
    """The command `kitsattn` runs the same function as `python -m kitsattn`."""
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="kitsattn")
    assert entry.value == "kitsattn.cli.app:main"
    assert callable(entry.load())


def test_type_information_is_installed() -> None:
    """The installed package carries py.typed, so that type checkers read its annotations."""
    assert (Path(kitsattn.__file__).parent / "py.typed").is_file()


def test_requirements_are_not_capped() -> None:
    """What the package needs is stated as lower bounds only: no upper bound and no exact pin."""
    requirements = [Requirement(line) for line in importlib.metadata.requires("kitsattn") or []]
    needed = [requirement for requirement in requirements if not requirement.marker]
    assert "torch" in {requirement.name for requirement in needed}
    for requirement in needed:
        assert [specifier.operator for specifier in requirement.specifier] == [">="], str(requirement)


def test_every_import_is_declared() -> None:
    """Each library the package imports, however late, is one of its requirements and not another library's luck."""
    requirements = [Requirement(line) for line in importlib.metadata.requires("kitsattn") or []]
    extras = [{"extra": name} for name in ("cluster", "dicom", "export", "gpu", "track")]
    declared = {
        canonicalize_name(one.name)
        for one in requirements
        if not one.marker or any(one.marker.evaluate(extra) for extra in extras)
    }
    distributions = importlib.metadata.packages_distributions()
    for path in Path(kitsattn.__file__).parent.rglob("*.py"):
        for name in _imported(ast.parse(path.read_text(encoding="utf-8"))):
            if name not in {"kitsattn", *sys.stdlib_module_names}:
                owners = {canonicalize_name(owner) for owner in distributions.get(name, [name])}
                assert owners & declared, f"{path} imports {name}, which pyproject.toml does not require"


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def test_constraints_pin_all_that_is_needed() -> None:
    """constraints.txt pins every requirement of the package and its tests, at a release that its bound allows.

    All but Triton: a CUDA build of PyTorch demands a release of its own.
    """
    lines = (PROJECT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert all(re.fullmatch(r"[0-9.]+", version) for version in pins.values())
    assert not [name for name in pins if name.startswith("nvidia-")]
    requirements = [Requirement(line) for line in importlib.metadata.requires("kitsattn") or []]
    needed = [one for one in requirements if not one.marker or one.marker.evaluate({"extra": "test"})]
    assert any(one.marker for one in needed)
    assert "triton" not in pins
    for requirement in needed:
        if requirement.name == "triton":
            continue
        pinned = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pinned), f"{requirement} against {pinned}"
