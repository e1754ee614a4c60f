"""How attention is cut into tiles on each kind of GPU; needs no Triton.

The numbers keep every program within the registers and the shared memory of its architecture; the compile test checks
that (`tests/kernels/compile.py`).
"""

from dataclasses import dataclass

_SMALL_SHARED_MEMORY = ((8, 6), (8, 7), (8, 9), (12, 0), (12, 1))
"""Architectures with 99 KB of shared memory for a program; the others have 163 KB at least."""

_NARROW = 64
_MIDDLE = 128
"""Dimensions of queries up to which a tile leaves the registers that it needs."""


@dataclass(frozen=True)
class Tile:
    """What one program works on at a time.

    Attributes:
        queries: Number of queries.
        keys: Number of keys.
        warps: Warps of the program.
        stages: How many tiles of the walked axis are on their way at a time.
    """

    queries: int
    keys: int
    warps: int = 8
    stages: int = 2


@dataclass(frozen=True)
class AttentionTiles:
    """The tiles of every program.

    Attributes:
        forward: A tile of queries that walks over the keys.
        keys: Of the gradients of keys and values: a tile of keys that walks over the queries.
        queries: Of the gradient of the queries: a tile of queries that walks over the keys.
        one_pass: Of all gradients at once: a tile of keys that walks over the queries; None where that spills.
    """

    forward: Tile
    keys: Tile
    queries: Tile
    one_pass: Tile | None


INTERPRETER_TILES = AttentionTiles(Tile(32, 16), Tile(16, 32), Tile(32, 16), Tile(16, 32))
"""Small ones, so that small inputs have several of each, and uneven, so that rows and columns are not mixed up."""


def choose_tiles(capability: tuple[int, int], *, dim: int, programs: int, multiprocessors: int) -> AttentionTiles:
    """Return the tiles for a GPU.

    Args:
        capability: Compute capability, 8.0 or above.
        dim: Of queries and keys. Values of 256 dimensions fit all tiles.
        programs: How many tiles of 128 queries the batch has.
        multiprocessors: How many of the GPU's would share them.
    """
    if capability[0] == 9:  # noqa: PLR2004 - Hopper
        forward = Tile(128, 64) if programs >= multiprocessors else Tile(64, 64, stages=3)
        if dim <= _NARROW:
            return AttentionTiles(forward, Tile(32, 128), Tile(128, 64), Tile(32, 128))
        if dim <= _MIDDLE:
            return AttentionTiles(forward, Tile(32, 64), Tile(128, 64), Tile(32, 64))
        return AttentionTiles(forward, Tile(16, 64), Tile(128, 32), None)
    if capability[0] == 10:  # noqa: PLR2004 - Blackwell of the data centre
        return AttentionTiles(Tile(128, 64 if dim <= _MIDDLE else 32), Tile(32, 64), Tile(64, 64), None)
    if capability in _SMALL_SHARED_MEMORY:
        keys = Tile(32, 32) if dim >= _NARROW else Tile(16, 32)
        queries = Tile(64, 32) if dim <= _MIDDLE else Tile(64, 16)
        return AttentionTiles(Tile(64, 32), keys, queries, None)
    forward = Tile(64, 64 if dim <= _MIDDLE else 32, warps=4)
    keys = Tile(64, 32) if dim >= _NARROW else Tile(16, 32)
    return AttentionTiles(forward, keys, Tile(64, 32), None)
