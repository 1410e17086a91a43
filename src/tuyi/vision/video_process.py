"""A process that reads videos of unknown origin, so that what they do to a decoder is done to it alone.

It is asked on its standard input, in pickled tuples, and answers on its standard output with a line of JSON, then the
patches where they were asked for. It may take so much memory and write no file; who asks it may kill it at any time.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import av

from tuyi.data.example import Video
from tuyi.errors import MediaError
from tuyi.task.task import Budget
from tuyi.vision.spec import VideoPatches, VisionSpec
from tuyi.vision.video import video_patches
from tuyi.vision.video_file import VideoInfo, probe_video

__all__ = ["VideoLimits", "main"]

_CONTAINERS = "mov,mp4,matroska,webm,avi"
_MEMORY = 4 << 30
_NICE = 5


@dataclass(frozen=True, slots=True)
class VideoLimits:
    """What a video may have at most.

    Args:
        pixels: Of a frame, by the header.
        seconds: From its begin to its end.
    """

    pixels: int
    seconds: float


def main() -> None:
    """Answer until nothing more is asked."""
    for what, most in ((resource.RLIMIT_AS, _MEMORY), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(what, (most, most))
    os.nice(_NICE)
    asked, answers = sys.stdin.buffer, sys.stdout.buffer
    with suppress(EOFError):
        while True:
            told, patches = _answer(pickle.load(asked))
            answers.write(json.dumps(told).encode() + b"\n")
            if patches is not None:
                answers.write(patches.values.data)
            answers.flush()


def _answer(
    asked: tuple[Video, VideoLimits] | tuple[Video, VideoLimits, VisionSpec, Budget],
) -> tuple[dict[str, Any], VideoPatches | None]:
    video, limits = asked[:2]
    try:
        info = _info(video, limits)
        if len(asked) == 2:
            return asdict(info), None
        patches = video_patches(video, asked[2], asked[3])
    except MediaError as error:
        return {"error": error.message}, None
    except MemoryError:
        return {"error": f"video {video}: needs more than {_MEMORY >> 30} GiB to decode; scale it down"}, None
    return _told(patches), patches


def _told(patches: VideoPatches) -> dict[str, Any]:
    values = patches.values
    return {
        "shape": values.shape,
        "grid": patches.grid,
        "seconds_per_grid": patches.seconds_per_grid,
        "timestamps": patches.timestamps,
    }


def _info(video: Video, limits: VideoLimits) -> VideoInfo:
    """What a video holds, within its limits; its head is looked at before anything is decoded."""
    assert isinstance(video.source, bytes), "videos of requests are bytes"
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"}
    try:
        with av.open(io.BytesIO(video.source), "r", options=options) as container:
            heads = [one.codec_context for one in container.streams.video[:1]]
            for head in heads:
                if head is not None:
                    _check_size(video, head.width, head.height, limits)
            _check_length(video, (container.duration or 0) / av.time_base, limits)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise MediaError(
            f"video {video}: expected an mp4, webm, mkv, mov or avi file, "
            f"found something else or a damaged one ({error})"
        ) from error
    info = probe_video(video)
    _check_size(video, info.width, info.height, limits)  # of a frame, whatever the header said
    _check_length(video, info.duration, limits)
    return info


def _check_size(video: Video, width: int, height: int, limits: VideoLimits) -> None:
    if width * height > limits.pixels:
        raise MediaError(
            f"video {video}: expected frames of at most {limits.pixels:,} pixels, found {width} x {height}; "
            "scale it down"
        )


def _check_length(video: Video, seconds: float, limits: VideoLimits) -> None:
    if seconds > limits.seconds:
        raise MediaError(f"video {video}: expected at most {limits.seconds:g} s, found {seconds:.0f} s; cut it shorter")


if __name__ == "__main__":
    main()
