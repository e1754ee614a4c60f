"""Pictures and pages that several commands draw: contours on CT slices, self-contained HTML."""
