from __future__ import annotations

import gc
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tuyi.errors import ConfigError
from tuyi.vision.arena import Arena, Block

PAGE = 4096


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def span(block: Block) -> tuple[int, int]:
    assert block.start is not None
    return block.start, block.start + len(block.memory)


def test_live_blocks_never_overlap_and_the_ring_comes_round() -> None:
    rng = random.Random(0)
    wraps = 0
    with Arena(16 * PAGE) as arena:
        live: list[Block] = []
        for number in range(2000):
            size = rng.randint(1, 6 * PAGE)
            while arena._room(size) is None:
                live.pop(rng.randrange(min(3, len(live)))).release()  # about in order
            block = arena.block(size)
            start, end = span(block)
            assert end <= arena.size
            assert all(end <= low or high <= start for low, high in map(span, live))
            wraps += bool(live) and start < span(live[-1])[0]
            block.memory[:] = number % 251
            assert (arena.memory[start:end] == number % 251).all()
            live.append(block)
    assert wraps > 100


def test_a_block_waits_for_the_one_before_it() -> None:
    with Arena(4 * PAGE) as arena, ThreadPoolExecutor(1) as pool:
        first, second = arena.block(2 * PAGE), arena.block(2 * PAGE)
        third = pool.submit(arena.block, PAGE)
        second.release()  # not the oldest: first in, first out
        with pytest.raises(TimeoutError):
            third.result(0.1)
        first.release()
        assert third.result(5).start == 0
        first.release()  # twice is once
        assert arena.block(2 * PAGE).start == PAGE


def test_takes_by_many_threads_are_apart() -> None:
    with Arena(4 * PAGE) as arena, ThreadPoolExecutor(8) as pool:
        block = arena.block(4 * PAGE)
        starts = [start for _, start in pool.map(lambda _: block.take(64), range(256))]
        assert sorted(start for start in starts if start is not None) == list(range(0, 4 * PAGE, 64))
        with pytest.raises(OverflowError, match="expected at most 0 more bytes, as was counted before, found 1"):
            block.take(1)


def test_a_block_larger_than_the_arena_is_ordinary_memory() -> None:
    with Arena(PAGE) as arena, arena.block(10 * PAGE) as block:
        view, start = block.take(9 * PAGE)
        assert start is None
        assert not np.shares_memory(view, arena.memory)
        assert arena.block(PAGE).start == 0  # and no room is lost to it


def test_closing_wakes_who_waits_and_leaves_no_descriptor() -> None:
    before = descriptors()
    arena = Arena(PAGE)
    kept = arena.block(PAGE)
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            arena.block(1)
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    arena.close()
    arena.close()
    thread.join(5)
    assert "closed" in str(caught[0])
    kept.memory[:] = 7  # an array that is still held stays good
    del kept
    assert descriptors() == before


def test_memory_that_cannot_be_had() -> None:
    with pytest.raises(ConfigError, match=r"shared memory for pictures: expected .* refused .*; use a smaller arena"):
        Arena(1 << 62)


@pytest.mark.gpu
def test_pinned_memory_reaches_the_gpu() -> None:
    import torch

    with Arena(16 * PAGE, pin=True) as arena, arena.block(16 * PAGE) as block:
        values, _ = block.take(16 * PAGE)
        values[:] = np.arange(16 * PAGE) % 251
        host = torch.from_numpy(values)
        assert host.is_pinned()
        device = host.to("cuda", non_blocking=True)
        torch.cuda.synchronize()
        assert (device.cpu().numpy() == values).all()
    with Arena(PAGE, pin=True) as arena:  # and is free to be pinned again
        assert torch.from_numpy(arena.memory).is_pinned()


def test_pinning_without_a_gpu_says_so() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("has a GPU")
    before = descriptors()
    with pytest.raises(ConfigError, match=r"pinned memory for pictures: expected a CUDA GPU, found none \("):
        Arena(PAGE, pin=True)
    assert descriptors() == before
