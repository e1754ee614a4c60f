"""The trained networks that come with the package: for each a weights file and its model card; no code."""
