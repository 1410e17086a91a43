"""Packs: rows end to end, label branches behind them, groups under a budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuyi.data.example import Example, Text
from tuyi.encode.pack import group, pack


@pytest.fixture(scope="module")
def qwen3(twins: Callable[[str], Any]) -> Any:
    return twins("qwen3_vl")


def test_rows_lie_end_to_end(qwen3: Any, rows: dict[str, Example]):
    encoded = [qwen3.encoder.encode(rows[name], labelled=True) for name in ("text", "mixed", "images")]
    packed = pack(encoded)
    assert packed.lengths == tuple(map(len, encoded))
    assert packed.shared == 0
    np.testing.assert_array_equal(packed.ids, np.concatenate([row.ids for row in encoded]))
    np.testing.assert_array_equal(packed.positions[1:], np.concatenate([row.positions for row in encoded], axis=1))
    np.testing.assert_array_equal(packed.positions[0], np.concatenate([np.arange(n) for n in packed.lengths]))
    supervised = np.concatenate([row.supervised for row in encoded])
    np.testing.assert_array_equal(packed.keep, np.flatnonzero(supervised) - 1)
    np.testing.assert_array_equal(packed.targets, packed.ids[packed.keep + 1])
    assert packed.branches is None


@pytest.mark.parametrize("labelled", [True, False])
def test_visual_tokens_stand_where_the_media_go(qwen3: Any, rows: dict[str, Example], labelled: bool):
    """Each medium by itself in training; in prediction equal ones once, here three drawings and one clip."""
    encoded = [qwen3.encoder.encode(rows[name], labelled=labelled) for name in ("images", "mixed", "text", "video")]
    packed = pack(encoded)
    tokenizer = qwen3.processor.tokenizer
    counts = (5, 3) if labelled else (3, 1)
    for visual, pad, count in zip((packed.images, packed.videos), ("<|image_pad|>", "<|video_pad|>"), counts):
        assert visual is not None
        assert len(visual.grids) == count
        stands = np.flatnonzero(packed.ids == tokenizer.convert_tokens_to_ids(pad))
        np.testing.assert_array_equal(np.sort(visual.at), stands)
        assert visual.grids.tolist() == sorted(visual.grids.tolist()), "equal sizes lie side by side"
        assert sum(map(len, visual.patches)) == visual.grids.prod(1).sum()
        assert [size for _, size in visual.new] == [len(values) // 4 for values in visual.patches]
        assert {values.dtype for values in visual.patches} == {np.dtype(np.uint8)}
        assert set(visual.features) == set(range(visual.grids.prod(1).sum() // 4)), "every feature is used"
    lone = pack([encoded[2]])
    assert lone.images is None
    assert lone.videos is None


def test_weights_follow_their_rows(qwen3: Any, rows: dict[str, Example]):
    encoded = [
        qwen3.encoder.encode(replace(rows[name], weight=weight), labelled=True)
        for name, weight in (("text", 0.5), ("image", 2.0))
    ]
    counts = [int(row.supervised.sum()) for row in encoded]
    assert pack(encoded).weights.tolist() == [0.5] * counts[0] + [2.0] * counts[1]


def test_branches_lie_behind_all_prompts(qwen3: Any, rows: dict[str, Example]):
    encoded = [qwen3.encoder.encode(rows[name], labelled=False) for name in ("image", "system")]
    labels = [qwen3.encoder.labels(qwen3.encoder.tasks.of(rows[name])) for name in ("image", "system")]
    packed = pack(encoded, labels)
    shared, roots = packed.shared, packed.shared + sum(packed.lengths)
    assert packed.branches is not None
    assert packed.branches.lengths == tuple(answers.branch_lengths for answers in labels)
    assert len(packed.ids) == roots + sum(packed.branches.row_lengths)
    assert len(set(packed.keep.tolist())) == len(packed.keep), "each kept token once"
    assert (np.diff(packed.read) >= 0).all()
    targets, keep = np.empty_like(packed.targets), np.empty_like(packed.targets)
    targets[packed.order], keep[packed.order] = packed.targets, packed.keep[packed.read]
    assert targets.tolist() == [token for answers in labels for ids in answers.ids for token in ids]
    at, kept = roots, iter(keep)
    for row, answers, end in zip(encoded, labels, shared + np.cumsum(packed.lengths) - 1, strict=True):
        for ids in answers.ids:
            assert next(kept) == end, "the prompt's last token predicts a label's first"
            inner = len(ids) - 1
            assert packed.ids[at : at + inner].tolist() == list(ids[:-1])
            assert [next(kept) for _ in range(inner)] == list(range(at, at + inner))
            place = len(row) + np.arange(inner)
            np.testing.assert_array_equal(packed.positions[0, at : at + inner], place)
            after = row.positions.max() + 1 + np.arange(inner)
            np.testing.assert_array_equal(packed.positions[1:, at : at + inner], np.stack([after] * 3))
            at += inner
    assert next(kept, None) is None


def test_rows_taught_distributions_weigh_each_label(qwen3: Any, rows: dict[str, Example]):
    """The layout of prediction, but for a shared beginning; each target weighs its row's weight times its share."""
    examples = [replace(rows[name], weight=weight) for name, weight in (("text", 2.0), ("image", 0.5), ("system", 1.0))]
    encoded = [qwen3.encoder.encode(example, labelled=False) for example in examples]
    labels = [qwen3.encoder.labels(qwen3.encoder.tasks.of(example)) for example in examples]
    shares = [np.random.default_rng(7).dirichlet(np.ones(len(answers.names))) for answers in labels]
    packed = pack(encoded, labels, shares=shares)
    weights = np.empty_like(packed.weights)
    weights[packed.order] = packed.weights
    expected = [
        example.weight * part
        for example, answers, share in zip(examples, labels, shares, strict=True)
        for ids, part in zip(answers.ids, share, strict=True)
        for _ in ids
    ]
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert packed.weights.dtype == np.float32
    alike = [qwen3.encoder.encode(replace(rows["text"], id=name), labelled=False) for name in "ab"]
    assert pack(alike, [labels[0]] * 2).shared > 8
    assert pack(alike, [labels[0]] * 2, shares=[shares[0]] * 2).shared == 0
    with pytest.raises(ValueError):
        pack(encoded, labels, shares=[shares[0], shares[1][1:], shares[2]])


def test_a_common_beginning_stands_once(qwen3: Any, picture: Callable[..., Any]):
    """Up to the first picture and never a row's last token, however equal the tokens behind it are."""
    asks = {name: (Text("红色的这个能用吗"), picture(seed=seed)) for seed, name in enumerate("ab")}
    examples = [Example(name, parts, task="colour") for name, parts in asks.items()]
    encoded = [qwen3.encoder.encode(example, labelled=False) for example in examples]
    np.testing.assert_array_equal(encoded[0].ids, encoded[1].ids)
    packed = pack(encoded, [qwen3.encoder.labels(qwen3.encoder.tasks["colour"])] * 2)
    assert packed.shared == encoded[0].media[0].spans[0][0] > 8
    assert packed.lengths == tuple(len(row) - packed.shared for row in encoded)
    whole = [
        np.concatenate([packed.ids[: packed.shared], own])
        for own in np.split(packed.ids[packed.shared : packed.shared + sum(packed.lengths)], [packed.lengths[0]])
    ]
    for row, ids in zip(encoded, whole, strict=True):
        np.testing.assert_array_equal(row.ids, ids)
    assert packed.images is not None
    assert len(packed.images.patches) == 2, "the pictures differ"
    assert pack(encoded).shared == 0, "training shares nothing"
    assert pack(encoded[:1], [qwen3.encoder.labels(qwen3.encoder.tasks["colour"])]).shared == 0


@given(st.lists(st.integers(0, 50)), st.integers(1, 60))
def test_groups_keep_order_and_budget(sizes: list[int], budget: int):
    groups = list(group(enumerate(sizes), budget))
    assert [row for one in groups for row in one] == list(range(len(sizes)))
    totals = [sum(sizes[row] for row in one) for one in groups]
    assert all(groups)
    assert all(total <= budget or len(one) == 1 for one, total in zip(groups, totals, strict=True))
    firsts = [sizes[one[0]] for one in groups[1:]]
    assert all(total + first > budget for total, first in zip(totals, firsts)), "no group ends early"
