"""DICOM series as scans: which files, in which order, on which grid, and what their voxels are."""
