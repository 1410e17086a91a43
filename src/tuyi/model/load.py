"""Models by name: built in, a local folder or a hub id."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuyi.errors import ConfigError, ModelError, first_line
from tuyi.model.folder import FolderInfo, need_one_model, read_info
from tuyi.model.four_bit import four_bit_options, keep_layout
from tuyi.model.host import reuse_freed_memory
from tuyi.model.quiet import no_progress_bars
from tuyi.model.tiny import NAMES
from tuyi.vision.spec import VisionSpec

__all__ = ["Frontend", "Model", "load_frontend", "load_model", "peek"]

_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@dataclass(frozen=True, eq=False)
class Frontend:
    """All of a model but its weights: enough to read, check and encode rows.

    Args:
        name: What it was loaded from.
        config: transformers configuration.
        processor: transformers processor; saved beside the weights.
        spec: Its vision facts.
        info: What its ``tuyi.json`` says, if it has one.
    """

    name: str
    config: Any
    processor: Any
    spec: VisionSpec
    info: FolderInfo | None = None

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer


@dataclass(frozen=True, eq=False)
class Model:
    """A model ready for packs: the transformers model, adapted, and its frontend.

    Args:
        hf, frontend: These.
        place: Torch device that it computes on; that of its weights where not given.
    """

    hf: Any
    frontend: Frontend
    place: Any = None

    @property
    def device(self) -> Any:
        return self.place or self.hf.device

    @property
    def spec(self) -> VisionSpec:
        return self.frontend.spec


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
            info = read_info(folder)
            if info is not None and info.members:
                return info
            if (folder / "adapter_config.json").exists():
                raise ModelError(
                    f"{name} is an adapter without its model; `tuyi train` writes the merged model into the folder "
                    f"above it, any other adapter is merged with `tuyi export {name} --out FOLDER`"
                )
            inner = sorted(path.parent.name for path in folder.glob("*/config.json"))
            hint = f"; it has {', '.join(inner)} inside" if inner else ""
            raise ModelError(f"{name} is not a model folder: it has no config.json{hint}")
        return read_info(folder)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelError(f"model folder {name} does not exist; expected a folder, a hub id or {', '.join(NAMES)}")
    return None


def load_frontend(name: str, texts: Iterable[str] = ()) -> Frontend:
    """Load a model's configuration, tokenizer and processor.

    Args:
        name: A built-in name, a local folder or a hub id of the Qwen2-VL, Qwen2.5-VL or Qwen3-VL families. Of a folder
            with a model for each task, what these have in common.
        texts: For a built-in model, what its tokenizer is learned from.

    Raises:
        ModelError: There is no such model, it is of another family, or its files are broken.
    """
    info = peek(name)
    if info is not None and info.members:
        return replace(load_frontend(str(Path(name) / next(iter(info.members.values())))), name=name, info=info)
    if name in NAMES:
        from tuyi.model.tiny import build_frontend

        config, processor = build_frontend(name, texts)
    else:
        from transformers import AutoConfig, AutoProcessor

        try:
            config = AutoConfig.from_pretrained(name)
            if config.model_type not in _FAMILIES:
                raise ModelError(f"{name} is a {config.model_type} model; expected one of {', '.join(_FAMILIES)}")
            processor = AutoProcessor.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise ModelError(f"model {name} cannot be loaded: {first_line(error)}") from error
    return Frontend(name, config, processor, _spec(config, processor), info)


def load_model(
    frontend: Frontend, *, device: str | None = None, dtype: str | None = None, seed: int = 0, four_bit: bool = False
) -> Model:
    """Load a model's weights and adapt it to packs.

    Args:
        frontend: Everything else of the model.
        device: Torch device; the first GPU where there is one, else the CPU.
        dtype: ``bfloat16`` or ``float32``; bfloat16 on a GPU, float32 on a CPU where not given.
        seed: For a built-in model, of its random weights.
        four_bit: Whether the language model's linear layers are kept in 4 bits; for training adapters.

    Raises:
        ModelError: The weights are missing, incomplete or broken, or there is a model for each task.
        ConfigError: Four bits of a built-in model, or without bitsandbytes.
    """
    import torch

    from tuyi.model.forward import adapt

    need_one_model(frontend.name, frontend.info)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if place.type == "cpu":
        reuse_freed_memory()
    kind = getattr(torch, dtype or ("bfloat16" if place.type == "cuda" else "float32"))
    if frontend.name in NAMES:
        if four_bit:
            raise ConfigError(f"{frontend.name} starts from random weights: there is nothing to keep in 4 bits")
        from tuyi.model.tiny import build_weights

        hf = build_weights(copy.deepcopy(frontend.config), seed)  # adapting a model changes its configuration
        for weight in hf.parameters():  # not the rotary frequencies, as from_pretrained leaves them too
            weight.data = weight.data.to(kind)
    else:
        hf = _pretrained(frontend.name, kind, place if four_bit else None)
    adapt(hf, frontend.spec)
    return Model(hf.to(place), frontend)


def _pretrained(name: str, dtype: Any, four_bit_on: Any) -> Any:
    """The weights, on the CPU; where a device is given, there, the language model in 4 bits."""
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText

    options = {} if four_bit_on is None else four_bit_options(four_bit_on, dtype)
    try:
        with no_progress_bars():
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                name, dtype=dtype, output_loading_info=True, **options
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"the weights of model {name} cannot be loaded: {first_line(error)}") from error
    hf, report = loaded
    if report["missing_keys"] or report["mismatched_keys"]:
        wrong = sorted(map(str, (*report["missing_keys"], *report["mismatched_keys"])))
        raise ModelError(f"model {name} lacks {len(wrong)} of its weights, the first is {wrong[0]}")
    if four_bit_on is not None:
        keep_layout(hf)
    return hf.eval()


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
        window_size=int(getattr(vision, "window_size", 112)),
        position_side=int(getattr(vision, "num_position_embeddings", 48 * 48) ** 0.5),
    )
