"""Videos in requests: what `tuyi predict` and `tuyi chat` make of them, and files that mean no good."""

from __future__ import annotations

import base64
import io
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from live_server import Running, data_url

from tuyi.data.example import Example, Image, Text, Video
from tuyi.errors import MediaError
from tuyi.predict.conversation import Conversation
from tuyi.predict.local import LocalEngine
from tuyi.predict.talk import ChatSettings
from tuyi.serve import shown as of_requests
from tuyi.serve.refusals import RefusalError
from tuyi.serve.videos import VideoReaders
from tuyi.vision.video_process import VideoLimits

LIMITS = VideoLimits(pixels=1_000_000, seconds=60)


@pytest.fixture(scope="module")
def readers() -> Iterator[VideoReaders]:
    with closing(VideoReaders(LIMITS)) as one:
        yield one


@pytest.fixture(scope="module")
def film(clip: Video) -> str:
    assert isinstance(clip.source, Path)
    return video_url(clip.source.read_bytes())


def video_url(data: bytes, kind: str = "mp4") -> str:
    return f"data:video/{kind};base64,{base64.b64encode(data).decode()}"


def written(form: str, codec: str = "mpeg4", frames: int = 8, size: tuple[int, int] = (64, 48)) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream: Any = container.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            pixels = np.full((size[1], size[0], 3), 20 * number % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def talk(*parts: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}], "max_tokens": 6, **more}


def shown(url: str) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}}


def test_labels_are_those_of_predict(
    server: Running, twins: Any, clip: Video, film: str, picture: Callable[..., Image]
):
    twin = twins("qwen2_vl")
    one = picture(60, 40, seed=1)
    row = Example("1", (Text("看视频 "), clip, Text(" and "), one, Text("?")), task="colour")
    with closing(LocalEngine(twin.model, twin.encoder, pack_tokens=4096, workers=1)) as engine:
        ((expected,),) = engine.predict([(row, twin.encoder.length(row).tokens)])
    asked = [
        {"parts": [{"text": "看视频 "}, {"video": film}, {"text": " and "}, {"image": data_url(one)}, {"text": "?"}]},
        {"text": "看视频 <video> and <image>?", "videos": [film], "images": [data_url(one)]},
    ]
    with server.client() as client:
        for body in asked:
            answer = client.post("/v1/classify", json={"task": "colour", **body})
            assert answer.status_code == 200, answer.text
            assert answer.json()["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
            assert answer.json()["notes"]["tokens"] == expected.notes["tokens"]
        first = client.post("/v1/classify", json={"task": "colour", "text": "what?", "videos": [film]}).json()
        before = client.post(
            "/v1/classify", json={"task": "colour", "parts": [{"video": film}, {"text": "what?"}]}
        ).json()
        assert first["logprobs"] == pytest.approx(before["logprobs"])


def test_answers_are_those_of_a_conversation(server: Running, twins: Any, clip: Video, film: str):
    twin = twins("qwen2_vl")
    budget = twin.encoder.tasks.tasks[0].budget
    conversation = Conversation(twin.model, budget, ChatSettings(max_tokens=6))
    conversation.show(clip)
    expected = ["".join(conversation.ask(question)) for question in ("What is it?", "And why?")]
    messages: list[Any] = []
    with server.client() as client:
        for content, answer in zip(([shown(film), {"type": "text", "text": "What is it?"}], "And why?"), expected):
            messages.append({"role": "user", "content": content})
            said = client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 6}).json()
            assert said["choices"][0]["message"]["content"] == answer
            messages.append({"role": "assistant", "content": answer})


@pytest.mark.parametrize(
    ("form", "codec"),
    [("mp4", "mpeg4"), ("matroska", "mpeg4"), ("webm", "libvpx-vp9"), ("mov", "mpeg4"), ("avi", "mpeg4")],
)
def test_formats(readers: VideoReaders, form: str, codec: str):
    info = readers.look(Video(written(form, codec), form), lambda: False)
    assert (info.width, info.height, info.frames) == (64, 48, 8)


def patched(data: bytes, box: bytes, *numbers: int) -> bytes:
    """An mp4 with other numbers behind the version of a box."""
    at = data.index(box) + 8
    new = struct.pack(f">{len(numbers)}I", *numbers)
    return data[:at] + new + data[at + len(new) :]


def sound() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.sample_rate = 8000
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def hostile() -> dict[str, tuple[bytes, str]]:
    film = written("mp4")
    return {
        "empty": (b"", "found an empty file|something else"),
        "text": (b"no video at all", "found something else"),
        "sound": (sound(), "expected a video stream, found none"),
        "no frames": (written("mp4", frames=0), "found none|found something else"),
        "2^31 frames": (patched(film, b"stsz", 1, 2**31 - 1), "found none|truncated|damaged|more than 4 GiB"),
        "half": (film[: len(film) // 2], "expected a video stream, found none"),
        "end gone": (film[: len(film) * 4 // 5], "found something else or a damaged one"),
        "play list": (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/hostname\n", "found something else"),
        "concat": (b"ffconcat version 1.0\nfile /etc/hostname\n", "found something else"),
        "manifest": (b'<?xml version="1.0"?><MPD><BaseURL>http://127.0.0.1/</BaseURL></MPD>', "found something else"),
        "large": (written("mp4", size=(1200, 1000), frames=2), "at most 1,000,000 pixels, found 1200 x 1000"),
        "long": (written("mp4", frames=8 * 61, size=(16, 16)), "expected at most 60 s, found 61 s"),
    }


def test_files_that_mean_no_good(readers: VideoReaders):
    files = hostile()
    assert len(files) == 12
    for name, (data, told) in files.items():
        with pytest.raises(MediaError, match=told):
            readers.look(Video(data, name), lambda: False)
    assert readers.look(Video(written("mp4"), "good"), lambda: False).frames == 8, "all is well afterwards"


def test_a_process_that_ends_is_another_ones_start(readers: VideoReaders):
    readers.look(Video(written("mp4"), "one"), lambda: False)
    (reader,) = readers._idle
    reader._process.kill()
    reader._process.wait()
    assert readers.look(Video(written("mp4"), "two"), lambda: False).frames == 8
    asked = iter(tuple(readers._idle))
    with pytest.raises(MediaError, match="video three: cannot be decoded"):
        readers.look(Video(written("mp4"), "three"), lambda: bool(kill(next(asked, None))))
    assert readers.look(Video(written("mp4"), "four"), lambda: False).frames == 8


def kill(reader: Any) -> None:
    if reader is not None:
        reader._process.kill()


def test_reading_ends_when_nobody_waits(readers: VideoReaders):
    readers.look(Video(written("mp4"), "one"), lambda: False)
    (reader,) = readers._idle
    until = time.monotonic() + 0.3
    film = Video(written("mp4", frames=400, size=(640, 480)), "long")
    with pytest.raises(RefusalError, match="nobody waits"):
        readers.look(film, lambda: time.monotonic() > until - 0.25)
    assert reader._process.returncode is not None
    assert not readers._idle


def test_refusals(serving: Callable[..., Running], film: str):
    server = serving(workers=1, max_videos=1, max_video_seconds=1.0)
    with server.client() as client:
        refused = {
            "at most 1 videos": talk(shown(film), shown(film)),
            "at most 1 s, found 1 s": talk(shown(film)),
            "expected a video, found image/png": talk(shown("data:image/png;base64,AAAA")),
            "expected data:video": talk(shown("file:///etc/hostname")),
            "expected video_url and nothing else": talk({"type": "video_url", "text": "x"}),
        }
        for told, body in refused.items():
            answer = client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 400, answer.text
            assert told in answer.json()["error"]["message"]
        answer = client.post("/v1/classify", json={"text": "<video><video>", "videos": [film]})
        assert "2 <video> in the text but 1 videos" in answer.json()["error"]["message"]


def test_the_deadline_holds_for_videos(serving: Callable[..., Running], film: str):
    with serving(workers=1, deadline_s=0.2).client() as client:
        answer = client.post("/v1/chat/completions", json=talk(shown(film)))
        assert answer.status_code == 504


def test_videos_of_allowed_hosts(serving: Callable[..., Running], film: str, monkeypatch: pytest.MonkeyPatch):
    data = base64.b64decode(film.partition(",")[2])
    asked: list[str] = []
    monkeypatch.setattr(of_requests, "fetch", lambda url, *more, **limits: asked.append(url) or data)
    server = serving(workers=1, allow_hosts=("films.example.com",))
    with server.client() as client:
        found = [client.post("/v1/classify", json={"task": "colour", "text": "?", "videos": [url]}).json()
                 for url in ("https://films.example.com/1", film)]  # fmt: skip
    assert asked == ["https://films.example.com/1"]
    assert found[0]["logprobs"] == found[1]["logprobs"]
