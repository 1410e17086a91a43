"""Pictures of requests, held to a limit of pixels."""

from __future__ import annotations

import io

from PIL import Image as Pillow

from tuyi.data.example import Image
from tuyi.serve.refusals import RefusalError
from tuyi.vision.image import DAMAGE, FORMATS, known_formats

__all__ = ["checked"]


def checked(data: bytes, name: str, max_pixels: int) -> Image:
    """A picture from the bytes of its file, with no more pixels than allowed by its header.

    Args:
        data: The file.
        name: Where in the request it stands.
        max_pixels: Most pixels.

    Raises:
        RefusalError: It has more, or is no picture.
    """
    try:
        with Pillow.open(io.BytesIO(data), formats=known_formats()) as picture:
            width, height = picture.size
    except Pillow.DecompressionBombError as error:
        message = f"{name}: expected at most {max_pixels:,} pixels, found far more; scale the picture down"
        raise RefusalError(400, message, param=name, code="image_too_large") from error
    except DAMAGE as error:
        shown = ", ".join(FORMATS[:7])
        message = f"{name}: expected a picture ({shown}), found {len(data):,} bytes of something else"
        raise RefusalError(400, message, param=name, code="invalid_image") from error
    if width * height > max_pixels:
        message = f"{name}: expected at most {max_pixels:,} pixels, found {width} x {height}; scale the picture down"
        raise RefusalError(400, message, param=name, code="image_too_large")
    return Image(data, name)
