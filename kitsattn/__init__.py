"""Kidney and kidney-tumour segmentation in CT, from the raw scan to the challenge's scores.

The data's path, one folder a step:

1. `volume` reads a raw CT into a (z, y, x) array with its geometry; `datasets` finds the cases.
2. `preprocess` crops, clips, resamples in-plane and normalises it into a prepared case.
3. `batches` cuts prepared cases into 2.5D slabs: neighbouring slices that predict their centre slice.
4. `models` builds the network from `blocks`, which call the operations in `kernels`.
5. `train` fits the network fold by fold and writes `checkpoint` files.
6. `predict` turns a scan into a label map on the scan's own grid.
7. `evaluate` turns label maps into scores; `figures` draws what the commands show.
8. `cli` is what people type: download, preprocess, train, predict, evaluate, models, demo.
"""

__version__ = "0.1.0"
