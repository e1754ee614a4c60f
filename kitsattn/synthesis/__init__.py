"""Scans made while a network is trained: the sources of the starter network, and what draws 2.5D samples from them."""
