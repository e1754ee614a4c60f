"""2.5D batches: stacks of neighbouring slices with the labels of their centre slice."""
