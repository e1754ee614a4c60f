"""The one file format for trained networks, `kitsattn/1`: a safetensors file that says everything about itself."""
