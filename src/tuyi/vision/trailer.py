"""Whether a picture file is whole, told from its end and its chunk lengths without decoding."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from typing import BinaryIO

__all__ = ["has_late_text", "is_whole", "is_whole_matroska"]

_PNG_START = 8
_TEXT_CHUNKS = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")


def is_whole(file: BinaryIO, name: str) -> bool:
    """Whether the file surely ends where its format says; False where that is unknown.

    Args:
        file: Seekable; its position changes back.
        name: Pillow's name of the format.

    Source: ITU-T T.81 (JPEG end-of-image marker), PNG specification 11.2.5 (IEND), WebP container specification (RIFF).
    """
    place = file.tell()
    try:
        if name in ("JPEG", "MPO"):
            return _tail(file, 2) == b"\xff\xd9"
        if name == "PNG":
            return _png_is_whole(file)
        if name == "WEBP":
            return _riff_is_whole(file)
        return False
    finally:
        file.seek(place)


def has_late_text(file: BinaryIO) -> bool:
    """Whether a PNG has EXIF or text after its pixels, where reading the header does not find it."""
    place = file.tell()
    try:
        after_pixels = False
        for kind, _ in _png_chunks(file):
            after_pixels = after_pixels or kind == b"IDAT"
            if after_pixels and kind in _TEXT_CHUNKS:
                return True
        return False
    finally:
        file.seek(place)


def _tail(file: BinaryIO, count: int) -> bytes:
    end = file.seek(0, io.SEEK_END)
    file.seek(max(0, end - count))
    return file.read(count)


def _png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Kind and data length of the chunks that are wholly there; the file stands at the data of each."""
    end = file.seek(0, io.SEEK_END)
    at = _PNG_START
    while at + 12 <= end:
        file.seek(at)
        head = file.read(8)
        length = int.from_bytes(head[:4], "big")
        at += 12 + length
        if at <= end:
            yield head[4:], length


def _png_is_whole(file: BinaryIO) -> bool:
    for kind, length in _png_chunks(file):
        data, checksum = file.read(length), file.read(4)
        if zlib.crc32(data, zlib.crc32(kind)) != int.from_bytes(checksum, "big"):
            return False
        if kind == b"IEND":
            return True
    return False


def _riff_is_whole(file: BinaryIO) -> bool:
    end = file.seek(0, io.SEEK_END)
    file.seek(4)
    return 8 + int.from_bytes(file.read(4), "little") <= end


def is_whole_matroska(file: BinaryIO) -> bool:
    """Whether a Matroska or WebM file is as long as its segment says; True where it does not say.

    Source: RFC 8794 (EBML), sections 4 and 6.2.
    """
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    for _ in range(2):  # the EBML header, then the segment
        ident = file.read(4)
        first = file.read(1)
        if len(ident) < 4 or not first or not first[0]:
            return True
        more = 8 - first[0].bit_length()
        size = int.from_bytes(bytes([first[0] & (0x7F >> more)]) + file.read(more), "big")
        if ident == b"\x18\x53\x80\x67":
            unknown = size == (1 << 7 * (more + 1)) - 1
            return unknown or file.tell() + size <= end
        file.seek(size, io.SEEK_CUR)
    return True
