"""What a surface is, by the packages that measure one. Apart, so that the command line needs no NumPy for it."""

from enum import StrEnum


class Definition(StrEnum):
    """What a surface is, and how the distances of both directions become one score."""

    surface_distance = "surface-distance"
    """Elements between voxels, weighted by area; the larger of both 95th percentiles, the mean of both means."""
    medpy = "medpy"
    """Border voxels; the 95th percentile and the mean of the distances of both directions together."""
    monai = "monai"
    """Border voxels; the larger of both 95th percentiles, the mean of the distances of both directions together."""
