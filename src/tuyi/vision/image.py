"""Pictures: checked cheaply, and decoded as a viewer shows them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from tuyi.errors import MediaError
from tuyi.vision.trailer import has_late_text, is_whole

if TYPE_CHECKING:
    from tuyi.data.example import Image

__all__ = ["DAMAGE", "FORMATS", "MAX_PICTURE_PIXELS", "ImageInfo", "known_formats", "load_rgb", "probe_image"]

MAX_PICTURE_PIXELS = 178_956_970
"""Largest picture that is opened, by its header: twice Pillow's own limit for a warning, 512 MiB as RGB."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")
"""Formats of Pillow that are tried: those that a viewer opens and that a file surely shows by its first bytes."""

DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""What Pillow's decoders raise on damaged files; SyntaxError is theirs for a broken PNG or TIFF structure."""

_TURNS = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What a picture's header says.

    Args:
        width, height: Size in pixels as a viewer shows it, EXIF orientation applied.
        format: Pillow's name of the file format, such as ``JPEG``.
    """

    width: int
    height: int
    format: str


def probe_image(image: Image) -> ImageInfo:
    """Size and format of a picture, from its header, with a cheap test that the file is whole.

    JPEG, PNG and WebP are tested by their end marks; a file with an odd end, and any other format, is decoded.

    Raises:
        MediaError: Missing, a directory, empty, truncated, not a picture, or over :data:`MAX_PICTURE_PIXELS`.
    """
    with _opened(image) as (picture, file):
        name = picture.format or "unknown"
        if is_whole(file, name):
            if name == "PNG" and has_late_text(file):
                picture.load()  # orientation may stand after the pixels
            width, height = picture.size
            if _orientation(picture) in _SIDEWAYS:
                width, height = height, width
        else:
            width, height = _upright(picture).size
        return ImageInfo(width, height, name)


def load_rgb(image: Image, at_least: tuple[int, int] | None = None) -> Pillow.Image:
    """The picture as a viewer shows it: upright, first frame, RGB.

    Transparency is laid over white. 16-bit grey is scaled to 8 bits, not clipped; 32-bit integer and float grey is
    taken as 0–255, 0–65535 or 0–1 where it fits and stretched from its minimum to its maximum otherwise. CMYK (also
    Adobe's inverted form) is converted by Pillow's formula; ICC profiles are ignored, as the models' own processors do.

    Args:
        image: Reference to the picture.
        at_least: (width, height) as shown, where a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size but no smaller
            than that: quicker, with other pixels.

    Raises:
        MediaError: As :func:`probe_image`, or damaged pixels.
    """
    with _opened(image) as (picture, _):
        if at_least:
            picture.draft(None, at_least[::-1] if _orientation(picture) in _SIDEWAYS else at_least)
        return _rgb(_upright(picture))


@contextmanager
def _opened(image: Image) -> Iterator[tuple[Pillow.Image, BinaryIO]]:
    """The picture's lazily opened file; every error of Pillow and the file system as a MediaError."""
    try:
        with _file(image) as file:
            if not file.read(1):
                raise MediaError(f"picture {image}: expected a picture, found an empty file; replace the file")
            file.seek(0)
            with Pillow.open(file, formats=known_formats()) as picture:
                pixels = picture.width * picture.height
                if pixels > MAX_PICTURE_PIXELS:
                    raise _too_large(image, f"{picture.width} x {picture.height} = {pixels:,}")
                yield picture, file
    except FileNotFoundError as error:
        raise MediaError(f"picture {image}: expected a file, found none there; check the name and folder") from error
    except IsADirectoryError as error:
        raise MediaError(f"picture {image}: expected a file, found a folder; name one of the files in it") from error
    except PermissionError as error:
        raise MediaError(f"picture {image}: expected a readable file, found no permission; grant it") from error
    except UnidentifiedImageError as error:
        raise MediaError(
            f"picture {image}: expected a picture ({', '.join(FORMATS[:7])}), found something else; "
            "replace it or save it in one of these formats"
        ) from error
    except Pillow.DecompressionBombError as error:
        raise _too_large(image, str(error)) from error
    except DAMAGE as error:
        raise MediaError(
            f"picture {image}: expected a whole picture, found a truncated or damaged one ({error}); "
            "fetch the file again or save it anew"
        ) from error


def known_formats() -> list[str]:
    """Those of :data:`FORMATS` that this Pillow has; an older one knows no AVIF."""
    Pillow.init()
    return [name for name in FORMATS if name in Pillow.OPEN]


def _file(image: Image) -> BinaryIO:
    return io.BytesIO(image.source) if isinstance(image.source, bytes) else image.source.open("rb")


def _too_large(image: Image, found: str) -> MediaError:
    return MediaError(
        f"picture {image}: expected at most {MAX_PICTURE_PIXELS:,} pixels, found {found}; scale it down before use"
    )


def _orientation(picture: Pillow.Image) -> int:
    try:
        # Not picture.getexif(): for PNG that decodes every pixel to look for EXIF after them.
        return int(Pillow.Image.getexif(picture).get(_ORIENTATION, 1))
    except DAMAGE:
        return 1  # viewers show a picture with broken EXIF as it is stored


def _upright(picture: Pillow.Image) -> Pillow.Image:
    picture.load()
    turn = _TURNS.get(_orientation(picture))
    if turn is None:
        return picture
    info = picture.info
    picture = picture.transpose(turn)
    picture.info = info  # a transparent colour is told there
    return picture


def _rgb(picture: Pillow.Image) -> Pillow.Image:
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode == "F" or picture.mode.startswith("I"):
        return _deep_grey(picture)
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        white = Pillow.new("RGBA", layer.size, (255, 255, 255, 255))
        return Pillow.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")


def _deep_grey(picture: Pillow.Image) -> Pillow.Image:
    """Grey of more than 8 bits, scaled to 8; modes I;16 (and its byte orders), I and F."""
    values_HW = np.asarray(picture)
    low, high = float(values_HW.min()), float(values_HW.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("grey values that are not finite numbers")
    if picture.mode == "F" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif picture.mode == "F" and low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    elif picture.mode.startswith("I;16") or (low >= 0 and high <= 65535):
        low, high = 0.0, 65535.0
    scaled = (values_HW.astype(np.float32) - low) * (255 / ((high - low) or 1))
    return Pillow.fromarray(np.rint(scaled).astype(np.uint8)).convert("RGB")
