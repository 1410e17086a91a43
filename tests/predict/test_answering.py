"""Answers with free text: forced, written and chosen parts against plain passes of transformers' own model."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from tuyi.data.example import Example, Image, Text
from tuyi.encode.encoder import Encoder
from tuyi.model.decode import Decoder, Live
from tuyi.model.load import load_model
from tuyi.predict.engine import SizedRow
from tuyi.predict.local import LocalEngine
from tuyi.predict.prediction import Prediction
from tuyi.predict.writing import FreeText, Vocabulary, Writing
from tuyi.task.catalog import TaskSet, parse_tasks

LABELS = ["红", "红色", 'B "quoted"\\', "z"]
FORMATS: dict[str, list[dict[str, Any]]] = {
    "reason": [
        {"literal": '{"理由": "'},
        {"free": "rationale", "max_tokens": 14, "in_json": True},
        {"literal": '", "所属类别": "'},
        {"choice": "label"},
        {"literal": '"}'},
    ],
    "label-first": [
        {"choice": "label"},
        {"literal": " because "},
        {"free": "rationale", "max_tokens": 9},
        {"literal": "."},
    ],
    "framed": [{"literal": "答："}, {"choice": "label"}, {"literal": "。"}],
    "text": [{"free": "rationale", "max_tokens": 10}, {"literal": "\nLabel: "}, {"choice": "label"}],
    "bare": [{"free": "rationale", "max_tokens": 5}, {"choice": "label"}],
}
BUDGET = {"max_pixels": 16 * 1024, "min_pixels": 1024, "max_tokens": 2048}


@pytest.fixture(scope="module")
def asked() -> TaskSet:
    tasks: list[dict[str, Any]] = [
        {"name": name, "labels": LABELS, "answer": answer, "budget": BUDGET, "prompt": "{content} {labels}"}
        for name, answer in FORMATS.items()
    ]
    tasks.append({"name": "open", "answer": [{"free": "answer", "max_tokens": 12}], "budget": BUDGET})
    tasks.append({"name": "plain", "labels": LABELS, "budget": BUDGET})
    return parse_tasks({"name": "s", "tasks": tasks}, "s")


@dataclass(frozen=True)
class Asking:
    """A twin that is asked the tasks of this file."""

    twin: Any
    encoder: Encoder

    def sized(self, rows: list[Example]) -> list[SizedRow]:
        return [(row, self.encoder.length(row, labelled=False).tokens) for row in rows]

    def predict(self, rows: list[Example], **options: Any) -> dict[str, Prediction]:
        options = {"pack_tokens": 900, "workers": 2, **options}
        with closing(LocalEngine(self.twin.model, self.encoder, **options)) as engine:
            made = [one for many in engine.predict(self.sized(rows)) for one in many]
        found = {one.id: one for one in made}
        assert len(found) == len(made) == len(rows), "each row once"
        return found

    def logprobs(self, row: Example, ids: list[int]) -> torch.Tensor:
        """(1 + ids, V) of transformers' own model: behind the prompt and behind each further token."""
        prompt = torch.from_numpy(self.encoder.encode(row, labelled=False).ids.astype(np.int64))
        more = {}
        if row.images:
            theirs = self.twin.inputs(Example(row.id, row.content, "talk"))
            more = {key: theirs[key] for key in ("pixel_values", "image_grid_thw")}
        whole = torch.cat([prompt, torch.tensor(ids, dtype=torch.long)])[None]
        image = self.twin.processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        with torch.inference_mode():
            logits = self.twin.reference(
                input_ids=whole, mm_token_type_ids=(whole == image).int(), attention_mask=torch.ones_like(whole), **more
            ).logits[0]
        result: torch.Tensor = logits.float().log_softmax(-1)[len(prompt) - 1 :]
        return result


@pytest.fixture(params=["qwen2_vl", "qwen3_vl"])
def asking(request: pytest.FixtureRequest, twins: Callable[[str], Any], asked: TaskSet) -> Asking:
    twin = twins(request.param)
    return Asking(twin, Encoder(twin.processor.tokenizer, twin.model.spec, asked))


@pytest.fixture(scope="module")
def small(twins: Callable[[str], Any], asked: TaskSet) -> Asking:
    twin = twins("qwen2_vl")
    return Asking(twin, Encoder(twin.processor.tokenizer, twin.model.spec, asked))


def make_rows(task: str, picture: Callable[..., Image], count: int = 6) -> list[Example]:
    return [
        Example(
            f"{task}{n}",
            (Text("你好 " * (n % 4)), *([picture(40 + 9 * n, 60, seed=n)] if n % 2 else []), Text(f"{task} {n}?")),
            task=task,
        )
        for n in range(count)
    ]


class Spy:
    """Looks at the tokens of each row as it leaves the cache or has its labels scored."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: list[list[int]] = []
        self.stems: list[list[int]] = []
        leave, branch = Decoder.leave, Decoder.branch

        def leaving(decoder: Decoder, rows: list[Live]) -> None:
            self.left += [list(row.ids) for row in rows]
            leave(decoder, rows)

        def branching(decoder: Decoder, rows: list[Live], ids: Any, labels: Any) -> Any:
            made = branch(decoder, rows, ids, labels)
            self.stems += [list(row.ids) for row in rows]
            return made

        monkeypatch.setattr(Decoder, "leave", leaving)
        monkeypatch.setattr(Decoder, "branch", branching)

    def of(self, found: list[list[int]], prompt: list[int]) -> list[int]:
        (ids,) = [ids[len(prompt) :] for ids in found if ids[: len(prompt)] == prompt]
        return ids


def prompt_of(asking: Asking, row: Example) -> list[int]:
    ids: list[int] = asking.encoder.encode(row, labelled=False).ids.tolist()
    return ids


def test_an_open_answer_is_greedy(asking: Asking, picture: Callable[..., Image], monkeypatch: pytest.MonkeyPatch):
    """Each token is the likeliest that leaves whole characters possible."""
    tokens: dict[str, list[int]] = {}
    result = Writing.result

    def looked_at(writing: Writing) -> FreeText:
        found = result(writing)
        tokens[found.text] = writing.tokens
        return found

    monkeypatch.setattr(Writing, "result", looked_at)
    rows = make_rows("open", picture)
    found = asking.predict(rows)
    vocabulary = Vocabulary(asking.twin.processor.tokenizer)
    for row in rows:
        one, data = found[row.id], b""
        ids = tokens[one.label]
        for token, said in zip([*ids, None], asking.logprobs(row, ids), strict=True):
            best = next(
                other
                for other in said.argsort(descending=True).tolist()
                if other not in vocabulary.visual and (other in vocabulary.special or is_text(data + vocabulary[other]))
            )
            if token is None:
                assert len(ids) == 12 or best in vocabulary.ends
            else:
                assert token == best
                data += vocabulary[token]
        assert (one.label, dict(one.logprobs), one.rationale) == (data.decode(errors="ignore"), {}, None)
        assert one.notes["calls"] == 1
        assert one.notes["output_tokens"] <= 12
        assert one.notes["tokens"] == len(prompt_of(asking, row))


def is_text(data: bytes) -> bool:
    """Whether bytes can go on to be whole characters."""
    rest = (b"", b"\x80", b"\xa0", b"\x90", b"\x80\x80", b"\xa0\x80", b"\x90\x80", b"\x80\x80\x80", b"\x90\x80\x80")
    return any((data + more).decode(errors="replace").encode() == data + more for more in rest)


@pytest.mark.parametrize("task", FORMATS)
def test_labels_have_the_probability_of_all_that_follows(
    asking: Asking, picture: Callable[..., Image], monkeypatch: pytest.MonkeyPatch, task: str
):
    rows, spy = make_rows(task, picture, 4), Spy(monkeypatch)
    found = asking.predict(rows)
    tokens = asking.encoder.answers(asking.encoder.tasks[task]).labels
    for row in rows:
        one = found[row.id]
        stem = [] if task == "framed" else spy.of(spy.stems, prompt_of(asking, row))
        expected = []
        for ids in tokens.ids:
            said = asking.logprobs(row, [*stem, *ids])[len(stem) : len(stem) + len(ids)]
            expected.append(said.gather(1, torch.tensor(ids)[:, None]).double().sum().item())
        np.testing.assert_allclose(list(one.logprobs.values()), expected, rtol=1e-5, atol=1e-5)
        assert one.label == LABELS[int(np.argmax(expected))]
        assert sum(one.probabilities.values()) == pytest.approx(1)


def test_a_reasoned_answer_is_json_and_what_was_decoded(
    asking: Asking, picture: Callable[..., Image], monkeypatch: pytest.MonkeyPatch
):
    rows, spy = make_rows("reason", picture, 8), Spy(monkeypatch)
    found = asking.predict(rows)
    tokenizer = asking.twin.processor.tokenizer
    labels = asking.encoder.answers(asking.encoder.tasks["reason"]).labels
    for row in rows:
        one, stem = found[row.id], spy.of(spy.stems, prompt_of(asking, row))
        whole = [*stem, *labels.ids[LABELS.index(one.label)]]
        assert one.rationale is not None
        answer = tokenizer.decode(whole)
        assert json.loads(answer.removesuffix("<|im_end|>")) == {"理由": one.rationale, "所属类别": one.label}
        assert one.notes["output_tokens"] == len(whole)
        assert one.notes["output_tokens"] <= asking.encoder.answers(asking.encoder.tasks["reason"]).most
        written = len(stem) - len(asking.encoder.tokens('{"理由": "')) - len(asking.encoder.tokens('", "所属类别": "'))
        assert written <= 14
        assert one.notes.get("cut_free", False) or written < 14
        Prediction.from_json(one.to_json())


def test_training_and_decoding_cut_the_same_tokens(small: Asking):
    """The answer that was decoded, put into a training row, has the tokens that were decoded."""
    task = small.encoder.tasks["reason"]
    answers = small.encoder.answers(task)
    row = Example("1", (Text("x"),), "reason", label='B "quoted"\\', rationale='它"红"，\n的。')
    encoded = small.encoder.encode(row, labelled=True)
    taught = encoded.ids[encoded.supervised].tolist()
    tokens = small.encoder.tokens
    reason = tokens('它\\"红\\"，\\n的。')
    stem = [*answers.opening, *reason, *tokens('", "所属类别": "')]
    assert taught == [*stem, *answers.labels.ids[LABELS.index(row.label or "")]]
    assert taught[: len(answers.opening)] == list(answers.opening)
    text = small.twin.processor.tokenizer.decode(taught).removesuffix("<|im_end|>")
    assert json.loads(text) == {"理由": row.rationale, "所属类别": row.label}
    assert text == task.target(row)


@pytest.fixture(scope="module")
def alone(small: Asking, picture: Callable[..., Image]) -> dict[str, Prediction]:
    """Rows of every task, each by itself."""
    rows = [row for task in (*FORMATS, "open", "plain") for row in make_rows(task, picture, 3)]
    return small.predict(rows, pack_tokens=1, cache_tokens=1)


@pytest.mark.parametrize(
    "options",
    [{"pack_tokens": 500}, {"pack_tokens": 100_000}, {"pack_tokens": 300, "cache_tokens": 400}, {"window": 3}],
    ids=str,
)
def test_answers_do_not_depend_on_packs_and_room(
    small: Asking, picture: Callable[..., Image], alone: dict[str, Prediction], options: dict[str, Any]
):
    rows = [row for task in (*FORMATS, "open", "plain") for row in make_rows(task, picture, 3)]
    found = small.predict(rows, **options)
    assert len(found) == 21
    for key, one in found.items():
        other = alone[key]
        assert (one.label, one.rationale, one.notes) == (other.label, other.rationale, other.notes)
        np.testing.assert_allclose(list(one.logprobs.values()), list(other.logprobs.values()), rtol=1e-4, atol=1e-4)


def test_the_same_picture_passes_the_tower_once(small: Asking, picture: Callable[..., Image]):
    shown = picture(seed=5)
    rows = [Example(str(n), (shown, Text(f"{n}?")), "reason") for n in range(4)]
    passed: list[int] = []
    hook = small.twin.model.hf.model.visual.register_forward_pre_hook(lambda module, args: passed.append(1))
    small.predict(rows, pack_tokens=1, features=10_000)
    hook.remove()
    assert len(passed) == 1


def test_an_early_end_leaves_nothing_behind(small: Asking, picture: Callable[..., Image]):
    rows = make_rows("reason", picture, 6)
    with closing(LocalEngine(small.twin.model, small.encoder, pack_tokens=200, workers=1)) as engine:
        answers = engine.predict(small.sized(rows))
        next(answers)
        answers.close()
        again = {one.id for many in engine.predict(small.sized(rows)) for one in many}
    assert again == {row.id for row in rows}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_answers_on_a_gpu(small: Asking, picture: Callable[..., Image], monkeypatch: pytest.MonkeyPatch):
    """All formats through the engine's own way; reasoned answers are JSON, and the cache's memory is given back."""
    model = load_model(small.twin.model.frontend, device="cuda", dtype="bfloat16", seed=3)
    rows = [row for task in (*FORMATS, "open", "plain") for row in make_rows(task, picture, 5)]
    spy = Spy(monkeypatch)
    with closing(LocalEngine(model, small.encoder, pack_tokens=900, workers=2, cache_tokens=2000)) as engine:
        list(engine.predict(small.sized(rows)))
        before = torch.cuda.memory_allocated()
        spy.stems.clear()
        found = {one.id: one for many in engine.predict(small.sized(rows)) for one in many}
        assert torch.cuda.memory_allocated() <= before
    assert set(found) == {row.id for row in rows}
    labels = small.encoder.answers(small.encoder.tasks["reason"]).labels
    for row in make_rows("reason", picture, 5):
        one, stem = found[row.id], spy.of(spy.stems, prompt_of(small, row))
        answer = small.twin.processor.tokenizer.decode([*stem, *labels.ids[LABELS.index(one.label)]])
        assert json.loads(answer.removesuffix("<|im_end|>")) == {"理由": one.rationale, "所属类别": one.label}
