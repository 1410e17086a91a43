"""Pixels: decode, resize, patches."""
