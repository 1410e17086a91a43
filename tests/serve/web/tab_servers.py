"""Servers whose page has a report or rows to label."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from live_server import Running, running

from tuyi.data.example import Image
from tuyi.serve.app import create_app
from tuyi.serve.opening import Served
from tuyi.serve.settings import ServeSettings
from tuyi.serve.web.page import PageExtras

__all__ = ["EVIL", "rows_file", "tab_server"]

EVIL = "<img src=x onerror='window.evil=1'><script>window.evil=1</script>${window.evil=1}{{evil}}"
"""A text that would run, were it not escaped."""


@contextlib.contextmanager
def tab_server(served: Served, **extras: Any) -> Iterator[Running]:
    """A server whose open pages let it end."""
    started: list[Running] = []
    app = create_app(
        served,
        ServeSettings(workers=2),
        extras=PageExtras(**extras),
        is_stopping=lambda: any(one.server.should_exit for one in started),
    )
    with running(app) as server:
        started.append(server)
        yield server


def rows_file(file: Path, rows: Sequence[tuple[str, str, str | None, Image | None]]) -> Path:
    """A data file of rows of the task ``shape``: id, text, label, picture."""
    lines = []
    for id, text, label, image in rows:
        content: list[dict[str, str]] = [{"type": "text", "text": text}]
        if image is not None:
            assert isinstance(image.source, bytes)
            (file.parent / f"{id}.png").write_bytes(image.source)
            content.insert(0, {"type": "image", "image": f"{id}.png"})
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if label is not None:
            messages.append({"role": "assistant", "content": label})
        lines.append({"id": id, "task": "shape", "messages": messages})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file
