"""The tab Report: an evaluation's folder as it is read, and as a person sees it in a headless Chromium."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from live_server import Running
from tab_servers import EVIL, rows_file, tab_server

from tuyi.data.example import Image
from tuyi.errors import ConfigError
from tuyi.evaluate.judge import EvaluateSettings, evaluate
from tuyi.serve.opening import Served
from tuyi.serve.web.report_source import ReportSource, own_report, read_report
from tuyi.task.catalog import TaskSet

Open = Callable[..., Any]

LABELS = ("round", "square", "z")
ROWS = 36


@pytest.fixture
def folder(tmp_path: Path, tasks: TaskSet, picture: Callable[..., Image]) -> Path:
    """An evaluation of 36 rows: every fourth is wrong, the surer the later."""
    rows, lines = [], []
    for number in range(ROWS):
        gold = LABELS[number % 3]
        said = LABELS[(number + 1) % 3] if number % 4 == 0 else gold
        sure = 0.5 + number / 100
        image = picture(40, 30, seed=number) if number % 8 == 0 else None
        rows.append((f"r{number}", f"用户: row {number} {EVIL}", gold, image))
        shares = {label: sure if label == said else (1 - sure) / 2 for label in LABELS}
        numbers = {"probabilities": shares, "logprobs": dict.fromkeys(LABELS, -1.0)}
        lines.append({"id": f"r{number}", "task": "shape", "label": said, **numbers})
    data = rows_file(tmp_path / "test.jsonl", rows)
    file = tmp_path / "pred.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    run = {"tasks": tasks.model_dump(mode="json"), "data": str(data)}
    (tmp_path / "pred.jsonl.run.json").write_text(json.dumps(run), encoding="utf-8")
    evaluate(file, data, tmp_path / "evaluation", settings=EvaluateSettings(resamples=100, mistakes=3))
    return tmp_path / "evaluation"


def test_scores_labels_confusions_and_all_mistakes_are_read(folder, tasks):
    report = read_report(folder, tasks)
    (task,) = report.summary["tasks"]
    assert (task["rows"], task["right"], task["kept"]) == (36, 27, 9)
    assert {label["label"] for label in task["labels"]} == set(LABELS)
    assert [(pair["gold"], pair["predicted"], pair["rows"], pair["of"]) for pair in task["pairs"]] == [
        ("round", "square", 3, 12), ("square", "z", 3, 12), ("z", "round", 3, 12),
    ]  # fmt: skip
    found = report.found("shape")
    assert [one["id"] for one in found["mistakes"]] == [f"r{number}" for number in range(32, -1, -4)]
    first = found["mistakes"][0]
    assert first["row"] == 33
    assert (first["gold"], first["predicted"], round(first["confidence"], 2)) == ("z", "round", 0.82)
    pieces = [piece for one in first["said"] for piece in one["pieces"]]
    assert [piece["uri"][:23] for piece in pieces if "uri" in piece] == ["data:image/jpeg;base64,"]
    assert report.page.startswith("<!doctype html>")
    assert report.missing == ""


def test_mistakes_are_found_by_their_labels_a_few_at_a_time(folder, tasks):
    report = read_report(folder, tasks)
    assert [one["id"] for one in report.found("shape", "round", "square")["mistakes"]] == ["r24", "r12", "r0"]
    assert report.found("shape", "round", "z") == {"total": 0, "mistakes": []}
    part = report.found("shape", begin=7, most=5)
    assert (part["total"], [one["id"] for one in part["mistakes"]]) == (9, ["r4", "r0"])
    assert report.found("no such task", begin=-4, most=10**9)["total"] == 0


def test_a_folder_that_moved_with_its_files_is_read_and_one_without_says_what_is_missing(folder, tasks, tmp_path):
    for name in ("test.jsonl", "pred.jsonl", "pred.jsonl.run.json"):
        (tmp_path / name).rename(folder / name)
    moved = read_report(folder, tasks)
    assert len(moved.mistakes["shape"]) == 9
    said = json.dumps(moved.mistakes)
    assert ("uri" in said, "r32.png" in said) == (False, True)
    assert str(tmp_path) not in json.dumps([dict(moved.summary), moved.mistakes])
    rows = (folder / "test.jsonl").read_text()
    (folder / "test.jsonl").write_text(rows[: rows.rindex("{")])
    assert read_report(folder, tasks).missing == "changed"
    (folder / "test.jsonl").unlink()
    assert read_report(folder, tasks).missing == "data"
    (folder / "pred.jsonl").unlink()
    without = read_report(folder, tasks)
    assert (without.missing, dict(without.mistakes)) == ("predictions", {})
    assert without.summary["tasks"][0]["right"] == 27


def test_a_folder_that_is_no_evaluation_of_the_model_is_refused(folder, tasks, tmp_path):
    with pytest.raises(ConfigError, match="holds no evaluation"):
        read_report(tmp_path, tasks)
    others = tasks.model_copy(update={"tasks": tasks.tasks[:1]})
    with pytest.raises(ConfigError, match="is an evaluation of task shape; the model's are colour"):
        read_report(folder, others)


def test_a_models_own_evaluation_is_found(folder, tasks, tmp_path):
    found = own_report(tmp_path, tasks)  # as if the model were there
    assert found is not None
    assert len(found.mistakes["shape"]) == 9
    assert own_report(tmp_path / "test.jsonl", tasks) is None
    (folder / "metrics.json").write_text("{}")
    assert own_report(tmp_path, tasks) is None


@pytest.fixture
def report(folder: Path, tasks: TaskSet) -> ReportSource:
    return read_report(folder, tasks)


@pytest.fixture
def reported(served: Served, report: ReportSource) -> Iterator[Running]:
    with tab_server(served, report=report) as server:
        yield server


def test_a_person_sees_the_worst_mistakes_and_filters_them(reported, opened: Open, folder):
    page = opened(reported.url)
    page.get_by_role("tab", name="Report").click()
    page.wait_for_selector(".tuyi-report .cards .mistake")
    assert page.locator(".tuyi-report h2").inner_text() == "27 of 36 rows right"
    assert page.locator(".tuyi-report .score .value").all_inner_texts()[1] == "0.750"
    cards = page.locator(".tuyi-report .mistake")
    assert cards.count() == 9
    assert "82% sure" in cards.first.inner_text()
    assert EVIL in cards.first.inner_text()
    assert cards.first.locator("img").count() == 1
    assert page.evaluate("window.evil") is None

    page.locator(".tuyi-report .pairs button").nth(1).press("Enter")
    page.wait_for_function("document.querySelectorAll('.tuyi-report .mistake').length === 3")
    assert [one.input_value() for one in page.locator(".tuyi-report select").all()] == ["square", "z"]
    assert page.locator(".tuyi-report .count").inner_text() == "3 of 3"
    page.locator(".tuyi-report select").nth(1).select_option("round")
    page.wait_for_function("document.querySelector('.tuyi-report .cards').textContent === 'No mistake of this kind.'")
    page.get_by_role("button", name="Show all").click()
    page.wait_for_function("document.querySelectorAll('.tuyi-report .mistake').length === 9")

    with page.expect_download() as download:
        page.get_by_role("button", name="Download the whole report").click()
    found = Path(download.value.path()).read_text(encoding="utf-8")
    assert found == (folder / "report.html").read_text(encoding="utf-8")


def test_a_picture_opens_at_its_full_size_and_closes(reported, opened: Open):
    page = opened(reported.url)
    page.get_by_role("tab", name="Report").click()
    page.locator(".tuyi-report .mistake .shot").first.click()
    page.wait_for_selector("dialog.tuyi-large[open]")
    page.keyboard.press("Escape")
    page.wait_for_function("!document.querySelector('dialog')")
    assert page.locator(".tuyi-report .mistake .shot").first.is_visible()


def test_it_speaks_chinese(reported, opened: Open):
    page = opened(f"{reported.url}?lang=zh", locale="zh-CN")
    page.get_by_role("tab", name="报告").click()
    page.wait_for_selector(".tuyi-report .cards .mistake")
    text = page.locator(".tuyi-report").inner_text()
    assert "36 条中答对 27 条" in text
    assert "最严重的错误" in text


def test_without_a_report_it_says_how_to_have_one(page_server: Running, opened: Open):
    page = opened(page_server.url)
    page.get_by_role("tab", name="Report").click()
    assert "tuyi evaluate" in page.locator(".tuyi-report .none").inner_text()
