"""A language model in 4 bits: NF4 with quantised constants (QLoRA, arXiv 2305.14314), by bitsandbytes."""

from __future__ import annotations

from typing import Any

from tuyi.extras import need

__all__ = ["four_bit_options", "keep_layout"]


def four_bit_options(device: Any, dtype: Any) -> dict[str, Any]:
    """What ``from_pretrained`` takes to bring the language model's linear layers into 4 bits as it reads them.

    The vision tower, the embeddings and the head stay as they are.

    Args:
        device: Where the model goes; each layer becomes small there, so that it is never whole anywhere.
        dtype: What the layers compute in.

    Raises:
        ConfigError: bitsandbytes is missing.
    """
    need("bitsandbytes", "4-bit weights need", extra="qlora")
    from transformers import BitsAndBytesConfig

    kind = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["model.visual", "lm_head"],
    )
    return {"quantization_config": kind, "device_map": {"": device}}


def keep_layout(model: Any) -> None:
    """Keep bitsandbytes from packing the weights anew on a CPU: packed so, they pass no gradients on."""
    import bitsandbytes

    kind: Any = bitsandbytes.nn
    layers = [module for module in model.modules() if isinstance(module, kind.Linear4bit)]
    assert layers, "no layer is in 4 bits"
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
