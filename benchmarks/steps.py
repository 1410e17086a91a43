"""A step of decoding, in which every row writes one token: launched kernel by kernel, and recorded and played again.

    python benchmarks/steps.py --size 7b
    python benchmarks/steps.py --size 7b --compile

Weights are random at the real sizes, prompts random text of nearly equal lengths. Both ways take the same tokens from
the same start; a step's time begins with tokens on the host and ends with logits on the GPU. Medians are printed, and
how far logits are from each other at most, in standard deviations of the logits.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from unittest.mock import patch

from machine import begin
from models import tuned_model

if TYPE_CHECKING:
    from torch import Tensor

    from tuyi.model.load import Model

_WARM, _STEPS = 5, 24
_PREFILL = 8


@dataclass(frozen=True, slots=True)
class Ran:
    """Milliseconds of each step, and its logits."""

    ms: list[float]
    logits: list[Tensor]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("2b", "7b"), default="7b")
    parser.add_argument("--rows", default="1x1300,8x1600,64x1541,256x400", help="number of rows and tokens of a prompt")
    parser.add_argument("--compile", action="store_true", help="as tuyi serve does on a GPU")
    args = parser.parse_args()
    device, _ = begin("cuda")
    model = load(args.size, device, is_compiled=args.compile)
    print("rows × tokens | launched, ms a step | recorded, ms a step | × | recording, ms | largest difference")
    for item in args.rows.split(","):
        rows, tokens = map(int, item.split("x"))
        with patch("tuyi.model.steps._WORTH", 10**9):
            launched = run(model, rows, tokens)
        recorded = run(model, rows, tokens)
        before, after = (statistics.median(one.ms[_WARM:]) for one in (launched, recorded))
        apart = max(float((x - y).abs().max() / x.std()) for x, y in zip(launched.logits, recorded.logits, strict=True))
        print(
            f"{rows} × {tokens} | {before:.2f} | {after:.2f} | {before / after:.2f} | {max(recorded.ms[:_WARM]):.0f} | "
            f"{apart:.4f}", flush=True,
        )  # fmt: skip


def load(size: str, device: str, *, is_compiled: bool) -> Model:
    """A model of the size, its blocks compiled where they are in what answers."""
    from tuyi.model.fast import compile_blocks

    model, chosen = tuned_model(size, device)
    print("\n".join(chosen))
    if is_compiled:
        compile_blocks(model.hf)
    return model


def run(model: Model, rows: int, tokens: int) -> Ran:
    """Let rows join and write; every token is drawn, the same ones for each call."""
    import numpy as np
    import torch

    from tuyi.encode.encoded import Encoded
    from tuyi.model.decode import Decoder

    draw = np.random.default_rng(0)

    def prompt(length: int) -> Encoded:
        places = np.arange(length, dtype=np.int32)
        ids = draw.integers(100, 150_000, length).astype(np.int32)
        return Encoded("", "", ids, np.zeros(length, bool), np.stack([places] * 3))

    prompts = [prompt(tokens - (at % 7) * (tokens // 40)) for at in range(rows)]
    decoder = Decoder(model, sum(map(len, prompts)) + rows * _STEPS)
    live = []
    for at in range(0, rows, _PREFILL):
        found = decoder.join(prompts[at : at + _PREFILL], [_STEPS] * len(prompts[at : at + _PREFILL]))
        assert found is not None, "there is room for all"
        live += found[0]
    ran = Ran([], [])
    for _ in range(_STEPS):
        chosen = [[token] for token in draw.integers(100, 150_000, rows).tolist()]
        torch.cuda.synchronize()
        started = time.perf_counter()
        logits = decoder.extend(live, chosen)
        torch.cuda.synchronize()
        ran.ms.append(1e3 * (time.perf_counter() - started))
        ran.logits.append(logits)
    return ran


if __name__ == "__main__":
    main()
