"""Files that stand in a request, as data URLs."""

from __future__ import annotations

import binascii
import re
from typing import Literal

from tuyi.serve.refusals import RefusalError

__all__ = ["bytes_of"]

_HEAD = re.compile(r"data:(?P<kind>[\w.+-]+/[\w.+-]+)?(;[\w=.+-]+)*;base64", re.IGNORECASE)
_MOST_HEAD = 200


def bytes_of(url: str, name: str, kind: Literal["image", "video"]) -> bytes:
    """The file of a data URL.

    Args:
        url: ``data:image/…;base64,…``.
        name: Where in the request it stands.
        kind: What it is to be.

    Raises:
        RefusalError: It is no such URL.

    Source: RFC 2397.
    """
    head, comma, body = url.partition(",")
    code = f"invalid_{kind}_url"
    if len(head) > _MOST_HEAD or not comma or not (match := _HEAD.fullmatch(head)):
        message = f"{name}: expected data:{kind}/…;base64,…, found {url[:40]!r}"
        raise RefusalError(400, message, param=name, code=code)
    found = (match["kind"] or "").lower()
    if found and not found.startswith(f"{kind}/"):
        article = "an image" if kind == "image" else "a video"
        raise RefusalError(400, f"{name}: expected {article}, found {found}", param=name, code=code)
    try:
        return binascii.a2b_base64(body.encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        message = f"{name}: expected base64 after the comma, found something else"
        raise RefusalError(400, message, param=name, code="invalid_base64") from error
