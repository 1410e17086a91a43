"""Pack sizes and gradient checkpointing from what a run needs and what there is."""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tuyi.data.example import Example
from tuyi.encode.survey import Survey
from tuyi.errors import ConfigError
from tuyi.train.activations import Kept
from tuyi.train.memory import MOST_LOGIT_BYTES, Need
from tuyi.train.room import Rows, check_host, choose, sizes_of
from tuyi.train.settings import TrainSettings

G, M = 10**9, 10**6

NEED = Need(
    weights=10 * G, gradients=0, optimizer=10 * G, host=0, plain=Kept(2 * M, 0, 0, 0),
    checkpointed=Kept(M // 10, M // 10, 0, 0), head=0, vocabulary=0, fixed=0,
    remedies=(("train.method=lora", 9 * G), ("train.method=qlora", 15 * G), ("more GPUs", 0)),
)  # fmt: skip


def rows_of(*tokens: int, step: int = 10**6, patches: int = 0, kept: int = 0) -> Rows:
    length = np.asarray(tokens, np.int64)
    return Rows(length, np.full_like(length, patches), np.full_like(length, kept), step, lambda row: f"r{row}")


ROWS = rows_of(1000, 3000, 2000)


def test_long_answers_hold_only_so_many_logits():
    chatty = replace(NEED, plain=Kept(M, 0, 0, 0), vocabulary=150_000)
    found = choose(chatty, 34 * G, rows_of(1000, 2000, kept=1500), checkpointing=False)
    assert found.pack_tokens == 9216, "10.6 GB but for 1.1 GB of logits, for 1 MB a token"
    assert found.bytes == 20 * G + 9216 * M + MOST_LOGIT_BYTES
    few = choose(chatty, 34 * G, rows_of(1000, 2000, kept=2), checkpointing=False)
    assert few.pack_tokens == 10240, "one that has few answer tokens is told by them"


def test_as_large_as_fits_without_checkpointing():
    found = choose(NEED, 45 * G, ROWS)
    assert (found.pack_tokens, found.checkpointing) == (10240, False), "20.5 GB for 2 MB a token, a multiple of 512"
    assert found.bytes == 20 * G + 10240 * 2 * M
    assert found.why == "packs of 10240 tokens without gradient checkpointing: 40.5 GB of 45.0 GB free"


def test_packs_that_keep_a_gpu_busy_leave_memory_alone():
    assert choose(NEED, 60 * G, ROWS).pack_tokens == 12288, "of 16896 that fit"
    assert choose(NEED, 80 * G, ROWS).pack_tokens == 15872, "32 GB of 65 % of the memory for 2 MB a token"
    assert choose(NEED, 60 * G, ROWS, pack_tokens=16896).pack_tokens == 16896


def test_a_little_more_or_less_memory_chooses_the_same():
    assert len({choose(NEED, 60 * G + more, ROWS).pack_tokens for more in (0, M, 300 * M)}) == 1


def test_no_larger_than_helps_or_than_a_step():
    assert choose(NEED, 600 * G, ROWS).pack_tokens == 32768
    assert choose(NEED, 600 * G, ROWS, gpu=False).pack_tokens == 16384
    assert choose(NEED, 600 * G, rows_of(1000, 3000, step=6000)).pack_tokens == 6000


def test_checkpointing_where_packs_would_be_small():
    found = choose(NEED, 30 * G, ROWS)
    assert (found.pack_tokens, found.checkpointing) == (12288, True)
    assert found.why == (
        "packs of 12288 tokens with gradient checkpointing, as without it only 3072 tokens fit: 22.5 GB of 30.0 GB free"
    )


def test_small_packs_are_enough_for_small_steps():
    found = choose(NEED, 30 * G, rows_of(1000, 900, step=2000))
    assert (found.pack_tokens, found.checkpointing) == (2000, False)


def test_checkpointing_where_the_largest_row_does_not_fit_alone():
    found = choose(NEED, 40 * G, rows_of(1000, 9000))
    assert found.checkpointing
    assert "as without it row r1 (9000 tokens, 0 patches) does not fit: " in found.why


def test_a_larger_row_than_the_pack_stands_alone():
    dense = replace(NEED, plain=replace(NEED.plain, patch=M))
    rows = Rows(np.array([8000, 100]), np.array([0, 400]), np.zeros(2, np.int64), 10**6, str)
    found = choose(dense, 60 * G, rows)
    assert found.pack_tokens == 5632, "as if all rows had four patches a token"
    assert not found.checkpointing, "the row of 8,000 tokens has none, and fits"


def test_the_most_demanding_row_counts_and_not_the_longest():
    dense = replace(NEED, checkpointed=Kept(M // 10, 0, M, 0))
    rows = Rows(np.array([8000, 4000]), np.array([0, 16000]), np.zeros(2, np.int64), 10**6, lambda row: f"r{row}")
    with pytest.raises(ConfigError, match=r"row r1 \(4000 tokens, 16000 patches\) needs 36.4 GB"):
        choose(dense, 35 * G, rows)


@pytest.mark.parametrize("free", [40, 60, 100])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("long_answers", [False, True])
def test_whatever_is_packed_fits(free: int, seed: int, long_answers: bool):
    rng = np.random.default_rng(seed)
    need = replace(NEED, plain=Kept(M, M // 2, M // 9, M), checkpointed=Kept(M // 20, M // 2, M // 9, M), head=3 * M)
    length = rng.integers(50, 3000, 40)
    kept = rng.integers(1, 40, 40)
    if long_answers:
        need, kept = replace(need, head=M // 10, vocabulary=150_000), rng.integers(1, length)
    rows = Rows(length, rng.integers(0, 4 * length), kept, 10**6, str)
    found = choose(need, free * G, rows)
    checkpointed = {40: True, 60: False, 100: False}
    assert found.checkpointing == checkpointed[free]
    for _ in range(20):
        order = rng.permutation(40)
        inside = order[np.cumsum(length[order]) <= found.pack_tokens]
        for pack in (inside, order[:1]):
            sizes = (int(part[pack].sum()) for part in (rows.tokens, rows.patches, rows.kept))
            assert need.total(*sizes, checkpointing=found.checkpointing) <= found.bytes <= 0.9 * free * G


class TestSettings:
    def test_a_pack_size_that_is_set_turns_checkpointing_on(self):
        assert not choose(NEED, 60 * G, ROWS, pack_tokens=16384).checkpointing
        found = choose(NEED, 60 * G, ROWS, pack_tokens=20000)
        assert (found.pack_tokens, found.checkpointing) == (20000, True)
        assert "as without it only 16896 tokens fit" in found.why

    def test_more_than_the_cap_may_be_set(self):
        assert choose(NEED, 600 * G, ROWS, pack_tokens=100_000).pack_tokens == 100_000

    def test_a_pack_size_beyond_a_step_is_as_good_as_the_step(self):
        found = choose(NEED, 40 * G, rows_of(3000, step=6000), pack_tokens=10**6)
        assert (found.pack_tokens, found.checkpointing, found.bytes) == (10**6, False, 32 * G)

    def test_a_pack_size_under_the_largest_row_is_one_row_a_pass(self):
        assert choose(NEED, 40 * G, rows_of(500, 3000), pack_tokens=1000).bytes == 26 * G

    def test_checkpointing_that_is_set_stays(self):
        assert choose(NEED, 600 * G, ROWS, checkpointing=True).checkpointing
        assert choose(NEED, 30 * G, ROWS, checkpointing=False).pack_tokens == 3072

    def test_a_pack_that_does_not_fit(self):
        with pytest.raises(ConfigError) as error:
            choose(NEED, 30 * G, ROWS, pack_tokens=10**5)
        assert str(error.value) == (
            "memory: a pack of 100000 tokens needs 40.0 GB with gradient checkpointing, 30.0 GB are free, "
            f"of which 27.0 GB can be used\n  {NEED}\n"
            "Choose one: train.pack_tokens=34816, or leave it out; train.method=qlora; more GPUs"
        )

    def test_a_row_that_fits_with_checkpointing_only(self):
        with pytest.raises(ConfigError, match=r"(?s)without gradient.*one: leave train.gradient_checkpointing out; "):
            choose(NEED, 30 * G, rows_of(9000), checkpointing=False)


def test_a_row_that_fits_in_no_way():
    with pytest.raises(ConfigError) as error:
        choose(NEED, 25 * G, rows_of(500, 40_000, patches=7))
    assert str(error.value) == (
        "memory: row r1 (40000 tokens, 7 patches) needs 28.0 GB with gradient checkpointing, 25.0 GB are free, "
        f"of which 22.5 GB can be used\n  {NEED}\n"
        "Choose one: lower budget.max_pixels or budget.max_tokens; train.method=lora; train.method=qlora; more GPUs"
    )


def test_a_model_that_does_not_fit_without_any_row():
    with pytest.raises(ConfigError, match=r"the model alone, before any row passes it, needs 20.0 GB, 8.0 GB") as error:
        choose(NEED, 8 * G, ROWS)
    assert "train.method=lora" not in str(error.value), "it would spare too little"
    assert "train.method=qlora" in str(error.value)


def test_a_cpu_is_refused_only_what_is_clearly_too_much():
    assert choose(NEED, int(20.7 * G), ROWS, gpu=False).pack_tokens == 3072
    with pytest.raises(ConfigError, match=r"row r1 \(3000 tokens, 0 patches\) needs 20.6 GB .* 20.5 GB are free\n"):
        choose(NEED, int(20.5 * G), ROWS, gpu=False)


def test_host_memory():
    need = replace(NEED, host=30 * G)
    check_host(need, 120 * G, 4)
    with pytest.raises(ConfigError, match=r"need 120.0 GB of host memory for the 4 processes here, 100.0 GB are free"):
        check_host(need, 100 * G, 4)


class TestSizes:
    def survey(self, tokens: list[int]) -> Survey:
        store: Any = [Example(id=f"id{number}", content=()) for number in range(len(tokens))]
        count = len(tokens)
        return Survey(
            store, array("l", tokens), array("l", [9] * count), array("l", [3] * count), array("d", [1] * count), ()
        )

    def test_rows_as_they_are(self):
        found = sizes_of(self.survey([10, 30, 20]), [10, 30, 20], TrainSettings(batch_rows=2))
        assert found.tokens.tolist() == [10, 30, 20]
        assert found.patches.tolist() == [9, 9, 9]
        assert found.kept.tolist() == [4, 4, 4], "the answer's three, and one"
        assert found.step == 50, "the two longest"
        assert found.id_of(1) == "id1"

    def test_rows_with_label_branches(self):
        found = sizes_of(self.survey([10, 30]), [7 + 25, 27 + 25], TrainSettings())
        assert found.kept.tolist() == [26, 26]
        assert found.step == 84

    def test_a_step_of_tokens(self):
        assert sizes_of(self.survey([10, 30]), [10, 30], TrainSettings(batch_tokens=64)).step == 64
        assert sizes_of(self.survey([10, 90]), [10, 90], TrainSettings(batch_tokens=64)).step == 90

    def test_a_step_of_sampled_rows_may_hold_the_longest_more_than_once(self):
        run = TrainSettings(batch_rows=2, sampling="balanced")
        assert sizes_of(self.survey([10, 30, 20]), [10, 30, 20], run).step == 60

    def test_a_step_is_shared(self):
        lengths = [10] * 15 + [30]
        found = sizes_of(self.survey(lengths), lengths, TrainSettings(batch_rows=16), world=4)
        assert found.step == 45 + 30
        assert sizes_of(self.survey([30]), [30], TrainSettings(), world=4).step == 30
