"""Free text for the same rows: packed decoding with a cache, and transformers' ``generate`` one by one and in batches.

    python benchmarks/decode.py --tiny
    python benchmarks/decode.py --size 7b --rows 64 --new-tokens 60

Weights are random at the real sizes, rows have the shapes of the WWW2025 challenge; every row writes exactly the same
number of tokens. Pictures are decoded and prompts encoded before the clock starts, and all get the same tokens and
pixels: what is timed is the model, from prompts on the host to tokens on the host. ``generate`` in batches
(``--batch``) pads prompts on the left, rows sorted by length. Each way does some rows first that are not counted.
``agree`` is the share of rows whose first token is that of transformers one by one (16-bit arithmetic breaks near ties
of random weights either way).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machine import begin
from models import make_model
from workload import kept_or_temporary, make_workload, texts

if TYPE_CHECKING:
    from tuyi.encode.encoded import Encoded
    from tuyi.model.load import Frontend

__all__ = ["hf_inputs", "run_batches", "run_packed"]

_WARM_ROWS = 4


@dataclass(frozen=True, slots=True)
class Ran:
    """What one way did: seconds in all and up to the first token of the last row, tokens by row, most GPU memory."""

    seconds: float
    prefill_seconds: float | None
    tokens: list[list[int]]
    peak_bytes: int


def hf_inputs(rows: Sequence[Encoded], frontend: Frontend) -> dict[str, Any]:
    """The same tokens and pixels as transformers takes them, rows padded on the left to the longest."""
    import numpy as np
    import torch

    spec, config = frontend.spec, frontend.config
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), frontend.tokenizer.pad_token_id)
    mask = np.zeros((len(rows), longest), np.int64)
    pixels, grids = [], []
    mean, std = (np.asarray(x, np.float32)[:, None, None] for x in (spec.mean, spec.std))
    for index, row in enumerate(rows):
        ids[index, longest - len(row) :] = row.ids
        mask[index, longest - len(row) :] = 1
        for item in row.media:
            frames = item.patches.values.reshape(len(item.patches.values), 3, -1, spec.patch_size**2)
            doubled = np.broadcast_to(frames, (len(frames), 3, spec.temporal_patch_size, spec.patch_size**2))
            pixels.append(((doubled.astype(np.float32) / 255 - mean) / std).reshape(len(frames), -1))
            grids.append(item.patches.grid)
    inputs = {
        "input_ids": torch.from_numpy(ids.astype(np.int64)),
        "attention_mask": torch.from_numpy(mask),
        "mm_token_type_ids": torch.from_numpy((ids == config.image_token_id).astype(np.int32) * mask.astype(np.int32)),
    }
    if pixels:
        inputs["pixel_values"] = torch.from_numpy(np.concatenate(pixels))
        inputs["image_grid_thw"] = torch.tensor(grids)
    return inputs


def run_batches(
    model: Any, frontend: Frontend, rows: Sequence[Encoded], *, batch: int, new_tokens: int
) -> list[list[int]]:
    """``generate`` over rows in batches of neighbours."""
    import torch

    made: list[list[int]] = []
    for at in range(0, len(rows), batch):
        inputs = hf_inputs(rows[at : at + batch], frontend)
        inputs = {
            key: value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
            for key, value in inputs.items()
        }
        with torch.inference_mode():
            out = model.generate(**inputs, do_sample=False, max_new_tokens=new_tokens, min_new_tokens=new_tokens)
        made += out[:, inputs["input_ids"].shape[1] :].tolist()
    return made


def run_packed(
    model: Any, rows: Sequence[Encoded], *, pack_tokens: int, new_tokens: int, joined: Callable[[], None]
) -> list[list[int]]:
    """All rows over one cache: prompts in packs, then a token a step for all of them."""
    import torch

    from tuyi.encode.pack import group
    from tuyi.model.decode import Decoder, Live

    decoder = Decoder(model, sum(map(len, rows)) + new_tokens * len(rows))
    lives: list[Live] = []
    logits = []
    for together in group(((row, len(row)) for row in rows), pack_tokens):
        found = decoder.join(together, [new_tokens] * len(together))
        assert found is not None, "the cache has room for all"
        lives += found[0]
        logits.append(found[1].argmax(1))
    best = torch.cat(logits).tolist()
    joined()
    made = [[token] for token in best]
    for _ in range(new_tokens - 1):
        best = decoder.extend(lives, [[token] for token in best]).argmax(1).tolist()
        for tokens, token in zip(made, best, strict=True):
            tokens.append(token)
    return made


def _timed(device: str, work: Callable[[Callable[[], None]], list[list[int]]]) -> Ran:
    import torch

    on_gpu = device.startswith("cuda")
    marks: list[float] = []

    def mark() -> None:
        if on_gpu:
            torch.cuda.synchronize()
        marks.append(time.perf_counter())

    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    mark()
    tokens = work(mark)
    mark()
    prefill = marks[1] - marks[0] if len(marks) == 3 else None
    return Ran(marks[-1] - marks[0], prefill, tokens, torch.cuda.max_memory_allocated() if on_gpu else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny model, small pictures, few rows, CPU")
    parser.add_argument("--size", choices=("tiny", "2b", "7b"), default="7b")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--script-rows", type=int, default=16, help="rows that transformers does one by one")
    parser.add_argument("--batch", type=int, default=16, help="rows of a padded batch")
    parser.add_argument("--new-tokens", type=int, default=60)
    parser.add_argument("--max-pixels", type=int, default=1_003_520)
    parser.add_argument("--pack-tokens", type=int, default=32768)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="torch device; the GPU where there is one")
    parser.add_argument("--work", type=Path, help="keep model and data here; a model there is used again")
    args = parser.parse_args()
    if args.tiny:
        args.size, args.device, args.max_pixels, args.pack_tokens = "tiny", "cpu", 12_544, 4096
        args.rows, args.script_rows, args.batch, args.new_tokens = min(args.rows, 16), 8, 8, 20
    return args


def main() -> None:
    """Print the table."""
    args = _arguments()
    with kept_or_temporary(args.work) as folder:
        run(args, folder)


def run(args: argparse.Namespace, work_folder: Path) -> None:
    """Make model and rows, let each way write, print."""
    import torch

    from tuyi.data.source import read
    from tuyi.encode.encoder import Encoder
    from tuyi.model.fast import tune
    from tuyi.model.load import load_frontend, load_model
    from tuyi.model.tasks import with_budget
    from tuyi.task import load_tasks

    device, _ = begin(args.device)
    args.device, on_gpu = device, device.startswith("cuda")
    folder = make_model(work_folder / args.size, args.size, texts(), device=device)
    data = make_workload(
        work_folder / f"decode-{args.rows}-{args.seed}", args.rows, args.seed,
        max_picture_pixels=50_176 if args.tiny else None,
    )  # fmt: skip
    frontend = load_frontend(str(folder))
    tasks = with_budget(load_tasks("www2025"), {"max_pixels": args.max_pixels, "max_tokens": 8192})
    encoder = Encoder(frontend.tokenizer, frontend.spec, tasks)
    rows = sorted((encoder.encode(row, labelled=False) for row in read(data)), key=len, reverse=True)
    print(
        f"{len(rows)} rows of {sum(map(len, rows)) / len(rows):.0f} tokens, {args.new_tokens} tokens written for each",
        flush=True,
    )
    spaced = rows[:: max(1, len(rows) // args.script_rows)][: args.script_rows]
    ran = _ran_by_transformers(folder, frontend, {"one by one": (spaced, 1), "batches": (rows, args.batch)}, args)
    if on_gpu:
        torch.cuda.empty_cache()
    model = load_model(frontend, device=device, dtype="bfloat16" if on_gpu else "float32")
    for line in tune(model.hf):
        print(line)
    run_packed(model, rows[:_WARM_ROWS], pack_tokens=args.pack_tokens, new_tokens=4, joined=lambda: None)
    ran["tuyi, packed"] = _timed(
        device,
        lambda mark: run_packed(model, rows, pack_tokens=args.pack_tokens, new_tokens=args.new_tokens, joined=mark),
    )
    show(ran, {"transformers, one by one": spaced}, rows, args.new_tokens)


def _ran_by_transformers(
    folder: Path, frontend: Frontend, ways: dict[str, tuple[Sequence[Encoded], int]], args: argparse.Namespace
) -> dict[str, Ran]:
    import torch
    from transformers import AutoModelForImageTextToText

    dtype = torch.bfloat16 if args.device.startswith("cuda") else torch.float32
    plain = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    plain = plain.to(args.device).eval()
    ran: dict[str, Ran] = {}
    for name, (rows, batch) in ways.items():
        run_batches(plain, frontend, rows[:_WARM_ROWS], batch=batch, new_tokens=4)
        write = partial(run_batches, plain, frontend, rows, batch=batch, new_tokens=args.new_tokens)
        ran[f"transformers, {name}"] = _timed(args.device, lambda _, write=write: write())
        print(f"transformers, {name}: {ran[f'transformers, {name}'].seconds:.1f} s", flush=True)
    return ran


def show(ran: dict[str, Ran], others: dict[str, Sequence[Encoded]], rows: Sequence[Encoded], new_tokens: int) -> None:
    """The table; rates of the first way are over its own rows."""
    (first, alone), *_ = others.items()
    expected = {row.id: tokens[0] for row, tokens in zip(alone, ran[first].tokens, strict=True)}
    print("\nway | rows | s | rows/s | tokens/s | prompts s | a step ms | GB | agree")
    for name, one in ran.items():
        own = others.get(name, rows)
        count = len(own)
        firsts = {row.id: tokens[0] for row, tokens in zip(own, one.tokens, strict=True)}
        agree = sum(firsts[id_] == token for id_, token in expected.items())
        prefill = step = "–"
        if one.prefill_seconds is not None:
            prefill = f"{one.prefill_seconds:.2f}"
            step = f"{(one.seconds - one.prefill_seconds) / (new_tokens - 1) * 1e3:.1f}"
        print(
            f"{name} | {count} | {one.seconds:.2f} | {count / one.seconds:.2f} | "
            f"{count * new_tokens / one.seconds:.0f} | {prefill} | {step} | {one.peak_bytes / 2**30:.1f} | "
            f"{agree}/{len(expected)}"
        )


if __name__ == "__main__":
    main()
