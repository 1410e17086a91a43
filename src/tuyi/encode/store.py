"""Examples kept on disk, found again by number: memory stays flat however many rows there are."""

from __future__ import annotations

import os
import pickle
import tempfile
from array import array
from collections.abc import Iterator

from tuyi.data.example import Example

__all__ = ["RowStore"]


class RowStore:
    """An append-only list of examples in a temporary file that vanishes with the process."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the store
        self._offsets = array("q", [0])

    def append(self, example: Example) -> None:
        data = pickle.dumps(example, protocol=pickle.HIGHEST_PROTOCOL)
        self._file.write(data)
        self._offsets.append(self._offsets[-1] + len(data))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        self._file.flush()
        begin, end = self._offsets[index], self._offsets[index + 1]
        # pread leaves the file position alone, so forked workers can share the file
        example: Example = pickle.loads(os.pread(self._file.fileno(), end - begin, begin))
        return example

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))
