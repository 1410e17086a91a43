"""The packets of a video file, and which of them have to be decoded for chosen frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Packets", "decode_chosen"]


@dataclass(frozen=True, slots=True, eq=False)
class Packets:
    """Packets of a stream that holds one shown frame in each, in the order in which they are decoded.

    Args:
        pts: int64, shape (P,): presentation times, in units of the stream.
        is_key: bool, shape (P,): decoding can begin there.
        is_shown: bool, shape (P,): the frame is part of the video; others only lead up to its beginning.
    """

    pts: NDArray[np.int64]
    is_key: NDArray[np.bool_]
    is_shown: NDArray[np.bool_]

    def times_of(self, indices: Sequence[int]) -> NDArray[np.int64] | None:
        """Presentation times of shown frames by number; None where times do not tell frames apart."""
        shown = np.sort(self.pts[self.is_shown])
        if not len(shown) or (np.diff(shown) == 0).any() or max(indices, default=0) >= len(shown):
            return None
        times: NDArray[np.int64] = shown[list(indices)]
        return times

    def needed(self, times: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Which packets have to be decoded for the frames of these times: each from the last key before it on.

        A frame that is shown before a key though it lies behind it in the file belongs to an earlier one.

        Returns:
            bool, shape (P,); None where a frame has no key before it.
        """
        keys = np.flatnonzero(self.is_key)
        found = np.zeros(len(self.pts), bool)
        for at in np.flatnonzero(np.isin(self.pts, times) & self.is_shown):
            before = keys[: np.searchsorted(keys, at, "right")]
            before = before[self.pts[before] <= self.pts[at]]
            if not len(before):
                return None
            found[before[-1] : at + 1] = True
        return found


def decode_chosen(container: Any, stream: Any, packets: Packets, indices: Sequence[int]) -> Iterator[Any]:
    """Frames by number, decoding only what they need: nothing between a frame and the next key before another one.

    Pictures of H.264 that no other refers to are left out where they are not chosen. What comes out are the frames of
    a decoder that is given everything, or fewer: it ends early where the file's own times and keys mislead it.

    Args:
        container, stream: Just opened.
        packets: Of the stream.
        indices: Numbers of shown frames, rising.

    Source: ISO/IEC 14496-10, 7.4.1 (nal_ref_idc 0: not used for reference).
    """
    times = packets.times_of(indices)
    needed = None if times is None else packets.needed(times)
    if times is None or needed is None:
        return
    wanted = times.tolist()
    given = 0
    for frame in _decoded(container, stream, packets, needed, set(wanted)):
        if frame.pts == wanted[given]:
            if frame.is_corrupt:
                return
            yield frame
            given += 1
            if given == len(wanted):
                return
        elif frame.pts is None or frame.pts > wanted[given]:
            return


def _decoded(
    container: Any, stream: Any, packets: Packets, needed: NDArray[np.bool_], wanted: set[int]
) -> Iterator[Any]:
    context = stream.codec_context
    leaves_out = context.name == "h264"
    number, fed = -1, False
    for packet in container.demux(stream):
        if not packet.size:
            break
        number += 1
        if number >= len(needed) or packet.pts != packets.pts[number]:
            return
        if not needed[number]:
            if fed:
                yield from context.decode(None)
                context.flush_buffers()
                fed = False
            continue
        if leaves_out:
            context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        yield from context.decode(packet)
        fed = True
    if fed:
        yield from context.decode(None)
