"""Memory does not grow with the number of rows."""

from __future__ import annotations

import csv
import json
import tracemalloc
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest

from tuyi.data import check, convert, read

TEXT = "用户: 这个是什么材质的？" * 10


def write_json(file: Path, rows: int) -> None:
    with file.open("w", encoding="utf-8") as stream:
        for n in range(rows):
            row = {"id": str(n), "instruction": f"{n}{TEXT}", "input": "", "output": "商品材质", "image": []}
            stream.write(("[" if n == 0 else ",\n") + json.dumps(row))
        stream.write("]")


def write_jsonl(file: Path, rows: int) -> None:
    with file.open("w", encoding="utf-8") as stream:
        for n in range(rows):
            said = [{"role": "user", "content": f"{n}{TEXT}"}, {"role": "assistant", "content": "商品材质"}]
            stream.write(json.dumps({"messages": said}) + "\n")


def write_csv(file: Path, rows: int) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["text", "label"])
        table.writerows([f"{n}{TEXT}", "商品材质"] for n in range(rows))


def write_parquet(file: Path, rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"text": [f"{n}{TEXT}" for n in range(rows)], "label": ["商品材质"] * rows})
    pq.write_table(table, file, row_group_size=500)


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "d.json": write_json,
    "d.jsonl": write_jsonl,
    "d.csv": write_csv,
    "d.parquet": write_parquet,
}


def peak(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


MANY = [4_000, pytest.param(100_000, marks=pytest.mark.slow)]


@pytest.mark.parametrize("many", MANY)
@pytest.mark.parametrize("name", WRITERS)
def test_reading_is_flat(tmp_path: Path, name: str, many: int) -> None:
    peaks = []
    # The first round only pays for imports and caches.
    for rows in (200, 1_000, many):
        file = tmp_path / f"{rows}" / name
        file.parent.mkdir()
        WRITERS[name](file, rows)
        peaks.append(peak(lambda file=file: deque(read(file), maxlen=0)))  # type: ignore[misc]
    # 3,000 rows more, kept, would be 700 kB of text alone.
    assert peaks[2] < peaks[1] + 150_000, peaks


def test_converting_is_flat(tmp_path: Path) -> None:
    peaks = []
    for rows in (200, 1_000, 4_000):
        write_json(tmp_path / "d.json", rows)
        peaks.append(peak(lambda: convert(tmp_path / "d.json", tmp_path / "d.jsonl", "messages", force=True)))
    assert peaks[2] < peaks[1] + 150_000, peaks


def test_check_keeps_only_hashes(tmp_path: Path) -> None:
    peaks = []
    for rows in (200, 1_000, 4_000):
        write_jsonl(tmp_path / "d.jsonl", rows)
        peaks.append(peak(lambda: check(tmp_path / "d.jsonl", workers=1)))
    # A few 64-bit numbers in dictionaries; the row itself, as Python holds it, has 1.5 kB and more.
    assert (peaks[2] - peaks[1]) / 3_000 < 700, peaks
