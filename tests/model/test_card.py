"""Model cards: front matter, scores, prompts, commands and client that are those of the model, and nothing invented."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import tuyi
from tuyi.cli import app
from tuyi.data.example import Example, Image, Text
from tuyi.errors import ConfigError
from tuyi.model.card import Card, render_card
from tuyi.model.folder import FolderInfo, SeenRows, read_info, versions, write_info
from tuyi.model.measured import read_measured
from tuyi.model.write import write_model
from tuyi.predict.prediction import Prediction
from tuyi.task.catalog import TaskSet, parse_tasks

SEEN = {
    "train": {
        "colour": SeenRows(
            rows=8, labels={"A": 5, "AB": 3, "红": 0}, with_pictures=6, most_pictures=3, with_videos=0, most_videos=0
        ),
        "shape": SeenRows(rows=4, labels={"round": 4}),
    },
    "valid": {"colour": SeenRows(rows=2, labels={"A": 2}, with_pictures=1, most_pictures=1)},
}


def blocks(card: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return [body for _, body in re.findall(rf"^(`{{3,}}){language}\n(.*?)\n\1$", card, re.DOTALL | re.MULTILINE)]


def section(card: str, title: str) -> str:
    return card.split(f"\n## {title}\n")[1].split("\n## ")[0]


def options(command: str) -> dict[str, str]:
    """The options of a command line."""
    words = shlex.split(command.replace("\\\n", " "))
    return {name: value for name, value in pairwise(words) if name.startswith("--")}


@pytest.fixture(scope="module")
def closed(tasks: TaskSet) -> TaskSet:
    return TaskSet(name="closed", tasks=tasks.tasks[:2])


@pytest.fixture(scope="module")
def info(closed: TaskSet) -> FolderInfo:
    """What a trained model remembers."""
    return FolderInfo(
        tasks=closed,
        base_model="Qwen/Qwen2-VL-7B-Instruct",
        versions={"tuyi": "0.0.7", "torch": "2.99"},
        settings={
            "method": "lora", "lora": {"rank": 8, "alpha": 16}, "epochs": 3.0, "lr": 1e-4, "max_steps": None, "seed": 0,
            "freeze": {"vision": True, "projector": True, "language": False},
        },
        calibration={"colour": {"temperature": 1.5, "rows": 40, "ece_before": 0.1, "ece_after": 0.04}},
        scores={"weighted_f1": 0.8125},
        data=SEEN,
    )  # fmt: skip


@pytest.fixture(scope="module")
def evaluation(closed: TaskSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of one of the tasks, made by `tuyi evaluate`."""
    folder = tmp_path_factory.mktemp("evaluations")
    gold = ["A", "A", "A", "AB", "AB", "AB", "红"]
    said = ["A", "A", "A", "AB", "A", "A", "红"]
    names = closed["colour"].labels.names
    lines = [
        Prediction(
            str(number), "colour", label, {name: 0.0 if name == label else -3.0 for name in names},
            {name: float(name == label) for name in names},
        ).to_json()
        for number, label in enumerate(said)
    ]  # fmt: skip
    (folder / "predictions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    rows = [Example(str(number), (Text("x"),), task="colour", label=label) for number, label in enumerate(gold)]
    tuyi.evaluate(folder / "predictions.jsonl", rows, folder / "out", tasks=closed)
    return folder / "out"


@pytest.fixture
def card(twins: Any, info: FolderInfo, evaluation: Path) -> str:
    measured = read_measured(evaluation, info)
    frontend = twins("qwen2_vl").model.frontend
    return render_card(Card("colours", frontend, info, info.base_model, "bfloat16", measured))


def test_the_front_matter_is_what_the_hub_reads(card: str):
    assert card.startswith("---\n")
    assert yaml.safe_load(card.split("---\n")[1]) == {
        "base_model": "Qwen/Qwen2-VL-7B-Instruct",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["tuyi", "qwen2_vl"],
    }
    assert card.endswith("\n")
    assert not card.endswith("\n\n")
    assert "\n\n\n" not in card.split("```python")[0]
    assert not [line for line in card.splitlines() if line != line.rstrip()]


def test_scores_are_those_of_the_evaluation(card: str, evaluation: Path):
    said = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))["tasks"]["colour"]
    scores = section(card, "Scores")
    f1 = said["metrics"]["weighted_f1"]
    assert f"| colour | 7 | {f1['value']:.3f} ({f1['low']:.3f}–{f1['high']:.3f}) |" in scores
    assert f1["value"] == pytest.approx((3 * 0.75 + 3 * 0.5 + 1) / 7)
    assert "in brackets the 95% bootstrap interval" in scores.replace("\n", " ")
    assert len(re.findall(r"^\| (?:A|AB|红) \| \d", scores, re.MULTILINE)) == 3
    assert "| AB | 3 | 1.000 | 0.333 | 0.500 (" in scores
    assert "| 红色 |" not in scores, "a label without test rows has no scores"
    assert "shape: not measured." in scores
    assert "On the validation rows of its training: weighted\\_f1 0.812." in scores
    assert (
        "- colour: temperature 1.500, fitted on 40 rows; expected calibration error 0.100 without it, 0.040" in scores
    )
    assert "- shape: not measured" in scores


def test_data_training_and_limits(card: str):
    data = section(card, "Data")
    assert "| colour | train | valid |\n|---|---|---|\n| rows | 8 | 2 |\n" in data
    assert "| with pictures | 6 (75%) | 1 (50%) |" in data
    assert "| with videos | 0 (0%) | 0 (0%) |" in data
    assert "| AB | 3 | 0 |" in data
    assert "| shape | train |\n|---|---|\n| rows | 4 |\n" in data
    training = section(card, "Training")
    for line in ("- method: lora", "- epochs: 3.0", "- learning rate: 0.0001", "- adapter: rank 8, alpha 16"):
        assert line in training
    assert "- frozen: vision, projector\n" in training
    assert "most steps" not in training
    limits = section(card, "Limits")
    assert "- Never seen in training: 红.\n" in limits
    assert "- No training row showed videos." in limits
    assert "- No training row showed pictures or videos." in limits
    assert "- Not measured, since no test row has it: 红色, 红色（深）, 红色(浅), Ｂ类 other colour." in limits
    assert "- Labels it takes for another one most often: AB for A (2 of 3 rows).\n" in limits
    made = section(card, "How it was made")
    assert "- trained with tuyi 0.0.7, torch 2.99\n" in made
    assert f"- exported with tuyi {versions()['tuyi']}, " in made


def test_commands_have_the_pixels_and_counts_of_the_task(card: str, closed: TaskSet):
    ours, vllm, sglang = blocks(card, "bash")
    assert ours == "tuyi serve ./colours"
    said = options(vllm)
    assert vllm.startswith("vllm serve ./colours ")
    assert said["--served-model-name"] == "colours"
    assert json.loads(said["--limit-mm-per-prompt"]) == {"image": 3, "video": 0}
    assert json.loads(said["--mm-processor-kwargs"]) == {"size": {"shortest_edge": 1024, "longest_edge": 16384}}
    assert int(said["--max-model-len"]) > 2048
    assert said["--generation-config"] == "vllm"
    said = options(sglang)
    assert sglang.startswith("SGLANG_IMAGE_MAX_PIXELS=16384 python -m sglang.launch_server ")
    assert json.loads(said["--limit-mm-data-per-request"]) == {"image": 3, "video": 0}
    assert int(said["--context-length"]) > 2048


def asked_by(client: str, row: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch, **changed: Any) -> dict[str, Any]:
    """What the card's client sends for a row of the task ``colour``."""
    sent: list[dict[str, Any]] = []

    class Client:
        def __init__(self, **_: Any) -> None:
            message = SimpleNamespace(message=SimpleNamespace(content="A"))
            create = lambda **request: sent.append(request) or SimpleNamespace(choices=[message])  # noqa: E731
            self.chat = SimpleNamespace(completions=SimpleNamespace(create=create))

    monkeypatch.setitem(sys.modules, "openai", SimpleNamespace(OpenAI=Client))
    world: dict[str, Any] = {"__name__": "client"}
    exec(client, world)
    world |= changed
    said = [world["text"](part) if isinstance(part, str) else world["picture"](io.BytesIO(part.source)) for part in row]
    assert world["ask"]("colour", *said) == "A"
    return sent[0]


def test_the_client_asks_in_the_encoders_words(
    card: str, twins: Any, picture: Any, closed: TaskSet, monkeypatch: pytest.MonkeyPatch
):
    from PIL import Image as Pillow

    twin = twins("qwen2_vl")
    (client,) = blocks(card, "python")
    shown = picture(50, 40)
    request = asked_by(client, (shown, "(the row's own text)"), monkeypatch)
    assert (request["model"], request["temperature"]) == ("colours", 0)
    names = list(closed["colour"].labels.names)
    assert request["extra_body"] == {"repetition_penalty": 1.0, "structured_outputs": {"choice": names}}
    assert request["max_tokens"] == 1 + max(len(name.encode()) for name in names)
    parts = [dict(part) for part in request["messages"][0]["content"]]
    url = next(part["image_url"]["url"] for part in parts if part["type"] == "image_url")
    sent = Pillow.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
    assert sent.tobytes() == Pillow.open(io.BytesIO(shown.source)).tobytes()
    messages = [{"role": "user", "content": [{**part, "type": part["type"].removesuffix("_url")} for part in parts]}]
    tokenizer = twin.model.frontend.tokenizer
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert blocks(card, "text")[0] == text.rstrip("\n")
    row = Example("1", (shown, Text("(the row's own text)")), task="colour")
    ours = twin.encoder.ask(row)
    assert tuple(tokenizer(text, add_special_tokens=False).input_ids) == ours.ids
    bound = asked_by(client, ("x",), monkeypatch, SERVER="sglang")["extra_body"]
    assert bound["ebnf"].startswith('root ::= "A" | "AB" | "红" | ')
    assert "structured_outputs" not in bound


def test_answers_with_a_reason_and_open_ones_are_not_bound(twins: Any, monkeypatch: pytest.MonkeyPatch):
    reasoned = {
        "name": "why",
        "labels": ["yes", "no"],
        "answer": "reason",
        "system": "Be `brief`.",
        "prompt": "{content}",
    }
    tasks = parse_tasks({"name": "two", "tasks": [reasoned, {"name": "talk", "answer": "open"}]}, "two")
    frontend = twins("qwen2_vl").model.frontend
    card = render_card(Card("x", frontend, FolderInfo(tasks=tasks, base_model="b"), "b", "float32"))
    assert '{"理由": "⟨rationale⟩", "所属类别": "⟨label⟩"}' in blocks(card, "text")
    assert "An open task: it answers in its own words." in card
    assert "read the label out of its form" in card
    (client,) = blocks(card, "python")
    request = asked_by(client.replace('"why": {', '"colour": {'), ("x",), monkeypatch)
    assert request["extra_body"] == {"repetition_penalty": 1.0}
    assert request["messages"] == [
        {"role": "system", "content": "Be `brief`."},
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
    ]
    assert request["max_tokens"] > 80


def test_what_is_not_known_is_left_out(twins: Any, closed: TaskSet, tmp_path: Path):
    info = FolderInfo(tasks=closed, base_model=str(tmp_path / "secret" / "base"))
    frontend = twins("qwen2_vl").model.frontend
    card = render_card(Card("x", frontend, info, info.base_model, "float32"))
    assert "base_model" not in yaml.safe_load(card.split("---\n")[1])
    assert "made from base with tuyi" in card
    assert "secret" not in card, "no paths of this machine"
    assert "Not measured: no evaluation came with the export." in card
    assert section(card, "Data").count("its training rows were not counted.") == 2
    assert "Not recorded." in section(card, "Training")
    assert "On the validation rows" not in card
    assert "trained with" not in card
    _, vllm, sglang = blocks(card, "bash")
    assert "mm" not in vllm.replace("--dtype", "")
    assert "limit" not in sglang
    assert "was not counted: limit them yourself" in card
    unknown = render_card(Card("x", frontend, None, None, "float32"))
    assert "The task that it was taught is not known" in unknown
    assert "## Serving it" not in unknown


def test_videos_keep_their_own_sizes(twins: Any, closed: TaskSet):
    data = {"train": {"colour": SeenRows(rows=3, with_videos=3, most_videos=2)}}
    info = FolderInfo(tasks=closed, base_model="b", data=data)
    card = render_card(Card("x", twins("qwen2_vl").model.frontend, info, "b", "float32"))
    said = options(blocks(card, "bash")[1])
    assert json.loads(said["--limit-mm-per-prompt"]) == {"image": 0, "video": 2}
    assert "--mm-processor-kwargs" not in said


def test_texts_of_the_task_break_nothing(twins: Any):
    labels = {"a|b": "one\ntwo | three", "<b>*x*</b>": "[link](http://x) `code`", "```": "", "c\\d_e": "$1 & $2"}
    task = {"name": "odd", "about": "# not | a heading", "labels": labels, "prompt": "```\n{content}\n````\n{labels}"}
    info = FolderInfo(tasks=parse_tasks({"name": "odd", "tasks": [task]}, "odd"), base_model="a/b: c # d")
    card = render_card(Card("a b'c", twins("qwen2_vl").model.frontend, info, info.base_model, "float32"))
    decides = section(card, "What it decides")
    assert "| a\\|b | one two \\| three |\n" in decides
    assert "| \\<b\\>\\*x\\*\\</b\\> | \\[link\\](http://x) \\`code\\` |\n" in decides
    assert "\n\\# not \\| a heading\n" in decides
    shown = blocks(card, "text")[0]
    assert "````\n[" in shown
    assert f"`````text\n{shown}\n`````\n" in card, "a fence longer than any inside"
    assert blocks(card, "bash")[0] == """tuyi serve './a b'"'"'c'"""
    compile(blocks(card, "python")[0], "client", "exec")


@pytest.mark.parametrize("change", ["labels", "task", "file", "json"])
def test_evaluations_of_something_else(info: FolderInfo, evaluation: Path, tmp_path: Path, change: str):
    value = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    if change == "labels":
        value["tasks"]["colour"]["labels"][0]["label"] = "B"
    if change == "task":
        value["tasks"]["texture"] = value["tasks"].pop("colour")
    if change != "file":
        text = json.dumps({"format": 2} if change == "json" else value)
        (tmp_path / "metrics.json").write_text(text, encoding="utf-8")
    said = {
        "labels": "with other labels: 'A' is in one of the two only",
        "task": "is an evaluation of task texture; the model's are colour, shape",
        "file": r"holds no evaluation: metrics.json cannot be read \(No such file",
        "json": "metrics.json: 3 problems",
    }
    with pytest.raises(ConfigError, match=said[change]):
        read_measured(tmp_path, info)


def test_export_writes_card_and_pixels_that_transformers_uses(
    twin: Any, info: FolderInfo, evaluation: Path, picture: Any, tmp_path: Path
):
    from PIL import Image as Pillow
    from transformers import AutoImageProcessor, AutoProcessor

    model = tmp_path / "model"
    write_model(twin.model.hf, twin.model.frontend.processor, model)
    write_info(model, info)
    out = tmp_path / "out"
    arguments = ["export", str(model), "--out", str(out), "--evaluation", str(evaluation)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert read_info(out) == info
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"- {twin.model.spec.family}\n" in card.split("---\n")[1]
    assert "| colour | 7 | 0.679 (" in card
    older = tmp_path / "older"
    older.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (older / name).write_bytes((out / name).read_bytes())
    readers = (AutoProcessor.from_pretrained(out).image_processor, AutoImageProcessor.from_pretrained(older))
    sizes = ((20, 12), (70, 90), (400, 300), (1500, 40), (129, 127))
    for width, height in sizes:
        shown: Image = picture(width, height)
        row = Example("1", (shown,), task="colour")
        ours = twin.encoder.encode(row, labelled=False).media[0].patches.grid
        for reader in readers:
            theirs = reader(images=[Pillow.open(io.BytesIO(shown.source))], return_tensors="pt")
            assert tuple(theirs["image_grid_thw"][0].tolist()) == ours, (width, height)


def test_an_evaluation_in_the_models_folder_is_found(twins: Any, info: FolderInfo, evaluation: Path, tmp_path: Path):
    twin = twins("qwen2_vl")
    model = tmp_path / "model"
    write_model(twin.model.hf, twin.model.frontend.processor, model)
    write_info(model, info)
    tuyi.export(model, tmp_path / "without")
    assert "Not measured: no evaluation" in (tmp_path / "without" / "README.md").read_text(encoding="utf-8")
    (model / "metrics.json").write_bytes((evaluation / "metrics.json").read_bytes())
    tuyi.export(model, tmp_path / "with")
    assert "| colour | 7 | 0.679 (" in (tmp_path / "with" / "README.md").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="none holds no evaluation"):
        tuyi.export(model, tmp_path / "other", evaluation=tmp_path / "none")
    assert not (tmp_path / "other").exists()
