"""Packs of the challenge's mean shape on the GPU alone: rows a second, and the kernels that the time goes to.

    python benchmarks/packs.py --size 7b
    python benchmarks/packs.py --size 7b --precisions bfloat16,fp8 --kernels 14

Weights are random at the real size, blocks compiled, packs on the GPU before the clock starts. Each precision runs as
tuyi predicts, and with torch's products in the place of the fused ones.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np
import torch

from machine import begin
from models import tuned_model

if TYPE_CHECKING:
    from tuyi.encode.encoded import Encoded
    from tuyi.encode.pack import Pack
    from tuyi.model.forward import Batch
    from tuyi.model.load import Model
    from tuyi.vision.spec import VisionSpec

_ROWS = 22
_SIDES, _WORDS = (30, 38), (200, 380)
"""Merged patches a side of a row's picture, and its tokens of text."""


def main() -> None:
    """Print the table, and the kernels that take longest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("2b", "7b"), default="7b")
    parser.add_argument("--precisions", default="bfloat16,fp8")
    parser.add_argument("--packs", type=int, default=4)
    parser.add_argument("--kernels", type=int, default=0, metavar="N", help="print the N that take longest")
    args = parser.parse_args()
    begin("cuda")
    print("precision | products | rows/s | tokens | patches")
    for precision in args.precisions.split(","):
        for products in ("torch's", "fused"):
            model = load(args.size, fp8=precision == "fp8", fused=products == "fused")
            packs = [packed(model, number) for number in range(args.packs)]
            seconds = timed(model, packs)
            tokens, patches = (sum(sizes) for sizes in zip(*(_sizes(batch) for _, batch in packs)))
            rate = _ROWS * args.packs / seconds
            print(f"{precision} | {products} | {rate:.2f} | {tokens} | {patches}", flush=True)
            if args.kernels:
                print(profiled(model, packs, args.kernels), flush=True)
            del model, packs
            torch.cuda.empty_cache()
            torch._dynamo.reset()


def load(size: str, *, fp8: bool, fused: bool) -> Model:
    """A model of the size, compiled, as tuyi loads one that predicts."""
    from tuyi.model.fast import compile_blocks
    from tuyi.model.fp8 import use_fp8

    with nullcontext() if fused else patch("tuyi.model.products.refused", lambda _: "left out here"):
        model, _ = tuned_model(size, "cuda")
        if fp8:
            use_fp8(model.hf)
    compile_blocks(model.hf)
    return model


def packed(model: Model, seed: int) -> tuple[Pack, Batch]:
    """A pack of rows with a picture each and thirteen labels."""
    from tuyi.encode.encoder import LabelTokens
    from tuyi.encode.pack import pack
    from tuyi.model.forward import to_device

    rng, spec = np.random.default_rng(seed), model.spec
    names = tuple(map(str, range(13)))
    labels = LabelTokens(names, tuple(tuple(rng.integers(5, 90_000, rng.integers(4, 8)).tolist()) for _ in names))
    made = pack([_row(spec, rng) for _ in range(_ROWS)], [labels] * _ROWS)
    return made, to_device(made, spec, model.device)


def _row(spec: VisionSpec, rng: np.random.Generator) -> Encoded:
    from tuyi.encode.encoded import Encoded, Media
    from tuyi.vision.spec import ImagePatches

    h, w = (spec.merge_size * int(side) for side in rng.integers(*_SIDES, 2))
    values = rng.integers(0, 256, (h * w, 3 * spec.patch_size**2), np.uint8)
    visual = h * w // spec.merge_size**2
    ids = np.full(16 + visual + int(rng.integers(*_WORDS)), 10, np.int32)
    media = (Media(ImagePatches(values, (1, h, w)), ((16, 16 + visual),)),)
    return Encoded("row", "", ids, np.zeros(len(ids), bool), np.stack([np.arange(len(ids), dtype=np.int32)] * 3), media)


def _sizes(batch: Batch) -> tuple[int, int]:
    assert batch.tower is not None
    assert batch.tower.patches is not None
    return len(batch.ids), len(batch.tower.patches)


def _pass(model: Model, packs: list[tuple[Pack, Batch]]) -> None:
    from tuyi.predict.scoring import score_tokens

    for made, batch in packs:
        score_tokens(model, batch, made)
    torch.cuda.synchronize()


def timed(model: Model, packs: list[tuple[Pack, Batch]]) -> float:
    """Seconds that all packs take, the mean of two turns after one that compiles."""
    _pass(model, packs)
    began = time.perf_counter()
    for _ in range(2):
        _pass(model, packs)
    return (time.perf_counter() - began) / 2


def profiled(model: Model, packs: list[tuple[Pack, Batch]], count: int) -> str:
    """A line for each of the kernels that take longest."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        _pass(model, packs)
    found = sorted(profile.key_averages(), key=lambda kernel: -kernel.self_device_time_total)
    whole = sum(kernel.self_device_time_total for kernel in found)
    return "\n".join(
        f"  {kernel.self_device_time_total / 1e3:7.1f} ms {kernel.self_device_time_total / whole:6.1%} "
        f"{kernel.count:5d} × {kernel.key[:90]}"
        for kernel in found[:count]
    )


if __name__ == "__main__":
    main()
