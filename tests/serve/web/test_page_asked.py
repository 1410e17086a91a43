"""`tuyi serve --page` and `--no-page`: what is wrong is said before a model is loaded."""

from __future__ import annotations

import ast
import importlib.metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tuyi.cli import app
from tuyi.errors import ConfigError
from tuyi.serve import opening, run
from tuyi.serve.run import PageData, ServeSettings


def refused(*words: str) -> str:
    result = CliRunner().invoke(app, ["serve", "builtin:tiny", "--task", "www2025", "--port", "0", *words])
    assert isinstance(result.exception, ConfigError), result.output
    return str(result.exception)


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "open_model", lambda *_, **__: pytest.fail("a model was loaded"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--no-page", "--report", "evaluation"], "leave --no-page out"),
        (["--no-page", "--label", "rows.jsonl"], "leave --no-page out"),
        (["--audit", "audit"], "--audit and --corrections go with --label"),
        (["--set", "serve.page_hosts=5"], "page_hosts"),
    ],
)
def test_words_that_do_not_go_together(words: list[str], told: str):
    assert told in refused(*words)


def test_without_gradio(monkeypatch: pytest.MonkeyPatch):
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert "needs gradio 6.31 or newer, found none: pip install 'tuyi[web]'" in refused("--page")
    assert "pip install 'tuyi[web]'" in refused("--label", "rows.jsonl")
    assert not run._has_page(ServeSettings(), PageData())
    assert not run._has_page(ServeSettings(page=False), PageData())


def test_an_old_gradio(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "5.50.0")
    assert "newer, found 5.50" in refused("--page")
    assert not run._has_page(ServeSettings(), PageData())
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "6.100.2rc1")
    assert run._has_page(ServeSettings(), PageData())


def test_a_report_that_is_none(tmp_path: Path):
    pytest.importorskip("gradio")
    assert str(tmp_path) in refused("--report", str(tmp_path))


def test_nothing_but_the_page_imports_gradio():
    """So that a server without a page starts without it."""
    room = Path(run.__file__).parent
    files = sorted(room.glob("*.py"))
    assert len(files) > 20
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names = [
            name
            for node in tree.body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names])
        ]
        assert not [name for name in names if name.startswith(("gradio", "tuyi.serve.web"))], file.name
