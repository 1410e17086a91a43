"""``tuyi label`` with a teacher behind a real server on this machine: broken answers, a death in the middle, no key."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chat_server import Server, fails, says, shown
from tuyi.config import load_settings
from tuyi.data import read
from tuyi.distill.label import LabelSettings, label
from tuyi.errors import ConfigError, EngineError
from tuyi.model.folder import FolderInfo, write_info
from tuyi.predict.prediction import read_predictions
from tuyi.task.catalog import TaskSet

COUNT = 24


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.02)
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture(scope="module")
def teacher(twins: Callable[[str], Any], tasks: TaskSet, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of the model that the server is said to run: its tokenizer and its task."""
    folder = tmp_path_factory.mktemp("teacher") / "model"
    twin = twins("qwen2_vl")
    twin.model.hf.save_pretrained(folder)
    twin.model.frontend.processor.save_pretrained(folder)
    only = TaskSet(name="colour", tasks=(tasks["colour"],))
    write_info(folder, FolderInfo(tasks=only, base_model="b"))
    return str(folder)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    file = tmp_path / "pool.jsonl"
    rows = [{"id": f"r{n}", "text": f'用户: 第{n}个 "“😀”"\n', "label": ""} for n in range(COUNT)]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def asked_by(server: Server, **api: Any) -> LabelSettings:
    given = {"url": server.url, "workers": 2, "in_flight": 2, "retries": 1, **api}
    return load_settings(LabelSettings, None, predict={"engine": "api", "api": given})


def test_a_server_that_dies_in_the_middle_is_asked_only_for_what_is_missing(server, teacher, pool, tmp_path):
    out = tmp_path / "l.jsonl"

    def answer(request: dict[str, Any]) -> str:
        server.dead = len(server.asked) >= 12
        return "红色"

    server.answer = answer
    with pytest.raises(EngineError, match="is the server well"):
        label(pool, out, [teacher], settings=asked_by(server))
    assert not out.exists()
    have = {one.id for one in read_predictions(tmp_path / "l.teachers" / "1.jsonl")}
    assert 0 < len(have) < COUNT
    server.dead = False
    server.asked.clear()
    server.answer = lambda request: "红色"
    done = label(pool, out, [teacher], settings=asked_by(server))
    assert len(server.asked) == COUNT - len(have)
    assert not [one for one in have if any(f"第{one[1:]}个" in shown(request) for request in server.asked)]
    assert [row.id for row in read(out)] == [f"r{n}" for n in range(COUNT)]
    assert done.kept == COUNT


def test_bad_answers_are_asked_again_and_none_is_taken_for_a_label(server, teacher, pool, tmp_path):
    server.script = [says("mauve"), says('{"label'), says(""), fails(429), fails(500), says("  红色（浅） ")]
    server.answer = lambda request: "红"
    done = label(pool, tmp_path / "l.jsonl", [teacher], settings=asked_by(server, retries=3, answer_retries=3))
    assert {row.label for row in read(done.out)} == {"红", "红色(浅)"}, "in the task's own spelling"
    assert {row.soft for row in read(done.out)} == {None}, "the server gives no probabilities"


def test_a_missing_key_is_said_and_never_printed(server, teacher, pool, tmp_path, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match="the environment variable NO_SUCH_KEY is not set, expected a key"):
        label(pool, tmp_path / "l.jsonl", [teacher], settings=asked_by(server, key_env="NO_SUCH_KEY"))
    monkeypatch.setenv("A_KEY", "secret-123")
    server.script = [fails(401)] * 20
    with pytest.raises(EngineError, match="refused the key") as told:
        label(pool, tmp_path / "l.jsonl", [teacher], settings=asked_by(server, key_env="A_KEY"))
    assert "secret-123" not in str(told.value)
    assert not [path for path in tmp_path.rglob("*.json*") if "secret-123" in path.read_text(encoding="utf-8")]
