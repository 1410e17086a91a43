"""What ``check`` finds, problem by problem."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from tuyi.data import CheckReport, Example, check
from tuyi.errors import BudgetError
from tuyi.task import TaskSet, load_tasks
from tuyi.task.catalog import parse_tasks

TASKS = parse_tasks(
    {
        "name": "shop",
        "tasks": [
            {
                "name": "intent",
                "labels": ["发货数量", "异常（浮窗）", "气泡"],
                "recognise": ["对话"],
                "content": {"after": "对话:", "before": "完"},
                "prompt": "对话:{content}完",
                "budget": {"max_tokens": 100},
            },
            {"name": "scene", "labels": ["a", "b"], "recognise": ["看图"], "prompt": "{content}看图"},
        ],
    },
    "test",
)


def picture(file: Path, seed: int) -> str:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    file.parent.mkdir(exist_ok=True)
    PIL.Image.fromarray(pixels).save(file)
    return file.name


def row(id: str, text: str, label: str = "", images: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"id": id, "instruction": text, "input": "", "output": label, "image": list(images)}


def run(folder: Path, rows: list[dict[str, Any]], tasks: TaskSet | None = TASKS, **how: Any) -> CheckReport:
    file = folder / "train.json"
    file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return check(file, tasks, **how)


def found(report: CheckReport) -> list[tuple[str, int | None, str]]:
    return [(problem.kind, problem.place.row, problem.severity) for problem in report.problems]


def test_counts_of_a_clean_file(tmp_path: Path) -> None:
    a, b = (picture(tmp_path / "images" / f"{seed}.png", seed) for seed in (1, 2))
    rows = [
        row("1", "对话:一<image>完", "发货数量", (a,)),
        row("2", "对话:二完", " 发货数量 "),
        row("3", "对话:三完", "异常(浮窗)"),
        row("4", "对话:四完"),
        row("5", "<image>看图", "Ａ", (b,)),
    ]
    report = run(tmp_path, rows)
    assert report.ok
    assert report.problems == ()
    assert (report.rows, report.pictures, report.videos, report.format) == (5, 2, 0, "competition")
    intent, scene = report.tasks["intent"], report.tasks["scene"]
    assert intent.labels == {"发货数量": 2, "异常（浮窗）": 1, "气泡": 0}
    assert intent.spellings == {"' 发货数量 ' → '发货数量'": 1, "'异常(浮窗)' → '异常（浮窗）'": 1}
    assert (intent.rows, intent.unlabelled) == (4, 1)
    assert scene.labels == {"a": 1, "b": 0}
    text = "\n".join(report.lines())
    assert "intent: 4 rows, 2 of 3 labels, 1 unlabelled" in text
    assert "without rows: 气泡" in text
    assert "no problems found" in text


def test_labels_outside_the_set_and_rows_of_no_task(tmp_path: Path) -> None:
    report = run(tmp_path, [row("1", "对话:一完", "发货数"), row("2", "hello", "a"), row("3", "对话:看图完", "a")])
    assert found(report) == [("label", 1, "error"), ("task", 2, "error"), ("task", 3, "error")]
    assert report.problems[0].message == "label '发货数' is not one of the task's 3 labels; the nearest is '发货数量'"
    assert report.problems[1].message.startswith("the row matches none of the tasks intent, scene")
    assert "row matches several tasks (intent, scene)" in report.problems[2].message
    assert str(report.problems[0]).startswith(f"{tmp_path / 'train.json'}, row 1, id 1: label")
    assert not report.ok


def test_rationale_that_the_answer_needs(tmp_path: Path) -> None:
    tasks = load_tasks("www2025/www2025-intent", ["answer=reason"])
    rows = [row("1", "q", "气泡"), row("2", "r", "气泡") | {"rationale": "because"}]
    assert found(run(tmp_path, rows, tasks)) == [("rationale", 1, "error")]


def test_soft_labels_are_counted_and_their_labels_checked(tmp_path: Path) -> None:
    tasks = parse_tasks(
        {
            "name": "two",
            "tasks": [{"name": "shut", "labels": ["a", "b"], "recognise": ["?"]}, {"name": "open", "answer": "open"}],
        },
        "test",
    )
    texts = [("?", {"A": 0.5, "b": 0.5}), ("? 2", {"c": 1.0}), ("? 3", {"a": 0.5, "A": 0.5}), ("? 4", {"a": 0.4})]
    rows = [row(f"{at}", text) | {"soft": soft} for at, (text, soft) in enumerate(texts)]
    rows.append(row("open", "tell") | {"task": "open", "soft": {"a": 1}})
    report = run(tmp_path, rows, tasks)
    assert found(report) == [("label", 2, "error"), ("label", 3, "error"), ("type", 4, "error"), ("label", 5, "error")]
    messages = [problem.message for problem in report.problems]
    assert messages[0].startswith("soft labels: label 'c' is not one of the task's 2 labels")
    assert messages[1] == "soft labels: 'a' stands there twice, as 'A' too; give it one probability"
    assert messages[3] == "the row has soft labels, and task open is open: it has no labels"
    assert [count.soft for count in report.tasks.values()] == [3, 1]
    assert "  3 rows have soft labels" in list(report.lines())
    assert report.to_dict()["tasks"]["shut"]["soft"] == 3


def test_every_kind_of_bad_picture(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    good = picture(folder / "good.png", 1)
    whole = (folder / "good.png").read_bytes()
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("not a picture")
    bomb = io.BytesIO()
    PIL.Image.new("1", (20_000, 10_000)).save(bomb, "PNG")
    (folder / "bomb.png").write_bytes(bomb.getvalue())
    names = ["missing.png", "empty.png", "cut.png", "text.png", "bomb.png", good]
    rows = [row(str(n), f"{n}<image>看图", "a", (name,)) for n, name in enumerate(names, 1)]
    report = run(tmp_path, rows)
    assert found(report) == [("media", n, "error") for n in range(1, 6)]
    for problem, name in zip(report.problems, names):
        assert name in str(problem), problem
        assert problem.place.id == str(problem.place.row)


def test_count_errors_and_broken_rows_are_listed_and_the_rest_checked(tmp_path: Path) -> None:
    rows = [row("1", "对话:<image>完", "气泡"), {"id": "2"}, row("3", "对话:三完", "nothing like it")]
    report = run(tmp_path, rows)
    assert found(report) == [("placeholder", 1, "error"), ("column", 2, "error"), ("label", 3, "error")]
    assert report.rows == 3


def test_duplicates_within_a_file(tmp_path: Path) -> None:
    a, b = (picture(tmp_path / "images" / f"{seed}.png", seed) for seed in (1, 2))
    (tmp_path / "images" / "copy.png").write_bytes((tmp_path / "images" / a).read_bytes())
    rows = [
        row("1", "对话:你好<image>完", "气泡", (a,)),
        row("1", "对话:别的<image>完", "气泡", ("copy.png",)),
        row("3", "对话:你好<image>完", "气泡", (b,)),
        row("4", "对话:你好<image>完", "气泡", (a,)),
        row("5", "对话:你好<image>完", "发货数量", (b,)),
        row("6", "1<image>看图", "a", (picture(tmp_path / "images" / "5.png", 5),)),
        row("7", "1<image>看图", "a", (picture(tmp_path / "images" / "6.png", 6),)),
    ]
    report = run(tmp_path, rows)
    assert found(report) == [
        ("duplicate-id", 2, "error"),
        ("duplicate-picture", 2, "warning"),
        ("duplicate-text", 3, "warning"),
        ("duplicate-row", 4, "warning"),
        ("conflict", 5, "warning"),
    ]
    assert report.problems[0].message == "the id is also that of row 1; ids must differ"
    assert report.problems[4].message == "shows the same as row 3 but has another label"


def test_leaks_into_another_file(tmp_path: Path) -> None:
    a, b = (picture(tmp_path / "images" / f"{seed}.png", seed) for seed in (1, 2))
    test = tmp_path / "test.json"
    test.write_text(json.dumps([row("t1", "对话:新<image>完", "", (a,)), row("t2", "对话:老问题完")]), encoding="utf-8")
    rows = [
        row("1", "<image>看图", "a", (a,)),
        row("2", "对话:老问题<image>完", "气泡", (b,)),
        row("3", "对话:别的完", "气泡"),
    ]
    report = run(tmp_path, rows, against=[test])
    assert found(report) == [("leak", 1, "error"), ("leak", 2, "error")]
    assert report.problems[0].message == f"a picture or video is also in {test}, row 1"
    assert report.problems[1].message == f"has the text of {test}, row 2"
    assert report.against == (str(test),)
    assert run(tmp_path, rows).ok


def test_unreadable_other_file_is_an_error(tmp_path: Path) -> None:
    report = run(tmp_path, [row("1", "对话:一完", "气泡")], against=[tmp_path / "none.json"])
    assert [(problem.kind, problem.message) for problem in report.problems] == [
        ("format", "there is no such file or folder")
    ]


def test_lengths_against_the_budget(tmp_path: Path) -> None:
    def length(example: Example) -> int:
        if example.id == "9":
            raise BudgetError("the label list alone has 120 tokens", example.place)
        return int(example.id)

    rows = [row(str(n), f"对话:{n}完", "气泡") for n in (9, 10, 12, 13, 60, 101, 130)]
    report = run(tmp_path, rows, length=length)
    assert found(report) == [("budget", 1, "error"), ("budget", 6, "warning"), ("budget", 7, "warning")]
    assert report.problems[1].message == "101 tokens, the budget is 100; the row will be shortened"
    lengths = report.tasks["intent"].lengths
    assert lengths is not None
    assert lengths.bins == ((12, 2), (25, 1), (37, 0), (50, 0), (62, 1), (75, 0), (87, 0), (100, 0), (130, 2))
    assert (lengths.over, lengths.median, lengths.longest) == (2, 13, 130)
    text = "\n".join(report.lines())
    assert "tokens: median 13, 95 % up to 101, longest 130, budget 100, 2 rows over it" in text
    assert "2  over budget, will be shortened" in text


def test_file_that_breaks_off_reports_what_came_before(tmp_path: Path) -> None:
    file = tmp_path / "train.json"
    text = json.dumps([row("1", "对话:一完", "气泡"), row("2", "对话:二完", "气泡")])
    file.write_text(text[:-5])
    report = check(file, TASKS)
    assert report.rows == 1
    assert [problem.kind for problem in report.problems] == ["format"]
    assert "line 1, column" in report.problems[0].message


def test_report_as_data_and_as_capped_text(tmp_path: Path) -> None:
    report = run(tmp_path, [row(str(n), f"对话:{n}完", "???") for n in range(25)])
    data = json.loads(json.dumps(report.to_dict()))
    assert len(data["problems"]) == 25
    assert data["problems"][3] == {
        "kind": "label",
        "severity": "error",
        "file": str(tmp_path / "train.json"),
        "row": 4,
        "id": "3",
        "message": "label '???' is not one of the task's 3 labels",
    }
    assert (data["ok"], data["errors"], data["warnings"], data["kinds"]) == (False, 25, 0, {"label": 25})
    assert data["tasks"]["intent"]["rows"] == 25
    lines = list(report.lines(limit=4))
    assert lines[-2] == "  … and 21 more; --json lists all"
    assert sum("???" in line for line in lines) == 4


@pytest.mark.parametrize("labels", [3, 2000])
def test_without_tasks_labels_are_counted_up_to_a_bound(tmp_path: Path, labels: int) -> None:
    file = tmp_path / "t.jsonl"
    lines = [json.dumps({"text": f"q{n}", "label": f"answer {n % labels}"}) for n in range(2000)]
    file.write_text("\n".join(lines))
    report = check(file)
    assert report.ok
    counted = report.tasks["(no task)"].labels
    assert sum(counted.values()) == 2000
    assert len(counted) == min(labels, 1001)
    assert (counted.get("(others)", 0)) == (0 if labels == 3 else 1000)
