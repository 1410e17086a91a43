"""How large a model is, told from its files' headers without loading it."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuyi.errors import ModelError
from tuyi.model.load import peek
from tuyi.model.tiny import NAMES

__all__ = ["Weights", "weigh"]

_TINY = 1_300_000
_MAX_HEADER = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True, slots=True)
class Weights:
    """A model's size.

    Args:
        family: ``qwen2_vl``, …
        parameters: Their number; None where the files are not on this machine.
        file_bytes: Bytes of the weight files; 0 for a built-in model.
        folder: Where the files are.
    """

    family: str
    parameters: int | None
    file_bytes: int = 0
    folder: Path | None = None


def weigh(name: str) -> Weights:
    """The size of a model; of one for each task, all together.

    Args:
        name: A built-in name, a local folder, or a hub id, which is looked up in the local cache only.

    Raises:
        ModelError: There is no model of that name, or its files are broken.
    """
    info = peek(name)
    if name in NAMES:
        return Weights(NAMES[name], _TINY)
    if info is not None and info.members:
        members = [weigh(str(Path(name) / member)) for member in info.members.values()]
        parameters = sum(member.parameters or 0 for member in members)
        return replace(members[0], parameters=parameters, file_bytes=sum(member.file_bytes for member in members))
    folder = Path(name) if Path(name).is_dir() else _cached(name)
    if folder is None:
        return Weights("not known before it is downloaded", None)
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{folder / 'config.json'} cannot be read: {error}") from error
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{name} has no weights: expected *.safetensors files in {folder}")
    parameters = sum(_parameters(file) for file in files)
    return Weights(str(config.get("model_type")), parameters, sum(file.stat().st_size for file in files), folder)


def _cached(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def _parameters(file: Path) -> int:
    """Numbers in a safetensors file: 8 bytes of header length, then a JSON header with every tensor's shape.

    Source: github.com/huggingface/safetensors, the format's description.
    """
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else _MAX_HEADER + 1
        if length > _MAX_HEADER:
            raise ModelError(f"{file} is not a safetensors file; download it anew")
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
        except ValueError as error:
            raise ModelError(f"{file} has a broken header; download it anew") from error
    shapes: list[Sequence[int]] = [item["shape"] for key, item in header.items() if key != "__metadata__"]
    return sum(math.prod(shape) for shape in shapes)
