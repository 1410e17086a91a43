"""What one request shows: pictures and videos, as many as it may."""

from __future__ import annotations

import time
from typing import Literal

from tuyi.data.example import Image, Video
from tuyi.serve.data_url import bytes_of
from tuyi.serve.hosts import fetch
from tuyi.serve.pictures import checked
from tuyi.serve.refusals import RefusalError
from tuyi.serve.settings import ServeSettings

__all__ = ["Shown", "is_slow"]


class Shown:
    """Makes the pictures and videos of one request.

    Args:
        settings: Limits.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._settings, self._pictures, self._videos = settings, 0, 0
        self._room, self._until = settings.max_body_bytes, time.monotonic() + settings.read_s  # of all that is fetched

    def picture(self, url: str, name: str) -> Image:
        """A picture.

        Args:
            url: Of its data, or of a host that is allowed.
            name: Where in the request it stands.

        Raises:
            RefusalError: It is one too many, none, or too large.
        """
        self._pictures += 1
        if self._pictures > (most := self._settings.max_pictures):
            message = f"{name}: expected at most {most} pictures, found more"
            raise RefusalError(400, message, param=name, code="too_many_images")
        return checked(self._bytes(url, name, "image"), name, self._settings.max_picture_pixels)

    def video(self, url: str, name: str) -> Video:
        """A video, not yet looked at; arguments and errors as for :meth:`picture`."""
        self._videos += 1
        if self._videos > (most := self._settings.max_videos):
            message = f"{name}: expected at most {most} videos, found more"
            raise RefusalError(400, message, param=name, code="too_many_videos")
        return Video(self._bytes(url, name, "video"), name)

    def _bytes(self, url: str, name: str, kind: Literal["image", "video"]) -> bytes:
        settings = self._settings
        if not settings.allow_hosts or url[:5].lower() == "data:":
            return bytes_of(url, name, kind)
        left = self._until - time.monotonic()
        found = fetch(url, name, settings.allow_hosts, most_bytes=self._room, seconds=left)
        self._room -= len(found)
        return found


def is_slow(url: str) -> bool:
    """Whether it takes a while to get what is there."""
    return url[:4].lower() == "http"
