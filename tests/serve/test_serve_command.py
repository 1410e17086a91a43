"""`tuyi serve`: what is wrong is said before a model is loaded."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tuyi.cli import app
from tuyi.errors import ConfigError
from tuyi.serve import opening
from tuyi.serve.port import bound
from tuyi.serve.settings import ServeSettings


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "open_model", lambda *_, **__: pytest.fail("a model was loaded"))


def refused(*words: str) -> str:
    result = CliRunner().invoke(app, ["serve", "builtin:tiny", "--task", "www2025", *words])
    assert isinstance(result.exception, ConfigError), result.output
    return str(result.exception)


def test_a_taken_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}" in refused("--port", str(port))


def test_tokens_that_cannot_be_read(tmp_path: Path):
    assert "cannot be read" in refused("--token-file", str(tmp_path / "none"))
    empty = tmp_path / "empty"
    empty.write_text("# nothing\n\n")
    assert "holds no token" in refused("--token-file", str(empty))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--port", "99999"], "port: Input should be less than or equal to 65535"),
        (["--set", "serve.max_que=5"], "did you mean 'max_queue'?"),
        (["--set", "serve.workers=0"], "serve.workers: "),
        (["--host", "no.such.host.invalid", "--port", "0"], "cannot listen on no.such.host.invalid"),
    ],
)
def test_settings(words: list[str], told: str):
    assert told in refused(*words)


def test_small_answers_do_not_wait():
    """Without TCP_NODELAY an answer in two parts takes 40 ms longer: so long a client's system takes to confirm one."""

    async def accepted() -> bool:
        found: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            taken = writer.get_extra_info("socket")
            found.set_result(bool(taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))
            writer.close()

        with bound(ServeSettings(port=0)) as taken:
            async with await asyncio.start_server(take, sock=taken):
                _, writer = await asyncio.open_connection(*taken.getsockname())
                is_at_once = await found
                writer.close()
        return is_at_once

    assert asyncio.run(accepted())
