"""`POST /v1/classify`: what `tuyi predict` says, for many clients at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from live_server import Running, asked

from tuyi.data.example import Example
from tuyi.predict.local import LocalEngine


@pytest.fixture
def predicted(twins: Any, mixed: list[Example]) -> tuple[list[Example], dict[str, Any]]:
    twin = twins("qwen2_vl")
    engine = LocalEngine(twin.model, twin.encoder, pack_tokens=4096, workers=2)
    found = engine.predict((row, twin.encoder.length(row).tokens) for row in mixed)
    by_id = {one.id: one for many in found for one in many}
    engine.close()
    return mixed, by_id


def test_answers_are_those_of_predict(server: Running, predicted: Any):
    rows, by_id = predicted
    with server.client() as client, ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda row: client.post("/v1/classify", json=asked(row)), rows))
    assert [answer.status_code for answer in answers] == [200] * len(rows)
    for row, answer in zip(rows, answers):
        value, one = answer.json(), by_id[row.id]
        assert (value["id"], value["task"], value["label"]) == (row.id, row.task, one.label)
        assert value["probabilities"] == pytest.approx(one.probabilities, abs=1e-4)
        assert value["notes"]["tokens"] == one.notes["tokens"]
    assert max(answer.json()["timing"]["rows"] for answer in answers) > 1
