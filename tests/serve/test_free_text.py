"""Tasks that answer with more than a label, as `tuyi predict` answers them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from live_server import asked, running

from tuyi.data.example import Example
from tuyi.encode.encoder import Encoder
from tuyi.predict.local import LocalEngine
from tuyi.serve.app import create_app
from tuyi.serve.opening import Served
from tuyi.serve.settings import ServeSettings
from tuyi.task.answer import AnswerFormat
from tuyi.task.catalog import TaskSet

REASONED = [
    {"literal": '{"理由": "'},
    {"free": "rationale", "max_tokens": 7, "in_json": True},
    {"literal": '", "所属类别": "'},
    {"choice": "label"},
    {"literal": '"}'},
]


@pytest.fixture(scope="module")
def tasks_with_reasons(tasks: TaskSet) -> TaskSet:
    answer = AnswerFormat.model_validate({"segments": REASONED})
    brief = AnswerFormat.model_validate({"segments": [{"free": "answer", "max_tokens": 6}]})
    made = [
        task.model_copy(update={"answer": answer if task.name == "colour" else brief})
        for task in tasks
        if task.name in ("colour", "talk")
    ]
    return TaskSet(name="reasoned", tasks=tuple(made))


def test_answers_are_those_of_predict(twins: Any, tasks_with_reasons: TaskSet, mixed: list[Example]):
    twin = twins("qwen2_vl")
    encoder = Encoder(twin.model.frontend.tokenizer, twin.model.spec, tasks_with_reasons)
    names = ["colour", "talk"]
    rows = [Example(row.id, row.content, task=names[at % 2]) for at, row in enumerate(mixed[:10])]
    engine = LocalEngine(twin.model, encoder, pack_tokens=4096, workers=2)
    by_id = {one.id: one for many in engine.predict((row, encoder.length(row).tokens) for row in rows) for one in many}
    engine.close()
    served = Served("small", encoder, None, dict.fromkeys(names, twin.model), 1024, 2048, 64, 1)
    with (
        running(create_app(served, ServeSettings())) as server,
        server.client() as client,
        ThreadPoolExecutor(10) as pool,
    ):
        answers = [one.json() for one in pool.map(lambda row: client.post("/v1/classify", json=asked(row)), rows)]
    for row, value in zip(rows, answers):
        one = by_id[row.id]
        assert (value["label"], value["rationale"]) == (one.label, one.rationale)
        assert value["probabilities"] == pytest.approx(dict(one.probabilities), abs=1e-4)
        assert value["notes"] == dict(one.notes)
    assert sum(bool(value["rationale"]) for value in answers) == 5
