"""Parts of a data set: in proportion, groups whole, the same for the same seed."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuyi.data import Image, check, read, split
from tuyi.data.stratify import divide
from tuyi.errors import ConfigError, LabelError, MediaError, OutputError
from tuyi.task import load_tasks

HALVES = {"train": 0.8, "test": 0.2}


def data(folder: Path, count: int = 60, *, shared: int = 0) -> Path:
    """A competition file: every third row has a picture, the first ``shared`` of those the same one."""
    (folder / "images").mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for n in range(count):
        images = []
        if n % 3 == 0:
            (folder / "images" / f"{n}.png").write_bytes(b"same" if n < 3 * shared else b"%d" % n)
            images = [f"{n}.png"]
        label = "rare" if n == count - 1 else "abc"[n % 2]
        rows.append({"id": f"r{n}", "instruction": f"q{n}" + "<image>" * len(images), "output": label, "image": images})
    (folder / "all.json").write_text(json.dumps(rows))
    return folder / "all.json"


def test_parts_are_stratified_and_complete(tmp_path: Path) -> None:
    report = split(data(tmp_path / "in"), tmp_path / "out", HALVES)
    train, test = (list(read(tmp_path / "out" / f"{part}.json")) for part in HALVES)
    assert {example.id for example in train} | {example.id for example in test} == {f"r{n}" for n in range(60)}
    assert len(train) + len(test) == 60
    task = "(no task)"
    assert report.counts["train"] == {(task, "a"): 24, (task, "b"): 23, (task, "rare"): 1}
    assert report.counts["test"] == {(task, "a"): 6, (task, "b"): 6}
    assert report.missing == [((task, "rare"), "test")]
    assert Counter(example.label for example in test) == {"a": 6, "b": 6}
    assert all(isinstance(image.source, Path) and image.source.is_file() for one in train for image in one.images)
    assert [example.id for example in train] == sorted((example.id for example in train), key=lambda id: int(id[1:]))
    assert report.to_dict()["missing"] == [{"task": task, "label": "rare", "part": "test"}]


def test_same_seed_same_parts(tmp_path: Path) -> None:
    source = data(tmp_path / "in")
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        split(source, tmp_path / name, HALVES, seed=seed)
    one, two, three = ((tmp_path / name / "test.json").read_text() for name in ("one", "two", "three"))
    assert one == two
    assert one != three


def test_rows_that_share_a_picture_stay_together(tmp_path: Path) -> None:
    report = split(data(tmp_path / "in", shared=8), tmp_path / "out", {"train": 0.5, "test": 0.5})
    assert report.largest_group == 8
    assert report.groups == 53
    sides = [
        part
        for part in ("train", "test")
        for example in read(tmp_path / "out" / f"{part}.json")
        for image in example.images
        if isinstance(image, Image) and isinstance(image.source, Path) and image.source.read_bytes() == b"same"
    ]
    assert len(sides) == 8
    assert len(set(sides)) == 1


def test_parts_of_one_source_never_leak(tmp_path: Path) -> None:
    rows = [{"text": f"question {n % 30}", "label": "ab"[n % 2]} for n in range(90)]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    report = split(tmp_path / "t.jsonl", tmp_path, HALVES)
    assert report.files["train"].name == "train.jsonl"
    assert report.groups == 30
    found = check(report.files["train"], against=[report.files["test"]])
    assert found.ok
    assert sum(sum(counts.values()) for counts in report.counts.values()) == 90
    assert sum(report.counts["test"].values()) == 18


def test_spellings_of_one_label_are_one_stratum(tmp_path: Path) -> None:
    tasks = load_tasks("www2025/www2025-intent")
    rows = [{"text": f"q{n}", "label": ["气泡", " 气 泡"][n % 2]} for n in range(10)]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    report = split(tmp_path / "t.jsonl", tmp_path / "out", HALVES, tasks=tasks)
    assert report.counts["test"] == {("www2025-intent", "气泡"): 2}
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "q", "label": "泡泡"}))
    with pytest.raises(LabelError, match=r"t\.jsonl, row 1: label '泡泡' is not one of .* nearest is '气泡'"):
        split(tmp_path / "t.jsonl", tmp_path / "out", HALVES, tasks=tasks, force=True)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train": 1.0}, "expected two parts or more"),
        ({"train": 0.8, "test": 0.1}, "make 1 together, found .* 0.9"),
        ({"train": 1.2, "test": -0.2}, "shares above 0"),
        ({"../x": 0.5, "test": 0.5}, "cannot be a file name"),
    ],
)
def test_parts_that_make_no_sense(tmp_path: Path, parts: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        split(tmp_path / "none.json", tmp_path, parts)


def test_missing_picture_and_taken_output(tmp_path: Path) -> None:
    source = data(tmp_path / "in")
    (tmp_path / "in" / "images" / "3.png").unlink()
    with pytest.raises(MediaError, match=r"all\.json, row 4, id r3: .*3\.png does not exist"):
        split(source, tmp_path / "out", HALVES)
    assert not (tmp_path / "out").exists()
    (tmp_path / "in" / "images" / "3.png").write_bytes(b"back")
    split(source, tmp_path / "out", HALVES)
    with pytest.raises(OutputError, match="is already there"):
        split(source, tmp_path / "out", HALVES)


SHARES = st.sampled_from([(0.8, 0.2), (0.5, 0.5), (0.7, 0.15, 0.15), (0.9, 0.05, 0.05)])


@given(st.lists(st.sampled_from("aaaabbc"), min_size=1, max_size=120), SHARES, st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_single_rows_are_within_one_of_their_share(labels: list[str], shares: tuple[float, ...], seed: int) -> None:
    strata = [("t", label) for label in labels]
    sides = divide(strata, range(len(strata)), shares, seed)
    for stratum, rows in Counter(strata).items():
        got = Counter(side for side, one in zip(sides, strata) if one == stratum)
        assert got[shares.index(max(shares))] >= 1
        for side, share in enumerate(shares):
            assert math.floor(rows * share + 1e-9) - 1 <= got[side] <= max(1, math.ceil(rows * share - 1e-9)), stratum


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9)), min_size=1, max_size=60), SHARES)
@settings(max_examples=60, deadline=None)
def test_groups_stay_whole(rows: list[tuple[str, int]], shares: tuple[float, ...]) -> None:
    groups = [group for _, group in rows]
    sides = divide([("t", label) for label, _ in rows], groups, shares, 0)
    assert len(set(zip(groups, sides))) == len(set(groups))


def test_many_small_strata_do_not_all_round_the_same_way() -> None:
    strata = [("t", str(n // 2)) for n in range(50)]
    sides = divide(strata, range(50), (0.8, 0.2), 0)
    assert Counter(sides) == {0: 40, 1: 10}
    assert all(0 in {side for side, one in zip(sides, strata) if one == stratum} for stratum in strata)
