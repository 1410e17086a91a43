"""`tuyi evaluate` on the command line."""

from __future__ import annotations

import json

import typer
from typer.testing import CliRunner

from tuyi.cli.evaluate import evaluate


def test_the_command_prints_the_scores_and_the_reports_path(case):
    rows = [
        {"id": one.id, "task": one.task, "text": one.text, "image": [one.images[0].name], "label": one.label}
        for one in case.examples
    ]
    data = case.folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    app = typer.Typer()
    app.command()(evaluate)
    arguments = [str(case.write()), str(data), "--out", str(case.folder / "out"), "--set", "resamples=100"]
    result = CliRunner().invoke(
        app, [*arguments, "--against", str(case.write(name="other.jsonl"))], env={"COLUMNS": "160"}
    )
    assert result.exit_code == 0, result.output
    assert "colour" in result.output
    assert "overall" in result.output
    assert "No clear difference: +0.0 points" in result.output
    assert f"Report: {case.folder / 'out' / 'report.html'}" in result.output
    assert (case.folder / "out" / "report.html").is_file()
