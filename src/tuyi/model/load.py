"""Models by name: built in, a local folder or a hub id."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuyi.errors import ModelError
from tuyi.model.folder import FolderInfo, read_info
from tuyi.model.tiny import NAMES
from tuyi.vision.spec import VisionSpec

__all__ = ["Model", "load_model", "peek"]

_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@dataclass(frozen=True, eq=False)
class Model:
    """A model ready for packs.

    Args:
        name: What it was loaded from.
        hf: The transformers model, adapted to take packs.
        processor: Its transformers processor; saved beside it.
        spec: Its vision facts.
        info: What its ``tuyi.json`` says, if it has one.
    """

    name: str
    hf: Any
    processor: Any
    spec: VisionSpec
    info: FolderInfo | None = None

    @property
    def device(self) -> Any:
        return self.hf.device


def peek(name: str) -> FolderInfo | None:
    """What a model remembers, read before anything is loaded.

    Raises:
        ModelError: There is no model of that name, or its ``tuyi.json`` is broken.
    """
    if name in NAMES:
        return None
    if name.startswith("builtin:"):
        raise ModelError(f"built-in models are {', '.join(NAMES)}; found {name!r}")
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").exists():
            inner = sorted(path.parent.name for path in folder.glob("*/config.json"))
            hint = f"; it has {', '.join(inner)} inside" if inner else ""
            raise ModelError(f"{name} is not a model folder: it has no config.json{hint}")
        return read_info(folder)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelError(f"model folder {name} does not exist; expected a folder, a hub id or {', '.join(NAMES)}")
    return None


def load_model(
    name: str, *, device: str | None = None, dtype: str | None = None, texts: Iterable[str] = (), seed: int = 0
) -> Model:
    """Load a model and adapt it to packs.

    Args:
        name: A built-in name, a local folder or a hub id of the Qwen2-VL, Qwen2.5-VL or Qwen3-VL families.
        device: Torch device; the first GPU where there is one, else the CPU.
        dtype: ``bfloat16`` or ``float32``; bfloat16 on a GPU, float32 on a CPU where not given.
        texts: For a built-in model, what its tokenizer is learned from.
        seed: For a built-in model, of its weights.

    Raises:
        ModelError: There is no such model, it is of another family, or its files are broken.
    """
    import torch

    info = peek(name)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    kind = getattr(torch, dtype or ("bfloat16" if place.type == "cuda" else "float32"))
    if name in NAMES:
        from tuyi.model.tiny import build

        hf, processor = build(name, texts, seed)
        hf = hf.to(kind)
    else:
        hf, processor = _pretrained(name, kind)
    spec = _spec(hf.config, processor)
    from tuyi.model.forward import adapt

    adapt(hf, spec)
    return Model(name, hf.to(place), processor, spec, info)


def _pretrained(name: str, dtype: Any) -> tuple[Any, Any]:
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    try:
        config = AutoConfig.from_pretrained(name)
        if config.model_type not in _FAMILIES:
            raise ModelError(f"{name} is a {config.model_type} model; expected one of {', '.join(_FAMILIES)}")
        hf, report = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, output_loading_info=True)
        processor = AutoProcessor.from_pretrained(name)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"model {name} cannot be loaded: {str(error).splitlines()[0]}") from error
    if report["missing_keys"] or report["mismatched_keys"]:
        wrong = sorted(map(str, (*report["missing_keys"], *report["mismatched_keys"])))
        raise ModelError(f"model {name} lacks {len(wrong)} of its weights, the first is {wrong[0]}")
    return hf.eval(), processor


def _spec(config: Any, processor: Any) -> VisionSpec:
    vision, image = config.vision_config, processor.image_processor
    return VisionSpec(
        family=config.model_type,
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        mean=tuple(image.image_mean),
        std=tuple(image.image_std),
        tokens_per_second=float(getattr(vision, "tokens_per_second", 2.0)),
    )
