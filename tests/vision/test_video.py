from __future__ import annotations

import io
import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from transformers import Qwen2VLVideoProcessor, Qwen3VLVideoProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.video_utils import VideoMetadata

from tuyi.data.example import Video
from tuyi.errors import MediaError
from tuyi.task.task import Budget
from tuyi.vision.spec import VisionSpec
from tuyi.vision.video import VideoInfo, frame_indices, probe_video, video_grid, video_patches, video_timing
from tuyi.vision.video_file import _LOOKS, _look, read_frames
from tuyi.vision.video_packets import Packets, decode_chosen

QWEN2 = VisionSpec("qwen2_5_vl")
QWEN3 = VisionSpec("qwen3_vl", patch_size=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
BUDGET = Budget()


def write(
    file: Path,
    frames: int,
    size: tuple[int, int] = (96, 64),
    *,
    codec: str = "libx264",
    rate: int = 10,
    times: list[int] | None = None,
    options: dict[str, str] | None = None,
    encoder: dict[str, str] | None = None,
) -> Video:
    """Frame number i is grey with brightness 8 * i, its upper left quarter red, the right one textured; times in ms."""
    rng = np.random.default_rng(0)
    with av.open(str(file), "w", options=options or {}) as container:
        stream: Any = container.add_stream(codec, rate=rate, options=encoder or {})
        stream.width, stream.height = size
        stream.pix_fmt = {"mjpeg": "yuvj420p"}.get(codec, "yuv420p" if size[0] % 2 == size[1] % 2 == 0 else "yuv444p")
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index in range(frames):
            pixels = np.full((size[1], size[0], 3), min(255, 8 * index), np.uint8)
            quarter = pixels[: size[1] // 2, size[0] // 2 :]
            coarse = Pillow.fromarray(rng.integers(0, 200, (4, 4, 3), dtype=np.uint8))
            quarter[:] = np.asarray(coarse.resize(quarter.shape[1::-1], Pillow.Resampling.BICUBIC))
            pixels[: size[1] // 2, : size[0] // 2] = (255, 0, 0)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return Video(file)


def rotate(file: Path, counter_clockwise: int) -> Video:
    """Set the display matrix in the track header of an mp4 (ISO/IEC 14496-12, 8.3.2)."""
    a, b, c, d = {90: (0, -1, 1, 0), 180: (-1, 0, 0, -1), 270: (0, 1, -1, 0)}[counter_clockwise]
    data = bytearray(file.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    data[at : at + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    file.write_bytes(data)
    return Video(file)


def brightness(frame_HWC: NDArray[np.uint8]) -> float:
    return float(frame_HWC[-8:, -8:].mean())


# --- what is in a file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mov", "mpeg4"),
        ("a.avi", "mpeg4"),
        ("a.avi", "mjpeg"),
        ("a.mkv", "libx264"),
        ("a.webm", "libvpx"),
        ("a.webm", "libvpx-vp9"),
        ("a.ts", "libx264"),
    ],
)
def test_probe(tmp_path: Path, name: str, codec: str) -> None:
    video = write(tmp_path / name, 25, codec=codec)
    info = probe_video(video)
    assert (info.width, info.height, info.frames) == (96, 64, 25)
    assert info.fps == pytest.approx(10)
    assert info.duration == pytest.approx(2.5)
    assert isinstance(video.source, Path)
    assert probe_video(Video(video.source.read_bytes())) == info


@pytest.mark.parametrize("size", [(97, 65), (33, 20)])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    video = write(tmp_path / "odd.mp4", 5, size)
    info = probe_video(video)
    assert (info.width, info.height) == size
    assert [frame.shape for frame in read_frames(video, [0, 4])] == [(size[1], size[0], 3)] * 2


@pytest.mark.parametrize(
    ("turn", "red_rows", "red_columns"), [(90, "lower", "left"), (180, "lower", "right"), (270, "upper", "right")]
)
def test_rotation(tmp_path: Path, turn: int, red_rows: str, red_columns: str) -> None:
    write(tmp_path / "turned.mp4", 6)
    video = rotate(tmp_path / "turned.mp4", turn)
    info = probe_video(video)
    assert (info.width, info.height) == ((96, 64) if turn == 180 else (64, 96))
    (frame,) = read_frames(video, [0])
    assert frame.shape == (info.height, info.width, 3)
    red = frame[:, :, 0] > 200
    rows = slice(info.height // 2 + 4, None) if red_rows == "lower" else slice(0, info.height // 2 - 4)
    columns = slice(info.width // 2 + 4, None) if red_columns == "right" else slice(0, info.width // 2 - 4)
    assert red[rows, columns].all()
    assert red.mean() == pytest.approx(0.25, abs=0.05)
    grid = video_patches(video, QWEN2, BUDGET).grid
    assert (grid[1] > grid[2]) == (turn != 180)


def test_variable_frame_rate_goes_by_presentation_order(tmp_path: Path) -> None:
    times = [0, 40, 80, 120, 1000, 2000, 2500, 2540, 2580, 4000]
    video = write(tmp_path / "vfr.mp4", 10, rate=1000, times=times)
    info = probe_video(video)
    assert info.frames == 10
    assert info.fps == pytest.approx(9 / 4, rel=0.1)
    shown = [brightness(frame) for frame in read_frames(video, range(10))]
    assert shown == pytest.approx([8 * index for index in range(10)], abs=4)


def test_chosen_frames_come_in_order_and_alone(tmp_path: Path) -> None:
    video = write(tmp_path / "a.mp4", 30, options={"movflags": "faststart"})
    shown = [brightness(frame) for frame in read_frames(video, [0, 7, 29])]
    assert shown == pytest.approx([0, 56, 232], abs=4)


GOPS = {
    "one key": ("a.mp4", "libx264", {}),
    "keys, B-frames": ("a.mp4", "libx264", {"g": "12", "bf": "3"}),
    "open": ("a.mkv", "libx264", {"x264-params": "keyint=12:min-keyint=12:open-gop=1:bframes=3:b-pyramid=normal"}),
    "no B-frames": ("a.mov", "libx264", {"g": "7", "bf": "0"}),
    "all keys": ("a.mp4", "libx264", {"g": "1"}),
    "hevc": ("a.mp4", "libx265", {"x265-params": "log-level=none:keyint=12:bframes=4"}),
    "vp9": ("a.webm", "libvpx-vp9", {"g": "10", "deadline": "realtime"}),
    "mjpeg": ("a.mkv", "mjpeg", {}),
}


@pytest.mark.parametrize("name", list(GOPS))
def test_frames_are_those_of_decoding_everything(tmp_path: Path, name: str) -> None:
    file, codec, options = GOPS[name]
    video = write(tmp_path / file, 60, codec=codec, encoder=options)
    with av.open(str(video.source)) as container:
        everything = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(everything) == 60
    _, packets = _look(video)
    assert packets is not None
    for indices in ([0], [59], [0, 59], [5, 6, 7], [3, 31, 33, 58], list(range(0, 60, 15)), list(range(60))):
        with av.open(str(video.source)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            quick = list(decode_chosen(container, stream, packets, indices))
        assert len(quick) == len(indices), "nothing was left to the slow way"
        for index, frame in zip(indices, read_frames(video, indices), strict=True):
            np.testing.assert_array_equal(frame, everything[index], f"{indices}: {index}")


def test_only_what_chosen_frames_need_is_decoded() -> None:
    # decoding order of two groups of I P B B, each shown I B B P; the second group's first B-frames are shown before
    # its key and belong to the first
    pts = np.array([0, 3, 1, 2, 6, 4, 5, 9, 7, 8])
    keys = np.array([True, False, False, False, True, False, False, False, False, False])
    packets = Packets(pts, keys, np.ones(10, bool))

    def needed(*indices: int) -> list[int]:
        found = packets.needed(packets.times_of(indices))  # type: ignore[arg-type]
        assert found is not None
        return np.flatnonzero(found).tolist()

    assert needed(0) == [0]
    assert needed(2) == [0, 1, 2, 3]
    assert needed(6) == [4]
    assert needed(0, 9) == [0, 4, 5, 6, 7]
    assert needed(4) == [0, 1, 2, 3, 4, 5]
    assert Packets(pts, np.zeros(10, bool), np.ones(10, bool)).needed(np.array([3])) is None
    assert Packets(np.zeros(10, np.int64), keys, np.ones(10, bool)).times_of([1]) is None
    assert Packets(pts, keys, np.ones(10, bool)).times_of([10]) is None


def test_misleading_times_are_found_out(tmp_path: Path) -> None:
    """Where the file's own index is wrong, everything is decoded after all."""
    video = write(tmp_path / "a.mp4", 30, encoder={"g": "10"})
    _, packets = _look(video)
    assert packets is not None
    wrong = replace(packets, is_key=np.arange(30) % 10 == 4)
    for misled in (wrong, replace(packets, pts=packets.pts + 1)):
        with av.open(str(video.source)) as container:
            quick = list(decode_chosen(container, container.streams.video[0], misled, [0, 17, 29]))
        assert len(quick) < 3
    right = [frame.copy() for frame in read_frames(video, [0, 17, 29])]
    assert isinstance(video.source, Path)
    status = video.source.stat()
    key = (str(video.source), status.st_mtime_ns, status.st_size)
    _LOOKS[key] = (_LOOKS[key][0], wrong)
    for ours, expected in zip(read_frames(video, [0, 17, 29]), right, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_a_beginning_that_is_not_shown(tmp_path: Path) -> None:
    """An edit list that begins between keys: what leads up to it is decoded and not counted."""
    video = write(tmp_path / "a.mp4", 30, encoder={"g": "30", "bf": "0"})
    assert isinstance(video.source, Path)
    data = bytearray(video.source.read_bytes())
    at = data.index(b"elst") + 4
    version, count, duration, begin = struct.unpack_from(">BxxxIIi", data, at)
    assert (version, count) == (0, 1)
    with av.open(io.BytesIO(data)) as container:
        a_frame = container.streams.video[0].duration // 30
    struct.pack_into(">Ii", data, at + 8, duration * 2 // 3, begin + 10 * a_frame)
    cut = Video(bytes(data))
    info = probe_video(cut)
    with av.open(io.BytesIO(data)) as container:
        everything = [brightness(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert info.frames == len(everything) == 20
    shown = [brightness(frame) for frame in read_frames(cut, [0, 7, 19])]
    assert shown == pytest.approx([everything[0], everything[7], everything[19]])
    assert shown[0] == pytest.approx(80, abs=4)


def test_what_is_known_of_a_file_is_forgotten_when_it_changes(tmp_path: Path) -> None:
    video = write(tmp_path / "a.mp4", 5)
    assert probe_video(video).frames == 5
    assert probe_video(write(tmp_path / "a.mp4", 9)).frames == 9
    for number in range(20):
        write(tmp_path / f"{number}.mp4", 1)
        probe_video(Video(tmp_path / f"{number}.mp4"))
    assert len(_LOOKS) == 16
    (tmp_path / "19.mp4").unlink()
    with pytest.raises(MediaError, match="found none there"):
        probe_video(Video(tmp_path / "19.mp4"))


# --- which frames, which size -----------------------------------------------------------------------------------------


def info_of(frames: int, fps: float, size: tuple[int, int] = (640, 360)) -> VideoInfo:
    return VideoInfo(*size, frames, fps, frames / fps)


@pytest.mark.parametrize("fps", [1.0, 10.0, 24000 / 1001, 30.0, 60.0])
@pytest.mark.parametrize("most", [4, 6, 32, 768])
def test_frames_are_those_of_transformers(fps: float, most: int) -> None:
    compared = 0
    for frames in [*range(2, 60), 299, 300, 301, 1000, 7201, 40_001]:
        ours = frame_indices(info_of(frames, fps), QWEN2, Budget(video_max_frames=most))
        metadata = VideoMetadata(total_num_frames=frames, fps=fps)
        qwen2 = Qwen2VLVideoProcessor(max_frames=most, fps=2.0).sample_frames(metadata)
        assert len(ours) == len(qwen2) // 2 * 2  # their float arange sometimes gives one frame too many
        qwen3 = Qwen3VLVideoProcessor(max_frames=most).sample_frames(metadata, fps=2.0)
        if len(qwen3) == len(ours):  # Qwen3-VL's own processor also takes odd counts and repeats a frame
            assert ours == qwen3.tolist()
            compared += 1
    assert compared > 10


@pytest.mark.parametrize("fps", [0.5, 1.0, 10.0, 24000 / 1001, 30.0, 60.0])
def test_frames_are_those_of_qwen_vl_utils(fps: float) -> None:
    theirs = pytest.importorskip("qwen_vl_utils.vision_process")
    for frames in [*range(2, 60), 299, 300, 301, 1000, 7201, 40_001]:
        for most in (4, 6, 32, 768):
            limits = {"fps": 2.0, "min_frames": 4, "max_frames": min(most, frames)}
            count = theirs.smart_nframes(limits, total_frames=frames, video_fps=fps)
            expected = torch.linspace(0, frames - 1, count).round().long().numpy()
            ours = np.asarray(frame_indices(info_of(frames, fps), QWEN2, Budget(video_max_frames=most)))
            assert ours.shape == expected.shape
            # they count in float32: beyond some thousand frames a number that lies halfway may round the other way
            np.testing.assert_allclose(ours, expected, atol=0 if frames <= 1000 else 1)


def test_short_videos_give_what_they_have() -> None:
    assert frame_indices(info_of(1, 30), QWEN2, BUDGET) == [0]
    assert frame_indices(info_of(2, 30), QWEN2, BUDGET) == [0, 1]
    assert frame_indices(info_of(3, 30), QWEN2, BUDGET) == [0, 2]
    assert frame_indices(info_of(5, 30), QWEN2, BUDGET) == [0, 1, 3, 4]
    assert len(frame_indices(info_of(99, 1), QWEN2, Budget(video_max_frames=7))) == 6


@pytest.mark.parametrize("frames", [8, 48, 300, 3000, 30_000])
@pytest.mark.parametrize("size", [(640, 360), (1920, 1080), (97, 65), (480, 854)])
def test_grid_is_that_of_transformers(frames: int, size: tuple[int, int]) -> None:
    info = info_of(frames, 30.0, size)
    shown = len(frame_indices(info, QWEN2, BUDGET))
    share = max(min(BUDGET.video_max_pixels, BUDGET.video_total_pixels // shown), int(BUDGET.min_pixels * 1.05))
    qwen2 = Qwen2VLVideoProcessor(size={"shortest_edge": BUDGET.min_pixels, "longest_edge": share})
    for spec, theirs in (
        (QWEN2, qwen2.get_num_of_video_patches(shown, size[1], size[0], {})),
        (QWEN3, qwen3_patches(shown, size)),
    ):
        grid = video_grid(info, spec, BUDGET)
        assert grid[0] * 2 == shown
        assert np.prod(grid) == theirs
        assert shown * grid[1] * grid[2] * spec.patch_size**2 <= BUDGET.video_total_pixels


def qwen3_patches(shown: int, size: tuple[int, int]) -> int:
    cap = {"shortest_edge": BUDGET.min_pixels, "longest_edge": BUDGET.video_total_pixels}
    processor = Qwen3VLVideoProcessor(size=cap, cap_pixels_per_frame=True, max_video_tokens=588)
    assert BUDGET.video_max_pixels == 588 * 32 * 32
    return int(processor.get_num_of_video_patches(shown, size[1], size[0]))


# --- the values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [QWEN2, QWEN3], ids=["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize(("frames", "size"), [(25, (320, 240)), (12, (97, 65)), (1, (96, 64)), (9, (64, 400))], ids=str)
def test_values_are_those_of_transformers(tmp_path: Path, spec: VisionSpec, frames: int, size: tuple[int, int]) -> None:
    video = write(tmp_path / "a.mp4", frames, size)
    ours = video_patches(video, spec, BUDGET)
    info = probe_video(video)
    indices = frame_indices(info, spec, BUDGET)
    shown_TCHW = torch.stack([torch.from_numpy(frame.copy()).permute(2, 0, 1) for frame in read_frames(video, indices)])
    assert len(shown_TCHW) == len(indices)
    if spec is QWEN3 and frames == 1:
        shown_TCHW = shown_TCHW.expand(2, -1, -1, -1)  # their resize refuses a single frame
    if spec is QWEN2:
        limits = {"shortest_edge": BUDGET.min_pixels, "longest_edge": BUDGET.video_max_pixels}
        processor: Any = Qwen2VLVideoProcessor(size=limits, cap_pixels_per_frame=False)
    else:
        limits = {"shortest_edge": BUDGET.min_pixels, "longest_edge": BUDGET.video_total_pixels}
        processor = Qwen3VLVideoProcessor(size=limits, cap_pixels_per_frame=True, max_video_tokens=588)
    out = processor(videos=[shown_TCHW], do_sample_frames=False, return_tensors="np")
    assert ours.grid == tuple(out["video_grid_thw"][0].tolist()) == video_grid(info, spec, BUDGET)

    by_channel = out["pixel_values_videos"].reshape(len(ours.values), 3, -1)
    std, mean = (np.array(values)[:, None] for values in (processor.image_std, processor.image_mean))
    theirs = ((by_channel * std + mean) * 255).reshape(ours.values.shape)
    assert ours.values.dtype == np.uint8
    assert (np.abs(ours.values - theirs) <= 1.5).mean() >= 0.995


@pytest.mark.parametrize("spec", [QWEN2, QWEN3], ids=["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize(("frames", "fps"), [(1, 30.0), (3, 30.0), (25, 10.0), (146, 24000 / 1001)])
def test_timing_is_that_of_transformers(spec: VisionSpec, frames: int, fps: float) -> None:
    info = info_of(frames, fps)
    indices = frame_indices(info, spec, BUDGET)
    seconds, timestamps = video_timing(info, spec, BUDGET)
    assert len(timestamps) == video_grid(info, spec, BUDGET)[0]
    metadata = VideoMetadata(total_num_frames=frames, fps=fps, frames_indices=indices)
    assert seconds == pytest.approx(2 / metadata.sampled_fps)
    reference = Qwen3VLProcessor._calculate_timestamps(None, list(indices), fps, 2)  # type: ignore[arg-type]
    assert timestamps == pytest.approx(reference)


def test_one_frame_fills_a_temporal_patch(tmp_path: Path) -> None:
    ours = video_patches(write(tmp_path / "one.mp4", 1), QWEN2, BUDGET)
    assert ours.grid[0] == 1
    frames = ours.values.reshape(-1, 3, 2, 14 * 14)
    assert (frames[:, :, 0] == frames[:, :, 1]).all()
    assert ours.timestamps == (0.0,)


# --- files that cannot be used ----------------------------------------------------------------------------------------


def test_missing_folder_empty_and_no_video(tmp_path: Path) -> None:
    missing, empty, text, play_list = (tmp_path / name for name in ("no.mp4", "empty.mp4", "text.mp4", "list.m3u8"))
    empty.touch()
    text.write_text("a film about a cat\n" * 50)
    write(tmp_path / "other.mp4", 2)
    play_list.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n")
    for path, found in [
        (missing, "expected a file, found none there; check"),
        (tmp_path, "expected a file, found a folder; name"),
        (empty, "expected a video, found an empty file; replace"),
        (text, "expected a video .*found something else or a truncated one .*; fetch"),
        (play_list, "expected a video .*found something else or a truncated one .*; fetch"),
    ]:
        for use in (probe_video, lambda video: video_patches(video, QWEN2, BUDGET)):
            with pytest.raises(MediaError, match=f"{path}: {found}"):
                use(Video(path))


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {}),
        ("a.mp4", "libx264", {"movflags": "faststart"}),
        ("a.mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
        ("a.avi", "mpeg4", {}),
        ("a.mkv", "libx264", {}),
        ("a.webm", "libvpx", {}),
    ],
)
def test_truncated(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    video = write(tmp_path / name, 40, codec=codec, options=options)
    assert isinstance(video.source, Path)
    whole = video.source.read_bytes()
    for cut in (0.4, 0.8):
        with pytest.raises(MediaError, match=r"(truncated|found none).*fetch the file again, or re-encode it"):
            probe_video(Video(whole[: int(len(whole) * cut)]))


def test_sound_alone(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream: Any = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(MediaError, match="expected a video stream, found none"):
        probe_video(Video(tmp_path / "sound.mp4"))


def test_frames_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = write(tmp_path / "a.mp4", 2)
    monkeypatch.setattr("tuyi.vision.video_file.MAX_PICTURE_PIXELS", 6000)
    with pytest.raises(MediaError, match="expected frames of at most 6,000 pixels, found 96 x 64; scale it down"):
        probe_video(video)


def test_unknown_codec(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.mp4", 2).source
    assert isinstance(whole, Path)
    data = whole.read_bytes()
    assert data.count(b"avc1") >= 1
    with pytest.raises(MediaError, match="expected a codec that FFmpeg decodes, found an unknown one"):
        probe_video(Video(data.replace(b"avc1", b"zzzz")))


def test_fewer_frames_than_asked_for(tmp_path: Path) -> None:
    video = write(tmp_path / "a.mp4", 5)
    with pytest.raises(MediaError, match="expected more than 7 frames, the decoder gave 5"):
        list(read_frames(video, [0, 7]))
