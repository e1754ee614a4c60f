"""Kidney and kidney-tumour segmentation in CT, from the raw scan to the challenge's scores.

The path of the data, one folder per step:

1. `volume` reads a raw CT into a (z, y, x) array with its geometry; `datasets` finds the cases.
2. `preprocess` crops, clips, resamples in-plane and normalises it into a prepared case.
3. `batches` cuts prepared cases into 2.5D slabs: neighbouring slices that predict their centre slice.
4. `models` builds the network from `blocks`, which call the operations in `kernels`.
5. `train` fits the network fold by fold and writes `checkpoint` files.
6. `predict` turns a scan into a label map on the scan's own grid.
7. `evaluate` turns label maps into scores; `figures` draws what the commands show.
8. `cli` is what people type: download, preprocess, train, predict, evaluate, models, demo.

From Python, `kitsattn.segment("in.nii.gz")` does what `kitsattn predict` does; see `predict/segment.py`.
"""

from typing import TYPE_CHECKING, Any

from kitsattn.version import __version__

if TYPE_CHECKING:
    from kitsattn.predict.segment import load_model, segment

__all__ = ["__version__", "load_model", "segment"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a function
    """Import a function when it is first asked for: `import kitsattn` alone takes no time."""
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from kitsattn.predict import segment  # noqa: PLC0415 - see above

    return getattr(segment, name)
