"""What a written data file calls its pictures and videos, and where copies of them go."""

from __future__ import annotations

import filecmp
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tuyi.data.example import Image, Video
from tuyi.data.formats.media import MediaFolders
from tuyi.errors import MediaError
from tuyi.whole import output_errors

__all__ = ["MediaStore"]

_FOLDER = {Image: "images", Video: "videos"}
_MAGIC = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}


@dataclass(frozen=True, slots=True)
class MediaStore:
    """Names the media of one output file.

    Args:
        folders: How the reader will look for them; ``base`` is the folder of the output file.
        copy: Copy each file beside the output instead of naming it where it lies.
    """

    folders: MediaFolders
    copy: bool

    def name(self, media: Image | Video) -> str:
        """What the file calls a picture or video; reading it back finds the same bytes.

        Raises:
            MediaError: A file that is to be copied is missing.
            OutputError: A copy cannot be written.
        """
        source, spelled = media.source, media.name
        if isinstance(source, bytes):
            name = hashlib.blake2b(source, digest_size=10).hexdigest() + _suffix(source, spelled, media)
            return self._shortest(self._put(source, _FOLDER[type(media)], name))
        if self.copy:
            return self._shortest(self._put(source, _FOLDER[type(media)], source.name))
        target = Path(os.path.abspath(source))
        if spelled and "://" not in spelled and Path(os.path.abspath(self.folders.path(spelled))) == target:
            return spelled
        return self._shortest(target)

    def _shortest(self, target: Path) -> str:
        """The shortest name by which the reader finds a file."""
        base, inner = self.folders.base, self.folders.inner
        if inner is not None and target.parent == base / inner:
            return target.name
        name = Path(os.path.relpath(target, base)).as_posix()
        # A bare name would be looked for in the media folder first.
        return f"./{name}" if inner is not None and "/" not in name else name

    def _put(self, source: Path | bytes, folder: str, name: str) -> Path:
        """Put media beside the file, under a name that no other content has."""
        target = self.folders.base / folder / name
        if isinstance(source, Path):
            if not source.is_file():
                raise MediaError(f"{source} is not there, so it cannot be copied")
            if target.exists() and not filecmp.cmp(source, target, shallow=False):
                with source.open("rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()[:12]
                target = target.with_name(f"{target.stem}-{digest}{target.suffix}")
        if target.exists():
            return target
        partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        with output_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(source, Path):
                shutil.copyfile(source, partial)
            else:
                partial.write_bytes(source)
            partial.replace(target)
        return target


def _suffix(data: bytes, name: str, media: Image | Video) -> str:
    if suffix := Path(name).suffix:
        return suffix
    if data[:4] == b"RIFF":
        return ".webp" if data[8:12] == b"WEBP" else ".avi"
    if isinstance(media, Video):
        return ".mp4"
    return next((suffix for magic, suffix in _MAGIC.items() if data.startswith(magic)), ".img")
