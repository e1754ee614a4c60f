"""The operations behind the ASPP and attention blocks, one folder each."""
