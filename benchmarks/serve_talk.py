"""Talks with follow-ups, many at once: with what ended answers leave in the cache, and without.

    python benchmarks/serve_talk.py --tiny
    python benchmarks/serve_talk.py --size 7b --talks 16

Each client of ``tuyi serve`` shows a picture and asks; every turn sends the whole conversation so far, as OpenAI
clients do, and reads the answer as it is streamed. One run serves the same talks twice, keeping nothing and keeping
what the settings keep, and prints for each turn the time to the first piece of the answer and to its end at the median,
and how many tokens of the prompt were known. A model with random weights writes texts whose tokens are others when
they are read again: of such an answer only the beginning is known in the next turn.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import begin
from models import make_model
from pictures import save_screenshot
from serve import SMALL, server
from workload import kept_or_temporary, texts

__all__ = ["Turn", "talks"]

QUESTIONS = (
    "What is shown here? Describe it.",
    "Which of that would a customer ask about first?",
    "And what could be wrong with it?",
    "Write one sentence to the customer.",
    "Now the same, but shorter.",
)
OFF = ("serve.keep_tokens=0", "serve.keep_media_bytes=0")


@dataclass(frozen=True, slots=True)
class Turn:
    """What a client saw of a turn.

    Args:
        first: Seconds to the first piece of the answer.
        whole: Seconds to its end.
        prompt, known: Tokens of the prompt, and those of them that the server had kept.
        text: The answer.
    """

    first: float
    whole: float
    prompt: int
    known: int
    text: str


async def talks(address: tuple[str, int], urls: Sequence[str], turns: int, tokens: int) -> list[list[Turn]]:
    """Talk about each picture, all at once: the turns of each talk."""
    return await asyncio.gather(*(_talk(address, url, turns, tokens) for url in urls))


async def _talk(address: tuple[str, int], url: str, turns: int, tokens: int) -> list[Turn]:
    messages: list[dict[str, Any]] = []
    found: list[Turn] = []
    for question in (QUESTIONS[turn % len(QUESTIONS)] for turn in range(turns)):
        content: Any = question
        if not messages:
            content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
        messages.append({"role": "user", "content": content})
        asked = {"messages": messages, "max_tokens": tokens, "stream": True, "stream_options": {"include_usage": True}}
        found.append(await _turn(address, json.dumps(asked).encode()))
        messages.append({"role": "assistant", "content": found[-1].text})
    return found


async def _turn(address: tuple[str, int], body: bytes) -> Turn:
    reader, writer = await asyncio.open_connection(*address, limit=1 << 24)
    began = time.perf_counter()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n"
    writer.write(head + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    status = await reader.readline()
    assert b" 200 " in status, (status, await reader.read())
    text, first, usage = "", 0.0, {}
    while (line := await reader.readline()) != b"data: [DONE]\n":
        assert line, "the answer has an end"
        if not line.startswith(b"data: "):
            continue
        event = json.loads(line[6:])
        usage = event.get("usage") or usage
        piece = event["choices"][0]["delta"].get("content") if event["choices"] else None
        if piece:
            first = first or time.perf_counter() - began
            text += piece
    whole = time.perf_counter() - began
    writer.close()
    known = usage["prompt_tokens_details"]["cached_tokens"]
    return Turn(first or whole, whole, usage["prompt_tokens"], known, text)


def pictures(folder: Path, count: int, side: int) -> list[str]:
    """Data URLs of so many different screenshots."""
    folder.mkdir(parents=True, exist_ok=True)
    urls = []
    for number in range(count):
        name = save_screenshot(folder, f"{number}", (side, side, side * side // 8), number)
        data = base64.b64encode((folder / name).read_bytes()).decode()
        urls.append(f"data:image/{'png' if name.endswith('png') else 'jpeg'};base64,{data}")
    return urls


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny model, small pictures, CPU")
    parser.add_argument("--size", choices=("tiny", "2b", "7b"), default="7b")
    parser.add_argument("--talks", type=int, default=8, help="clients at once")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32, help="most tokens of an answer")
    parser.add_argument("--side", type=int, default=1400, help="sides of a picture in pixels")
    parser.add_argument("--max-pixels", type=int, default=1_003_520)
    parser.add_argument("--device", help="torch device; the GPU where there is one")
    parser.add_argument("--threads", type=int, help="OMP_NUM_THREADS of the server")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings of tuyi serve")
    parser.add_argument("--work", type=Path, help="keep model and pictures here; a model there is used again")
    args = parser.parse_args()
    if args.tiny:
        args.size, args.device, args.side, args.max_pixels = "tiny", "cpu", min(args.side, 448), 200_704
        args.tokens = min(args.tokens, 8)
    return args


def main() -> None:
    """Print the table."""
    args = _arguments()
    with kept_or_temporary(args.work) as folder:
        run(args, folder)


def run(args: argparse.Namespace, work: Path) -> None:
    """Make model and pictures, serve the talks twice, print."""
    device, _ = begin(args.device)
    model = make_model(work / args.size, args.size, texts(), device=device)
    task = work / "task.yaml"
    task.write_text(SMALL.replace("max_pixels: 12544", f"max_pixels: {args.max_pixels}"), encoding="utf-8")
    urls = pictures(work / "pictures", args.talks + 1, args.side)
    rows: dict[str, list[list[Turn]]] = {}
    for name, settings in (("without", OFF), ("with", ())):
        with server(model, str(task), [f"serve.device={device}", *settings, *args.set], args.threads) as (address, _):
            asyncio.run(talks(address, urls[-1:], 2, args.tokens))  # warms up
            rows[name] = asyncio.run(talks(address, urls[:-1], args.turns, args.tokens))
    show(rows)


def show(rows: dict[str, list[list[Turn]]]) -> None:
    """Print what clients saw, turn by turn."""
    plain, kept = rows.values()
    same = sum(one.text == other.text for a, b in zip(plain, kept) for one, other in zip(a, b))
    print(f"{same} of {sum(map(len, plain))} answers are the same")
    print(
        "turn | prompt tokens | known | first piece, ms: kept nothing | kept | × | whole, ms: kept nothing | kept | ×"
    )
    for number, (before, after) in enumerate(zip(zip(*plain), zip(*kept)), 1):
        cells: list[str] = []
        for field in ("first", "whole"):
            old, new = (1000 * statistics.median(getattr(turn, field) for turn in one) for one in (before, after))
            cells += [f"{old:.0f}", f"{new:.0f}", f"{old / new:.1f}"]
        prompt = statistics.median(turn.prompt for turn in after)
        known = statistics.median(turn.known for turn in after)
        print(" | ".join([str(number), f"{prompt:.0f}", f"{known:.0f}", *cells]))


if __name__ == "__main__":
    main()
