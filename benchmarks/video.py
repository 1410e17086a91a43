"""From video file to model input: a minute of 1080p at 2 frames a second, against qwen-vl-utils in the same run.

    python benchmarks/video.py [--seconds 60] [--repeats 3] [--threads 2] [--file VIDEO]

The video is made up: a textured picture that pans, H.264 as x264 makes it by default (B-frames, a key every 250
frames). qwen-vl-utils reads with its own default, torchcodec, where that works here, and with decord where that is
installed; both choose the same frames and sizes, which is checked. Its time ends with resized frames; ours with
patches. All ways in turn, the least of the repeats counts.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image as Pillow

from tuyi.data.example import Video
from tuyi.task.task import Budget
from tuyi.vision import video_file
from tuyi.vision.spec import VideoPatches, VisionSpec
from tuyi.vision.video import frame_indices, probe_video, video_patches

SPEC = VisionSpec("qwen2_5_vl")
TOKEN = SPEC.factor**2
# qwen-vl-utils' own limits; its total counts pairs of frames, ours frames
BUDGET = Budget(min_pixels=128 * TOKEN, video_max_pixels=768 * TOKEN, video_total_pixels=2 * int(128_000 * TOKEN * 0.9))


def write_video(file: Path, seconds: int, size: tuple[int, int] = (1920, 1080), rate: int = 30) -> None:
    """A textured picture that pans, with a square that moves across."""
    rng = np.random.default_rng(0)
    width, height = size
    coarse = Pillow.fromarray(rng.integers(0, 256, (45, 80, 3), dtype=np.uint8))
    wide = np.asarray(coarse.resize((width + 480, height + 270), Pillow.Resampling.BICUBIC)).astype(np.int16)
    canvas = np.clip(wide + rng.integers(-12, 13, (*wide.shape[:2], 1)), 0, 255).astype(np.uint8)
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.thread_type = "AUTO"
        for number in range(seconds * rate):
            x, y = int(240 + 239 * np.sin(number / 37)), int(135 + 134 * np.sin(number / 53))
            pixels = canvas[y : y + height, x : x + width].copy()
            at = number * 7 % (width - 200)
            pixels[300:500, at : at + 200] = (255, 40, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def theirs(file: Path, backend: str) -> tuple[Any, list[int]]:
    """Frames of qwen-vl-utils, and their numbers."""
    vision_process: Any = import_module("qwen_vl_utils.vision_process")
    vision_process.FORCE_QWENVL_VIDEO_READER = backend
    vision_process.get_video_reader_backend.cache_clear()
    read = vision_process.VIDEO_READER_BACKENDS[backend]
    video, about = vision_process.fetch_video({"video": str(file)}, return_video_metadata=True)
    assert vision_process.VIDEO_READER_BACKENDS[backend] is read
    if about["video_backend"] != backend:
        raise RuntimeError(f"{backend} does not work here; {about['video_backend']} took over")
    return video, [int(index) for index in about["frames_indices"]]


def ours(file: Path) -> VideoPatches:
    """Patches, nothing remembered of the file."""
    video_file._LOOKS.clear()
    return video_patches(Video(file), SPEC, BUDGET)


def frames_of(patches: VideoPatches) -> Any:
    """The frames that patches were cut from, (T, 3, height, width)."""
    t, h, w = patches.grid
    side, merge, step = SPEC.patch_size, SPEC.merge_size, SPEC.temporal_patch_size
    cut = patches.values.reshape(t, h // merge, w // merge, merge, merge, 3, step, side, side)
    return cut.transpose(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(t * step, 3, h * side, w * side)


def usable(file: Path) -> dict[str, Callable[[], Any]]:
    """Every way that works here, checked to show the same."""
    expected = frame_indices(probe_video(Video(file)), SPEC, BUDGET)
    frames = frames_of(ours(file))
    ways: dict[str, Callable[[], Any]] = {"tuyi": lambda: ours(file)}
    for backend in ("torchcodec", "decord"):
        try:
            video, indices = theirs(file, backend)
        except (ImportError, RuntimeError, OSError, AttributeError) as error:
            print(f"qwen-vl-utils with {backend}: not here ({str(error).splitlines()[0]})")
            continue
        assert indices == expected
        assert tuple(video.shape) == frames.shape
        away = np.abs(video.numpy() - frames)
        print(f"values of {backend}: {(away <= 1).mean():.4%} within 1 of 255, the largest difference {away.max():.0f}")
        ways[f"qwen-vl-utils, {backend}"] = partial(theirs, file, backend)
    return ways


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="for torch and torchcodec")
    parser.add_argument("--file", type=Path, help="a video to read instead of one that is made")
    options = parser.parse_args()
    os.environ["TORCHCODEC_NUM_THREADS"] = str(options.threads)
    import torch

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        file = options.file or Path(folder) / "made.mp4"
        if options.file is None:
            write_video(file, options.seconds)
        info = probe_video(Video(file))
        shown = len(frame_indices(info, SPEC, BUDGET))
        print(f"{info.width} x {info.height}, {info.duration:.0f} s, {info.frames} frames, {shown} of them shown")
        ways = usable(file)
        walls: dict[str, list[float]] = {name: [] for name in ways}
        cpus: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.repeats):
            for name, way in ways.items():
                wall, cpu = time.perf_counter(), time.process_time()
                way()
                walls[name].append(time.perf_counter() - wall)
                cpus[name].append(time.process_time() - cpu)
    print("\n| | seconds | CPU seconds | against tuyi |\n|---|---|---|---|")
    for name in ways:
        wall = min(walls[name])
        print(f"| {name} | {wall:.2f} | {min(cpus[name]):.2f} | {wall / min(walls['tuyi']):.2f}× |")


if __name__ == "__main__":
    main()
