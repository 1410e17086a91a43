"""Label scores against brute force: every label in a sequence of its own, in transformers' plain model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tuyi.data.example import Example
from tuyi.predict import scoring
from tuyi.predict.calibrated import normalise
from tuyi.predict.scoring import score_labels

PACKS = {
    "one": ["image"],
    "text": ["text"],
    "two tasks": ["image", "image-last", "text", "images", "video", "history", "system"],
}


def brute_force(twin: Any, example: Example) -> np.ndarray[Any, Any]:
    """Natural logs of P(label tokens and terminator | prompt), label by label."""
    task = twin.encoder.tasks.of(example)
    prompt = twin.inputs(example)["input_ids"].shape[1]
    scores = []
    for name in task.labels.names:
        ids = twin.inputs(example, name)["input_ids"][0]
        logprobs = twin.logprobs(example, name)
        scores.append(logprobs[prompt - 1 : -1].gather(1, ids[prompt:, None]).double().sum().item())
    return np.asarray(scores)


def scored(twin: Any, examples: list[Example]) -> list[np.ndarray[Any, Any]]:
    labels = [twin.encoder.labels(twin.encoder.tasks.of(example)) for example in examples]
    return score_labels(twin.model, [twin.encoder.encode(row, labelled=False) for row in examples], labels)


@pytest.mark.parametrize("names", PACKS.values(), ids=PACKS)
def test_scores_are_those_of_every_label_alone(twin: Any, rows: dict[str, Example], names: list[str]):
    examples = [rows[name] for name in names]
    for example, ours in zip(examples, scored(twin, examples), strict=True):
        theirs = brute_force(twin, example)
        np.testing.assert_allclose(normalise(ours), normalise(theirs), atol=1e-5, err_msg=example.id)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5, err_msg=example.id)
        assert normalise(ours).sum() == pytest.approx(1, abs=1e-12)


def test_the_labels_are_the_hard_ones(twin: Any):
    colour = twin.encoder.labels(twin.encoder.tasks["colour"])
    end = twin.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert all(ids[-1] == end and end not in ids[:-1] for ids in colour.ids)
    lengths = dict(zip(colour.names, colour.branch_lengths, strict=True))
    assert lengths["A"] == 1
    assert max(lengths.values()) > 4
    ids = dict(zip(colour.names, colour.ids, strict=True))
    deep, red = ids["红色（深）"][:-1], ids["红色"][:-1]
    assert deep[: len(red)] == red, "one label begins another, token by token"


def test_scores_do_not_depend_on_the_pack(twin: Any, rows: dict[str, Example]):
    examples = [rows[name] for name in PACKS["two tasks"]]
    together = scored(twin, examples)
    for example, score in zip(examples, together, strict=True):
        np.testing.assert_allclose(scored(twin, [example])[0], score, rtol=1e-5, atol=1e-5)


def test_logits_are_made_in_slices(twin: Any, rows: dict[str, Example], monkeypatch: pytest.MonkeyPatch):
    whole = scored(twin, [rows["image"], rows["system"]])
    monkeypatch.setattr(scoring, "_ROWS_OF_LOGITS", 5)
    for one, other in zip(whole, scored(twin, [rows["image"], rows["system"]]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_normalise_is_a_softmax_at_a_temperature():
    logprobs = np.asarray([-1.0, -2.5, -800.0], np.float32)
    for temperature in (0.5, 1.0, 3.0):
        expected = torch.from_numpy(logprobs).double().div(temperature).softmax(0).numpy()
        np.testing.assert_allclose(normalise(logprobs, temperature), expected, rtol=1e-6, atol=1e-300)
