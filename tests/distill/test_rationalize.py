"""Reasons from a teacher behind a real server on this machine, which misbehaves in every way that teachers do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow
from typer.testing import CliRunner

import tuyi
from chat_server import Server, fails, hangs, resets, says, shown
from tuyi.cli import app
from tuyi.distill.rationalize import RationalizeRun, RationalizeSummary, rationalize
from tuyi.errors import ConfigError, DataError, EngineError, ModelError, OutputError, TaskError

TASK = """
name: shop
labels: {refund: wants the money back, size: too large or too small, other: none of these}
prompt: "{content} Which label? {labels}"
budget: {max_pixels: 12544, max_tokens: 1024}
"""
ODD = 'he says "no"\n<image> {x} 😀 C:\\n'
LABELS = ("refund", "size", "other")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.02)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    made.reason = lambda text: f"row {number(text)} says so in word {number(text) * 7919}"  # type: ignore[attr-defined]
    made.answer = lambda request: (
        label_of(number(shown(request))) if "structured_outputs" in request else made.reason(shown(request))  # type: ignore[attr-defined]
    )
    yield made
    made.http.shutdown()
    made.http.server_close()


def number(text: str) -> int:
    return int(text.split("message number ")[1].split(".")[0])


def label_of(row: int) -> str:
    return LABELS[row % 3]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows", 12)


def write_rows(folder: Path, count: int, **changes: Any) -> Path:
    """Rows in the competition's layout; the keys of ``changes`` are ``r3`` for the third row."""
    (folder / "images").mkdir(parents=True)
    Pillow.new("RGB", (60, 40), "red").save(folder / "images" / "a.png")
    rows = []
    for row in range(count):
        text = f"<image>\nmessage number {row}."
        value = {"id": f"r{row}", "instruction": text, "output": label_of(row), "image": ["a.png"], "from": "till"}
        rows.append(value | changes.get(f"r{row}", {}))
    file = folder / "rows.json"
    file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return file


@pytest.fixture
def ask(server: Server, tmp_path: Path) -> Callable[..., RationalizeSummary]:
    task = tmp_path / "shop.yaml"
    task.write_text(TASK)

    def run(data: Path, out: str = "reasons.jsonl", *, reasons: Any = None, api: Any = None, **more: Any) -> Any:
        settings = {"url": server.url, "in_flight": 1, "workers": 1, "answer_retries": 1, **(api or {})}
        predict = {"engine": "api", "api": settings}
        made = RationalizeRun.model_validate({"reasons": reasons or {}, "predict": predict})
        return rationalize(data, "big-model", tmp_path / out, task=str(task), run=made, **more)

    return run


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_row_gets_its_reason(server: Server, data: Path, ask: Callable[..., Any], tmp_path: Path):
    before = list(tuyi.read(data))
    prices = {"price_input": 10, "price_output": 100}
    done = ask(data, "far/reasons.jsonl", reasons=prices, api={"in_flight": 4})
    after = list(tuyi.read(done.out))
    assert (done.rows, done.given, done.had, dict(done.rejected)) == (12, 12, 0, {})
    assert [row.rationale for row in after] == [f"row {n} says so in word {n * 7919}" for n in range(12)]
    for old, new in zip(before, after, strict=True):
        assert (new.id, new.label, new.content[1:], dict(new.extra)) == (
            old.id,
            old.label,
            old.content[1:],
            dict(old.extra),
        )
        (image,) = new.images
        assert isinstance(image.source, Path)
        assert image.source.samefile(data.parent / "images" / "a.png")
    assert (done.calls, done.earlier, len(server.asked)) == (24, 0, 24)
    spent = done.prompt_tokens * 10 / 1e6 + done.output_tokens * 100 / 1e6
    assert done.cost == pytest.approx(spent)
    assert min(done.prompt_tokens, done.output_tokens) > 0
    asked, checked = server.asked[0], server.asked[-1]
    assert asked["model"] == "big-model"
    assert "in at most\n200 characters" in shown(asked)
    assert 'Its label is "' in shown(asked)
    assert "refund：wants the money back" in shown(asked)
    assert "says so in word" in shown(checked)
    assert "Its label is" not in shown(checked)
    assert checked["structured_outputs"] == {"choice": list(LABELS)}
    picture = next(part for part in asked["messages"][-1]["content"] if part["type"] == "image_url")
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")
    record = json.loads((tmp_path / "far/reasons.jsonl.run.json").read_text())
    assert (record["teacher"], record["summary"]["rows"]) == ("big-model", 12)
    assert lines(tmp_path / "far/reasons.rejected.jsonl") == []


@pytest.mark.parametrize("out", ["reasons.jsonl", "reasons.json"])
def test_odd_reasons_survive(server: Server, data: Path, ask: Callable[..., Any], out: str):
    server.reason = lambda text: f"{number(text)} {ODD * (number(text) + 1)}"[:190]  # type: ignore[attr-defined]
    done = ask(data, out, reasons={"checks": {"alike": False}})
    rows = list(tuyi.read(done.out))
    assert [row.rationale for row in rows] == [f"{n} {ODD * (n + 1)}"[:190].strip() for n in range(12)]
    assert all(len(row.images) == 1 for row in rows)
    again = tuyi.convert(done.out, done.out.parent / "copy.jsonl", "messages")
    assert [row.rationale for row in tuyi.read(again.out)] == [row.rationale for row in rows]


def test_bad_reasons_are_left_out_and_counted(server: Server, data: Path, ask: Callable[..., Any], tmp_path: Path):
    said = {0: "refund", 1: "no " * 100, 2: "...", 3: "Wants the money back!", 4: "<image>"}

    def reason(text: str) -> str:
        row = number(text)
        return said.get(row) or ("the very same words again" if row < 10 else f"alone {row}")

    server.reason = reason  # type: ignore[attr-defined]
    right = server.answer
    server.answer = lambda request: (
        "other" if "structured_outputs" in request and number(shown(request)) == 10 else right(request)
    )
    done = ask(data, reasons={"checks": {"alike_kept": 2}})
    assert dict(done.rejected) == {"empty": 1, "too_long": 1, "repeats_label": 2, "alike": 3, "not_supported": 1}
    assert list(done.rejected) == ["empty", "too_long", "repeats_label", "alike", "not_supported"]
    assert [row.id for row in tuyi.read(done.out)] == ["r4", "r5", "r6", "r11"]
    left = {one["id"]: one for one in lines(tmp_path / "reasons.rejected.jsonl")}
    assert left.keys() == {f"r{n}" for n in (0, 1, 2, 3, 7, 8, 9, 10)}
    assert left["r10"] == {
        "id": "r10",
        "task": "shop",
        "label": "size",
        "check": "not_supported",
        "detail": "with it the teacher picks other",
        "reason": "alone 10",
    }
    assert left["r7"]["detail"] == "number 3 of those like that of row r5"
    asked = len(server.asked)
    every = dict.fromkeys(("empty", "too_long", "repeats_label", "alike", "not_supported"), False)
    done = ask(data, reasons={"checks": every})
    assert (done.rows, dict(done.rejected), len(server.asked)) == (12, {}, asked), "other checks, no new question"


def test_a_cut_reason_is_too_long(server: Server, data: Path, ask: Callable[..., Any], tmp_path: Path):
    server.script = [says("because it", "length")]
    done = ask(data)
    assert dict(done.rejected) == {"too_long": 1}
    assert lines(tmp_path / "reasons.rejected.jsonl")[0]["detail"] == "cut at 96 tokens"


def test_a_teacher_that_fails_for_a_while_is_asked_again(server: Server, data: Path, ask: Callable[..., Any]):
    server.script = [fails(429, Retry_After="0.05"), fails(500), resets, hangs, says(""), says(None)]
    done = ask(data, api={"timeout_s": 0.5, "retries": 5, "answer_retries": 2})
    assert (done.rows, dict(done.rejected)) == (12, {})
    assert done.calls == 24 + 2, "an empty answer is a call, an error is none"


def test_rows_that_are_never_answered_are_left_out_and_asked_next_time(
    server: Server, data: Path, ask: Callable[..., Any], tmp_path: Path
):
    server.script = [says(""), says(""), fails(400), server.right]
    done = ask(data)
    assert (done.rows, dict(done.rejected)) == (10, {"no_answer": 2})
    left = lines(tmp_path / "reasons.rejected.jsonl")
    assert [one["id"] for one in left] == ["r0", "r1"]
    assert "expected text, found ''; tried 2 times" in left[0]["detail"]
    assert "refused the request (400)" in left[1]["detail"]
    asked = len(server.asked)
    assert ask(data).rows == 12
    assert len(server.asked) == asked + 4


def test_labels_outside_the_set_in_the_check(server: Server, data: Path, ask: Callable[..., Any]):
    right = server.answer
    server.answer = lambda request: "blue" if "structured_outputs" in request else right(request)
    done = ask(data)
    assert (done.rows, dict(done.rejected)) == (0, {"no_answer": 12})


def test_a_teacher_that_answers_nothing_at_all_stops_the_run(server: Server, tmp_path: Path, ask: Callable[..., Any]):
    data = write_rows(tmp_path / "many", 40)
    server.answer = lambda request: ""
    with pytest.raises(EngineError, match=r"answered none of the first 20 rows; the first: .*id r0: expected text"):
        ask(data)
    assert len(server.asked) <= 2 * 22


def test_a_server_that_dies_in_the_middle_is_asked_nothing_twice(
    server: Server, data: Path, ask: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    server.script = [server.right] * 7 + [fails(500)]
    with pytest.raises(EngineError, match=r"Error code: 500.*\nThe answers that came are kept in .*answers\.jsonl;"):
        ask(data, api={"retries": 0})
    kept = tmp_path / "reasons.answers.jsonl"
    assert len(lines(kept)) == 7
    assert not (tmp_path / "reasons.jsonl").exists()
    with kept.open("a") as file:
        file.write('{"id": "r7", "task": "shop.rea')  # killed while it wrote
    monkeypatch.setenv("LATER", "later")  # by which its requests are told from what is still under way of the first run

    def asked() -> list[dict[str, Any]]:
        with server.lock:
            return [one for one, key in zip(server.asked, server.keys, strict=True) if key == "Bearer later"]

    done = ask(data, api={"key_env": "LATER"})
    assert (done.rows, done.earlier, len(asked())) == (12, 7, 5 + 12)
    assert {number(shown(one)) for one in asked() if "structured_outputs" not in one} == {7, 8, 9, 10, 11}
    text = done.out.read_bytes()
    server.dead = True
    again = ask(data, api={"key_env": "LATER"})
    assert (again.rows, again.earlier, len(asked())) == (12, 24, 17), "nothing left to ask"
    assert done.out.read_bytes() == text


def test_a_changed_row_or_wording_is_asked_anew(server: Server, data: Path, ask: Callable[..., Any], tmp_path: Path):
    ask(data)
    rows = json.loads(data.read_text())
    rows[3]["output"] = "other"
    data.write_text(json.dumps(rows))
    asked = len(server.asked)
    assert dict(ask(data).rejected) == {"not_supported": 1}, "the teacher still picks the old label"
    assert len(server.asked) == asked + 1, "its reason stayed the same, so the check was not asked again"
    own = tmp_path / "own.yaml"
    own.write_text("shop: {max_characters: 100}")
    ask(data, reasons={"templates": own})
    assert len(server.asked) == asked + 1 + 12


def test_rows_that_have_a_reason_keep_it(server: Server, tmp_path: Path, ask: Callable[..., Any]):
    data = write_rows(tmp_path / "some", 6, r1={"rationale": "mine"}, r4={"rationale": "refund"})
    done = ask(data)
    assert (done.rows, done.had, done.given) == (6, 2, 4)
    assert [row.rationale for row in tuyi.read(done.out)][1] == "mine"
    done = ask(data, reasons={"replace": True})
    assert (done.rows, done.had, done.given) == (6, 0, 6)
    assert "mine" not in [row.rationale for row in tuyi.read(done.out)]


def test_rows_without_a_label(server: Server, tmp_path: Path, ask: Callable[..., Any]):
    data = write_rows(tmp_path / "some", 6, r1={"output": ""}, r2={"output": "blue"}, r4={"output": ""})
    with pytest.raises(DataError) as raised:
        ask(data)
    assert server.asked == []
    said = str(raised.value)
    assert said.startswith("3 rows cannot be used:\n")
    assert "row 2, id r1: expected a label, found none; `tuyi label` finds labels" in said
    assert "row 3, id r2: label 'blue' is not one of the task's 3 labels" in said
    done = ask(data, on_bad_row="skip")
    assert (done.rows, len(done.skipped)) == (3, 3)
    twice = write_rows(tmp_path / "twice", 3, r2={"id": "r0"})
    done = ask(twice, "twice.jsonl", on_bad_row="skip")
    assert [row.id for row in tuyi.read(done.out)] == ["r0", "r1"]
    assert "duplicate id 'r0'" in done.skipped[0]


def test_what_is_wrong_from_the_start(server: Server, data: Path, ask: Callable[..., Any], tmp_path: Path):
    with pytest.raises(TaskError, match="big-model has no task of its own; say with --task"):
        rationalize(data, "big-model", tmp_path / "x.jsonl")
    with pytest.raises(OutputError, match=r"expected a name ending in \.jsonl or \.json"):
        ask(data, "reasons.csv")
    with pytest.raises(ConfigError, match="the environment variable NO_SUCH_KEY is not set"):
        ask(data, api={"key_env": "NO_SUCH_KEY"})
    with pytest.raises(OutputError, match=r"rows\.json exists and has no rows\.json\.run\.json beside it"):
        ask(data, "rows/rows.json")
    ask(data)
    with pytest.raises(OutputError, match="belongs to another run: its data is"):
        ask(write_rows(tmp_path / "other", 3))
    with pytest.raises(ModelError, match=r"model folder \./nowhere does not exist"):
        rationalize(data, "./nowhere", tmp_path / "y.jsonl", task=str(tmp_path / "shop.yaml"))


def test_the_key_is_written_nowhere(server: Server, data: Path, ask: Callable[..., Any], tmp_path: Path):
    (tmp_path / "key").write_text("sk-secret")
    server.script = [lambda handler, request: fails(400)(handler, {"model": "sk-secret"})]
    ask(data, api={"key_file": tmp_path / "key"})
    assert set(server.keys) == {"Bearer sk-secret"}
    written = [path for path in tmp_path.glob("reasons*") if path.is_file()]
    assert len(written) == 4
    assert not any("sk-secret" in path.read_text() for path in written)


def test_a_teacher_on_this_machine(data: Path, tmp_path: Path):
    task, wording = tmp_path / "shop.yaml", tmp_path / "wording.yaml"
    task.write_text(TASK)
    wording.write_text("shop: {max_tokens: 6, max_characters: 500}")
    off = {"too_long": False, "alike": False, "empty": False, "repeats_label": False}
    settings = {"reasons": {"templates": wording, "checks": off}, "predict": {"device": "cpu", "workers": 1}}
    run = RationalizeRun.model_validate(settings)
    done = rationalize(data, "builtin:tiny", tmp_path / "r.jsonl", task=str(task), run=run)
    assert done.rows + sum(done.rejected.values()) == 12
    assert set(done.rejected) <= {"not_supported"}
    kept = lines(tmp_path / "r.answers.jsonl")
    assert [len([one for one in kept if one["task"] == f"shop.{kind}"]) for kind in ("reason", "support")] == [12, 12]
    assert all(one["notes"]["output_tokens"] <= 6 for one in kept)
    assert all(len(one["probabilities"]) == 3 for one in kept if one["task"] == "shop.support")


def test_the_command(server: Server, data: Path, ask: Callable[..., Any], tmp_path: Path):
    said = {0: "refund", 1: "?"}
    server.reason = lambda text: said.get(number(text), f"alone {number(text)}")  # type: ignore[attr-defined]
    result = CliRunner().invoke(
        app,
        [
            "rationalize", str(data), "--teacher", "big-model", "--task", str(tmp_path / "shop.yaml"),
            "--engine", "api", "--out", str(tmp_path / "r.jsonl"), "--set", f"predict.api.url={server.url}",
            "--set", "reasons.price_output=1000", "--set", "reasons.checks.not_supported=false",
        ],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    told = " ".join(result.output.split())
    assert "r.jsonl: 10 rows with a reason (10 new)" in told
    assert "left out 2: 1 empty, 1 repeats label; see r.rejected.jsonl" in told
    assert "12 calls, " in told
    assert ", cost " in told
