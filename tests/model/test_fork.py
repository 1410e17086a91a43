"""Rows that begin as another does: logits are those of computing everything."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from tuyi.data.example import Example, Image, Text, Turn
from tuyi.model.cache import KeyValueCache, Room
from tuyi.model.decode import Decoder


@contextmanager
def towers(twin: Any) -> Iterator[list[int]]:
    """Patches that pass the vision tower."""
    passed: list[int] = []
    hook = twin.model.hf.model.visual.register_forward_pre_hook(lambda module, args: passed.append(len(args[0])))
    yield passed
    hook.remove()


def plain(twin: Any, example: Example, ids: list[int]) -> torch.Tensor:
    """Logits behind a row and further tokens in transformers' own model, without a cache."""
    inputs = twin.inputs(example)
    for key, fill in (("input_ids", torch.tensor([ids])), ("attention_mask", torch.ones(1, len(ids))),
                      ("mm_token_type_ids", torch.zeros(1, len(ids)))):  # fmt: skip
        if key in inputs:
            inputs[key] = torch.cat([inputs[key], fill.to(inputs[key].dtype)], dim=1)
    with torch.inference_mode():
        logits: torch.Tensor = twin.reference(**inputs).logits[0, -1]
    return logits.float()


def test_two_questions_about_one_talk(twin: Any, rows: dict[str, Example], picture: Callable[..., Image]):
    first = replace(rows["mixed"], task="talk", label=None)
    said = (Turn("user", first.content), Turn("assistant", (Text("It is red"),)))
    follow_ups = [
        Example("a", (Text("还有这个"), picture(50, 90, seed=9), Text("？")), "talk", history=said),
        Example("b", (Text("Why?"),), "talk", history=said),
    ]
    decoder = Decoder(twin.model, 6000)
    joined = decoder.join([twin.encoder.encode(first, labelled=False)], [12])
    assert joined is not None
    (kept,), _ = joined
    decoder.extend([kept], [twin.encoder.encode(follow_ups[0], labelled=False).ids[len(kept) :][:4].tolist()])
    before, length = list(kept.ids), len(kept)
    whole = [twin.encoder.encode(one, labelled=False) for one in follow_ups]
    forks = [decoder.fork(kept, length - cut, len(one) + 20) for cut, one in zip((0, 2), whole)]
    assert all(fork is not None for fork in forks)
    with towers(twin) as passed:
        logits = decoder.append(forks, whole, [20, 20])
    assert passed == [len(whole[0].media[-1].patches.values)], "no earlier picture or video is looked at again"
    assert logits is not None
    for one, ours in zip(follow_ups, logits, strict=True):
        torch.testing.assert_close(ours, plain(twin, one, []), atol=1e-4, rtol=1e-4)
    assert kept.ids == before
    ours = decoder.extend([kept, *forks], [[40], [41, 42], [43]])
    torch.testing.assert_close(ours[1], plain(twin, follow_ups[0], [41, 42]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours[2], plain(twin, follow_ups[1], [43]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours[0], plain(twin, first, [*before[-4:], 40]), atol=1e-4, rtol=1e-4)


def test_a_fork_of_text_goes_on_at_its_place(twins: Any, rows: dict[str, Example]):
    twin = twins("qwen2_vl")
    row = replace(rows["image"], task="talk")
    decoder = Decoder(twin.model, 1000)
    joined = decoder.join([twin.encoder.encode(row, labelled=False)], [10])
    assert joined is not None
    (kept,), _ = joined
    decoder.extend([kept], [[20, 21, 22]])
    fork = decoder.fork(kept, len(kept) - 2, 200)
    assert fork is not None
    logits = decoder.extend([fork], [[30]])
    torch.testing.assert_close(logits[0], plain(twin, row, [20, 30]), atol=1e-4, rtol=1e-4)
    assert decoder.fork(kept, 3, 1000) is None, "no room for all of it"
    decoder.leave([fork])
    assert decoder.cache.fits([900 - len(kept)])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_forks_in_bfloat16(twin: Any, rows: dict[str, Example]):
    """Near the logits of prompts that pass as a whole."""
    from tuyi.model.forward import adapt
    from tuyi.model.load import Model

    hf = copy.deepcopy(twin.model.hf)
    for weight in hf.parameters():
        weight.data = weight.data.bfloat16()
    hf.to("cuda")
    adapt(hf, twin.model.spec)
    decoder = Decoder(Model(hf, twin.model.frontend), 8000)
    first = replace(rows["mixed"], task="talk", label=None)
    said = (Turn("user", first.content), Turn("assistant", (Text("It is red"),)))
    whole = [
        twin.encoder.encode(Example(question, (Text(question),), "talk", history=said), labelled=False)
        for question in ("Why?", "And which colour has it? Say it in one word.")
    ]
    joined = decoder.join([twin.encoder.encode(first, labelled=False), *whole], [1, 1, 1])
    assert joined is not None
    (kept, *_), logits = joined
    forks = [decoder.fork(kept, len(kept), len(one) + 1) for one in whole]
    assert None not in forks
    ours = decoder.append(forks, whole, [1, 1])
    assert ours is not None
    spread = logits[1:].std(dim=1, keepdim=True)
    assert float(((ours - logits[1:]).abs() / spread).max()) < 0.25


def test_rooms_shrink_and_fit(twins: Any):
    cache = KeyValueCache(twins("qwen2_vl").model.hf.config, 100)
    taken = cache.take([40, 50])
    assert taken == [Room(0, 40), Room(40, 50)]
    assert not cache.fits([20])
    assert cache.fits([20, 20, 10], without=[taken[0]])
    assert not cache.fits([20, 20, 11], without=[taken[0]])
    smaller = cache.shrink(taken[0], 15)
    assert cache.fits([25, 10])
    assert cache.take([25]) == [Room(15, 25)]
    cache.give_back([smaller])
    with pytest.raises(ValueError):
        cache.give_back([taken[0]])
