"""A loaded model made ready for this machine: the fastest attention, fused norms, compiled blocks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tuyi.model.attention import choose_kernels, register
from tuyi.model.load import Frontend, Model, load_model

__all__ = ["compile_blocks", "load_tuned", "tune"]


def load_tuned(frontend: Frontend, device: str | None, dtype: str | None, tell: Callable[[str], None]) -> Model:
    """Load a model that is going to answer, with the fastest kernels of its device.

    Args:
        frontend, device, dtype: As for :func:`~tuyi.model.load.load_model`.
        tell: Called with lines that say what was chosen.

    Raises:
        ModelError: It cannot be loaded.
    """
    model = load_model(frontend, device=device, dtype=dtype)
    for line in tune(model.hf):
        tell(line)
    return model


def tune(
    model: Any, *, gradient: bool = False, spread: bool = False, device: Any = None, dtype: Any = None
) -> list[str]:
    """Choose the kernels of a model for this machine.

    Args:
        model: The adapted transformers model, or a part of it, on its device.
        gradient: Whether it learns, which not all kernels allow.
        spread: Whether its weights are spread over processes, and only together while their own layer runs.
        device, dtype: Where and in which torch type it computes; those of its weights where not given.

    Returns:
        Lines that say what was chosen.
    """
    chosen = choose_kernels(model, gradient=gradient, device=device, dtype=dtype)
    told = [f"attention of the {name}: {what}" for name, what in chosen.items()]
    if chosen and not gradient:
        from tuyi.model.norms import fuse_norms

        fuse_norms(model)
    if chosen and not spread:
        told += _fuse(model, gradient, device or next(model.parameters()).device)
    return told


def _fuse(model: Any, gradient: bool, device: Any) -> list[str]:
    from tuyi.model.blocks import fuse_products
    from tuyi.model.gated import fuse_gated_mlps
    from tuyi.model.low_rank import fuse_adapters
    from tuyi.model.products import refused

    if why := refused(device):
        return [f"matrix products: torch's; fused ones cannot be used: {why}"]
    if gradient:
        mlps, adapters = fuse_gated_mlps(model), fuse_adapters(model)
        told = [f"matrix products: fused with the activation and its gradient in {mlps} MLPs"] if mlps else []
        return told + ([f"matrix products: fused with {adapters} adapters"] if adapters else [])
    began = time.perf_counter()
    blocks = fuse_products(model)
    seconds = time.perf_counter() - began
    return [f"matrix products: fused with what follows them in {blocks} blocks, ready in {seconds:.0f} s"]


def compile_blocks(model: Any, backend: str = "inductor") -> None:
    """Compile the blocks of both towers, each kind of block once, for any number of tokens.

    Attention stays as it is between the compiled parts, and so do shapes: the token axis is a symbol from the start,
    and no shape is padded, so that a new length is never a new program.

    Args:
        model: The adapted transformers model.
        backend: torch's compiler, as :func:`torch.compile` names it.
    """
    register(compiled=True)
    options = {"shape_padding": False} if backend == "inductor" else None
    for block in (*model.model.visual.blocks, *model.model.language_model.layers):
        block.compile(dynamic=True, backend=backend, options=options)
