"""Well-behaved clients beside those that hang, vanish, never read and send what they should not; for half an hour.

    python benchmarks/serve_mixed.py --threads 1
    python benchmarks/serve_mixed.py --minutes 0.5

64 clients ask `tuyi serve` of the tiny model for labels, for answers, streamed and not, and for choices, each after a
moment's thought; the clients of `rude.py` do their worst meanwhile. Every good answer is compared with the one that the
same request had before the load, of requests whose answer is no near tie. A line a minute says what was answered, lost
or wrong, what became of the others, and what the server's process holds. In the end the server is told to stop under
load: every answer that has begun must come to its end. Ends with status 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import log
from pathlib import Path
from typing import Any

from machine import begin
from models import make_model
from rude import RUDE, Address, Rude
from serve import SMALL, launched, small_requests
from workload import texts

CLIENTS, WAITS = 64, (429, 503, 504)
SETTINGS = ("serve.device=cpu", "serve.read_s=10", "serve.deadline_s=30")
CLEAR = 0.02
"""A request is asked only where the best answer is ahead of the next by this log-probability at each choice."""


@dataclass(frozen=True, slots=True)
class Good:
    """A request and what is to be answered to it."""

    kind: str
    path: str
    body: dict[str, Any]
    answer: str


@dataclass(slots=True)
class Seen:
    """What the clients saw, and what the server's process held, sample by sample."""

    seconds: list[float] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    rude: dict[str, Counter[int | None]] = field(default_factory=lambda: defaultdict(Counter))
    held: list[tuple[float, float, int, int]] = field(default_factory=list)
    """Seconds since the start, resident MiB, descriptors, threads."""

    @property
    def broken(self) -> int:
        """Answers that say the server made a mistake."""
        rude = sum(self.rude.values(), Counter[int | None]())
        return sum(n for status, n in (rude + self.refused).items() if status and status >= 500 and status not in WAITS)

    def at(self, share: float) -> float:
        """Milliseconds within which this share of good requests was answered."""
        ordered = sorted(self.seconds)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def requests() -> list[tuple[str, str, dict[str, Any]]]:
    """Kind, path and body of what good clients ask."""
    found = []
    for row in map(json.loads, small_requests(48)):
        found.append(("classify", "/v1/classify", row))
        parts = [
            {"type": "text", "text": part["text"]} if "text" in part else
            {"type": "image_url", "image_url": {"url": part["image"]}}
            for part in row["parts"]
        ]  # fmt: skip
        said = {"messages": [{"role": "user", "content": parts}], "max_tokens": 6}
        found.append(("chat", "/v1/chat/completions", {**said, "logprobs": True, "top_logprobs": 2}))
        streamed = {**said, "logprobs": True, "top_logprobs": 2, "stream": True}
        found.append(("stream", "/v1/chat/completions", streamed))
        choice = {"choice": ["lamp", "chair", "telephone"]}
        found.append(("choice", "/v1/chat/completions", {**said, "structured_outputs": choice}))
    return found


class Client:
    """One connection after another to the server, each for a few requests."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._open: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._left = 0

    async def ask(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and what was answered: JSON, or the events of a stream.

        Raises:
            OSError, IncompleteReadError: The answer does not come to its end.
        """
        if self._open is None or self._left == 0:
            self.close()
            self._open, self._left = await asyncio.open_connection(*self._address, limit=1 << 24), random.randint(1, 30)
        self._left -= 1
        reader, writer = self._open
        data = json.dumps(body).encode()
        writer.write(f"POST {path} HTTP/1.1\r\nHost: good\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        try:
            return await _answer(reader)
        except (OSError, EOFError):
            self.close()
            raise

    def close(self) -> None:
        """Leave."""
        if self._open is not None:
            self._open[1].close()
        self._open = None


async def _answer(reader: asyncio.StreamReader) -> tuple[int, Any]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head.split(b" ", 2)[1])
    if b"content-length:" in head:
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        return status, json.loads(await reader.readexactly(length))
    data = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        data += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return status, [line[6:] for line in data.decode().split("\n\n") if line]


def told(kind: str, found: Any) -> str:
    """What was answered, as one text; empty where a stream has no end."""
    if kind == "classify":
        return str(found["label"])
    if kind != "stream":
        return str(found["choices"][0]["message"]["content"])
    if found[-1] != "[DONE]":
        return ""
    return "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in found[:-1])


def is_clear(kind: str, found: Any) -> bool:
    """Whether no other answer is nearly as good."""
    if kind in ("classify", "choice"):
        chances = (found if kind == "classify" else found["choices"][0])["probabilities"].values()
        first, second, *_ = sorted(chances, reverse=True)
        return log(first / max(second, 1e-30)) > CLEAR
    choices = [json.loads(event)["choices"][0] for event in found[:-1]] if kind == "stream" else found["choices"]
    tokens = [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["content"]]
    best = [[one["logprob"] for one in token["top_logprobs"]] for token in tokens]
    return bool(tokens) and all(first - second > CLEAR for first, second in best)


async def expected(address: Address) -> list[Good]:
    """What is answered while nobody else asks."""
    client, found = Client(address), []
    for kind, path, body in requests():
        status, answer = await client.ask(path, body)
        assert status == 200, answer
        if is_clear(kind, answer):
            found.append(Good(kind, path, body, told(kind, answer)))
    client.close()
    return found


async def behaves(address: Address, goods: Sequence[Good], seen: Seen, until: float) -> None:
    """A good client."""
    client = Client(address)
    while time.monotonic() < until:
        good = random.choice(goods)
        body = {**good.body, "id": f"good-{random.getrandbits(60)}"} if good.kind == "classify" else good.body
        began = time.monotonic()
        try:
            async with asyncio.timeout(60):
                status, answer = await client.ask(good.path, body)
        except (OSError, EOFError, TimeoutError) as error:
            seen.lost.append(f"{good.kind}: {error!r}")
            client.close()
            continue
        if status != 200:
            seen.refused[status] += 1
        elif told(good.kind, answer) != good.answer or (good.kind == "classify" and answer["id"] != body["id"]):
            seen.wrong.append(f"{good.kind}: expected {good.answer!r}, found {told(good.kind, answer)!r}")
        else:
            seen.answered[good.kind] += 1
            seen.seconds.append(time.monotonic() - began)
        await asyncio.sleep(random.expovariate(1.0) % 4)
    client.close()


async def misbehaves(address: Address, rude: Rude, pause: float, seen: Seen, until: float) -> None:
    """A rude client, again and again."""
    await asyncio.sleep(random.random() * pause)
    while time.monotonic() < until:
        with suppress(OSError):
            seen.rude[rude.__name__][await rude(address)] += 1
        await asyncio.sleep(pause * (0.5 + random.random()))


def held(pid: int) -> tuple[float, int, int]:
    """Resident MiB, descriptors and threads of a process."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(lines["VmRSS"].split()[0]) / 1024, len(os.listdir(f"/proc/{pid}/fd")), int(lines["Threads"])


async def watch(pid: int, seen: Seen, began: float, until: float) -> None:
    """Look at the server's process every two seconds, and say every minute what there is to say."""
    said = began
    while (now := time.monotonic()) < until:
        seen.held.append((now - began, *held(pid)))
        if now - said >= 60:
            said = now
            show(seen)
        await asyncio.sleep(2)


def show(seen: Seen) -> None:
    """A line of where things stand."""
    seconds, memory, descriptors, threads = seen.held[-1]
    rude = sum(seen.rude.values(), Counter[int | None]())
    print(
        f"{seconds / 60:5.1f} min | good {seen.answered.total()} answered, {len(seen.lost)} lost, "
        f"{len(seen.wrong)} wrong, refused {dict(seen.refused)} | p50 {seen.at(0.5):.0f} p99 {seen.at(0.99):.0f} ms | "
        f"rude {dict(sorted(rude.items(), key=str))} | {memory:.0f} MiB, {descriptors} descriptors, {threads} threads",
        flush=True,
    )


def slope(seen: Seen) -> float:
    """MiB an hour, fitted over the second half."""
    half = seen.held[len(seen.held) // 2 :]
    times, memory = [one[0] / 3600 for one in half], [one[1] for one in half]
    middle, mean = sum(times) / len(times), sum(memory) / len(memory)
    spread = sum((at - middle) ** 2 for at in times)
    return sum((at - middle) * (size - mean) for at, size in zip(times, memory)) / spread if spread else 0.0


def growth(seen: Seen) -> float:
    """Share by which memory has grown over the second half: its last tenth beside the tenth from the middle on."""
    size = max(1, len(seen.held) // 10)
    middle, end = seen.held[len(seen.held) // 2 :][:size], seen.held[-size:]
    return sum(one[1] for one in end) / sum(one[1] for one in middle) * len(middle) / len(end) - 1


async def settled(pid: int, before: int, seconds: float) -> int:
    """Descriptors once all clients have left."""
    until = time.monotonic() + seconds
    while (found := held(pid)[1]) > before and time.monotonic() < until:
        await asyncio.sleep(0.5)
    return found


async def stops(address: Address, process: subprocess.Popen[str], seen: Seen) -> tuple[int, int, int | None]:
    """Tell the server to stop under load: streams that had begun, those that came to their end, the exit status."""
    body = {"messages": [{"role": "user", "content": "Count."}], "max_tokens": 300, "stream": True}
    data = json.dumps(body).encode()
    ends: list[asyncio.Task[bytes]] = []
    for _ in range(24):
        reader, writer = await asyncio.open_connection(*address, limit=1 << 24)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        ends.append(asyncio.create_task(_to_the_end(reader, writer)))
    await asyncio.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    found = await asyncio.gather(*ends)
    accepted = [one for one in found if one]
    whole = sum(b"data: [DONE]" in one for one in accepted)
    status: int | None = None
    with suppress(subprocess.TimeoutExpired):
        status = await asyncio.to_thread(process.wait, 120)
    return len(accepted), whole, status


async def _to_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    data = b""
    with suppress(OSError):
        while piece := await reader.read(1 << 16):
            data += piece
            if data.endswith(b"0\r\n\r\n"):
                break
    writer.close()
    return data


async def mix(
    address: Address, process: subprocess.Popen[str], minutes: float
) -> tuple[Seen, list[tuple[str, str, str, bool]]]:
    """The load, and the goals: name, measured, wanted, met."""
    goods = await expected(address)
    print(f"{len(goods)} different good requests: {dict(Counter(one.kind for one in goods))}", flush=True)
    seen, before = Seen(), held(process.pid)
    began = time.monotonic()
    until = began + 60 * minutes
    rude = [
        asyncio.create_task(misbehaves(address, kind, pause, seen, until))
        for kind, number, pause in RUDE
        for _ in range(number)
    ]
    good = [behaves(address, goods, seen, until) for _ in range(CLIENTS)]
    await asyncio.gather(watch(process.pid, seen, began, until), *good)
    show(seen)
    for task in rude:
        task.cancel()
    await asyncio.gather(*rude, return_exceptions=True)
    left = await settled(process.pid, before[1] + 4, 45)
    again = [asyncio.create_task(misbehaves(address, kind, pause, Seen(), until + 3600)) for kind, _, pause in RUDE]
    accepted, whole, status = await stops(address, process, seen)
    for task in again:
        task.cancel()
    await asyncio.gather(*again, return_exceptions=True)
    return seen, [
        ("good requests lost", f"{len(seen.lost)}", "0", not seen.lost),
        ("good answers wrong", f"{len(seen.wrong)}", "0", not seen.wrong),
        ("good requests refused", f"{dict(seen.refused)}", "none", not seen.refused),
        ("5xx but 503 and 504", f"{seen.broken}", "0", not seen.broken),
        (
            "memory, second half",
            f"{100 * growth(seen):+.1f} %, {slope(seen):+.0f} MiB/h",
            "<= 5 %",
            growth(seen) <= 0.05,
        ),
        ("descriptors after all left", f"{left}, before {before[1]}", f"<= {before[1] + 4}", left <= before[1] + 4),
        ("answers begun before SIGTERM", f"{whole} of {accepted} ended well", "all", 0 < accepted == whole),
        ("exit status", f"{status}", "0", status == 0),
    ]


def main() -> None:
    """Print the table; status 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--threads", type=int, help="OMP_NUM_THREADS of the server")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings of tuyi serve")
    args = parser.parse_args()
    begin("cpu")
    with tempfile.TemporaryDirectory(prefix="tuyi-bench-") as folder, (Path(folder) / "log").open("w+") as log:
        model, task = make_model(Path(folder) / "tiny", "tiny", texts(), device="cpu"), Path(folder) / "task.yaml"
        task.write_text(SMALL, encoding="utf-8")
        with launched(model, str(task), [*SETTINGS, *args.set], args.threads, log) as one:
            seen, goals = asyncio.run(mix(one.address, one.process, args.minutes))
        log.seek(0)
        complaints = Counter(line.split(":", 1)[-1].strip() for line in log if not line.startswith((" ", "WARNING")))
    report(seen, goals, complaints)
    sys.exit(not all(is_met for *_, is_met in goals))


def report(seen: Seen, goals: Sequence[tuple[str, str, str, bool]], complaints: Counter[str]) -> None:
    """All of it."""
    print(f"\ngood: {dict(seen.answered)}, p50 {seen.at(0.5):.0f} ms, p99 {seen.at(0.99):.0f} ms")
    for name, statuses in seen.rude.items():
        print(f"  {name}: {dict(sorted(statuses.items(), key=str))}")
    for line, number in complaints.most_common(8):
        print(f"  log: {number} x {line[:150]}")
    for one in (*seen.lost[:5], *seen.wrong[:5]):
        print(f"  {one}")
    print("goal | measured | wanted | ")
    for name, found, wanted, is_met in goals:
        print(f"{name} | {found} | {wanted} | {'met' if is_met else 'MISSED'}")


if __name__ == "__main__":
    main()
