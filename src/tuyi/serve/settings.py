"""How to serve: where, for whom, and how much."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tuyi.config import Settings
from tuyi.cores import reading_workers
from tuyi.data.options import ReadOptions

__all__ = ["ServeRun", "ServeSettings"]


class ServeSettings(Settings):
    """How to serve a model; what it is asked is its own task."""

    host: str = "127.0.0.1"
    """Address to listen on; ``0.0.0.0`` is every network that the machine is in."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port; 0 takes any that is free."""
    name: str | None = None
    """What clients call the model; the name of its folder where not given."""
    token_file: Path | None = None
    """File of bearer tokens, one a line; without it everybody who reaches the port is answered."""
    allow_hosts: tuple[str, ...] = ()
    """Hosts from which pictures are fetched; none, so that pictures come as data URLs alone, where not given."""
    page: bool | None = None
    """Whether there is a web page at ``/``; where Gradio is installed, where not given."""
    page_hosts: tuple[str, ...] = ()
    """Names under which the page may be opened without tokens, beside addresses, localhost and this machine's own."""
    processes: int = Field(default=1, gt=0)
    """Processes that answer on the same port, each with a model of its own, and a GPU where there are any; on Linux."""
    device: str | None = None
    """Torch device; the first GPU where there is one, else the CPU."""
    precision: Literal["bfloat16", "float32"] | None = None
    """Numbers that are multiplied; bfloat16 on a GPU, float32 on a CPU where not given."""
    compile: bool | None = None
    """Whether to compile the model's blocks; where not given, on a GPU."""
    pack_tokens: int | None = Field(default=None, gt=0)
    """Most tokens that pass the model together; as many as the memory found at start holds where not given."""
    workers: int = Field(default=reading_workers(), gt=0)
    """Threads that read requests and their pictures."""
    max_wait_ms: float = Field(default=4.0, ge=0)
    """Most milliseconds that a request waits for others that are being read, to pass the model with them."""
    max_queue: int = Field(default=512, gt=0)
    """Requests that may wait; further ones are answered 429."""
    deadline_s: float = Field(default=60.0, gt=0)
    """Seconds within which a request is answered, or else 504."""
    read_s: float = Field(default=30.0, gt=0)
    """Seconds within which a client sends its whole request, or else 408, and takes each part of its answer."""
    drain_s: float = Field(default=60.0, gt=0)
    """Seconds that running requests are given when the server is told to stop."""
    max_body_bytes: int = Field(default=32 << 20, gt=0)
    """Most bytes of a request; larger ones are answered 413."""
    max_held_bytes: int = Field(default=1 << 30, gt=0)
    """Most bytes of all requests that are held at a time; further ones are answered 429."""
    max_pictures: int = Field(default=16, ge=0)
    """Most pictures of a request."""
    max_picture_pixels: int = Field(default=40_000_000, gt=0)
    """Most pixels of a picture, by its header."""
    max_videos: int = Field(default=2, ge=0)
    """Most videos of a request."""
    max_video_seconds: float = Field(default=600.0, gt=0)
    """Longest video."""
    max_video_pixels: int = Field(default=9_437_184, gt=0)
    """Most pixels of a frame of a video, by its header."""
    keep_tokens: int | None = Field(default=None, ge=0)
    """Most tokens of ended answers, with their prompts, that a follow-up finds in the cache; all that new answers leave
    room for where not given, none with 0."""
    keep_media_bytes: int = Field(default=256 << 20, ge=0)
    """Most bytes of decoded pictures and videos that are kept for requests that show them again."""
    max_characters: int = Field(default=32_768, gt=0)
    """Most characters of text of a request."""
    max_output_tokens: int = Field(default=1024, gt=0)
    """Most tokens that a request can have written."""


class ServeRun(Settings):
    """What ``--set`` can change of serving."""

    serve: ServeSettings = ServeSettings()
    """How to serve."""
    budget: dict[str, Any] = Field(default_factory=dict)
    """Budget settings to use instead of the model's, such as ``max_pixels``."""
    read: ReadOptions = ReadOptions()
    """How to read the data that is labelled on the page."""
