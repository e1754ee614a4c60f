"""From raw scans to prepared cases, and from prepared probabilities back to the scan's grid."""
