"""2.5D batches: slabs of neighbouring slices with the labels of their centre slice."""
