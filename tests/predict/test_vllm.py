"""The vllm engine with a stand-in for vLLM that expands prompts as vLLM does and decodes with a plain model."""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tuyi.data.example import Example, Text
from tuyi.encode.encoder import Encoder
from tuyi.errors import AnswerError, DataError, EngineError, ModelError
from tuyi.predict.prediction import Prediction
from tuyi.predict.vllm import VllmEngine, VllmSettings
from tuyi.task.catalog import parse_tasks

PAD = "<|image_pad|>"


class EngineDeadError(Exception):
    pass


class EngineGenerateError(Exception):
    pass


@dataclass
class FakeLLM:
    """vLLM's AsyncLLM, as far as the engine uses it: one answer decoded greedily among the choices."""

    arguments: dict[str, Any]
    twin: Any = None
    seen: dict[str, Any] = field(default_factory=dict)
    fail: dict[str, Exception] = field(default_factory=dict)
    most: int | None = None
    script: list[str] = field(default_factory=list)
    under_way: int = 0
    busiest: int = 0
    stopped: int = 0

    @property
    def renderer(self) -> Any:
        return self

    async def render_cmpl_async(self, prompts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Each pad token becomes as many as its picture has visual tokens; ``BaseMultiModalProcessor.apply``."""
        pad = self.twin.model.frontend.tokenizer.convert_tokens_to_ids(PAD)
        pictures = iter(prompts[0].get("multi_modal_data", {}).get("image", ()))
        ids: list[int] = []
        for token in prompts[0]["prompt_token_ids"]:
            if token == pad:
                picture = next(pictures)
                assert picture.mode == "RGB"
                ids.extend([pad] * (picture.width * picture.height // 28**2))
            else:
                ids.append(token)
        assert next(pictures, None) is None
        return [{"type": "multimodal", "prompt_token_ids": ids, "pictures": prompts[0].get("multi_modal_data")}]

    async def generate(self, prompt: dict[str, Any], params: Any, request_id: str) -> Any:
        assert prompt["type"] == "multimodal", "rendered before"
        self.seen[request_id] = (prompt, params)
        self.under_way += 1
        self.busiest = max(self.busiest, self.under_way)
        await asyncio.sleep(0.001)
        self.under_way -= 1
        if request_id in self.fail:
            raise self.fail[request_id]
        ids, logprobs = self._say(self.script.pop(0)) if self.script else self._decode(prompt, params)
        ids, logprobs = ids[: self.most], logprobs[: self.most]
        is_cut = len(ids) > params.max_tokens
        ids, logprobs = ids[: params.max_tokens], logprobs[: params.max_tokens] if params.logprobs else None
        answer = SimpleNamespace(
            text="", token_ids=ids, logprobs=logprobs, finish_reason="length" if is_cut else "stop"
        )
        yield SimpleNamespace(outputs=[answer], prompt_token_ids=prompt["prompt_token_ids"])

    def _say(self, text: str) -> tuple[list[int], list[dict[int, Any]]]:
        """A text as it stands, its tokens certain but for the first signs of labels."""
        tokenizer = self.twin.model.frontend.tokenizer
        ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        steps = [{token: SimpleNamespace(logprob=math.log(0.75))} for token in ids]
        other = tokenizer.convert_tokens_to_ids("z")
        for step in steps:
            step[other] = SimpleNamespace(logprob=math.log(0.25))
        return ids, steps

    def _decode(self, prompt: dict[str, Any], params: Any) -> tuple[list[int], list[dict[int, Any]]]:
        """Greedy, the logits masked to canonical tokens of the choices, log-probabilities of what is left."""
        encoder = self.twin.encoder
        task = next(one for one in encoder.tasks if one.labels and list(one.labels.names) == params.choice)
        answers, done, steps = list(encoder.labels(task).ids), [], []
        rng = np.random.default_rng(len(prompt["prompt_token_ids"]))
        while not done or done[-1] != answers[0][-1]:
            allowed = sorted({ids[len(done)] for ids in answers if list(ids[: len(done)]) == done})
            logits = rng.normal(0, 3, len(allowed))
            chances = dict(zip(allowed, logits - np.logaddexp.reduce(logits)))
            options = {token: SimpleNamespace(logprob=float(chances[token])) for token in allowed}
            options[0] = SimpleNamespace(logprob=-math.inf)
            done.append(max(chances, key=chances.__getitem__))
            steps.append(options)
        return done, steps

    def shutdown(self) -> None:
        self.stopped += 1


def module(name: str, **names: Any) -> ModuleType:
    made = ModuleType(name)
    made.__dict__.update(names)
    return made


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch, twins: Callable[[str], Any]) -> FakeLLM:
    made = FakeLLM({}, twins("qwen2_vl"))

    def start(arguments: dict[str, Any]) -> FakeLLM:
        made.arguments = arguments
        return made

    def sampling(**options: Any) -> Any:
        constraint = options["structured_outputs"] or {}
        return SimpleNamespace(choice=constraint.get("choice"), regex=constraint.get("regex"), **options)

    modules = [
        module("vllm"),
        module("vllm.engine"),
        module("vllm.engine.arg_utils", AsyncEngineArgs=dict),
        module("vllm.v1"),
        module("vllm.v1.engine"),
        module("vllm.v1.engine.async_llm", AsyncLLM=SimpleNamespace(from_engine_args=start)),
        module("vllm.v1.engine.exceptions", EngineDeadError=EngineDeadError, EngineGenerateError=EngineGenerateError),
        module(
            "vllm.sampling_params",
            RequestOutputKind=SimpleNamespace(FINAL_ONLY=2),
            SamplingParams=sampling,
            StructuredOutputsParams=lambda **given: given,
        ),
    ]
    for one in modules:
        monkeypatch.setitem(sys.modules, one.__name__, one)
    return made


@pytest.fixture
def engine(llm: FakeLLM) -> Iterator[VllmEngine]:
    tokenizer = llm.twin.model.frontend.tokenizer
    made = VllmEngine("org/model", llm.twin.encoder, tokenizer, VllmSettings(in_flight=3, workers=2))
    yield made
    made.close()
    made.close()
    assert llm.stopped == 1


def run(engine: VllmEngine, rows: list[Example]) -> dict[str, Prediction]:
    found = [one for many in engine.predict((row, 100) for row in rows) for one in many]
    assert len({one.id for one in found}) == len(found) == len(rows)
    return {one.id: one for one in found}


def test_vllm_sees_the_tokens_and_pixels_of_the_local_engine(
    engine: VllmEngine, llm: FakeLLM, rows: dict[str, Example]
):
    from tuyi.vision.patches import patchify

    chosen = [row for row in rows.values() if not row.videos]
    assert len(chosen) == 7
    talk = Text("用户: 从前有一个\n客服: 好的\n" * 300)
    chosen.append(Example("over", (talk, *rows["image"].content), task="colour"))
    found = run(engine, chosen)
    assert found["over"].notes["dropped_turns"] > 0
    for row in chosen:
        encoded = llm.twin.encoder.encode(row, labelled=False)
        prompt, _ = llm.seen[row.id]
        assert prompt["prompt_token_ids"] == encoded.ids.tolist()
        pictures = (prompt["pictures"] or {}).get("image", [])
        assert len(pictures) == len(encoded.media)
        for picture, media in zip(pictures, encoded.media):
            np.testing.assert_array_equal(patchify(np.asarray(picture)[None], 14, 2), media.patches.values)
        assert found[row.id].notes["tokens"] == len(encoded)
        assert "tokens_expected" not in found[row.id].notes
        assert found[row.id].notes["probabilities"] == "from the decoded path"


def test_the_probabilities_are_those_of_the_decoder(engine: VllmEngine, llm: FakeLLM):
    rows = [Example(f"r{n}", (Text("用户: " + "好" * n),), task="colour") for n in range(40)]
    found = run(engine, rows)
    assert llm.busiest <= 3
    assert len({one.label for one in found.values()}) > 3
    labels = llm.twin.encoder.labels(llm.twin.encoder.tasks["colour"])
    for one in found.values():
        assert tuple(one.probabilities) == labels.names
        assert sum(one.probabilities.values()) == pytest.approx(1)
        assert sum(map(math.exp, one.logprobs.values())) == pytest.approx(1), "all mass is some label's"
        assert one.label in one.probabilities
        answer, steps = llm._decode(*llm.seen[one.id])
        decoded = labels.names[labels.ids.index(tuple(answer))]
        path = math.exp(sum(step[token].logprob for token, step in zip(answer, steps)))
        assert one.probabilities[decoded] == pytest.approx(path, rel=1e-5)


def test_what_vllm_is_asked(engine: VllmEngine, llm: FakeLLM):
    run(engine, [Example("x", (Text("what"),), task="shape")])
    _, params = llm.seen["x"]
    assert params.choice == ["round", "square", "z"]
    assert params.temperature == 0
    assert params.max_tokens == len("square") + 1
    assert params.logprobs == llm.arguments["max_logprobs"] == 64
    assert llm.arguments["max_model_len"] >= 2048 + params.max_tokens
    assert llm.arguments["mm_processor_kwargs"]["do_resize"] is False
    assert llm.arguments["mm_processor_kwargs"]["size"]["longest_edge"] == 16 * 1024
    assert llm.arguments["mm_processor_cache_gb"] == 0, "several renderer threads need that"


REASONED = {
    "name": "why",
    "prompt": "{content} Which shape? {labels}",
    "answer": [
        {"literal": '{"why": "'},
        {"free": "rationale", "max_tokens": 40, "in_json": True},
        {"literal": '", "shape": "'},
        {"choice": "label"},
        {"literal": '"}'},
    ],
    "labels": ["round", "square", "z"],
}


@pytest.fixture
def reasoned(llm: FakeLLM) -> Iterator[VllmEngine]:
    frontend = llm.twin.model.frontend
    open_task = {"name": "talk", "answer": [{"free": "answer", "max_tokens": 5}]}
    short = json.loads(json.dumps(REASONED)) | {"name": "short"}
    short["answer"][1]["max_tokens"] = 12
    tasks = parse_tasks({"name": "t", "tasks": [REASONED, short, open_task]}, "test")
    encoder = Encoder(frontend.tokenizer, frontend.spec, tasks)
    made = VllmEngine("org/model", encoder, frontend.tokenizer, VllmSettings(in_flight=3, workers=2))
    yield made
    made.close()


def test_a_reasoned_answer_is_one_request(reasoned: VllmEngine, llm: FakeLLM):
    row = Example("x", (Text("what"),), task="why")
    llm.script = [r'{"why": "a \"four\"", "shape": "square"}']
    one = run(reasoned, [row])["x"]
    assert (one.label, one.rationale) == ("square", 'a "four"')
    assert (one.notes["calls"], one.notes["probabilities"]) == (1, "from the decoded path")
    assert "cut_free" not in one.notes
    assert one.probabilities["z"] == pytest.approx(0.25 / (0.25 + 0.75), abs=1e-6), "given the reason"
    _, params = llm.seen["x"]
    assert params.max_tokens == len(llm.twin.model.frontend.tokenizer.encode('{"why": "')) + 40
    assert re.fullmatch(params.regex, r'{"why": "a \"four\"", "shape": "square"}')
    assert not re.fullmatch(params.regex, r'{"why": "a "four"", "shape": "square"}')
    assert not re.fullmatch(params.regex, r'{"why": "a", "shape": "blue"}')
    assert llm.arguments["max_model_len"] >= 8192 + params.max_tokens


@pytest.mark.parametrize(
    "first",
    [
        r'{"why": "a red square red square red square red square red square red square", "shape": "round"}',
        r'{"why": "a red square red square red square red square red square red square red square red square red',
        r'{"why": "a red square red square red square red squ\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"',
    ],
    ids=["closed too late", "never closed", "cut inside an escape"],
)
def test_a_reason_that_is_too_long_is_cut_and_the_label_asked(reasoned: VllmEngine, llm: FakeLLM, first: str):
    tokenizer = llm.twin.model.frontend.tokenizer
    llm.script = [first, r'", "shape": "square"}']
    one = run(reasoned, [Example("x", (Text("what"),), task="short")])["x"]
    assert one.label == "square"
    assert one.rationale
    assert json.loads(first[: first.index(": ") + 2] + json.dumps(one.rationale) + "}") == {"why": one.rationale}
    assert 8 <= len(tokenizer.encode(json.dumps(one.rationale)[1:-1], add_special_tokens=False)) <= 12
    assert (one.notes["calls"], one.notes["cut_free"]) == (2, True)
    begun, params = llm.seen["x 2"]
    ids = begun["prompt_token_ids"]
    start = tokenizer.decode(ids[len(llm.seen["x"][0]["prompt_token_ids"]) :])
    assert start == '{"why": ' + json.dumps(one.rationale)[:-1]
    assert re.fullmatch(params.regex, r'", "shape": "square"}')
    assert sum(one.probabilities.values()) == pytest.approx(1)


def test_a_label_that_finds_no_room_behind_a_whole_reason_is_asked(reasoned: VllmEngine, llm: FakeLLM):
    llm.script = [r'{"why": "a red square red", "shape": "square"}', r'", "shape": "round"}']
    one = run(reasoned, [Example("x", (Text("what"),), task="short")])["x"]
    assert (one.label, one.rationale, one.notes["calls"]) == ("round", "a red square red", 2)
    assert "cut_free" not in one.notes
    most = reasoned._encoder.answers(reasoned._encoder.tasks["short"]).most
    assert one.notes["output_tokens"] <= most


def test_an_open_answer(reasoned: VllmEngine, llm: FakeLLM):
    row = Example("y", (Text("hello"),), task="talk")
    llm.script = ['red\n"']
    one = run(reasoned, [row])["y"]
    assert (one.label, one.rationale) == ('red\n"', None)
    assert (dict(one.logprobs), dict(one.probabilities)) == ({}, {})
    _, params = llm.seen["y"]
    assert (params.structured_outputs, params.logprobs, params.max_tokens) == (None, None, 5)
    llm.script = ["red square z red square red square"]
    one = run(reasoned, [row])["y"]
    assert one.notes["cut_free"] is True
    assert one.notes["output_tokens"] == 5
    assert "red square z red square red square".startswith(one.label)
    llm.script = [" \n"]
    with pytest.raises(AnswerError, match=r"id y: vLLM's answer: expected text, found ' \\n'"):
        run(reasoned, [row])


def test_rows_that_are_not_answered_can_be_left_out(llm: FakeLLM):
    tokenizer, told = llm.twin.model.frontend.tokenizer, list[str]()
    made = VllmEngine(
        "org/model", llm.twin.encoder, tokenizer, VllmSettings(workers=1), skip=lambda error: told.append(str(error))
    )
    llm.fail["x"] = ValueError("too long")
    rows = [Example(name, (Text("what"),), task="shape") for name in "wxy"]
    found = [one for many in made.predict((row, 100) for row in rows) for one in many]
    assert {one.id for one in found} == {"w", "y"}
    assert told == ["id x: vLLM refused the row: too long"]
    llm.fail["x"] = EngineDeadError()
    with pytest.raises(EngineError, match="vLLM died"):
        list(made.predict((row, 100) for row in rows))
    made.close()


def test_what_goes_wrong(engine: VllmEngine, llm: FakeLLM, rows: dict[str, Example]):
    row = Example("x", (Text("what"),), task="shape")
    with pytest.raises(DataError, match="id video: the row shows a video"):
        run(engine, [rows["video"]])
    llm.fail["x"] = ValueError("The decoder prompt (length 9999) is too long")
    with pytest.raises(EngineError, match=r"id x: vLLM refused the row: The decoder prompt \(length 9999\)"):
        run(engine, [row])
    llm.fail["x"] = EngineDeadError()
    with pytest.raises(EngineError, match="vLLM died, see its messages above; last asked: id x"):
        run(engine, [row])
    llm.fail.clear()
    llm.most = 0
    with pytest.raises(EngineError, match="id x: vLLM's answer: expected one of 3 labels, found ''"):
        run(engine, [row])


def test_a_built_in_model_is_refused(llm: FakeLLM):
    with pytest.raises(ModelError, match="builtin:tiny is made on the spot; --engine vllm needs a model folder"):
        VllmEngine("builtin:tiny", llm.twin.encoder, llm.twin.model.frontend.tokenizer, VllmSettings())


def test_vllm_that_does_not_start(llm: FakeLLM, monkeypatch: pytest.MonkeyPatch):
    def start(arguments: Any) -> None:
        raise RuntimeError("Engine core initialization failed")

    monkeypatch.setattr(sys.modules["vllm.v1.engine.async_llm"], "AsyncLLM", SimpleNamespace(from_engine_args=start))
    with pytest.raises(EngineError, match="vLLM does not start with org/model: Engine core initialization failed"):
        VllmEngine("org/model", llm.twin.encoder, llm.twin.model.frontend.tokenizer, VllmSettings())
