from __future__ import annotations

import gc
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from tuyi.data.example import Image
from tuyi.errors import MediaError
from tuyi.vision.augment import Augment
from tuyi.vision.patches import image_patches
from tuyi.vision.pool import PicturePool
from tuyi.vision.spec import VisionSpec

SPEC = VisionSpec("qwen2_vl")
BUDGET = (3136, 100_352)


def picture(seed: int, width: int = 300, height: int = 200, form: str = "PNG") -> Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Pillow.fromarray(values).save(file, form)
    return Image(file.getvalue(), name=f"{seed}.{form.lower()}")


def size_of(images: list[Image]) -> int:
    return sum(image_patches(image, SPEC, *BUDGET).values.nbytes for image in images)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited 20 s in vain"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(scope="module")
def shared() -> Iterator[PicturePool]:
    with PicturePool(2, 1 << 20) as pool:
        yield pool


def test_as_image_patches_from_many_threads(shared: PicturePool, tmp_path: Path) -> None:
    images = [picture(seed, 100 + 30 * seed, form=form) for seed, form in enumerate(["PNG", "JPEG", "WEBP"] * 4)]
    for seed in (0, 1, 2):
        path = tmp_path / f"{seed}.jpg"
        path.write_bytes(images[seed].source)  # type: ignore[arg-type]
        images.append(Image(path))
    with shared.block(size_of(images)) as block, ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda image: shared.patches(image, SPEC, *BUDGET, block), images))
        assert len(found) == 15
        for image, patches in zip(images, found, strict=True):
            alone = image_patches(image, SPEC, *BUDGET)
            assert patches.grid == alone.grid
            assert (patches.values == alone.values).all()
            assert np.shares_memory(patches.values, block.memory)


def test_many_blocks_pass_through_a_small_arena(shared: PicturePool) -> None:
    images = [picture(seed) for seed in range(4)]
    size = size_of(images[:1])
    assert 30 * size > 2 * shared._arena.size
    for turn in range(30):
        with shared.block(size) as block:
            patches = shared.patches(images[turn % 4], SPEC, *BUDGET, block)
            assert (patches.values == image_patches(images[turn % 4], SPEC, *BUDGET).values).all()


def test_a_block_larger_than_the_arena(shared: PicturePool) -> None:
    with shared.block(2 << 20) as block:
        patches = shared.patches(picture(1), SPEC, *BUDGET, block)
        assert np.shares_memory(patches.values, block.memory)
        assert (patches.values == image_patches(picture(1), SPEC, *BUDGET).values).all()


def test_errors_are_those_of_image_patches(shared: PicturePool, tmp_path: Path) -> None:
    whole = picture(1).source
    assert isinstance(whole, bytes)
    bad = [Image(tmp_path / "missing.png"), Image(tmp_path), Image(b""), Image(b"text", name="a"), Image(whole[:5000])]
    before = shared.pids
    with shared.block(1000) as block:
        for image in bad:
            with pytest.raises(MediaError) as alone:
                image_patches(image, SPEC, *BUDGET)
            with pytest.raises(MediaError) as pooled:
                shared.patches(image, SPEC, *BUDGET, block)
            assert str(pooled.value) == str(alone.value)
    assert shared.pids == before


def test_a_block_without_room_for_the_picture(shared: PicturePool) -> None:
    with shared.block(size_of([picture(1)]) + 10) as block:
        shared.patches(picture(1), SPEC, *BUDGET, block)
        with pytest.raises(MediaError, match=r"picture 2\.png: expected at most 10 more bytes, .* Start again"):
            shared.patches(picture(2), SPEC, *BUDGET, block)
    with shared.block(size_of([picture(1)])) as block:  # and the workers serve on
        for _ in range(2):
            block._used = 0
            shared.patches(picture(1), SPEC, *BUDGET, block)


def test_draft(tmp_path: Path) -> None:
    smooth = Pillow.linear_gradient("L").resize((1600, 1200)).convert("RGB")
    smooth.save(tmp_path / "a.jpg")
    image = Image(tmp_path / "a.jpg")
    with PicturePool(1, 1 << 20, draft=True) as pool, pool.block(1 << 20) as block:
        values = pool.patches(image, SPEC, *BUDGET, block).values
    assert (values == image_patches(image, SPEC, *BUDGET, draft=True).values).all()
    assert (values != image_patches(image, SPEC, *BUDGET).values).any()


def test_augmented_as_in_this_process(shared: PicturePool) -> None:
    augment = Augment(jpeg_quality=(40, 95), blur=0.7, scale=0.6, brightness=0.2, contrast=0.2, share=0.8)
    images = [picture(seed) for seed in range(3)]
    asked = [(image, seed) for image in images for seed in range(4)]
    with shared.block(4 * size_of(images)) as block, ThreadPoolExecutor(2) as threads:
        found = list(
            threads.map(lambda one: shared.patches(one[0], SPEC, *BUDGET, block, augment=augment, seed=one[1]), asked)
        )
        assert len(found) == 12
        for (image, seed), patches in zip(asked, found, strict=True):
            assert (patches.values == image_patches(image, SPEC, *BUDGET, augment=augment, seed=seed).values).all()
        assert len({patches.values.tobytes() for patches in found}) > 9
    with shared.block(size_of(images[:1])) as block:
        plain = shared.patches(images[0], SPEC, *BUDGET, block, seed=3)
        assert (plain.values == image_patches(images[0], SPEC, *BUDGET).values).all()


# --- workers that die, and ends ---------------------------------------------------------------------------------------


def test_a_killed_worker_is_replaced_and_the_picture_tried_again(shared: PicturePool) -> None:
    image = picture(1)
    with shared.block(size_of([image])) as block, ThreadPoolExecutor(1) as threads:
        before = shared.pids
        for pid in before:
            os.kill(pid, signal.SIGSTOP)
        result = threads.submit(shared.patches, image, SPEC, *BUDGET, block)
        until(lambda: any(worker.busy for worker in shared._workers))
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        assert (result.result(20).values == image_patches(image, SPEC, *BUDGET).values).all()
    assert len(set(shared.pids) - set(before)) == 1


def test_a_picture_that_kills_two_workers_is_named(tmp_path: Path) -> None:
    trap = tmp_path / "trap.jpg"
    os.mkfifo(trap)  # opening it waits for ever
    with PicturePool(1, 1 << 20) as pool, pool.block(1 << 20) as block, ThreadPoolExecutor(1) as threads:
        result = threads.submit(pool.patches, Image(trap), SPEC, *BUDGET, block)
        killed: set[int] = set()
        while not result.done():
            time.sleep(0.05)
            for pid in set(pool.pids) - killed:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        with pytest.raises(MediaError, match=r"trap\.jpg: .* ended twice \(signal 9\)"):
            result.result()
        assert len(killed) == 2
        assert (pool.patches(picture(1), SPEC, *BUDGET, block).values > 0).any()


def test_workers_ignore_ctrl_c(shared: PicturePool) -> None:
    images = [picture(seed) for seed in range(4)]
    with shared.block(size_of(images)) as block, ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda image: shared.patches(image, SPEC, *BUDGET, block), images))
    before = shared.pids
    assert len(before) == 2
    for pid in before:
        assert os.getpgid(pid) != os.getpgid(0)
        os.kill(pid, signal.SIGINT)
    with shared.block(size_of(images)) as block:
        for image in images:
            shared.patches(image, SPEC, *BUDGET, block)
    assert shared.pids == before


def test_closing_ends_workers_and_wakes_callers(tmp_path: Path) -> None:
    before = descriptors()
    trap = tmp_path / "trap.jpg"
    os.mkfifo(trap)
    pool = PicturePool(1, 1 << 20)
    block = pool.block(1 << 20)
    with ThreadPoolExecutor(3) as threads:
        waiting: list[Future[object]] = [threads.submit(pool.block, 1)]
        waiting += [threads.submit(pool.patches, Image(trap), SPEC, *BUDGET, block) for _ in range(2)]
        workers, (worker,) = pool.pids, pool._workers
        while not worker.busy:
            time.sleep(0.01)
        pool.close()
        pool.close()
        for one in waiting:
            with pytest.raises(RuntimeError, match="the picture pool is closed"):
                one.result(10)
    assert len(workers) == 1
    assert not any(map(is_alive, workers))
    with pytest.raises(RuntimeError, match="closed"):
        pool.patches(picture(1), SPEC, *BUDGET, block)
    del pool, block, waiting, one, worker
    assert descriptors() == before


SCRIPT = """
import sys, time
from pathlib import Path
from tuyi.data.example import Image
from tuyi.vision.pool import PicturePool
from tuyi.vision.spec import VisionSpec
pool = PicturePool(2, 1 << 20)
values = pool.patches(Image(Path(sys.argv[1])), VisionSpec("qwen2_vl"), 3136, 100352, pool.block(1 << 20)).values
print(*pool.pids, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_when_the_script_is_killed(end: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(1).source)  # type: ignore[arg-type]
    (tmp_path / "numpy.py").write_text("raise SystemExit")  # what lies in the folder is not imported
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text(SCRIPT)  # without a guard for __main__
    before = set(os.listdir("/dev/shm"))
    script = subprocess.Popen(
        [sys.executable, tmp_path / "script" / "script.py", "a.png"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert script.stdout is not None
    with script, script.stdout as out:
        workers = [int(pid) for pid in out.readline().split()]
        assert len(workers) == 2
        assert all(map(is_alive, workers))
        script.send_signal(end)
        script.wait(20)
    until(lambda: not any(map(is_alive, workers)))
    assert set(os.listdir("/dev/shm")) <= before


def test_workers_import_little() -> None:
    heavy = "('torch', 'transformers', 'av', 'pydantic', 'scipy', 'pyarrow', 'tuyi.data')"
    needed = "tuyi.vision.worker, tuyi.vision.resample, tuyi.vision.change"
    code = f"import sys, {needed}; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
