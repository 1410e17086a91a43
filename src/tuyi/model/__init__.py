"""Load, save, attention kernels, the built-in tiny model, the folder format."""
