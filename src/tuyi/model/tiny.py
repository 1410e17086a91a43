"""The built-in model: a real Qwen-VL of one to three million parameters, made on the spot.

Nothing is downloaded. Its tokenizer is a byte-level BPE learned from the texts that it is going to read, its weights
are random until it is trained; every code path of the large models runs on it in seconds on two CPU cores.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["NAMES", "build_frontend", "build_weights"]

NAMES = {"builtin:tiny": "qwen2_vl", "builtin:tiny-qwen2.5": "qwen2_5_vl", "builtin:tiny-qwen3": "qwen3_vl"}
"""Model names that need no files, and the family that each belongs to."""

_SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_MROPE = [4, 6, 6]
_SPREAD = 0.09
"""Standard deviation of the random weights: at this width the usual 0.02 leaves attention even for too long."""


def build_frontend(name: str, texts: Iterable[str]) -> tuple[Any, Any]:
    """Make a built-in model's configuration and processor.

    Args:
        name: One of :data:`NAMES`.
        texts: What the tokenizer is learned from: a sample of the training rows, and the labels.

    Returns:
        (transformers configuration, transformers processor).
    """
    family = NAMES[name]
    processor = _processor(family, _tokenizer(texts))
    return _config(family, processor.tokenizer), processor


def build_weights(config: Any, seed: int) -> Any:
    """Make the random weights of a built-in model, in float32; equal seeds give equal weights."""
    import torch
    from transformers import AutoModelForImageTextToText, set_seed

    set_seed(seed)
    model = AutoModelForImageTextToText.from_config(config)
    model.generation_config.eos_token_id = config.text_config.eos_token_id
    return model.to(torch.float32).eval()


def _tokenizer(texts: Iterable[str]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    # a small vocabulary keeps words in pieces that other sentences share; a large one swallows whole phrases, and a
    # model that is trained from scratch on few rows then reads no sentence that it has not seen
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        min_frequency=2,
        special_tokens=_SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=_TEMPLATE
    )


def _processor(family: str, tokenizer: Any) -> Any:
    import transformers

    stem = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[family]
    video = transformers.Qwen3VLVideoProcessor if family == "qwen3_vl" else transformers.Qwen2VLVideoProcessor
    patch: dict[str, Any] = (
        {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3} if family == "qwen3_vl" else {}
    )
    return getattr(transformers, f"{stem}Processor")(
        image_processor=transformers.Qwen2VLImageProcessor(**patch),
        tokenizer=tokenizer,
        video_processor=video(**patch),
        chat_template=_TEMPLATE,
    )


def _config(family: str, tokenizer: Any) -> Any:
    import transformers

    def token(text: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(text))

    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 32768,
        "initializer_range": _SPREAD,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": _MROPE},
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
    }
    common = {"depth": 3, "num_heads": 4, "initializer_range": _SPREAD}
    vision: dict[str, dict[str, Any]] = {
        "qwen2_vl": {**common, "embed_dim": 96, "hidden_size": 128, "mlp_ratio": 3},
        "qwen2_5_vl": {
            **common, "hidden_size": 96, "intermediate_size": 288, "out_hidden_size": 128, "window_size": 56,
            "fullatt_block_indexes": [2],
        },
        "qwen3_vl": {
            **common, "hidden_size": 96, "intermediate_size": 288, "out_hidden_size": 128,
            "num_position_embeddings": 256, "deepstack_visual_indexes": [0, 1],
        },
    }  # fmt: skip
    stem = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[family]
    if family == "qwen3_vl":
        text["rope_parameters"]["mrope_interleaved"] = True
    return getattr(transformers, f"{stem}Config")(
        text_config=text,
        vision_config=vision[family],
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
