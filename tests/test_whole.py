"""Files are there whole or not at all."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tuyi.errors import DataError, OutputError
from tuyi.whole import write_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_with_the_folders_on_the_way(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "out.txt"
    write_whole(file, "一\r\n二\n")
    assert file.read_bytes() == "一\r\n二\n".encode()
    write_whole(file, iter(["x", "", "y\n"]), "utf-8-sig")
    assert file.read_bytes() == b"\xef\xbb\xbfxy\n"
    assert names(file.parent) == ["out.txt"]


def test_anyone_may_read_what_an_ordinary_file_lets_them_read(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_whole(tmp_path / "whole", "")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_error_among_the_pieces_leaves_the_old_file(tmp_path: Path) -> None:
    def pieces(error: Exception) -> Iterator[str]:
        yield "new"
        raise error

    file = tmp_path / "out"
    write_whole(file, "old")
    for error in (DataError("a bad row"), FileNotFoundError(2, "no such rows")):
        with pytest.raises(type(error)) as caught:
            write_whole(file, pieces(error))
        assert caught.value is error
    with pytest.raises(UnicodeEncodeError):
        write_whole(file, "half of a pair: \ud800")
    assert file.read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match=r"out cannot be written: Is a directory"):
        write_whole(tmp_path / "out", "text")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"inner cannot be written: (Not a directory|File exists)"):
        write_whole(tmp_path / "file" / "inner", "text")
    assert names(tmp_path) == ["file", "out"]


@pytest.mark.parametrize("size", [2000, 200_000])
def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path: Path, size: int) -> None:
    file = tmp_path / "out"
    write_whole(file, "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OutputError, match=r"out cannot be written: File too large"):
            write_whole(file, "x" * size)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert file.read_text() == "old"
    assert names(tmp_path) == ["out"]
