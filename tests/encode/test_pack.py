"""Packs: rows end to end, label branches behind them, groups under a budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuyi.data.example import Example
from tuyi.encode.pack import group, pack


@pytest.fixture(scope="module")
def qwen3(twins: Callable[[str], Any]) -> Any:
    return twins("qwen3_vl")


def test_rows_lie_end_to_end(qwen3: Any, rows: dict[str, Example]):
    encoded = [qwen3.encoder.encode(rows[name], labelled=True) for name in ("text", "mixed", "images")]
    packed = pack(encoded)
    assert packed.lengths == tuple(map(len, encoded))
    assert packed.cu_seqlens.tolist() == [0, *np.cumsum(packed.lengths)]
    np.testing.assert_array_equal(packed.ids, np.concatenate([row.ids for row in encoded]))
    np.testing.assert_array_equal(packed.positions[1:], np.concatenate([row.positions for row in encoded], axis=1))
    np.testing.assert_array_equal(packed.positions[0], np.concatenate([np.arange(n) for n in packed.lengths]))
    supervised = np.concatenate([row.supervised for row in encoded])
    np.testing.assert_array_equal(packed.keep, np.flatnonzero(supervised) - 1)
    np.testing.assert_array_equal(packed.targets, packed.ids[packed.keep + 1])
    assert packed.branches is None


def test_visual_tokens_stand_where_the_media_go(qwen3: Any, rows: dict[str, Example]):
    encoded = [qwen3.encoder.encode(rows[name], labelled=True) for name in ("images", "mixed", "text", "video")]
    packed = pack(encoded)
    tokenizer = qwen3.processor.tokenizer
    for visual, pad, count in ((packed.images, "<|image_pad|>", 5), (packed.videos, "<|video_pad|>", 3)):
        assert visual is not None
        assert len(visual.grids) == count
        stands = np.flatnonzero(packed.ids == tokenizer.convert_tokens_to_ids(pad))
        np.testing.assert_array_equal(np.sort(visual.at), stands)
        assert visual.grids.tolist() == sorted(visual.grids.tolist()), "equal sizes lie side by side"
        assert len(visual.patches) == visual.grids.prod(1).sum() == 4 * len(visual.at)
        assert visual.patches.dtype == np.uint8
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
    roots = sum(packed.lengths)
    assert packed.branches is not None
    assert packed.branches.lengths == tuple(answers.branch_lengths for answers in labels)
    assert len(packed.ids) == roots + sum(packed.branches.row_lengths)
    assert packed.targets.tolist() == [token for answers in labels for ids in answers.ids for token in ids]
    at, kept = roots, iter(packed.keep)
    for row, answers, end in zip(encoded, labels, packed.cu_seqlens[1:] - 1, strict=True):
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


@given(st.lists(st.integers(0, 50)), st.integers(1, 60))
def test_groups_keep_order_and_budget(sizes: list[int], budget: int):
    groups = list(group(enumerate(sizes), budget))
    assert [row for one in groups for row in one] == list(range(len(sizes)))
    totals = [sum(sizes[row] for row in one) for one in groups]
    assert all(groups)
    assert all(total <= budget or len(one) == 1 for one, total in zip(groups, totals, strict=True))
    firsts = [sizes[one[0]] for one in groups[1:]]
    assert all(total + first > budget for total, first in zip(totals, firsts)), "no group ends early"
