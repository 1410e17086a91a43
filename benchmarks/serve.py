"""Many clients of one server, beside one client of the same, and beside batch prediction.

    python benchmarks/serve.py --tiny --threads 1 --requests 10000
    python benchmarks/serve.py --size 7b --rows 768

Rows have the shapes of the WWW2025 challenge, their pictures go as data URLs; with ``--tiny`` they are a sentence and,
every other time, a small picture, for a task of four labels, since on a CPU longer ones measure matrix products and not
the server. The server is ``tuyi serve`` in a process of its own. One run prints the machine, and for one client and for
all of them: requests, errors, lost ones (no answer, or that of another request), requests a second, latency at the
median and the 99th percentile, and rows that passed the model together; then the goals, met or missed; with ``--size``
also what ``tuyi predict`` does with the same rows on the same device.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import IO
from urllib.request import urlopen

from engines import Job
from machine import begin
from models import make_model
from predict import measure
from workload import kept_or_temporary, make_workload, texts

__all__ = ["SMALL", "Launched", "Load", "answer", "launched", "load", "requests_of", "server", "small_requests"]


@dataclass(slots=True)
class Load:
    """What clients saw.

    Args:
        seconds: Of each answered request.
        errors: Status and number of answers that are no 200.
        lost: Requests without an answer, or with that of another.
        whole: Seconds from the first request to the last answer.
        rows: Rows that passed the model together, on average.
    """

    seconds: list[float] = field(default_factory=list)
    errors: dict[int, int] = field(default_factory=dict)
    lost: int = 0
    whole: float = 0.0
    rows: float = 0.0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.seconds) / self.whole

    def at(self, share: float) -> float:
        """Seconds within which this share was answered."""
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(share * len(self.seconds)))]


def requests_of(data: Path) -> list[bytes]:
    """Bodies of ``/v1/classify`` for the rows of a data file, without their ids."""
    from tuyi.data.example import Image, Text
    from tuyi.data.source import read
    from tuyi.task import load_tasks

    tasks = load_tasks("www2025")
    found = []
    for row in read(data):
        parts = []
        for part in row.content:
            if isinstance(part, Text):
                parts.append({"text": part.text})
            elif isinstance(part, Image) and isinstance(part.source, Path):
                kind = "png" if part.source.suffix == ".png" else "jpeg"
                picture = base64.b64encode(part.source.read_bytes()).decode()
                parts.append({"image": f"data:image/{kind};base64,{picture}"})
        found.append(json.dumps({"task": tasks.of(row).name, "parts": parts}, ensure_ascii=False).encode())
    return found


SMALL = """
name: goods
prompt: "{content}\\n"
labels: [lamp, chair, phone, other]
budget: {max_pixels: 12544, min_pixels: 784, max_tokens: 1024}
"""


def small_requests(rows: int) -> list[bytes]:
    """Bodies for the task :data:`SMALL`: a sentence, and every other time a picture of 84 x 84."""
    from PIL import Image

    found = []
    for row in range(rows):
        parts = [{"text": f"Customer {row}: what is this, and do you have it?"}]
        if row % 2:
            file = io.BytesIO()
            coarse = Image.effect_noise((6, 6), 90 + row % 60).convert("RGB")
            coarse.resize((84, 84)).save(file, "JPEG")
            parts.append({"image": f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"})
        found.append(json.dumps({"task": "goods", "parts": parts}).encode())
    return found


async def load(address: tuple[str, int], bodies: Sequence[bytes], requests: int, clients: int) -> Load:
    """Have clients ask one request after another, each on a connection of its own, until all are asked."""
    found, numbers = Load(), count()

    async def client() -> None:
        reader, writer = await asyncio.open_connection(*address, limit=1 << 24)
        while (number := next(numbers)) < requests:
            body = b'{"id":"%d",' % number + bodies[number % len(bodies)][1:]
            began = time.perf_counter()
            head = b"POST /v1/classify HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
            writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            try:
                status, told = await answer(reader)
            except (OSError, asyncio.IncompleteReadError):
                found.lost += 1
                return
            if status != 200:
                found.errors[status] = found.errors.get(status, 0) + 1
            elif json.loads(told)["id"] != str(number):
                found.lost += 1
            else:
                found.seconds.append(time.perf_counter() - began)
        writer.close()

    before = _passed(address)
    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    found.whole = time.perf_counter() - began
    packs, rows = (after - earlier for after, earlier in zip(_passed(address), before))
    found.rows = rows / max(1, packs)
    return found


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of an answer that says its length.

    Raises:
        IncompleteReadError: The connection ends before it.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
    return int(head.split(b" ", 2)[1]), await reader.readexactly(length)


def _passed(address: tuple[str, int]) -> tuple[float, float]:
    """Packs and rows that have passed the model so far."""
    with urlopen(f"http://{address[0]}:{address[1]}/metrics") as answer:
        lines = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if not line.startswith("#"))
    return float(lines["tuyi_pack_rows_count"]), float(lines["tuyi_pack_rows_sum"])


@dataclass(frozen=True, slots=True)
class Launched:
    """A server that runs: where, and its process."""

    address: tuple[str, int]
    process: subprocess.Popen[str]


@contextmanager
def server(
    model: Path, task: str, settings: Sequence[str], threads: int | None
) -> Iterator[tuple[tuple[str, int], int]]:
    """``tuyi serve`` on a port of its own: where, and the number of its process; stopped in the end."""
    with launched(model, task, settings, threads) as one:
        yield one.address, one.process.pid
        one.process.send_signal(signal.SIGTERM)
        print(f"  stopped with status {one.process.wait(60)}")


@contextmanager
def launched(
    model: Path, task: str, settings: Sequence[str], threads: int | None, log: IO[str] | None = None
) -> Iterator[Launched]:
    """``tuyi serve`` on a port of its own, which ends with whoever asks; ``log`` is for what it has to complain of."""
    command = [sys.executable, "-m", "tuyi", "serve", str(model), "--task", task, "--port", "0"]
    command += [word for one in settings for word in ("--set", one)]
    environment = {**os.environ, **({} if threads is None else {"OMP_NUM_THREADS": str(threads)})}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            print(f"  {line.rstrip()}", flush=True)
            if "listening on http://" in line:
                break
        host, _, port = line.strip().rpartition("/")[2].partition(":")
        while not _is_ready(host, int(port)):
            time.sleep(0.1)
        yield Launched((host, int(port)), process)
    finally:
        process.kill()
        process.wait()


def _is_ready(host: str, port: int) -> bool:
    try:
        with urlopen(f"http://{host}:{port}/healthz") as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _memory(pid: int) -> float:
    """Resident memory of a process and of those that it started, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024 + sum(map(_memory, map(int, children)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny model, small rows, CPU; no batch prediction")
    parser.add_argument("--size", choices=("tiny", "2b", "7b"), default="7b")
    parser.add_argument("--rows", type=int, default=512, help="different rows")
    parser.add_argument("--requests", type=int, help="of all clients together; each row once where not given")
    parser.add_argument("--alone", type=int, default=64, help="requests of the one client")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--max-pixels", type=int, default=1_003_520)
    parser.add_argument("--picture-pixels", type=int, help="draw pictures no larger than this")
    parser.add_argument("--device", help="torch device; the GPU where there is one")
    parser.add_argument("--threads", type=int, help="OMP_NUM_THREADS of the server")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings of tuyi serve")
    parser.add_argument("--work", type=Path, help="keep model and data here; a model there is used again")
    args = parser.parse_args()
    if args.tiny:
        args.size, args.device, args.rows, args.alone = "tiny", "cpu", min(args.rows, 160), min(args.alone, 200)
    args.requests = args.requests or args.rows
    return args


def main() -> None:
    """Print the table."""
    args = _arguments()
    with kept_or_temporary(args.work) as folder:
        run(args, folder)


def run(args: argparse.Namespace, work: Path) -> None:
    """Make model and rows, predict, serve, print."""
    device, _ = begin(args.device)
    model = make_model(work / args.size, args.size, texts(), device=device)
    task = "www2025"
    if args.tiny:
        task, bodies = str(work / "task.yaml"), small_requests(args.rows)
        Path(task).write_text(SMALL, encoding="utf-8")
    else:
        data = make_workload(work / f"rows-{args.rows}", args.rows, max_picture_pixels=args.picture_pixels)
        bodies = requests_of(data)
    print(f"{len(bodies)} rows, {sum(map(len, bodies)) / len(bodies) / 1024:.0f} KiB a request", flush=True)
    batch = None
    if not args.tiny:
        budget = {"max_pixels": args.max_pixels, "max_tokens": 8192}
        job = Job(str(model), str(data), str(work / f"out-{time.time_ns()}"), "www2025", budget, device)
        done = measure("local", job, "")
        if done.skipped:
            sys.exit(done.skipped)
        batch = len(done.labels) / done.finished[-1][0]
    settings = [f"serve.device={device}", *([] if args.tiny else [f"budget.max_pixels={args.max_pixels}"]), *args.set]
    with server(model, task, settings, args.threads) as (address, pid):
        asyncio.run(load(address, bodies, min(len(bodies), 2 * args.clients), args.clients))  # warms up
        memory = _memory(pid)
        alone = asyncio.run(load(address, bodies, args.alone, 1))
        together = asyncio.run(load(address, bodies, args.requests, args.clients))
        print(f"server: {memory:.0f} MiB before, {_memory(pid):.0f} MiB after")
    print("clients | requests | errors | lost | requests/s | p50 ms | p99 ms | p99 / p50 | rows a pack")
    for clients, one in ((1, alone), (args.clients, together)):
        print(
            f"{clients} | {len(one.seconds)} | {sum(one.errors.values())} | {one.lost} | {one.rate:.1f} | "
            f"{1000 * one.at(0.5):.0f} | {1000 * one.at(0.99):.0f} | {one.at(0.99) / one.at(0.5):.1f} | {one.rows:.1f}"
        )
    if batch is None:
        last = (
            "rate / rate of one client",
            f"{together.rate / alone.rate:.1f}",
            ">= 5",
            together.rate >= 5 * alone.rate,
        )
    else:
        last = ("rate / batch prediction", f"{together.rate / batch:.2f}", ">= 0.85", together.rate >= 0.85 * batch)
    goals = (
        ("errors", f"{sum(together.errors.values())}", "0", not together.errors),
        ("lost", f"{together.lost}", "0", not together.lost),
        ("p99 / p50", f"{together.at(0.99) / together.at(0.5):.1f}", "< 10", together.at(0.99) < 10 * together.at(0.5)),
        last,
    )
    print(f"goal with {args.clients} clients | measured | wanted | ")
    for name, found, wanted, is_met in goals:
        print(f"{name} | {found} | {wanted} | {'met' if is_met else 'MISSED'}")
    if batch is not None:
        print(f"batch prediction of the same rows, its cold start counted: {batch:.2f} rows/s")


if __name__ == "__main__":
    main()
