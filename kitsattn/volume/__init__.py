"""Raw CT: reading scans and label maps, and writing label maps back onto the scan's own grid."""
