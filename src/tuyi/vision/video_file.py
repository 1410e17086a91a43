"""Video files: what is in them, and their frames one after another."""

from __future__ import annotations

import io
import stat
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from tuyi.errors import MediaError
from tuyi.vision.image import MAX_PICTURE_PIXELS
from tuyi.vision.trailer import is_whole_matroska
from tuyi.vision.video_packets import Packets, decode_chosen

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tuyi.data.example import Video

__all__ = ["VideoInfo", "probe_video", "read_frames"]

CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,ivf,h264,hevc"
"""FFmpeg's names of the containers that are opened; play lists, which may name other files, are not among them."""

_PACKET_IS_FRAME = {"h264", "hevc", "av1", "vp9", "mjpeg"}
"""Codecs of which mp4 and Matroska hold exactly one shown frame a packet, so that counting needs no decoding."""

_UNKNOWN_FPS = 24.0
"""Frame rate of a video that tells none; transformers assumes the same."""

_FIX = "fetch the file again, or re-encode it: ffmpeg -i IN -c:v libx264 OUT.mp4"


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a video file holds.

    Args:
        width, height: Size of a frame in pixels as a player shows it, rotation applied.
        frames: Number of frames.
        fps: Mean frames a second.
        duration: Seconds, ``frames / fps``.
    """

    width: int
    height: int
    frames: int
    fps: float
    duration: float


def probe_video(video: Video) -> VideoInfo:
    """Size, length and rate of a video, with a test that its first frame decodes and that the file is whole.

    mp4 and Matroska are counted by their packets; other files are decoded once to count their frames. What the last
    few files held is remembered until they change.

    Raises:
        MediaError: Missing, a directory, empty, not a video, without frames, truncated or damaged.
    """
    return _look(video)[0]


def read_frames(video: Video, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    """Chosen frames, upright, RGB; the video streams by and only the chosen frames are converted.

    Args:
        video: Reference to the video.
        indices: Numbers of the frames in order of presentation, rising.

    Yields:
        uint8, shape (height, width, 3).

    Raises:
        MediaError: As :func:`probe_video`, or the decoder gives fewer frames than that counted.
    """
    from av.video.reformatter import VideoReformatter

    _, packets = _look(video)
    given = 0
    to_rgb = VideoReformatter()  # one for all frames: each has to set up its tables
    if packets is not None:
        with _opened(video) as (container, stream, _):
            stream.thread_type = "AUTO"
            for frame in decode_chosen(container, stream, packets, indices):
                given += 1
                yield _upright(frame, to_rgb)
    for frame in _in_turn(video, indices[given:]):
        yield _upright(frame, to_rgb)


def _in_turn(video: Video, indices: Sequence[int]) -> Iterator[Any]:
    """Chosen frames of a decoder that is given everything."""
    if not indices:
        return
    wanted = iter(indices)
    next_index = next(wanted)
    count = 0
    with _opened(video) as (container, stream, _):
        stream.thread_type = "AUTO"
        for frame in _frames(video, container, stream):
            if count == next_index:
                yield frame
                if (following := next(wanted, None)) is None:
                    return
                next_index = following
            count += 1
    raise MediaError(f"video {video}: expected more than {next_index} frames, the decoder gave {count}; {_FIX}")


def _upright(frame: Any, to_rgb: Any) -> NDArray[np.uint8]:
    """A frame as a player shows it."""
    turned: NDArray[np.uint8] = np.rot90(to_rgb.reformat(frame, format="rgb24").to_ndarray(), _quarter_turns(frame))
    return turned


_LOOKS: OrderedDict[tuple[str | bytes, int, int], tuple[VideoInfo, Packets | None]] = OrderedDict()
_MOST_LOOKS = 16


def _look(video: Video) -> tuple[VideoInfo, Packets | None]:
    """What a video holds, and its packets where they tell frames apart."""
    key = _identity(video)
    if key is None:
        return _first_look(video)  # which says what is wrong
    found = _LOOKS.get(key)
    if found is None:
        found = _LOOKS[key] = _first_look(video)
        while len(_LOOKS) > _MOST_LOOKS:
            _LOOKS.popitem(last=False)
    return found


def _identity(video: Video) -> tuple[str | bytes, int, int] | None:
    """Equal for equal files; None where there is none."""
    if isinstance(video.source, bytes):
        return blake2b(video.source).digest(), 0, len(video.source)
    try:
        status = video.source.stat()
    except OSError:
        return None
    return str(video.source.absolute()), status.st_mtime_ns, status.st_size


def _first_look(video: Video) -> tuple[VideoInfo, Packets | None]:
    with _opened(video) as (container, stream, length):
        name = container.format.name
        by_packet = name.startswith(("mov", "matroska")) and stream.codec_context.name in _PACKET_IS_FRAME
        packets, times = _packets(video, container, stream, length) if by_packet else (None, [])
        if by_packet:
            container.seek(0)
        else:
            stream.thread_type = "AUTO"
        width = height = 0
        for frame in _frames(video, container, stream):
            if not width:
                width, height = (
                    (frame.height, frame.width) if _quarter_turns(frame) % 2 else (frame.width, frame.height)
                )
            if by_packet:
                break
            times.append(frame.time)
        if not times or not width:
            raise MediaError(f"video {video}: expected at least 1 frame, found none; {_FIX}")
        fps = _fps(stream, times)
        return VideoInfo(width, height, len(times), fps, len(times) / fps), packets


@contextmanager
def _opened(video: Video) -> Iterator[tuple[Any, Any, int]]:
    """The container, its first video stream and the file's length in bytes; every error as a MediaError."""
    try:
        length = _length(video)
        source = io.BytesIO(video.source) if isinstance(video.source, bytes) else str(video.source)
        with av.open(source, options={"format_whitelist": CONTAINERS}) as container:
            if not container.streams.video:
                raise MediaError(f"video {video}: expected a video stream, found none; name a file with pictures in it")
            if container.format.name.startswith("matroska") and not _is_whole_matroska(video):
                raise MediaError(f"video {video}: expected a whole video, found a truncated one; {_FIX}")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise MediaError(f"video {video}: expected a codec that FFmpeg decodes, found an unknown one; {_FIX}")
            width, height = stream.codec_context.width, stream.codec_context.height
            if width * height > MAX_PICTURE_PIXELS:
                raise MediaError(
                    f"video {video}: expected frames of at most {MAX_PICTURE_PIXELS:,} pixels, "
                    f"found {width} x {height}; scale it down before use"
                )
            yield container, stream, length
    except FileNotFoundError as error:
        raise MediaError(f"video {video}: expected a file, found none there; check the name and folder") from error
    except PermissionError as error:
        raise MediaError(f"video {video}: expected a readable file, found no permission; grant it") from error
    except (av.FFmpegError, OSError, ValueError) as error:
        raise MediaError(
            f"video {video}: expected a video (mp4, webm, mkv, avi, mov, …), "
            f"found something else or a truncated one ({error}); {_FIX}"
        ) from error


def _length(video: Video) -> int:
    if isinstance(video.source, bytes):
        length = len(video.source)
    else:
        status = video.source.stat()
        if stat.S_ISDIR(status.st_mode):
            raise MediaError(f"video {video}: expected a file, found a folder; name one of the files in it")
        length = status.st_size
    if length == 0:
        raise MediaError(f"video {video}: expected a video, found an empty file; replace the file")
    return length


def _is_whole_matroska(video: Video) -> bool:
    if isinstance(video.source, bytes):
        return is_whole_matroska(io.BytesIO(video.source))
    with video.source.open("rb") as file:
        return is_whole_matroska(file)


def _packets(video: Video, container: Any, stream: Any, length: int) -> tuple[Packets | None, list[float | None]]:
    """The packets, and presentation times of the frames, one a packet, without decoding."""
    rows: list[tuple[int | None, bool, bool]] = []
    whole = True
    for packet in container.demux(stream):
        if packet.size:
            rows.append((packet.pts, packet.is_keyframe, not packet.is_discard))
            whole = whole and (packet.is_discard or not packet.is_corrupt)
    if not whole or any(entry.pos + entry.size > length for entry in stream.index_entries):
        raise MediaError(f"video {video}: expected a whole video, found a truncated one of {length:,} bytes; {_FIX}")
    times = [None if pts is None else float(pts * stream.time_base) for pts, _, is_shown in rows if is_shown]
    if any(pts is None for pts, _, _ in rows):
        return None, times
    pts, keys, shown = (np.array(column) for column in zip(*rows)) if rows else (np.zeros(0),) * 3
    return Packets(pts.astype(np.int64), keys.astype(bool), shown.astype(bool)), times


def _frames(video: Video, container: Any, stream: Any) -> Iterator[Any]:
    """Frames in order of presentation; a frame that the decoder had to make up is an error."""
    for index, frame in enumerate(container.decode(stream)):
        if frame.is_corrupt:
            raise MediaError(f"video {video}: expected a whole video, found frame {index} truncated or damaged; {_FIX}")
        yield frame


def _quarter_turns(frame: Any) -> int:
    """Counter-clockwise quarter turns that the file asks a player to make."""
    return int(round(frame.rotation / 90) % 4)


def _fps(stream: Any, times: list[float | None]) -> float:
    """The stated rate, where the frames' own times bear it out; else theirs."""
    stated = float(stream.average_rate or stream.guessed_rate or 0)
    known = [time for time in times if time is not None]
    span = max(known) - min(known) if known else 0.0
    seen = (len(times) - 1) / span if span > 0 and len(known) == len(times) else 0.0
    if seen and abs(seen - stated) > 0.02 * seen:
        return seen
    return stated or _UNKNOWN_FPS
