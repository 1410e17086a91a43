"""A video as rows of patches: which frames, at which size, in the order of the model's vision tower."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from tuyi.vision.resize import smart_resize
from tuyi.vision.spec import VideoPatches, VisionSpec
from tuyi.vision.video_file import VideoInfo, probe_video, read_frames

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image as Pillow

    from tuyi.data.example import Video
    from tuyi.task.task import Budget

__all__ = ["VideoInfo", "frame_indices", "probe_video", "video_grid", "video_patches", "video_timing"]

_MIN_FRAMES = 4
_AHEAD = 2
"""Decoded frames that wait to be resized, at most."""


def frame_indices(info: VideoInfo, spec: VisionSpec, budget: Budget) -> list[int]:
    """Numbers of the frames that the model is shown, evenly spread from the first to the last.

    ``budget.video_fps`` frames a second, at least 4 and at most ``budget.video_max_frames``, never more than there are,
    in a multiple of ``temporal_patch_size``. A video with fewer frames than that gives all of them.

    Source: ``smart_nframes`` and the frame readers of qwen-vl-utils.
    """
    step = spec.temporal_patch_size
    lowest = math.ceil(_MIN_FRAMES / step) * step
    highest = min(budget.video_max_frames, info.frames) // step * step
    count = min(max(info.frames / info.fps * budget.video_fps, lowest), highest)
    number = int(count // step) * step or min(info.frames, step)
    return [int(index) for index in np.linspace(0, info.frames - 1, number).round()]


def video_grid(info: VideoInfo, spec: VisionSpec, budget: Budget) -> tuple[int, int, int]:
    """The grid of a video of known size and length, without opening it.

    A frame has at most ``budget.video_max_pixels``, all shown frames together at most ``budget.video_total_pixels``;
    like the reference, no frame is pressed below 1.05 times ``budget.min_pixels``.

    Returns:
        (t, h, w) in patches.

    Source: ``fetch_video`` of qwen-vl-utils, which all three families were published with.
    """
    t = math.ceil(len(frame_indices(info, spec, budget)) / spec.temporal_patch_size)
    share = budget.video_total_pixels // (t * spec.temporal_patch_size)
    max_pixels = max(min(budget.video_max_pixels, share), int(budget.min_pixels * 1.05))
    tall, wide = smart_resize(info.height, info.width, spec.factor, budget.min_pixels, max_pixels)
    return t, tall // spec.patch_size, wide // spec.patch_size


def video_timing(info: VideoInfo, spec: VisionSpec, budget: Budget) -> tuple[float, tuple[float, ...]]:
    """Seconds between two temporal patches, and the second at which each stands, without opening the video.

    Source: ``second_per_grid_ts`` of transformers' Qwen2.5-VL processor; ``_calculate_timestamps`` of its Qwen3-VL
    processor, which takes the middle of the first and last frame of a temporal patch.
    """
    indices = frame_indices(info, spec, budget)
    step = spec.temporal_patch_size
    sampled_fps = len(indices) / info.frames * info.fps
    padded = indices + indices[-1:] * (-len(indices) % step)
    stamps = [(padded[i] / info.fps + padded[i + step - 1] / info.fps) / 2 for i in range(0, len(padded), step)]
    return step / sampled_fps, tuple(stamps)


def video_patches(video: Video, spec: VisionSpec, budget: Budget) -> VideoPatches:
    """A video, decoded as a stream, its chosen frames resized (bicubic, on uint8) and cut into patches.

    Frames that do not fill the last temporal patch are followed by copies of the last one, as the reference does.

    Args:
        video: Reference to the video.
        spec: The model's vision tower.
        budget: Frames and pixels.

    Raises:
        MediaError: The video cannot be used.

    Source: transformers' ``Qwen2VLVideoProcessor`` and ``Qwen3VLVideoProcessor`` for the order of the values.
    """
    from concurrent.futures import Future, ThreadPoolExecutor

    from PIL import Image as Pillow

    from tuyi.vision.resample import resample

    info = probe_video(video)
    t, h, w = grid = video_grid(info, spec, budget)
    step, side = spec.temporal_patch_size, spec.patch_size
    values = np.empty((t, h * w, 3 * step * side**2), np.uint8)

    def place(number: int, frame_HWC: NDArray[np.uint8]) -> None:
        at, slot = divmod(number, step)
        picture = resample(Pillow.fromarray(frame_HWC), (w * side, h * side))
        _cut(picture, spec, values[at], slot)
        if at == t - 1:
            each = values[at].reshape(h * w, 3, step, side**2)
            each[:, :, slot + 1 :] = each[:, :, slot : slot + 1]

    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1) as resizer:  # the decoder goes on meanwhile
        for number, frame_HWC in enumerate(read_frames(video, frame_indices(info, spec, budget))):
            waiting.append(resizer.submit(place, number, frame_HWC))
            if len(waiting) > _AHEAD:
                waiting.popleft().result()
        for placed in waiting:
            placed.result()
    seconds_per_grid, timestamps = video_timing(info, spec, budget)
    return VideoPatches(values.reshape(t * h * w, -1), grid, seconds_per_grid, timestamps)


def _cut(picture: Pillow.Image, spec: VisionSpec, out: NDArray[np.uint8], slot: int) -> None:
    """Put a frame into its slot of a temporal patch's rows, as :func:`~tuyi.vision.patches.cut` does for pictures.

    Args:
        picture: RGB; sides are multiples of ``spec.factor``.
        spec: The model's vision tower.
        out: Contiguous, shape (h * w, 3 * temporal_patch_size * patch_size ** 2).
        slot: Number of the frame in the temporal patch.
    """
    side, merge = spec.patch_size, spec.merge_size
    h, w = picture.height // spec.factor, picture.width // spec.factor
    patches = out.reshape(h, w, merge, merge, 3, spec.temporal_patch_size, side, side)
    line = np.dtype(f"V{side}")  # lines of a patch are moved whole; numpy would move them byte by byte
    for channel, plane in enumerate(picture.split()):
        lines = np.frombuffer(plane.tobytes(), line).reshape(h, merge, side, w, merge)
        np.copyto(patches[:, :, :, :, channel, slot].view(line)[..., 0], lines.transpose(0, 3, 1, 4, 2))
