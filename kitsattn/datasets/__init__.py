"""Where cases come from: KiTS folders on disk, and phantoms that are painted."""
