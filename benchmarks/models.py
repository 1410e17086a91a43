"""Model folders with random weights at the real Qwen2-VL sizes, for benchmarks that need time and not answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuyi.model.load import Model

__all__ = ["SIZES", "build_processor", "config_of", "make_model", "random_model", "tuned_model"]

SIZES: dict[str, dict[str, Any]] = {
    "7b": {
        "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
        "intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": False,
    },
    "2b": {
        "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
        "intermediate_size": 8960, "vocab_size": 151936, "tie_word_embeddings": True,
    },
}  # fmt: skip
"""Language models of Qwen2-VL-7B and Qwen2-VL-2B, as their config.json say; the vision tower is the same in both."""
TOWER = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "patch_size": 14, "spatial_merge_size": 2}
_PIECES, _PIECE_BYTES = 1350, 7
"""Vocabulary and longest piece; together they give Chinese prose 0.6 to 0.7 tokens a character."""


def config_of(size: str, tokenizer: Any = None) -> Any:
    """The transformers configuration of a size; special tokens are those of ``tokenizer`` where one is given."""
    from transformers import Qwen2VLConfig

    def token(text: str, other: int) -> int:
        return other if tokenizer is None else int(tokenizer.convert_tokens_to_ids(text))

    text = {
        **SIZES[size],
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]},
        "bos_token_id": None,
        "eos_token_id": token("<|im_end|>", 151645),
        "pad_token_id": token("<|endoftext|>", 151643),
    }
    return Qwen2VLConfig(
        architectures=["Qwen2VLForConditionalGeneration"],
        text_config=text,
        vision_config={**TOWER, "hidden_size": SIZES[size]["hidden_size"]},
        image_token_id=token("<|image_pad|>", 151655),
        video_token_id=token("<|video_pad|>", 151656),
        vision_start_token_id=token("<|vision_start|>", 151652),
        vision_end_token_id=token("<|vision_end|>", 151653),
        tie_word_embeddings=SIZES[size]["tie_word_embeddings"],
    )


def build_processor(texts: Iterable[str]) -> Any:
    """A Qwen2-VL processor whose byte-level BPE is learned from ``texts`` in pieces as long as Qwen's."""
    from tokenizers import Tokenizer, pre_tokenizers, trainers

    from tuyi.model.load import load_frontend

    texts = list(texts)
    processor = load_frontend("builtin:tiny", texts).processor
    # the built-in model's own tokenizer swallows whole labels, which would make the label pass cheaper than Qwen's
    tokenizer = processor.tokenizer
    backend: Tokenizer = tokenizer.backend_tokenizer
    special = sorted(tokenizer.get_added_vocab(), key=tokenizer.convert_tokens_to_ids)
    trainer = trainers.BpeTrainer(
        vocab_size=_PIECES,
        min_frequency=1,
        max_token_length=_PIECE_BYTES,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return processor


def random_model(config: Any, device: str, seed: int) -> Any:
    """A model with random bfloat16 weights, drawn where it is."""
    import torch
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    finally:
        torch.set_default_dtype(before)


def tuned_model(size: str, device: str) -> tuple[Model, list[str]]:
    """A model with random weights as those that answer are loaded, but with a small tokenizer; and what was chosen."""
    from tuyi.model.fast import tune
    from tuyi.model.forward import adapt
    from tuyi.model.load import Model, load_frontend

    frontend = load_frontend("builtin:tiny", ["one tokenizer is as good as another"])
    frontend = replace(frontend, spec=replace(frontend.spec, patch_size=TOWER["patch_size"]))
    hf = random_model(config_of(size), device, seed=0).eval()
    adapt(hf, frontend.spec)
    return Model(hf, frontend), tune(hf)


def make_model(folder: Path, size: str, texts: Iterable[str], *, device: str = "cpu", seed: int = 0) -> Path:
    """Save a model folder with random bfloat16 weights (``tiny``: float32); an existing one is left as it is.

    Args:
        folder: The model folder; 16.6 GB for ``7b``, 4.4 GB for ``2b``.
        size: ``tiny``, ``2b`` or ``7b``.
        texts: What the tokenizer is learned from.
        device: Where the weights are drawn; a GPU takes seconds, a CPU minutes.
        seed: Of the weights.
    """
    import torch

    if (folder / "config.json").exists():
        return folder
    if size == "tiny":
        from tuyi.model.load import load_frontend
        from tuyi.model.tiny import build_weights

        frontend = load_frontend("builtin:tiny", texts)
        processor, model = frontend.processor, build_weights(frontend.config, seed)
    else:
        processor = build_processor(texts)
        config = config_of(size, processor.tokenizer)
        model = random_model(config, device, seed)
        model.generation_config.eos_token_id = config.text_config.eos_token_id
        model.generation_config.pad_token_id = config.text_config.pad_token_id
    processor.save_pretrained(folder)
    model.save_pretrained(folder)
    if device.startswith("cuda"):  # for those who measure
        del model
        torch.cuda.empty_cache()
    return folder
