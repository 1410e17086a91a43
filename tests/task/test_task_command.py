"""``tuyi task show | check | new``."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from tuyi.cli.task import task_app

runner = CliRunner()


def test_show_lists_the_built_in_tasks():
    result = runner.invoke(task_app, ["show"])
    assert result.exit_code == 0, result.output
    assert [line.split(":")[0] for line in result.output.splitlines()] == ["chat", "www2025", "www2025-prefix"]


def test_show_a_task_as_the_model_sees_it():
    result = runner.invoke(task_app, ["show", "www2025/www2025-intent"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert "  是否会生锈 = 咨询商品是否会生锈" in lines
    assert lines[lines.index("-- answer") + 1] == "反馈密封性不好"
    assert "  max_pixels: 1003520" in lines
    assert runner.invoke(task_app, ["show", "chat"]).exit_code == 0


def test_check_counts_the_rows_of_each_task(tmp_path: Path):
    rows = [{"text": "x", "label": "是否好用", "task": "www2025-intent"}] * 3
    rows += [{"text": "y", "label": "商品头图", "task": "www2025-scene"}]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    result = runner.invoke(task_app, ["check", "www2025", str(data)])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        "www2025: 2 tasks, sound: www2025-intent (23 labels), www2025-scene (25 labels)",
        f"  www2025-intent: 3 rows of {data}",
        f"  www2025-scene: 1 rows of {data}",
    ]


def test_new_then_check(tmp_path: Path):
    file = str(tmp_path / "mine.yaml")
    made = runner.invoke(task_app, ["new", file])
    assert made.output.strip() == f"{file}: 2 labels; edit it, then: tuyi task check {file}"
    assert runner.invoke(task_app, ["check", file]).output.strip() == f"{file}: 1 task, sound: mine (2 labels)"


def test_new_with_the_fixed_text_first(tmp_path: Path):
    file = str(tmp_path / "mine.yaml")
    assert runner.invoke(task_app, ["new", file, "--layout", "prefix"]).exit_code == 0
    shown = runner.invoke(task_app, ["show", file]).output.splitlines()
    assert shown[shown.index("-- answer") - 4 : shown.index("-- answer")] == ["second label", "", "…", "Label:"]
