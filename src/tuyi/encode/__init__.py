"""Example to Encoded to Pack: tokens, positions, the over-length policy."""
