"""Rows on their way to the model: order, packs, how far ahead they are read, damage, ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from itertools import count, islice, pairwise
from typing import Any

import pytest
import torch

from tuyi.data.example import Example, Image, Text
from tuyi.encode.encoded import Encoded
from tuyi.encode.encoder import Encoder
from tuyi.errors import DataError
from tuyi.predict.engine import SizedRow
from tuyi.predict.feed import Feed, Ready
from tuyi.vision.pool import PicturePool

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder(twins: Callable[[str], Any]) -> Encoder:
    encoder: Encoder = twins("qwen2_vl").encoder
    return encoder


@pytest.fixture(scope="module")
def sized(encoder: Encoder, mixed_rows: Callable[[int], list[Example]]) -> list[SizedRow]:
    return [(row, encoder.length(row, labelled=False).tokens) for row in mixed_rows(24)]


def feed(encoder: Encoder, **options: Any) -> closing[Feed]:
    return closing(Feed(encoder, CPU, **{"pack_tokens": 400, "workers": 2, "window": 1024, **options}))


def ids(packs: list[Ready]) -> list[str]:
    return [row.id for ready in packs for row in ready.encoded]


def in_time(action: Callable[[], Any], seconds: float = 5) -> bool:
    """Whether something ends; what does not is left behind in a thread that nothing waits for."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


@pytest.mark.parametrize("window", [24, 10, 1])
@pytest.mark.parametrize("pack_tokens", [1, 400, 100_000])
def test_each_row_once_longest_first_in_packs_within_the_budget(
    encoder: Encoder, sized: list[SizedRow], pack_tokens: int, window: int
):
    with feed(encoder, pack_tokens=pack_tokens, window=window) as ahead:
        packs = list(ahead.packs(sized))
    tokens = {row.id: (row.task, -count) for row, count in sized}
    for begin in range(0, 24, window):
        found = ids(packs)[begin : begin + window]
        assert set(found) == {row.id for row, _ in sized[begin : begin + window]}
        assert [tokens[name] for name in found] == sorted(tokens[name] for name in found), "tasks side by side"
    for ready in packs:
        alone = sum(map(len, ready.encoded)) + sum(sum(labels.branch_lengths) for labels in ready.labels)
        assert alone <= pack_tokens or len(ready.encoded) == 1
        assert len(ready.pack.ids) == alone - ready.pack.shared * (len(ready.encoded) - 1)
        assert [row.id for row in ready.pack.rows] == [row.id for row in ready.encoded]
        assert torch.equal(ready.batch.ids, torch.from_numpy(ready.pack.ids))
    sizes = [len(ready.encoded) for ready in packs]
    if pack_tokens == 1 or window == 1:
        assert sizes == [1] * 24
    elif pack_tokens == 100_000:
        assert sizes == [min(window, 24 - begin) for begin in range(0, 24, window)]
    else:
        assert max(sizes) > 2


@pytest.mark.parametrize("lanes", [2, 3])
def test_few_rows_are_shared_out_to_all_lanes(encoder: Encoder, sized: list[SizedRow], lanes: int):
    rows = [(replace(row, id=f"{copy}-{row.id}"), size) for copy in range(4) for row, size in sized]
    with feed(encoder, pack_tokens=100_000, lanes=lanes) as ahead:
        packs = list(ahead.packs(rows))
        assert len(list(ahead.packs(rows[:3]))) == 1, "too few to share"
    assert len(packs) == lanes
    assert sorted(name for ready in packs for name in ids([ready])) == sorted(row.id for row, _ in rows)
    tokens = [sum(map(len, ready.encoded)) for ready in packs]
    assert min(tokens) > 0.5 * max(tokens)


def test_rows_with_the_same_picture_stand_side_by_side(encoder: Encoder, picture: Callable[..., Image]):
    names = [1, 2, 3, 1, 2, 3, 1, 2, 3]
    rows = [
        Example(id=f"{seed}-{i}", content=(picture(seed=seed), Text("what?")), task="colour")
        for i, seed in enumerate(names)
    ]
    with feed(encoder, pack_tokens=100_000) as ahead:
        (ready,) = ahead.packs([(row, 100) for row in rows])
    shown = [name[0] for name in ids([ready])]
    assert sum(one != other for one, other in pairwise(shown)) == 2


def test_rows_are_read_as_they_are_needed(encoder: Encoder, sized: list[SizedRow], monkeypatch: pytest.MonkeyPatch):
    pulled, encoded = [], []

    def endless() -> Iterator[SizedRow]:
        for number in count():
            row, tokens = sized[number % 24]
            pulled.append(number)
            yield replace(row, id=f"{number}"), tokens

    encode = Encoder.encode

    def counted(self: Encoder, row: Example, **options: Any) -> Encoded:
        encoded.append(row.id)
        return encode(self, row, **options)

    monkeypatch.setattr(Encoder, "encode", counted)
    done = 0
    with feed(encoder, workers=1, window=6) as ahead, closing(ahead.packs(endless())) as packs:
        for ready in islice(packs, 12):
            done += len(ready.encoded)
            ahead._ahead._rows.submit(int).result()  # one worker: all that was handed to it is done
            assert len(ready.encoded) <= 6
            assert len(encoded) - done <= 3 * 6, "at most three packs ahead"
            assert len(pulled) - done <= 3 * 6 + 6, "and a window of rows that are not encoded yet"
    assert done > 12


def test_a_row_damaged_behind_its_header_stops_everything(
    encoder: Encoder, sized: list[SizedRow], damaged: Callable[..., Example]
):
    bad = damaged()
    rows = [*sized[:5], (bad, encoder.length(bad, labelled=False).tokens), *sized[5:]]
    ahead = Feed(encoder, CPU, pack_tokens=400, workers=2, window=8)
    with pytest.raises(DataError, match=r"id bad: .*broken\.jpg"):
        list(ahead.packs(rows))
    assert in_time(ahead.close)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("pack_tokens", [1, 400, 100_000])
def test_damaged_rows_are_told_of_and_the_others_go_on(
    encoder: Encoder, sized: list[SizedRow], damaged: Callable[..., Example], pack_tokens: int, pooled: bool
):
    bad = [damaged(f"bad{index}") for index in range(3)]
    rows = [(row, encoder.length(row, labelled=False).tokens) for row in bad]
    told: list[DataError] = []
    pool = PicturePool(2, 8 << 20) if pooled else None
    with feed(encoder, pack_tokens=pack_tokens, on_bad_row=told.append, pool=pool) as ahead:
        packs = list(ahead.packs([rows[0], *sized[:7], rows[1], *sized[7:], rows[2]]))
        none = list(ahead.packs(rows))
    if pool is not None:
        pool.close()
    assert sorted(ids(packs)) == sorted(row.id for row, _ in sized)
    assert none == []
    assert sorted(error.place.id or "" for error in told) == sorted(["bad0", "bad1", "bad2"] * 2)
    assert all("broken.jpg" in str(error) for error in told)
    for ready in packs:
        assert len(ready.labels) == len(ready.encoded) == len(ready.pack.rows)


def test_rows_that_are_written_stand_in_packs_of_their_own(encoder: Encoder, sized: list[SizedRow]):
    """With room for their answers; nothing behind their prompts is scored."""
    open_rows = [(Example(id=f"t{n}", content=(Text("hello" * n),), task="talk"), 20 + n) for n in range(7)]
    most = encoder.answers(encoder.tasks["talk"]).most
    assert most == 1025
    with feed(encoder, pack_tokens=3 * most) as ahead:
        packs = list(ahead.packs([*sized[:5], *open_rows, *sized[5:]]))
    assert sorted(ids(packs)) == sorted(row.id for row, _ in [*sized, *open_rows])
    written = [ready for ready in packs if ready.labels is None]
    assert [len(ready.encoded) for ready in written] == [2, 2, 2, 1]
    for ready in written:
        assert {row.task for row in ready.encoded} == {"talk"}
        assert len(ready.pack.keep) == len(ready.encoded)
        assert len(ready.pack.ids) == ready.pack.shared + sum(ready.pack.lengths)
    assert all(row.task != "talk" for ready in packs if ready.labels is not None for row in ready.encoded)


def test_closing_while_rows_are_encoded_ends_the_threads(
    encoder: Encoder, sized: list[SizedRow], monkeypatch: pytest.MonkeyPatch
):
    """Threads that are at work end their row; rows that nobody has begun are dropped; nothing waits for those."""
    encode, go_on, begun = Encoder.encode, threading.Event(), []

    def slow(self: Encoder, row: Example, **options: Any) -> Encoded:
        begun.append(row.id)
        if len(begun) > 6:  # the first pack is quick
            assert go_on.wait(20)
        return encode(self, row, **options)

    monkeypatch.setattr(Encoder, "encode", slow)
    before = set(threading.enumerate())
    ahead = Feed(encoder, CPU, pack_tokens=100_000, workers=2, window=6)
    submitted: list[Any] = []
    threads = ahead._ahead._rows
    submit = threads.submit
    monkeypatch.setattr(threads, "submit", lambda *a, **o: submitted.append(submit(*a, **o)) or submitted[-1])
    packs = ahead.packs(sized)
    assert len(next(packs).encoded) == 6
    while len(begun) < 8:
        time.sleep(0.01)
    threading.Timer(0.2, go_on.set).start()
    packs.close()
    try:
        assert in_time(ahead.close), "close() waits for rows that were cancelled"
        assert len(begun) == 8
    finally:
        go_on.set()
        for future in submitted:  # wakes who waits for it, so that a failure does not hang the tests
            if future._state == "CANCELLED":
                future.set_running_or_notify_cancel()
    ahead.close()
    assert not {thread for thread in set(threading.enumerate()) - before if thread.name.startswith(("rows", "packs"))}


@pytest.mark.parametrize("pack_tokens", [1, 300])
def test_patches_by_a_pool_are_those_of_threads(encoder: Encoder, sized: list[SizedRow], pack_tokens: int):
    """Also once the pool's memory has gone round several times."""
    with feed(encoder, pack_tokens=pack_tokens) as ahead:
        expected = list(ahead.packs(sized))
    with PicturePool(2, 1 << 20) as pool, feed(encoder, pack_tokens=pack_tokens, pool=pool) as ahead:
        found = list(ahead.packs(sized))
        assert ids(found) == ids(expected)
        assert sum(ready.batch.tower is not None for ready in found) > 3
        for one, other in zip(found, expected, strict=True):
            assert (one.batch.tower is None) == (other.batch.tower is None)
            if one.batch.tower is not None:
                assert one.batch.tower.patches.shape == other.batch.tower.patches.shape
                assert torch.equal(one.batch.tower.patches, other.batch.tower.patches), ids([one])


def test_what_was_stopped_gives_the_pools_memory_back(encoder: Encoder, sized: list[SizedRow]):
    rows = [pair for pair in sized if pair[0].images]
    pool = PicturePool(1, 600_000)
    with feed(encoder, pack_tokens=300, workers=1, pool=pool) as ahead:
        found: list[Ready] = []

        def again() -> None:
            with suppress(RuntimeError):  # the pool is closed below
                for _ in range(4):
                    with closing(ahead.packs(rows)) as packs:
                        next(packs)
                found.extend(ahead.packs(rows))

        ended = in_time(again)
        pool.close()  # wakes who waits for memory
    assert ended, "blocks of packs that were cancelled are never given back"
    assert sorted(ids(found)) == sorted(row.id for row, _ in rows)
