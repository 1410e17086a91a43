"""Example to Encoded to Pack: tokens, positions, the over-length policy."""

from tuyi.encode.encoded import Encoded, Media
from tuyi.encode.encoder import Encoder, LabelTokens, Length
from tuyi.encode.pack import Pack, group, pack

__all__ = ["Encoded", "Encoder", "LabelTokens", "Length", "Media", "Pack", "group", "pack"]
