"""Where cases come from: folders on disk in several layouts, and phantoms that are painted."""
