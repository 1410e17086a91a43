"""What a training pass keeps for its backward pass, by token and by patch.

Counted on transformers' modules (5.17, 5.23) with torch 2.11 and 2.15, as they are and compiled by inductor, whose
partitioner computes activation functions and norms again but keeps what enters matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tuyi.train.settings import TrainSettings

__all__ = ["Block", "Kept", "activations", "language_block", "tower_block", "tower_weights"]


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes of activations.

    Args:
        token: Kept for the backward pass, of a token, over all layers.
        token_passing: Held beside them while a token passes one block backward.
        patch, patch_passing: The same of a patch in the vision tower.
    """

    token: int
    token_passing: int
    patch: int
    patch_passing: int


@dataclass(frozen=True, slots=True)
class Block:
    """Sizes of one block of either tower.

    Args:
        width, queries, keys, inner: Hidden size, all query heads, all key heads, inner size of the MLP.
        heads: Number of query heads.
        gated: Whether the MLP has a gate.
        fused: Whether its activation function is one operation, which keeps nothing of its own.
        centred: Whether norms are layer norms; else they are of the root mean square.
        joint: Whether one layer makes queries, keys and values.
        key_norms: Whether queries and keys are normalised.
    """

    width: int
    queries: int
    keys: int
    inner: int
    heads: int
    gated: bool = True
    fused: bool = False
    centred: bool = False
    joint: bool = False
    key_norms: bool = False

    @property
    def weights(self) -> int:
        """Weights of the linear layers, biases left out."""
        return 2 * self.width * (self.queries + self.keys) + (3 if self.gated else 2) * self.width * self.inner

    def mlp(self, size: int, *, compiled: bool) -> int:
        """Bytes of a token that the MLP keeps: gate, what it is multiplied by, product; what the gate becomes."""
        return size * self.inner * ((3 if self.gated else 2) + (not compiled and not self.fused))

    def rest(self, size: int, *, compiled: bool) -> int:
        """Bytes of a token that attention, norms and the residual keep."""
        # what enters and leaves either norm; queries, output, keys and values, which torch 2.11 repeats for all heads
        # (a joint layer's output stays whole); the log-sum-exp of each head and the spread of each norm
        kept = size * (4 * self.width + (6 if self.joint else 4) * self.queries) + 4 * self.heads + 8
        if not compiled and not self.centred:
            kept += 8 * self.width  # transformers' own norms work in float32
        if self.key_norms:
            kept += (size if compiled else size + 4) * (self.queries + self.keys)
            kept += 4 * (self.heads + self.heads * self.keys // self.queries)
        return kept

    def adapters(self, size: int, settings: TrainSettings) -> int:
        """Bytes of a token that low-rank adapters beside every linear layer keep."""
        entering = (1 if self.joint else 3) * self.width  # what the layers before attention read, each its own
        gates = (2 if self.gated else 1) * self.inner
        kept = size * settings.lora.rank * (4 if self.joint else 7)
        if settings.lora.dropout:  # what is left of each layer's input, and where
            kept += (size + 1) * (entering + self.queries + (2 if self.gated else 1) * self.width + self.inner)
        if settings.method == "dora":  # each layer's output and what its adapter adds; compiled, of the gates their sum
            kept += 2 * size * (self.queries + 2 * self.keys + 2 * self.width)
            kept += size * gates * (1 if settings.compile else 2)
        return kept

    def passing(self, size: int, *, compiled: bool) -> int:
        """Bytes of a token that its backward pass holds at a time beside what was kept: gradients inside the MLP.

        Compiled, all of them stand side by side, as one kernel makes them.
        """
        return size * (3 * self.inner + 4 * self.width if compiled else 2 * self.inner + 2 * self.width)


def language_block(config: Any) -> Block:
    """A block of the language model.

    Args:
        config: transformers' configuration of the model.
    """
    text = config.text_config
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Block(
        width=text.hidden_size,
        queries=text.num_attention_heads * head,
        keys=text.num_key_value_heads * head,
        inner=text.intermediate_size,
        heads=text.num_attention_heads,
        key_norms=config.model_type == "qwen3_vl",
    )


def tower_block(config: Any) -> Block:
    """A block of the vision tower.

    Args:
        config: transformers' configuration of the model.
    """
    vision = config.vision_config
    width = getattr(vision, "embed_dim", vision.hidden_size)
    inner = getattr(vision, "intermediate_size", None) or int(width * vision.mlp_ratio)
    gated = config.model_type == "qwen2_5_vl"
    fused = not gated and vision.hidden_act != "quick_gelu"
    return Block(width, width, width, inner, vision.num_heads, gated, fused, centred=not gated, joint=True)


def tower_weights(config: Any) -> int:
    """Weights of the vision tower, its projectors included, biases and norms left out.

    Args:
        config: transformers' configuration of the model.
    """
    block, vision = tower_block(config), config.vision_config
    merged = block.width * vision.spatial_merge_size**2
    projector = merged * (merged + config.text_config.hidden_size)
    pixels = 3 * vision.temporal_patch_size * vision.patch_size**2
    total: int = vision.depth * block.weights + _levels(config) * projector + pixels * block.width
    return total


def _levels(config: Any) -> int:
    """How many features the tower makes of four patches: its last ones, and those of deeper levels."""
    return 1 + len(getattr(config.vision_config, "deepstack_visual_indexes", ()))


def activations(
    config: Any, settings: TrainSettings, size: int, *, checkpointing: bool, branches: bool = False
) -> Kept:
    """Activations of a run.

    Args:
        config: transformers' configuration of the model.
        settings: How to train, everything filled in.
        size: Bytes of a number.
        checkpointing: Whether blocks are computed twice.
        branches: Whether label branches stand behind prompts.
    """
    assert settings.freeze is not None, "settings are resolved first"
    language, tower, vision = language_block(config), tower_block(config), config.vision_config
    layers: int = config.text_config.num_hidden_layers
    compiled, levels = bool(settings.compile), _levels(config)
    whole, passing = _block(language, settings, size), language.passing(size, compiled=compiled)
    if branches:
        whole += 4 * size * language.queries  # their keys and values again, and what they are worth
    if checkpointing:
        token, passing = layers * size * language.width, whole + passing
    else:
        # the last block's MLP runs at the kept positions only
        token = layers * whole - language.mlp(size, compiled=compiled)
    # embeddings, features put in their places; beside adapters, whose embeddings learn nothing, the gradient of what
    # the first block gets, and what its norm keeps for that
    token += size * (3 * (settings.method != "full") + 2 * levels) * language.width
    pixels = 3 * vision.temporal_patch_size * vision.patch_size**2
    patch = 2 * pixels  # of packs that wait
    seeing = size * (3 * tower.inner + 12 * tower.width + pixels)  # forward, at the widest point
    if not (settings.freeze.vision and settings.freeze.projector):
        patch += size * (pixels + levels * (10 * tower.width + language.width))
    if not settings.freeze.vision:
        seen = _block(tower, settings, size)
        patch += vision.depth * (size * tower.width if checkpointing else seen)
        seeing = max(seeing, tower.passing(size, compiled=compiled) + (seen if checkpointing else 0))
    return Kept(token, passing, patch, seeing)


def _block(block: Block, settings: TrainSettings, size: int) -> int:
    """Bytes that one block keeps of a token, or of a patch."""
    compiled = bool(settings.compile)
    kept = block.mlp(size, compiled=compiled) + block.rest(size, compiled=compiled)
    if settings.method != "full":
        kept += block.adapters(size, settings)
    return kept
