"""The promises of the architecture that import-linter cannot see: what importing a room really loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kitsattn

PACKAGE = Path(kitsattn.__file__).parent
DOORS = (
    "__init__.py",  # only when `segment` is asked for
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
