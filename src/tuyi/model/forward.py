"""One forward pass over a pack: pixels to visual tokens, tokens to hidden states, the head only where it counts.

It composes transformers' own modules; nothing of their code is copied or changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tuyi.encode.pack import Pack
from tuyi.model.attention import use_packed_attention
from tuyi.model.kept import Store
from tuyi.model.last import only_where_read
from tuyi.model.layout import Attends, Layout
from tuyi.model.log_probs import target_log_probs
from tuyi.model.tower import Seen, Tower, grid_inputs, seen_by
from tuyi.vision.spec import VisionSpec

__all__ = ["Batch", "adapt", "on_device", "to_device"]


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """A pack on the device.

    Args:
        ids: (T,). positions: (4, 1, T).
        layout: How the tokens lie.
        tower: What passes the vision tower; never None in training, so that every process runs the tower in every
            step (sharded weights are gathered by all or by none).
        read, targets, weights (N,): as in :class:`~tuyi.encode.pack.Pack`; K tokens leave the layout.
    """

    ids: Tensor
    positions: Tensor
    layout: Attends
    tower: Tower | None
    read: Tensor
    targets: Tensor
    weights: Tensor

    def tensors(self) -> Iterator[Tensor]:
        """All that lies on the device."""
        yield from (self.ids, self.positions, self.read, self.targets, self.weights)
        yield from self.layout.tensors()
        if self.tower is not None:
            yield self.tower.at
            if self.tower.patches is not None:
                yield self.tower.patches
            yield from (value for value in self.tower.inputs.values() if isinstance(value, Tensor))
            if self.tower.features is not None:
                yield self.tower.features


def to_device(
    pack: Pack, spec: VisionSpec, device: torch.device, *, always_see: bool = False, layout: Attends | None = None
) -> Batch:
    """Copy a pack to the device.

    On a GPU the copies run on the current stream, from page-locked memory, without waiting.

    Args:
        pack: The pack.
        spec: The model's vision facts.
        device: Where to.
        always_see: Whether a pack without media gets one black picture that no token reads.
        layout: How its tokens lie where that is not as the pack says.
    """
    seen = seen_by(pack, spec, always=always_see)
    return Batch(
        ids=on_device(pack.ids, device),
        positions=on_device(pack.positions, device)[:, None],
        layout=layout or Layout.of(pack.lengths, device, pack.branches, pack.shared, pack.keep),
        tower=None if seen is None else _tower(seen, spec, device),
        read=on_device(pack.read, device),
        targets=on_device(pack.targets, device),
        weights=on_device(pack.weights, device),
    )


def on_device(array: np.ndarray[Any, Any] | Tensor, device: torch.device) -> Tensor:
    """A copy on the device; on a GPU from page-locked memory, without waiting."""
    tensor = torch.from_numpy(array) if isinstance(array, np.ndarray) else array
    if device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _tower(seen: Seen, spec: VisionSpec, device: torch.device) -> Tower:
    in_order = bool((seen.features == np.arange(len(seen.features))).all())
    grids = torch.from_numpy(seen.grids)
    inputs = grid_inputs(spec, grids) if seen.patches else {}
    return Tower(
        patches=_patches(seen.patches, device) if seen.patches else None,
        grids=grids,
        inputs={
            name: on_device(value, device) if isinstance(value, Tensor) else value for name, value in inputs.items()
        },
        keys=seen.keys,
        known=seen.known,
        at=on_device(seen.at, device),
        features=None if in_order else on_device(seen.features, device),
    )


def _patches(parts: Sequence[np.ndarray[Any, Any]], device: torch.device) -> Tensor:
    if device.type != "cuda":
        return torch.from_numpy(np.concatenate(parts))  # a copy: what the parts lie in may be used again
    patches = torch.empty(sum(map(len, parts)), parts[0].shape[1], dtype=torch.uint8, device=device)
    for place, values in zip(patches.split([len(values) for values in parts]), parts):
        place.copy_(torch.from_numpy(values), non_blocking=True)  # no further copy where the memory is page-locked
    return patches


def adapt(model: Any, spec: VisionSpec) -> None:
    """Teach a transformers Qwen-VL model to take packs.

    ``model(batch=Batch)`` then returns float32 logits (K, vocabulary) of the kept tokens, with ``head=False`` their
    hidden states (K, D) as they enter the head, with ``scored=True`` float32 log-probabilities (N,) of the targets.
    ``kept`` holds features from pass to pass.
    """
    use_packed_attention(model)
    visual = model.model.visual
    visual.patch_embed.forward = MethodType(_embed_patches, visual.patch_embed)
    visual.patch_embed.proj.forward = MethodType(_project, visual.patch_embed.proj)
    visual.patch_embed.proj.tuyi_spec = spec
    only_where_read(model.model.language_model.layers[-1])
    model.lm_head.forward = MethodType(_head, model.lm_head)
    model.forward = MethodType(_forward, model)


def _forward(self: Any, batch: Batch, head: bool = True, kept: Store | None = None, scored: bool = False) -> Tensor:
    hidden_KD = _hidden_states(self, batch, kept)
    if scored:
        log_probs_N: Tensor = self.lm_head(hidden_KD, batch)
        return log_probs_N
    logits_KV: Tensor = self.lm_head(hidden_KD).float() if head else hidden_KD
    return logits_KV


def _head(self: Any, hidden_KD: Tensor, batch: Batch | None = None) -> Tensor:
    """The head itself, or what training wants of it: inside its call, where spread weights are gathered."""
    if batch is None:
        logits_KV: Tensor = type(self).forward(self, hidden_KD)
        return logits_KV
    return target_log_probs(hidden_KD, self.weight, batch.read, batch.targets)


def _hidden_states(model: Any, batch: Batch, kept: Store | None) -> Tensor:
    """The hidden states that leave the language model, (K, D)."""
    embeds_1TD = model.get_input_embeddings()(batch.ids)[None]
    if torch.is_grad_enabled() and not embeds_1TD.requires_grad:
        embeds_1TD.requires_grad_()  # beside adapters: every block is then the same program, and compiled once
    extra: dict[str, Any] = {}
    if batch.tower is not None:
        embeds_1TD, extra = _see(model, batch, batch.tower, embeds_1TD, kept)
    out = model.model.language_model(
        inputs_embeds=embeds_1TD, position_ids=batch.positions, use_cache=False, layout=batch.layout, **extra
    )
    hidden_KD: Tensor = out.last_hidden_state[0]
    return hidden_KD


def _see(
    model: Any, batch: Batch, tower: Tower, embeds_1TD: Tensor, kept: Store | None
) -> tuple[Tensor, dict[str, Any]]:
    """Embeddings with the visual features in their places, and what else the language model takes of them."""
    levels = _features(model, tower, kept)
    if not len(tower.at):  # the tower ran only to keep step: its result must reach the loss with weight 0
        return embeds_1TD + 0 * sum(x.sum() for x in levels), {}
    features_VD, *deep = levels
    used_VD = features_VD if tower.features is None else features_VD[tower.features]
    embeds_1TD = embeds_1TD.index_copy(1, tower.at, used_VD[None])
    if not deep:
        return embeds_1TD, {}
    order = tower.at.argsort()
    if tower.features is not None:
        order = tower.features[order]
    mask_1T = torch.zeros(1, len(batch.ids), dtype=torch.bool, device=batch.ids.device)
    mask_1T[0, tower.at] = True
    return embeds_1TD, {"visual_pos_masks": mask_1T, "deepstack_visual_embeds": [x[order] for x in deep]}


def _features(model: Any, tower: Tower, kept: Store | None) -> list[Tensor]:
    """Visual features, then those of the deeper levels where the family has them: new ones first, then known ones."""
    levels: list[list[Tensor]] = []
    made: list[Tensor]
    if tower.patches is not None:
        visual = model.model.visual
        # a frozen tower makes no graph, whatever asks its inputs for gradients (checkpointing of other parts does)
        with torch.set_grad_enabled(torch.is_grad_enabled() and any(one.requires_grad for one in visual.parameters())):
            seen = visual(tower.patches, grid_thw=tower.grids, **tower.inputs)
        made = [seen.pooler_output.to(model.dtype), *(getattr(seen, "deepstack_features", None) or ())]
        levels = [[level] for level in made]
        if kept is not None:
            sizes = (tower.grids.prod(1) // visual.spatial_merge_size**2).tolist()
            for key, *own in zip(tower.keys, *(level.split(sizes) for level in made)):
                kept.keep(key, own)
    if tower.known:
        assert kept is not None, "known features need a pass that is given them"
        found = [kept[key] for key in tower.known]
        levels = levels or [[] for _ in found[0]]
        for level, parts in zip(levels, zip(*found)):
            level.extend(parts)
    return [torch.cat(level) if len(level) > 1 else level[0] for level in levels]


def _embed_patches(self: Any, values: Tensor) -> Tensor:
    embedded: Tensor = self.proj(values)
    return embedded.flatten(1)


def _project(self: Any, values: Tensor) -> Tensor:
    """The patch projection for uint8 patches: 1/255, mean and std folded in as it runs; the weight stays as it is.

    A still picture's patch has one frame; its two temporal kernels are then added up.
    """
    spec: VisionSpec = self.tuyi_spec
    weight = self.weight.float()  # (D, 3, temporal, patch, patch)
    std = torch.tensor(spec.std, device=weight.device).view(1, 3, 1, 1, 1)
    shift = torch.tensor(spec.mean, device=weight.device).view(1, 3, 1, 1, 1) / std
    bias = -(weight * shift).sum((1, 2, 3, 4))
    if self.bias is not None:
        bias = bias + self.bias.float()
    scaled = weight / (255 * std)
    if values.shape[1] == scaled[0, :, 0].numel():
        scaled = scaled.sum(2)
    dtype = self.weight.dtype
    embedded: Tensor = F.linear(values.to(dtype), scaled.flatten(1).to(dtype)) + bias.to(dtype)
    return embedded
