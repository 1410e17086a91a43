"""Decoding with a cache against transformers: its logits without a cache, its tokens with ``generate``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tuyi.data.example import Example, Text, Turn
from tuyi.encode.encoded import Encoded
from tuyi.encode.encoder import LabelTokens
from tuyi.model.cache import Cached, Continuing, KeyValueCache, Room, cache_bytes
from tuyi.model.decode import Decoder, Live, extended
from tuyi.predict.scoring import gather_labels, score_tokens

NAMES = ["image", "text", "images", "video", "history", "mixed", "image-last"]
NEW = 12


def encode(twin: Any, example: Example) -> Encoded:
    encoded: Encoded = twin.encoder.encode(example, labelled=False)
    return encoded


def plain_logits(twin: Any, example: Example, ids: Sequence[int]) -> torch.Tensor:
    """(T, V) of transformers' own model for the row and further tokens, without a cache."""
    inputs = twin.inputs(example)
    more = torch.tensor([list(ids)], dtype=torch.long)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], more], dim=1)
    for key in ("attention_mask", "mm_token_type_ids"):
        if key in inputs:
            fill = torch.ones_like(more) if key == "attention_mask" else torch.zeros_like(more)
            inputs[key] = torch.cat([inputs[key], fill], dim=1)
    with torch.inference_mode():
        logits: torch.Tensor = twin.reference(**inputs).logits[0]
    return logits.float()


def joined(decoder: Decoder, rows: Sequence[Encoded], more: int = 40) -> tuple[list[Live], torch.Tensor]:
    found = decoder.join(rows, [more] * len(rows))
    assert found is not None
    return found


def greedy(decoder: Decoder, rows: list[Live], logits: torch.Tensor, steps: int) -> list[list[int]]:
    made: list[list[int]] = [[] for _ in rows]
    for step in range(steps):
        best = logits.argmax(1).tolist()
        for tokens, token in zip(made, best, strict=True):
            tokens.append(token)
        if step < steps - 1:
            logits = decoder.extend(rows, [[token] for token in best])
    return made


def test_tokens_are_those_of_generate(twin: Any, rows: dict[str, Example]):
    examples = [rows[name] for name in NAMES]
    decoder = Decoder(twin.model, 8000)
    made = greedy(decoder, *joined(decoder, [encode(twin, row) for row in examples]), NEW)
    for example, ours in zip(examples, made, strict=True):
        inputs = twin.inputs(example)
        with torch.inference_mode():
            theirs = twin.reference.generate(**inputs, do_sample=False, max_new_tokens=NEW, eos_token_id=-1)
        assert ours == theirs[0, inputs["input_ids"].shape[1] :].tolist(), example.id


def test_logits_are_those_of_a_pass_without_cache(twin: Any, rows: dict[str, Example]):
    """With rows that leave and join between steps, and several tokens in one."""
    decoder = Decoder(twin.model, 6000)
    names = ["image", "video", "text"]
    live, logits = joined(decoder, [encode(twin, rows[name]) for name in names])
    given = {name: [] for name in [*names, "images"]}
    for name, ours in zip(names, logits, strict=True):
        torch.testing.assert_close(ours, plain_logits(twin, rows[name], [])[-1], atol=1e-4, rtol=1e-4)

    def go_on(live: list[Live], names: list[str], tokens: list[list[int]]) -> None:
        for name, new in zip(names, tokens, strict=True):
            given[name] += new
        logits = decoder.extend(live, tokens)
        for name, ours in zip(names, logits, strict=True):
            theirs = plain_logits(twin, rows[name], given[name])[-1]
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)

    go_on(live, names, [[20], [21, 22, 23], [24]])
    decoder.leave([live.pop(1)])
    names.pop(1)
    (late,), _ = joined(decoder, [encode(twin, rows["images"])])
    go_on([*live, late], [*names, "images"], [[30, 31], [32], [33]])
    decoder.cut(live[0], len(live[0]) - 2)
    del given["image"][-2:]
    go_on([late, live[0]], ["images", "image"], [[34], [35]])


def test_a_follow_up_with_a_picture_goes_on_where_the_row_is(
    twin: Any, rows: dict[str, Example], picture: Callable[..., Any]
):
    first = rows["image"]
    answer = "It is red"
    second = Example(
        "next", (Text("还有这个"), picture(50, 90, seed=9), Text("？")), "talk",
        history=(Turn("user", first.content), Turn("assistant", (Text(answer),))),
    )  # fmt: skip
    first = replace(first, task="talk")
    decoder = Decoder(twin.model, 4000)
    other, _ = joined(decoder, [encode(twin, rows["text"])])
    (row,), _ = joined(decoder, [encode(twin, first)], more=12)
    decoder.extend([row], [list(twin.encoder.encode(second, labelled=False).ids[len(row) :][:4])])
    asked = len(row)
    whole = encode(twin, second)
    passed: list[int] = []
    hook = twin.model.hf.model.visual.register_forward_pre_hook(lambda module, args: passed.append(len(args[0])))
    logits = decoder.append([row], [whole], [5])
    hook.remove()
    assert logits is not None
    assert passed == [len(whole.media[1].patches.values)], "the first picture is not looked at again"
    assert row.ids == whole.ids.tolist()
    assert len(row) > asked
    torch.testing.assert_close(logits[0], plain_logits(twin, second, [])[-1], atol=1e-4, rtol=1e-4)
    ours = decoder.extend([row, *other], [[40, 41], [42]])
    torch.testing.assert_close(ours[0], plain_logits(twin, second, [40, 41])[-1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours[1], plain_logits(twin, rows["text"], [42])[-1], atol=1e-4, rtol=1e-4)


def test_another_picture_in_the_same_place_is_seen(twin: Any, rows: dict[str, Example], picture: Callable[..., Any]):
    one, other = (Example(str(seed), (picture(seed=seed), Text("what?")), "talk") for seed in (1, 2))
    decoder = Decoder(twin.model, 1000)
    (row,), _ = joined(decoder, [encode(twin, one)])
    logits = decoder.append([row], [encode(twin, other)], [5])
    assert logits is not None
    torch.testing.assert_close(logits[0], plain_logits(twin, other, [])[-1], atol=1e-4, rtol=1e-4)


def test_branches_are_those_of_every_label_alone(twin: Any, rows: dict[str, Example]):
    names = ["image", "text", "video"]
    stems = [[50, 51, 52], [], [53]]
    labels = [
        LabelTokens(("a", "b", "c"), ((60, 61, 2), (62, 2), (60, 61, 63, 64, 2))),
        LabelTokens(("d", "e"), ((70,), (71, 72, 73))),
        LabelTokens(("f", "g"), ((2,), (3,))),
    ]
    decoder = Decoder(twin.model, 4000)
    live, _ = joined(decoder, [encode(twin, rows[name]) for name in names])
    decoder.extend(live, [[80], [81, 82], [83]])
    packed, batch = decoder.branch(live, stems, labels)
    scores = gather_labels(score_tokens(twin.model, batch, packed).cpu(), packed, labels)
    for name, row, stem, said, ours in zip(names, live, stems, labels, scores, strict=True):
        before = [*{"image": [80], "text": [81, 82], "video": [83]}[name], *stem]
        assert row.ids[-len(before) :] == before
        for ids, score in zip(said.ids, ours, strict=True):
            logprobs = plain_logits(twin, rows[name], [*before, *ids]).log_softmax(1)[-len(ids) - 1 : -1]
            theirs = logprobs.gather(1, torch.tensor(ids)[:, None]).double().sum().item()
            assert score == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    # the stems are in the cache now, the branches are not
    ours = decoder.extend(live, [[90]] * 3)
    theirs = plain_logits(twin, rows["image"], [80, 50, 51, 52, 90])
    torch.testing.assert_close(ours[0], theirs[-1], atol=1e-4, rtol=1e-4)


def test_a_prompt_with_tokens_behind_it(twin: Any, rows: dict[str, Example]):
    decoder = Decoder(twin.model, 2000)
    _, logits = joined(decoder, [extended(encode(twin, rows[name]), [30, 31]) for name in ("image-last", "video")])
    for name, ours in zip(("image-last", "video"), logits, strict=True):
        torch.testing.assert_close(ours, plain_logits(twin, rows[name], [30, 31])[-1], atol=1e-4, rtol=1e-4)


def test_rows_share_a_prefix_and_have_it_each(twin: Any):
    """The beginning that all prompts share passes the model once; in the cache each row has its own."""
    examples = [Example(str(n), (Text(f"你好 {'ab' * n}"),), "colour") for n in range(1, 4)]
    decoder = Decoder(twin.model, 1000)
    live, logits = joined(decoder, [encode(twin, row) for row in examples])
    logits = decoder.extend(live, [[20 + n] for n in range(3)])
    for n, (example, ours) in enumerate(zip(examples, logits, strict=True)):
        torch.testing.assert_close(ours, plain_logits(twin, example, [20 + n])[-1], atol=1e-4, rtol=1e-4)


def test_rooms_are_taken_all_or_none_and_used_again(twins: Callable[[str], Any]):
    config = twins("qwen2_vl").model.hf.config
    cache = KeyValueCache(config, 10)
    first = cache.take([3, 4])
    assert first == [Room(0, 3), Room(3, 4)]
    assert cache.take([2, 2]) is None
    assert cache.take([3]) == [Room(7, 3)], "nothing was taken by the request that failed"
    cache.give_back([Room(0, 3)])
    assert cache.take([4]) is None, "rooms are in one piece"
    assert cache.take([2, 1]) == [Room(0, 2), Room(2, 1)]
    assert cache_bytes(config, torch.bfloat16) == 3 * 2 * 2 * 32 * 2


def test_no_room_changes_nothing(twins: Callable[[str], Any], rows: dict[str, Example]):
    twin = twins("qwen2_vl")
    encoded = encode(twin, rows["text"])
    decoder = Decoder(twin.model, len(encoded) + 10)
    assert decoder.join([encoded, encoded], [2, 2]) is None
    (row,), _ = joined(decoder, [encoded], more=8)
    before = (row.room, list(row.ids))
    assert decoder.append([row], [extended(encoded, [9] * 8)], [5]) is None
    assert (row.room, row.ids) == before
    decoder.leave([row])
    assert decoder.join([encoded], [10]) is not None


def test_positions_go_on_behind_the_longer_side_of_a_picture(twins: Callable[[str], Any], rows: dict[str, Example]):
    twin = twins("qwen2_vl")
    encoded = encode(twin, rows["image"])
    np.testing.assert_array_equal(
        extended(encoded, [5, 6]).positions[:, -2:], encoded.positions[:, -1:] + np.asarray([[1, 2]])
    )


# begin of the room, tokens before, new tokens, branches
PASSES = {
    "one each": [(70, 5, 1, ()), (0, 33, 1, ()), (50, 1, 1, ())],
    "several": [(10, 40, 3, ()), (200, 7, 17, ()), (90, 0, 4, ()), (60, 9, 1, ())],
    "branches": [(10, 40, 1, (3, 1, 0)), (200, 130, 5, (2, 2)), (90, 3, 1, ())],
    "short branches": [(10, 40, 1, (1, 0)), (200, 130, 1, (0, 0)), (90, 3, 1, (1,))],
}


def check_attention(name: str, device: torch.device, dtype: torch.dtype, tolerance: float) -> None:
    """Every query against a softmax over exactly the keys that it should see."""
    heads, kv_heads, size, slots = 4, 2, 32, 400
    generator = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"generator": generator}
    rows = [Cached(begin, before + new, new, branches) for begin, before, new, branches in PASSES[name]]
    total = sum(row.new + sum(row.branches) for row in rows)
    q, k, v = (torch.randn(total, count, size, **options).to(dtype) for count in (heads, kv_heads, kv_heads))
    old = torch.randn(2, slots, kv_heads, size, **options).to(dtype)
    cache = KeyValueCache(SimpleNamespace(text_config=SimpleNamespace(
        num_hidden_layers=1, num_key_value_heads=kv_heads, head_dim=size)), slots)  # fmt: skip
    cache.write(0, torch.arange(slots, device=device), *old.to(device))
    layout = Continuing.of(cache, rows, device)
    layer = SimpleNamespace(layer_idx=0, is_causal=True)
    ours = layout.attend(layer, q.to(device), k.to(device), v.to(device), 0.3).float().cpu()
    expected, at, leaf = [], 0, sum(row.new for row in rows)
    leaves = []
    for row, (begin, before, new, _) in zip(rows, PASSES[name], strict=True):
        keys, values = (
            torch.cat([x[begin : begin + before], y[at : at + new]]) for x, y in zip(old, (k, v), strict=True)
        )
        expected += [plain_attention(q[at + n], keys[: before + n + 1], values[: before + n + 1]) for n in range(new)]
        at += new
        for length in row.branches:
            for n in range(length):
                own = slice(leaf, leaf + n + 1)
                leaves.append(plain_attention(q[leaf + n], torch.cat([keys, k[own]]), torch.cat([values, v[own]])))
            leaf += length
    torch.testing.assert_close(ours, torch.stack([*expected, *leaves]), atol=tolerance, rtol=tolerance)


def plain_attention(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """(H, D) of one query over keys (K, fewer heads, D)."""
    keys, values = (x.float().repeat_interleave(2, dim=1) for x in (keys, values))
    weights = (0.3 * torch.einsum("hd,khd->hk", q.float(), keys)).softmax(1)
    return torch.einsum("hk,khd->hd", weights, values)


@pytest.mark.parametrize("name", PASSES)
def test_every_token_sees_its_row_and_its_branch(name: str):
    check_attention(name, torch.device("cpu"), torch.float32, 1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", PASSES)
def test_the_kernel_reads_rooms_where_they_are(name: str):
    check_attention(name, torch.device("cuda"), torch.bfloat16, 2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_decoding_in_bfloat16_follows_transformers(twin: Any, rows: dict[str, Example]):
    """Teacher-forced with the tokens of float32: logits near those of transformers, and of a pass without cache."""
    from tuyi.encode.pack import pack_prompts
    from tuyi.model.forward import adapt, to_device
    from tuyi.model.load import Model

    hf = copy.deepcopy(twin.model.hf)
    for weight in hf.parameters():  # not the buffers: rotary frequencies stay in float32, as in a model that is loaded
        weight.data = weight.data.bfloat16()
    hf.to("cuda")
    adapt(hf, twin.model.spec)
    model = Model(hf, twin.model.frontend)
    examples = [rows[name] for name in NAMES]
    encoded = [encode(twin, row) for row in examples]
    decoder = Decoder(twin.model, 8000)
    tokens = greedy(decoder, *joined(decoder, encoded), 6)
    decoder = Decoder(model, 8000)
    live, _ = joined(decoder, encoded)
    for step in range(6):
        logits = decoder.extend(live, [[made[step]] for made in tokens]).cpu()
        longer = [extended(row, made[: step + 1]) for row, made in zip(encoded, tokens, strict=True)]
        with torch.inference_mode():
            uncached = hf(batch=to_device(pack_prompts(longer), model.spec, model.device)).cpu()
        for example, made, ours, without in zip(examples, tokens, logits, uncached, strict=True):
            spread = float(without.std())
            assert float((ours - without).abs().max()) < 0.25 * spread, example.id
            if example.videos and twin.model.spec.family == "qwen2_5_vl":
                continue  # transformers 5.17 cuts the seconds of a temporal patch down to a whole number
            theirs = plain_logits(twin, example, made[: step + 1])[-1]
            assert float((ours - theirs).abs().mean()) < 0.1 * spread, example.id
