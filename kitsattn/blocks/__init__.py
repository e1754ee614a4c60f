"""The network's parts, one a file; each is an `nn.Module` that is handed its numbers."""
