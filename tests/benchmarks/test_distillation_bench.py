"""The distillation benchmark's own work: how rows are dealt, what a recovered gap is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from cells import Cells, interval
from distillation import LABELLED, Deal, Problem, table
from tuyi.data import read
from tuyi.task.catalog import parse_tasks

TASKS = parse_tasks({"name": "c", "tasks": [{"name": "c", "labels": ["a", "b"]}]}, "c")


@pytest.fixture
def problem(tmp_path: Path) -> Problem:
    rows = "".join(f"{n},text {n},{'ab'[n % 2]}\n" for n in range(300))
    (tmp_path / "rows.csv").write_text(f"id,text,label\n{rows}")
    return Problem(tmp_path / "rows.csv", tmp_path / "rows.csv", TASKS, 120, ())


def ids(file: Path) -> set[str]:
    return {row.id for row in read(file)}


def test_parts_share_no_row_and_the_pool_has_no_label(problem: Problem, tmp_path: Path):
    deals = [Deal(problem, seed, tmp_path / str(seed)) for seed in (0, 0, 1)]
    for deal in deals:
        parts = [ids(part) for part in (deal.labelled, deal.own, deal.pool)]
        assert [len(part) for part in parts] == [LABELLED, 120, 80]
        assert len(set.union(*parts)) == 300
        assert ids(deal.pool_with_labels) == parts[2]
        assert all(row.label is None and row.soft is None for row in read(deal.pool))
        assert all(row.label == "ab"[int(row.id) % 2] for row in read(deal.pool_with_labels))
        assert [row.label for row in read(deal.labelled)].count("a") == LABELLED // 2
    assert ids(deals[0].labelled) == ids(deals[1].labelled) != ids(deals[2].labelled)


def test_an_arm_recovers_its_share_of_each_seed_s_own_gap():
    scores = {"labelled": (0.5, 0.6), "hard": (0.7, 0.75), "all": (0.9, 0.8)}
    cells = {
        f"digits-{seed}-{arm}": {"f1": f1, "rows": 10, "steps": 5}
        for arm, both in scores.items()
        for seed, f1 in enumerate(both)
    }
    found = table(cells)["digits"]
    assert found["hard"]["recovered"]["mean"] == pytest.approx((0.5 + 0.75) / 2)
    assert found["hard"]["f1"] == interval([0.7, 0.75])
    assert interval([0.4, 0.6])["high"] == pytest.approx(0.5 + 12.7062 * 0.1, rel=1e-4), "Student's t, one degree"
    del cells["digits-1-all"]
    assert table(cells)["digits"]["hard"]["recovered"]["mean"] == pytest.approx(0.5)


def test_a_finished_cell_is_not_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "cells.json"
    made: list[str] = []

    def cell(name: str) -> dict[str, int]:
        made.append(name)
        return {"f1": len(made)}

    for _ in range(2):
        cells = Cells(file, {"set": ["a=1"]}, lambda cells: {"count": len(cells)})
        for name in ("one", "two"):
            cells.run(name, lambda name=name: cell(name))
    assert made == ["one", "two"]
    assert {name: cell["f1"] for name, cell in cells.done.items()} == {"one": 1, "two": 2}
    kept = json.loads(file.read_text(encoding="utf-8"))
    assert (kept["table"], kept["cells"]) == ({"count": 2}, cells.done)
    assert capsys.readouterr().out.count("one: {") == 1
    with pytest.raises(SystemExit, match=r"holds cells made with --set \['a=1'\]; choose another --out"):
        Cells(file, {"set": []})
