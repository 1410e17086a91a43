"""Examples in and out: formats, check, split, the built-in sample."""
