"""The documentation is right: links lead somewhere, commands parse, examples load, settings are said."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from typer.main import get_command

import tuyi
from tuyi.cli import app
from tuyi.data.options import ReadOptions, Tags
from tuyi.distill.drafts import RationalizeSettings
from tuyi.distill.reason_checks import ReasonChecks
from tuyi.distill.select import SelectSettings
from tuyi.distill.settings import DistillRun, RoundSettings
from tuyi.distill.views import ViewSettings
from tuyi.evaluate.judge import EvaluateSettings
from tuyi.predict.api import ApiSettings
from tuyi.predict.prediction import Prediction
from tuyi.predict.run import PredictSettings
from tuyi.predict.vllm import VllmSettings
from tuyi.serve.settings import ServeSettings
from tuyi.task.catalog import load_tasks
from tuyi.task.task import Budget
from tuyi.train.settings import Freeze, LoraSettings, ReasonSettings, SoftSettings, TrainRun, TrainSettings
from tuyi.train.space import check_space, parse_space
from tuyi.train.tune import TuneRun, TuneSettings

ROOT = Path(__file__).parents[1]
TRANSLATED = (
    "chat.md",
    "data.md",
    "distillation.md",
    "engines.md",
    "evaluation.md",
    "many-gpus.md",
    "prediction.md",
    "quickstart.md",
    "serving.md",
    "tasks.md",
    "training.md",
)
PAGES = sorted([*ROOT.glob("README*.md"), ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
MACHINE_DEPENDENT = {"workers"}


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: Path
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [Block(page, language, "".join(_dedent(text, indent))) for indent, language, text in found]


def _dedent(text: str, indent: str) -> list[str]:
    return [line.removeprefix(indent) for line in text.splitlines(keepends=True)]


def all_blocks(*languages: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.language in languages]


def commands(block: Block) -> list[list[str]]:
    """The words behind ``tuyi`` of each command line in a block."""
    found = []
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["torchrun"]:
            words = words[words.index("tuyi") :]
        if words[:1] == ["tuyi"]:
            found.append(words[1:])
    return found


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_looked_at() -> None:
    assert len(PAGES) >= 19
    assert {page.name for page in (ROOT / "docs" / "zh").glob("*.md")} == set(TRANSLATED)
    every = sum(page.read_text(encoding="utf-8").count("```") for page in PAGES)
    assert every == 2 * sum(len(blocks(page)) for page in PAGES), "a fenced block without a language"


def test_links_lead_to_files_and_headings() -> None:
    seen, lost = 0, []
    for page in PAGES:
        for target in LINK.findall(prose(page)):
            if target.startswith(("http://", "https://")):
                continue
            seen += 1
            name, _, anchor = target.partition("#")
            file = (page.parent / name).resolve() if name else page
            if not file.is_file() or (anchor and anchor not in anchors(file)):
                lost.append((str(page.relative_to(ROOT)), target))
    assert not lost
    assert seen >= 60


def test_nothing_is_left_to_fill_in() -> None:
    marks = [(page.name, mark) for page in PAGES for mark in re.findall(r"@@\w+@@", page.read_text(encoding="utf-8"))]
    assert not marks


def test_commands_parse() -> None:
    seen, root = 0, get_command(app)
    for block in all_blocks("bash"):
        for words in commands(block):
            seen += 1
            line = f"{block.page.relative_to(ROOT)}: tuyi {shlex.join(words)}"
            command: Any = root
            while hasattr(command, "commands"):
                if words[0].startswith("-"):
                    known = {name for option in command.get_params(_context(command)) for name in option.opts}
                    assert words[0] in known, line
                    break
                assert words[0] in command.commands, line
                command, words = command.commands[words[0]], words[1:]
            else:
                command.make_context(command.name, list(words))  # raises on unknown options and wrong values
    assert seen >= 80


def _context(command: Any) -> Any:
    return command.context_class(command)


@pytest.mark.parametrize("words", [["--nonsense"], ["data", "more"], ["data", "--limit", "-1"]])
def test_a_wrong_command_would_be_found(words: list[str]) -> None:
    check: Any = get_command(app).commands["check"]  # type: ignore[attr-defined]
    with pytest.raises(Exception, match=r"nonsense|unexpected|greater than or equal"):
        check.make_context("check", words)


def test_settings_on_command_lines_exist() -> None:
    known = {
        "train": {
            *TrainSettings.model_fields,
            *(f"freeze.{name}" for name in Freeze.model_fields),
            *(f"soft.{name}" for name in SoftSettings.model_fields),
            *(f"reasons.{name}" for name in ReasonSettings.model_fields),
        },
        "budget": set(Budget.model_fields),
        "tune": set(TuneSettings.model_fields),
        "select": set(SelectSettings.model_fields),
        "views": set(ViewSettings.model_fields),
        "distill": set(RoundSettings.model_fields),
        "serve": set(ServeSettings.model_fields),
        "reasons": {
            *RationalizeSettings.model_fields,
            *(f"checks.{name}" for name in ReasonChecks.model_fields),
        },
        "predict": {
            *PredictSettings.model_fields,
            *(f"api.{name}" for name in ApiSettings.model_fields),
            *(f"vllm.{name}" for name in VllmSettings.model_fields),
        },
    }
    seen = 0
    for block in all_blocks("bash"):
        for words in commands(block):
            for option, value in pairwise(words):
                name, _, _ = value.partition("=")
                group, _, inner = name.partition(".")
                if option == "--set":
                    seen += 1
                    assert inner in known[group] if inner else name in EvaluateSettings.model_fields, value
                elif option == "--read":
                    seen += 1
                    assert inner in Tags.model_fields if inner else name in ReadOptions.model_fields, value
    assert seen >= 40


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    used = [line.split()[1] for block in all_blocks("bash") for line in block.text.splitlines() if line[:5] == "make "]
    assert len(used) >= 6
    assert set(used) <= targets


def check_run(value: dict[str, Any]) -> None:
    if "labelled" in value:
        DistillRun.model_validate(value)
    elif "tune" in value:
        run = TuneRun.model_validate(value)
        check_space(parse_space(run.tune.space), run.train, load_tasks(str(run.task)))
    else:
        TrainRun.model_validate(value)


def test_yaml_examples_load(tmp_path: Path) -> None:
    tasks = runs = 0
    for number, block in enumerate(all_blocks("yaml")):
        value = yaml.safe_load(block.text)
        if value.keys() & {"data", "labelled"}:
            check_run(value)
            runs += 1
        else:
            file = tmp_path / f"task{number}.yaml"
            file.write_text(block.text, encoding="utf-8")
            assert len(load_tasks(file).tasks) == len(value.get("tasks", [0]))
            tasks += 1
    assert (tasks, runs) == (8, 4)


def test_run_files_in_examples_load() -> None:
    files = sorted((ROOT / "examples").rglob("*.yaml"))
    assert len(files) == 6
    for file in files:
        value = yaml.safe_load(file.read_text(encoding="utf-8"))
        if "data" in value:
            check_run(value)
        else:
            load_tasks(file)


def test_python_snippets_compile_and_call_what_is_there() -> None:
    calls = 0
    snippets = all_blocks("python")
    assert len(snippets) >= 7
    for block in snippets:
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tuyi":
                assert node.attr in tuyi.__all__, f"{block.page.name}: tuyi.{node.attr}"
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("tuyi."):
                called = getattr(tuyi, ast.unparse(node.func).removeprefix("tuyi."))
                signature = inspect.signature(called)
                signature.bind_partial(*node.args, **{str(item.arg): item.value for item in node.keywords})
                calls += 1
    assert calls >= 30


def test_every_public_name_is_said() -> None:
    page = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")
    assert not [name for name in tuyi.__all__ if not re.search(rf"\b{name}\b", page)]


def test_data_examples_read(tmp_path: Path) -> None:
    seen = 0
    for folder in ("docs", "docs/zh"):
        for number, block in enumerate(blocks(ROOT / folder / "data.md")):
            if block.language in ("json", "jsonl", "csv"):
                file = tmp_path / folder / f"rows{number}.{block.language}"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(block.text, encoding="utf-8")
                rows = list(tuyi.read(file))
                assert rows
                assert all(row.label and row.images for row in rows)
                seen += len(rows)
    assert seen == 2 * (2 + 1 + 2 + 2)


def test_prediction_examples_are_predictions() -> None:
    lines = [block.text for block in all_blocks("jsonl") if block.page.name == "prediction.md"]
    assert len(lines) == 4
    for line in lines:
        assert json.loads(Prediction.from_json(line).to_json()) == json.loads(line)


@pytest.mark.parametrize("folder", ["docs", "docs/zh"])
@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (TrainSettings, "training.md"),
        (LoraSettings, "training.md"),
        (Freeze, "training.md"),
        (SoftSettings, "training.md"),
        (ReasonSettings, "training.md"),
        (TuneSettings, "training.md"),
        (PredictSettings, "prediction.md"),
        (ApiSettings, "engines.md"),
        (VllmSettings, "engines.md"),
        (EvaluateSettings, "evaluation.md"),
        (Budget, "tasks.md"),
        (ReadOptions, "data.md"),
    ],
)
def test_every_setting_is_said_with_its_default(cls: type[BaseModel], name: str, folder: str) -> None:
    page = (ROOT / folder / name).read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", page, re.MULTILINE))
    assert cls.model_fields
    for field, info in cls.model_fields.items():
        assert field in {said for said, _ in rows}, f"{folder}/{name} lacks {field}"
        if isinstance(info.default, int | float | str | tuple | None) and field not in MACHINE_DEPENDENT:
            assert (field, _spelled(info.default)) in rows, f"{folder}/{name}: {field}"


def _spelled(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return str(list(value)) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize("folder", ["docs", "docs/zh"])
def test_every_tag_is_said(folder: str) -> None:
    page = (ROOT / folder / "data.md").read_text(encoding="utf-8")
    assert not [name for name in Tags.model_fields if f"`{name}`" not in page]


def test_both_languages_give_the_same_commands() -> None:
    pairs = [(ROOT / "README.md", ROOT / "README.zh.md")]
    pairs += [(ROOT / "docs" / name, ROOT / "docs" / "zh" / name) for name in TRANSLATED]
    assert len(pairs) == 12
    for english, chinese in pairs:
        both = [[line for block in blocks(page) for line in commands(block)] for page in (english, chinese)]
        assert both[0] == both[1], english.name
        assert [block.language for block in blocks(english)] == [block.language for block in blocks(chinese)]
        assert prose(english).count("\n## ") == prose(chinese).count("\n## ")
