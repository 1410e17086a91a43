"""``tuyi export``: one whole model folder from a run, a checkpoint or an adapter."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["export"]


class Dtype(StrEnum):
    """How weights are stored."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


def export(
    model: Annotated[str, typer.Argument(help="A model folder, a checkpoint of a run, or an adapter folder.")],
    out: Annotated[Path, typer.Option(help="Folder to write: new, or empty.")],
    base: Annotated[str | None, typer.Option(help="The adapter's model; default: the one that it names.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Of the weights; default: as they are stored.")] = None,
    shard_size: Annotated[str, typer.Option(help="Most bytes of a weight file.")] = "5GB",
    evaluation: Annotated[
        Path | None,
        typer.Option(help="What `tuyi evaluate` wrote, for the model card; default: the model's own, if any."),
    ] = None,
) -> None:
    """Write a model as one folder for transformers, vLLM and SGLang, with a model card; adapters are merged in."""
    from rich.console import Console

    from tuyi.model.export import export as export_model

    done = export_model(
        model, out, base=base, dtype=dtype.value if dtype else None, shard_size=shard_size, evaluation=evaluation
    )
    merged = f"adapter merged into {done.base}, " if done.base else ""
    files = f"{done.files} weight file{'s' if done.files > 1 else ''}"
    console = Console(highlight=False)
    console.print(
        f"{done.out}: {merged}{done.dtype}, {files}, {done.file_bytes / 1e9:.2f} GB", markup=False, soft_wrap=True
    )
    if done.tasks:
        console.print(f"tasks: {', '.join(done.tasks)}", markup=False, soft_wrap=True)
    else:
        console.print("no task is known of it: predict with --task", style="yellow", markup=False, soft_wrap=True)
