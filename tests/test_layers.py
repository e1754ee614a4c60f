"""The promises of the architecture that import-linter cannot see: what importing a room really loads."""

import ast
import subprocess
import sys
from collections.abc import Iterable
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import kitsattn

PACKAGE = Path(kitsattn.__file__).parent
DOORS = (
    "__init__.py",  # only when `segment` is asked for
    "evaluate/metrics/__init__.py",
    "kernels/__init__.py",
    "kernels/aspp/__init__.py",
    "kernels/attention/__init__.py",
    "models/__init__.py",
)
TORCH_FREE = (
    "labels",
    "config",
    "volume",
    "datasets",
    "phantom",
    "figures",
    "preprocess",
    "evaluate",
    "checkpoint.header",
    "checkpoint.shipped",
    "weights",
    "train.held_out",
)

IMPORT_ALL = """
import importlib, pkgutil, sys
for name in sys.argv[1:]:
    room = importlib.import_module("kitsattn." + name)
    inside = pkgutil.walk_packages(getattr(room, "__path__", ()), room.__name__ + ".")
    for module in [room.__name__, *(found.name for found in inside)]:
        importlib.import_module(module)
        for heavy in ("torch", "triton"):
            if heavy in sys.modules:
                sys.exit(f"importing {module} loads {heavy}")
"""


def test_rooms_of_numpy_load_no_torch() -> None:
    """No module of the torch-free rooms loads torch, not even through a library it imports."""
    run = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *TORCH_FREE], capture_output=True, text=True, check=False, timeout=120
    )
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_packages_import_nothing_of_their_own(path: Path) -> None:
    """Importing a room runs no more than the module that was asked for, except behind the rooms that are doors."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not imports or path.relative_to(PACKAGE).as_posix() in DOORS


def test_no_file_imports_what_imports_it() -> None:
    """Not even indirectly, within a function, or for its types alone."""
    files = {_module(path): path for path in PACKAGE.rglob("*.py")}
    imports = {module: _imported(path, files.keys()) - {module} for module, path in files.items()}
    TopologicalSorter(imports).prepare()  # names the files of a cycle


def _module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(path: Path, known: Iterable[str]) -> set[str]:
    """Return the modules of the package that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    # `from package import module` runs the package first, which is no cycle by itself.
    packages = {name.rpartition(".")[0] for name in found & set(known)}
    return (found & set(known)) - packages
