"""From any format that can be read to any that can be written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tuyi.data.options import ReadOptions
from tuyi.data.source import read
from tuyi.data.write import ExampleWriter, WriteFormat

__all__ = ["Converted", "convert"]


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written.

    Args:
        out: The file.
        format: Its format.
        rows: Rows written.
        unlabelled: Rows among them without a label.
        media: References to pictures and videos among them.
    """

    out: Path
    format: WriteFormat
    rows: int
    unlabelled: int
    media: int


def convert(
    source: str | Path,
    out: str | Path,
    format: WriteFormat,
    options: ReadOptions | None = None,
    *,
    force: bool = False,
    copy_media: bool = False,
) -> Converted:
    """Write a data file in another format; reading it gives the same examples.

    Args:
        source: Anything that :func:`tuyi.data.read` reads.
        out: The file to write, ``.json`` (competition, sharegpt) or ``.jsonl`` (messages).
        format: Format to write.
        options: How to read the source.
        force: Replace ``out`` where it is there.
        copy_media: Copy pictures and videos beside ``out``; else they are named where they lie, relative to it.

    Raises:
        DataError: A row that cannot be read or that the format cannot hold.
        OutputError: ``out`` is taken or cannot be written.
    """
    with ExampleWriter(Path(out), format, force, copy_media) as writer:
        for example in read(source, options):
            writer.write(example)
    return Converted(writer.out, format, writer.rows, writer.unlabelled, writer.media)
