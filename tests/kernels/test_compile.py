import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("triton", reason="compiles Triton's programs")

SCRIPT = Path(__file__).with_name("compile.py")
LISTING = """
        /*0000*/                   HFMA2.MMA R2, -RZ, RZ, 0, 0 ;
        /*0008*/                   STL [R1], R2 ;                     /* 0x0000000201007387 */
        /*0010*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0020*/               @P0 BRA 0x70 ;
        /*0030*/                   LDL R3, [R1] ;
        /*0040*/               @P1 BRA 0x10 ;
        /*0050*/                   LDL R5, [R1+0x4] ;
        /*0060*/                   EXIT ;
        /*0070*/                   STL [R1+0x8], R6 ;
        /*0080*/                   BRA 0x40 ;
"""
"""A loop from 10 to 40, of which a rare part lies behind the program's end."""


def _run(*arguments: str, interpret: bool = False) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def script(load_script: Callable[[Path], ModuleType]) -> ModuleType:
    """The script as a module."""
    return load_script(SCRIPT)


@pytest.mark.slow
def test_every_program_fits_its_architecture() -> None:
    """Programs compile to matrix instructions within the limits of sm_80, 90 and 100, and no loop of theirs spills."""
    done = _run("--quick", "--arch", "80", "90", "100")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_interpreter_is_refused() -> None:
    """Where Triton interprets its programs nothing is compiled, and that is no success."""
    done = _run("--quick", "--arch", "90", interpret=True)
    assert done.returncode == 2
    assert "unset TRITON_INTERPRET" in done.stderr


def test_spills_count_in_loops_alone(script: ModuleType) -> None:
    """Local memory counts in a loop with products and in its parts elsewhere, not before or after the loop."""
    assert script.spills_in_loops(LISTING) == 2


def test_spills_of_an_unrolled_loop_count(script: ModuleType) -> None:
    """Without a loop, what lies between the first and the last product counts."""
    straight = LISTING.replace("@P1 BRA 0x10", "HMMA.16816.F32 R4, R8, R12, R4").replace("BRA 0x40", "EXIT")
    assert script.spills_in_loops(straight) == 1


def test_spills_elsewhere_do_not_count(script: ModuleType) -> None:
    """A loop without products may use local memory."""
    assert script.spills_in_loops(LISTING.replace("HMMA.16816.F32.BF16 R4, R8, R12, R4", "FADD R4, R8, R12")) == 0


def test_what_exceeds_an_architecture_fails(script: ModuleType) -> None:
    """Each limit that a program exceeds is named."""
    code = script.Code(
        registers=256, stack=8, shared=100 * 1024, tensor_memory=513, instructions=(), matrix_products=0,
        products=2, scalar_products=1, spills=3,
    )  # fmt: skip
    assert list(script._failures(script.ARCHITECTURES[86], code)) == [
        "no mma.sync",
        "no matrix instruction in the machine code",
        "1 of 2 products without matrix instructions",
        "102400 B of shared memory, over 101376 B",
        "513 columns of tensor memory, over 512",
        "256 registers, over 255",
        "3 loads and stores of local memory in loops with matrix instructions",
    ]
