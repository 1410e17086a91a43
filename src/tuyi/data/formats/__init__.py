"""One module a format: each reads a raw row into an example, and some write it back."""
