"""The least time that a workload can take: every token and every patch once, at the measured matrix rate.

Counted for Qwen2-VL (arXiv 2409.12191), two operations a multiply-add: the linears of the language model, its causal
attention, the linears of the vision tower with the patch projection, its full attention over each picture, and the
patch merger. Not counted: embeddings, norms, the head at the places that are read, label continuations.

Training takes the operations of the forward pass once more for the gradients of the inputs, and once more for those of
the weights where these learn (:func:`training_flops`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

__all__ = ["Flops", "RowWork", "count_flops", "floor_rate", "matrix_rate", "row_work", "total", "training_flops"]


@dataclass(frozen=True, slots=True)
class RowWork:
    """What one row brings to the model: its tokens, visual ones included, and the patches of each picture."""

    tokens: int
    patches: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Flops:
    """Floating-point operations by part."""

    language_linears: float = 0.0
    language_attention: float = 0.0
    tower_linears: float = 0.0
    tower_attention: float = 0.0
    merger: float = 0.0

    @property
    def sum(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


def count_flops(config: Any, work: RowWork) -> Flops:
    """Operations of one row.

    Args:
        config: A transformers Qwen2-VL configuration.
        work: The row.
    """
    text, vision = config.text_config, config.vision_config
    width, layers = text.hidden_size, text.num_hidden_layers
    head = getattr(text, "head_dim", None) or width // text.num_attention_heads
    queries, keys = text.num_attention_heads * head, text.num_key_value_heads * head
    weights = 2 * width * queries + 2 * width * keys + 3 * width * text.intermediate_size
    inner, merged = vision.embed_dim, vision.embed_dim * vision.spatial_merge_size**2
    pixels = 3 * vision.temporal_patch_size * vision.patch_size**2
    block = 4 * inner**2 + 2 * int(inner * vision.mlp_ratio) * inner
    patches = sum(work.patches)
    return Flops(
        language_linears=2.0 * work.tokens * layers * weights,
        language_attention=2.0 * work.tokens**2 * queries * layers,  # two products of 2·T²·D, half of each masked
        tower_linears=2.0 * patches * (pixels * inner + vision.depth * block),
        tower_attention=sum(4.0 * count**2 * inner for count in work.patches) * vision.depth,
        merger=2.0 * patches / vision.spatial_merge_size**2 * (merged**2 + merged * vision.hidden_size),
    )


def training_flops(forward: Flops, *, method: str = "full", tower: bool = False, projector: bool = False) -> Flops:
    """Operations of training on a row.

    A language model that learns passes three times: forward, gradients of the inputs, gradients of the weights.
    Adapters beside frozen weights need the first two in the linears, their own weights being small, but attention has
    no weights: both sides of its products are inputs, and it takes three passes wherever gradients flow. A frozen tower
    passes once.

    Args:
        forward: Operations of the forward pass.
        method: ``full`` or ``lora``.
        tower: Whether the vision tower learns.
        projector: Whether the patch merger learns.
    """
    learning = 3.0 if method == "full" else 2.0
    seen = learning if tower else 1.0
    merged = learning if projector else 2.0 if tower else 1.0
    return replace(
        forward,
        language_linears=learning * forward.language_linears,
        language_attention=3.0 * forward.language_attention,
        tower_linears=seen * forward.tower_linears,
        tower_attention=(3.0 if tower else 1.0) * forward.tower_attention,
        merger=merged * forward.merger,
    )


def total(parts: Iterable[Flops]) -> Flops:
    """The sum, part by part."""
    listed = list(parts)
    return Flops(**{field.name: sum(getattr(part, field.name) for part in listed) for field in fields(Flops)})


def floor_rate(rows: Sequence[Flops], flops_per_second: float) -> float:
    """Rows a second that no engine can pass which computes every row whole."""
    return len(rows) * flops_per_second / total(rows).sum


def row_work(data: Path, frontend: Any, tasks: Any, *, labelled: bool = False) -> dict[str, RowWork]:
    """The work of every row of a data file, by id, from file headers and the tokenizer alone.

    Args:
        data: The data file.
        frontend: The model's, as ``tuyi.model.load.load_frontend`` gives it.
        tasks: The task set with its budgets.
        labelled: Whether the answer follows the prompt, as in training.
    """
    import math

    from tuyi.data.example import Text, Turn
    from tuyi.data.source import read
    from tuyi.encode.template import ChatTemplate
    from tuyi.vision import image_grid, probe_image

    template = ChatTemplate(frontend.tokenizer)
    found: dict[str, RowWork] = {}
    for row in read(data):
        task = tasks.of(row)
        parts = task.ask(row).parts()
        budget = task.budget
        pieces = template.pieces([Turn("user", parts)])
        patches = []
        for part in parts:
            if not isinstance(part, Text):
                info = probe_image(part)
                grid = image_grid(info.width, info.height, frontend.spec, budget.min_pixels, budget.max_pixels)
                patches.append(math.prod(grid))
        visual = sum(count // frontend.spec.merge_size**2 + 2 for count in patches)  # and the two vision marks
        answer = len(template.tokens(task.target(row) or "")) + 1 if labelled else 0  # and the token that ends it
        found[row.id] = RowWork(sum(len(piece.ids) for piece in pieces) + visual + answer, tuple(patches))
    return found


def matrix_rate(device: str, *, repeats: int = 30) -> float:
    """Operations a second of one large matrix product on random data, median of ``repeats``.

    bfloat16 at 8192³ on a GPU; float32 at 1024³ on a CPU, where the tiny model runs in float32.
    """
    import torch

    on_gpu = torch.device(device).type == "cuda"
    side, dtype = (8192, torch.bfloat16) if on_gpu else (1024, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(5):
        a @ b
    for _ in range(repeats):
        if on_gpu:
            torch.cuda.synchronize()
        started = time.perf_counter()
        a @ b
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / statistics.median(seconds)
