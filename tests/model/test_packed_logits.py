"""Packed against one by one: log-probabilities of our forward pass and of transformers' own, in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch

from tuyi.data.example import Example, Image, Text
from tuyi.encode.encoded import Encoded
from tuyi.encode.pack import pack
from tuyi.model.forward import to_device


def packed(twin: Any, rows: Sequence[Encoded], **options: Any) -> list[torch.Tensor]:
    """Log-probabilities (answer tokens, V) of each row, the rows packed."""
    batch = to_device(pack(rows), twin.model.spec, twin.model.device, **options)
    with torch.inference_mode():
        logits = twin.model.hf(batch=batch)
    assert logits.dtype is torch.float32
    return list(logits.log_softmax(-1).split([int(row.supervised.sum()) for row in rows]))


def encode(twin: Any, examples: Sequence[Example]) -> list[Encoded]:
    return [twin.encoder.encode(example, labelled=True) for example in examples]


def alone(twin: Any, example: Example) -> torch.Tensor:
    """The same from transformers: the answer and its end are the last tokens."""
    count = len(twin.processor.tokenizer(example.label).input_ids) + 1
    logprobs: torch.Tensor = twin.logprobs(example, example.label)
    return logprobs[-1 - count : -1]


PACKS = {
    "text": ["text", "system"],
    "pictures": ["image", "text", "images", "image-last", "history", "image-first"],
    "videos": ["video", "system"],
    "all": ["text", "mixed", "image", "system", "video", "images", "history"],
    "one": ["image"],
}


@pytest.mark.parametrize("names", PACKS.values(), ids=PACKS)
def test_packed_rows_give_the_logits_of_rows_alone(twin: Any, rows: dict[str, Example], names: list[str]):
    examples = [rows[name] for name in names]
    for example, ours in zip(examples, packed(twin, encode(twin, examples)), strict=True):
        theirs = alone(twin, example)
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0, msg=lambda m, e=example: f"{e.id}: {m}")


def test_the_order_of_rows_does_not_matter(twin: Any, rows: dict[str, Example]):
    encoded = encode(twin, [rows[name] for name in PACKS["all"]])
    forwards, backwards = packed(twin, encoded), packed(twin, encoded[::-1])[::-1]
    for one, other in zip(forwards, backwards, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_a_row_sees_nothing_of_its_neighbours(twin: Any, rows: dict[str, Example], picture: Callable[..., Image]):
    before, after = rows["image"], rows["images"]
    other_before = replace(before, content=(*before.content[:1], picture(seed=9), Text(" 完全不同")))
    shown = encode(twin, [before, rows["history"], after])
    changed = encode(twin, [other_before, rows["history"], rows["video"]])
    kept, moved = packed(twin, shown), packed(twin, changed)
    torch.testing.assert_close(kept[1], moved[1], atol=2e-5, rtol=0)
    assert (kept[0] - moved[0]).abs().max() > 0.01, "the changed row itself must change"


def test_every_picture_of_a_row_is_seen(twin: Any, rows: dict[str, Example], picture: Callable[..., Image]):
    example = rows["images"]
    (base,) = packed(twin, encode(twin, [example]))
    at = [index for index, part in enumerate(example.content) if isinstance(part, Image)]
    assert len(at) == 3
    for index, (width, height) in zip(at, ((70, 90), (200, 40), (33, 150)), strict=True):
        other = list(example.content)
        other[index] = picture(width, height, seed=50)
        (changed,) = packed(twin, encode(twin, [replace(example, content=tuple(other))]))
        assert (base - changed).abs().max() > 1e-3


def test_a_pack_without_pictures_can_run_the_tower_to_no_effect(twin: Any, rows: dict[str, Example]):
    encoded = encode(twin, [rows["text"], rows["system"]])
    for plain, seeing in zip(packed(twin, encoded), packed(twin, encoded, always_see=True), strict=True):
        torch.testing.assert_close(plain, seeing, atol=1e-6, rtol=0)
    batch = to_device(pack(encoded), twin.model.spec, twin.model.device, always_see=True)
    try:
        twin.model.hf(batch=batch).sum().backward()
        weights = dict(twin.model.hf.model.visual.named_parameters())
        assert all(weight.grad is not None for weight in weights.values()), "each process gathers every weight"
        assert all(not weight.grad.any() for weight in weights.values())
    finally:
        twin.model.hf.zero_grad(set_to_none=True)


def test_gradients_are_those_of_the_plain_model(twin: Any, rows: dict[str, Example]):
    """The loss over a pack, back through both towers, against the sum over rows alone."""
    examples = [rows[name] for name in ("image", "text", "video")]
    built = pack(encode(twin, examples))
    ours, theirs = twin.model.hf, twin.reference
    try:
        logits = ours(batch=to_device(built, twin.model.spec, twin.model.device))
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(built.targets), reduction="sum").backward()
        for example, (begin, end) in zip(examples, pairwise(accumulate(built.lengths, initial=0)), strict=True):
            inputs = twin.inputs(example, example.label)
            labels = torch.full((end - begin,), -100)
            count = len(alone(twin, example))
            labels[-count:] = inputs["input_ids"][0, -count:]
            logits = theirs(**inputs).logits[0]
            torch.nn.functional.cross_entropy(logits[:-1], labels[1:], reduction="sum").backward()
        reference = dict(theirs.named_parameters())
        checked = 0
        for name, weight in ours.named_parameters():
            expected = reference[name].grad
            if expected is None:
                assert weight.grad is None or not weight.grad.any(), name
                continue
            scale = expected.abs().max().clamp(min=1e-3)
            torch.testing.assert_close(
                weight.grad / scale, expected / scale, atol=2e-3, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
            )
            checked += 1
        assert checked > 40
    finally:
        ours.zero_grad(set_to_none=True)
        theirs.zero_grad(set_to_none=True)
