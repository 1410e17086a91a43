"""Pictures of requests: data URLs, held to a limit of pixels."""

from __future__ import annotations

import binascii
import io
import re
import struct
import zlib

from PIL import Image as Pillow

from tuyi.data.example import Image
from tuyi.serve.refusals import RefusalError
from tuyi.vision.image import FORMATS

__all__ = ["checked", "from_data_url"]

_HEAD = re.compile(r"data:(?P<kind>[\w.+-]+/[\w.+-]+)?(;[\w=.+-]+)*;base64", re.IGNORECASE)

# what Pillow raises on files that are none of a format's
_DAMAGE = (
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


def from_data_url(url: str, name: str, max_pixels: int) -> Image:
    """The picture of a data URL.

    Args:
        url: ``data:image/…;base64,…``.
        name: Where in the request it stands.
        max_pixels: Most pixels, by the picture's header.

    Raises:
        RefusalError: It is no such URL, or a picture with too many pixels.

    Source: RFC 2397.
    """
    head, comma, body = url.partition(",")
    if not comma or not (match := _HEAD.fullmatch(head)):
        raise RefusalError(
            400, f"{name}: expected data:image/…;base64,…, found {url[:40]!r}", param=name, code="invalid_image_url"
        )
    kind = (match["kind"] or "").lower()
    if kind and not kind.startswith("image/"):
        raise RefusalError(400, f"{name}: expected an image, found {kind}", param=name, code="invalid_image_url")
    try:
        data = binascii.a2b_base64(body.encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        message = f"{name}: expected base64 after the comma, found something else"
        raise RefusalError(400, message, param=name, code="invalid_base64") from error
    return checked(data, name, max_pixels)


def checked(data: bytes, name: str, max_pixels: int) -> Image:
    """A picture from the bytes of its file, with no more pixels than allowed by its header.

    Raises:
        RefusalError: It has more, or is no picture.
    """
    try:
        with Pillow.open(io.BytesIO(data), formats=_formats()) as picture:
            width, height = picture.size
    except Pillow.DecompressionBombError as error:
        message = f"{name}: expected at most {max_pixels:,} pixels, found far more; scale the picture down"
        raise RefusalError(400, message, param=name, code="image_too_large") from error
    except _DAMAGE as error:
        shown = ", ".join(FORMATS[:7])
        message = f"{name}: expected a picture ({shown}), found {len(data):,} bytes of something else"
        raise RefusalError(400, message, param=name, code="invalid_image") from error
    if width * height > max_pixels:
        message = f"{name}: expected at most {max_pixels:,} pixels, found {width} x {height}; scale the picture down"
        raise RefusalError(400, message, param=name, code="image_too_large")
    return Image(data, name)


def _formats() -> list[str]:
    Pillow.init()
    return [name for name in FORMATS if name in Pillow.OPEN]
