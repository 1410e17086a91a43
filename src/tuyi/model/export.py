"""`tuyi export`: what a run left, or an adapter and its base, as one folder that any peer opens."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuyi.errors import ConfigError, ModelError, OutputError
from tuyi.model.adapters import ADAPTER, merge_adapter, read_adapter
from tuyi.model.card import Card, render_card
from tuyi.model.folder import FolderInfo, read_info, versions, write_info
from tuyi.model.load import Frontend, load_frontend, load_model
from tuyi.model.measured import Measured, read_measured
from tuyi.model.peers import limit_pictures
from tuyi.model.tiny import NAMES
from tuyi.model.write import weight_errors, write_model
from tuyi.task.catalog import TaskSet
from tuyi.whole import output_errors, write_whole

__all__ = ["ExportSummary", "export"]

_DTYPES = ("bfloat16", "float16", "float32")
_CARD = "README.md"
_RUN = "run.json"  # what `tuyi train` was asked to do


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What was written.

    Args:
        out: The folder.
        base: The model that an adapter was merged into; None where the model was whole.
        dtype: Of the weights.
        files: Weight files.
        file_bytes: Their bytes, together.
        tasks: Names of the tasks that the folder remembers.
    """

    out: Path
    base: str | None
    dtype: str
    files: int
    file_bytes: int
    tasks: tuple[str, ...]


def export(
    model: str | Path,
    out: str | Path,
    *,
    base: str | None = None,
    dtype: str | None = None,
    shard_size: str = "5GB",
    evaluation: str | Path | None = None,
) -> ExportSummary:
    """Write a model as one whole folder that transformers and vLLM open, with a model card; adapters are merged in.

    An adapter is added into its base model's weights on the CPU, in float32, and rounded once.

    Args:
        model: A model folder, a checkpoint of a run, or an adapter folder of tuyi or of any peer.
        out: The folder to write: new, or empty.
        base: The model that an adapter belongs to, where it is not the one that the adapter names.
        dtype: ``bfloat16``, ``float16`` or ``float32``; as the model, or the adapter's base, is stored where not given.
        shard_size: Most bytes of a weight file.
        evaluation: The folder that `tuyi evaluate` wrote, for the card; the model's own folder, where not given and it
            holds a ``metrics.json``.

    Raises:
        ModelError: There is no such model, or the adapter does not fit its base.
        ConfigError: ``dtype``, ``shard_size``, ``base`` or ``evaluation`` cannot be used.
        OutputError: ``out`` is taken or cannot be written; nothing is left there then.
    """
    folder, out = Path(model), Path(out).absolute()
    _check(out, dtype, shard_size)
    adapter = folder if (folder / ADAPTER).is_file() else None
    if adapter is None:
        if base is not None:
            raise ConfigError(f"{model} is no adapter: it has no {ADAPTER}; leave --base out")
        frontend = load_frontend(_whole_model(str(model)))
    else:
        frontend = _base_of(adapter, base)
    info = _remembered(folder)
    measured = _measured(folder, evaluation, info)
    hf, written = _weights(frontend, adapter, dtype)
    made_from = info.base_model if info else frontend.name if adapter else None
    card = render_card(Card(out.name, frontend, info, made_from, written, measured))
    if info is not None:
        limit_pictures(frontend.processor, info.tasks)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with weight_errors(out):
            part.mkdir(parents=True)
            write_model(hf, frontend.processor, part, shard_size=shard_size)
        if info is not None:
            write_info(part, info)
        write_whole(part / _CARD, card)
        with output_errors(out):
            for file in part.iterdir():
                _to_disk(file)
            os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    sizes = [file.stat().st_size for file in out.glob("*.safetensors")]
    tasks = tuple(task.name for task in info.tasks) if info else ()
    return ExportSummary(out, frontend.name if adapter else None, written, len(sizes), sum(sizes), tasks)


def _check(out: Path, dtype: str | None, shard_size: str) -> None:
    from transformers.utils.hub import convert_file_size_to_int

    if dtype not in (None, *_DTYPES):
        raise ConfigError(f"dtype: expected one of {', '.join(_DTYPES)}, found {dtype!r}")
    try:
        convert_file_size_to_int(shard_size)
    except ValueError as error:
        raise ConfigError(
            f"shard size: expected a number and KB, MB or GB, such as 5GB; found {shard_size!r}"
        ) from error
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; expected a folder to write the model into")
    if out.is_dir() and any(out.iterdir()):
        raise OutputError(f"{out} is not empty; choose another folder")


def _whole_model(name: str) -> str:
    """The name of a model that has files; the errors say what else was found."""
    if name in NAMES:
        raise ModelError(f"{name} is made when it is trained; there is nothing to export")
    folder = Path(name)
    if not (folder / "config.json").exists():
        checkpoints = sorted(folder.glob("checkpoints/checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        if checkpoints:
            raise ModelError(
                f"{name} holds a run that is not finished: go on with `tuyi train --resume`, or export one of its "
                f"checkpoints, the newest is {checkpoints[-1]}"
            )
    return name


def _base_of(adapter: Path, base: str | None) -> Frontend:
    """The model that an adapter belongs to, without its weights."""
    named = str(read_adapter(adapter).get("base_model_name_or_path") or "")
    if (base or named) in ("", *NAMES):
        raise ModelError(
            f"{adapter} does not say which model it belongs to; name it with --base. An adapter of a built-in model "
            "cannot be merged apart from its run: export the folder that `tuyi train` wrote"
        )
    try:
        frontend = load_frontend(base or named)
    except ModelError as error:
        if base is not None:
            raise
        raise ModelError(f"{adapter} belongs to {named}; say with --base where that is. {error}") from error
    if getattr(frontend.config, "quantization_config", None) is not None:
        raise ModelError(f"{frontend.name} is quantised; give the same model in 16 bits with --base")
    return frontend


def _weights(frontend: Frontend, adapter: Path | None, dtype: str | None) -> tuple[Any, str]:
    """The plain transformers model in its final dtype, and that dtype's name."""
    import torch

    stored = str(getattr(frontend.config, "dtype", None) or "float32").removeprefix("torch.")
    kind = getattr(torch, dtype or stored)
    hf = load_model(frontend, device="cpu", dtype=stored).hf
    hf = hf.to(kind) if adapter is None else merge_adapter(hf, adapter, kind)
    if kind is torch.float16 and not all(bool(weight.isfinite().all()) for weight in hf.parameters()):
        raise ModelError("some weights are too large for float16; export in bfloat16 or float32")
    return hf, dtype or stored


def _remembered(folder: Path) -> FolderInfo | None:
    """What is known of the tasks: from the folder itself, from the model beside an adapter, or from the run."""
    if folder.name == "adapter":
        return read_info(folder.parent)
    if folder.parent.name != "checkpoints" or not (folder.parents[1] / _RUN).is_file():
        return read_info(folder)
    run = json.loads((folder.parents[1] / _RUN).read_text(encoding="utf-8"))
    start = read_info(Path(run["model"])) if Path(run["model"]).is_dir() else None
    # calibration and scores are those of the finished model, not of this checkpoint
    return FolderInfo(
        tasks=TaskSet.model_validate(run["tasks"]),
        base_model=start.base_model if start else run["model"],
        versions=versions(),
        settings=run["settings"],
    )


def _measured(folder: Path, evaluation: str | Path | None, info: FolderInfo | None) -> Measured | None:
    """The evaluation that the card shows; one that lies in a run's folder is of its finished model."""
    if evaluation is not None:
        return read_measured(Path(evaluation), info)
    own = folder.parent if folder.name == "adapter" else folder
    return read_measured(own, info) if (own / "metrics.json").is_file() else None


def _to_disk(file: Path) -> None:
    """Wait until a file lies on the disk: some file systems say only then that it is full."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
