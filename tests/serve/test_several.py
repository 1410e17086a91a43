"""Several processes on one port: they answer alike, count together, and end together."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tuyi.errors import ConfigError
from tuyi.serve import run
from tuyi.serve.settings import ServeSettings
from tuyi.serve.several import _environment, _gpus, _reserved

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes share a port on Linux alone")

CHILD = """
import sys; sys.path[:] = {path!r}
import threading, time
from multiprocessing.connection import Connection
from tuyi.errors import ModelError
from tuyi.serve import several
connection = Connection({fd})
asked = connection.recv()
threading.Thread(target=several._end_with, args=(connection,), daemon=True).start()
connection.send(several._Told("warm"))
connection.send(several._Listening("here"))
BODY
"""
PARENT = """
from tuyi import program
from tuyi.errors import TuyiError
from tuyi.serve import several
from tuyi.serve.settings import ServeSettings
program._PROGRAM, several._gpus = {child!r}, lambda settings: ()
asked = several.Asked("model", None, ServeSettings(port=0, processes=2), None)
try:
    several.serve_several(asked, lambda line: print(line, flush=True))
except TuyiError as error:
    print(type(error).__name__, error, flush=True)
"""


@contextlib.contextmanager
def begun(*command: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def pretending(body: str = "time.sleep(60)") -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """Two processes that only say that they listen."""
    return begun("-c", PARENT.format(child=CHILD.replace("BODY", body)))


def told(process: subprocess.Popen[str], text: str) -> list[str]:
    """Lines up to the one that has a text in it."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if text in line:
            return lines
    pytest.fail(f"it never said {text!r}, but {lines}")


def children(process: subprocess.Popen[str]) -> list[int]:
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(one) for one in listed.split()]


def are_gone(ids: list[int]) -> bool:
    """Whether processes end within seconds; those that nobody waits for any more count as gone."""

    def is_gone(pid: int) -> bool:
        try:
            return ") Z " in Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True

    until = time.monotonic() + 20
    while time.monotonic() < until:
        if all(map(is_gone, ids)):
            return True
        time.sleep(0.05)
    return False


def test_two_processes_answer_alike_and_count_together(tmp_path: Path):
    task = tmp_path / "task.yaml"
    task.write_text("name: shape\nprompt: '{content} Which shape?'\nlabels: [round, square]\n")
    words = ("serve", "builtin:tiny", "--task", str(task), "--port", "0", "--set", "serve.processes=2")
    with begun("-m", "tuyi", *words, "--set", "serve.device=cpu") as process:
        line = told(process, "listening on")[-1]
        assert line.startswith("2 × builtin:tiny: listening on")
        found = re.search(r"http://\S+", line)
        assert found is not None
        both = children(process)
        assert len(both) == 2
        before = [sockets(pid) for pid in both]
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(httpx.Client(base_url=found[0], timeout=60)) for _ in range(40)]
            ready(clients[0])
            with ThreadPoolExecutor(8) as pool:
                answers = list(pool.map(lambda client: client.post("/v1/classify", json={"text": "hello"}), clients))
            assert {answer.status_code for answer in answers} == {200}
            assert len({answer.json()["probabilities"]["round"] for answer in answers}) <= 2  # alone, or in a pack
            assert all(sockets(pid) - old > 5 for pid, old in zip(both, before, strict=True))
            counted = clients[7].get("/metrics").text
        assert 'tuyi_requests_total{route="/v1/classify",status="200"} 40.0' in counted
        assert "tuyi_pack_rows_sum 40.0" in counted
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert are_gone(both)


def sockets(pid: int) -> int:
    links = Path(f"/proc/{pid}/fd").iterdir()
    return sum(os.readlink(link).startswith("socket:") for link in links if link.is_symlink())


def ready(client: httpx.Client) -> None:
    for _ in range(1200):
        with contextlib.suppress(httpx.TransportError):
            if client.get("/healthz").status_code == 200:
                return
        time.sleep(0.05)
    pytest.fail("it never was ready")


def test_one_that_dies_ends_all():
    with pretending() as process:
        assert told(process, "2 × here") == ["warm", "2 × here"]
        first, second = children(process)
        os.kill(second, signal.SIGKILL)
        said = told(process, "Error")[-1]
        assert said == "EngineError process 2 of 2 has ended by SIGKILL; the others were ended, too"
        assert process.wait(20) == 0
        assert are_gone([first, second])


def test_an_error_of_one_is_that_of_all():
    with pretending("connection.send(several._Failed(ModelError('no such model')))") as process:
        assert told(process, "Error")[-1] == "ModelError no such model"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_all_end_with_who_started_them(how: signal.Signals):
    with pretending() as process:
        told(process, "here")
        both = children(process)
        process.send_signal(how)
        assert process.wait(20) == (0 if how != signal.SIGKILL else -signal.SIGKILL)
        assert are_gone(both)


def test_a_port_that_others_share_is_taken():
    with (
        _reserved(ServeSettings(port=0, processes=2)) as port,
        pytest.raises(ConfigError, match="is another server there"),
        _reserved(ServeSettings(port=port, processes=2)),
    ):
        pass


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"page": True}, "the page needs a single process"), ({"device": "cuda:1"}, "leave serve.device=cuda:1 out")],
)
def test_what_does_not_go_together(settings: dict[str, object], told: str):
    with pytest.raises(ConfigError, match=told):
        run.serve("builtin:tiny", task="www2025", settings=ServeSettings(processes=2, **settings))  # type: ignore[arg-type]


def test_each_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch):
    import torch

    count: Callable[[], int] = lambda: 2  # noqa: E731
    monkeypatch.setattr(torch.cuda, "device_count", count)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    gpus = _gpus(ServeSettings(processes=2))
    assert [_environment(at, 2, gpus, "")["CUDA_VISIBLE_DEVICES"] for at in range(2)] == ["5", "7"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert _gpus(ServeSettings(processes=2)) == ["0", "1"]
    assert _gpus(ServeSettings(processes=2, device="cpu")) == ()
    with pytest.raises(ConfigError, match="expected at most 2, one for each GPU; found 3"):
        _gpus(ServeSettings(processes=3))
