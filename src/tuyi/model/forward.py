"""One forward pass over a pack: pixels to visual tokens, tokens to hidden states, the head only where it counts.

It composes transformers' own modules; nothing of their code is copied or changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tuyi.encode.pack import Pack
from tuyi.model.attention import Layout, use_packed_attention
from tuyi.vision.spec import VisionSpec

__all__ = ["Batch", "adapt", "to_device"]


@dataclass(frozen=True, eq=False)
class Batch:
    """A pack on the device.

    Args:
        ids: (T,). positions: (4, 1, T).
        layout: How the tokens lie.
        patches: uint8 (P, D), pictures first, then videos; never None in training, so that every process runs the
            tower in every step (sharded weights are gathered by all or by none).
        grids: (N, 3). at: (V,): the token each visual feature replaces; fewer than the features where the tower
            runs only to keep step.
        keep, targets, weights: (K,): as in :class:`~tuyi.encode.pack.Pack`.
    """

    ids: Tensor
    positions: Tensor
    layout: Layout
    patches: Tensor | None
    grids: Tensor | None
    at: Tensor | None
    keep: Tensor
    targets: Tensor
    weights: Tensor


def to_device(pack: Pack, spec: VisionSpec, device: torch.device, *, always_see: bool = False) -> Batch:
    """Copy a pack to the device.

    Args:
        pack: The pack.
        spec: The model's vision facts.
        device: Where to.
        always_see: Whether a pack without media gets one black picture that no token reads.
    """

    def tensor(array: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    patches, grids, at = _visual(pack, spec)
    if patches is None and always_see:
        side = spec.merge_size
        patches = np.zeros((side * side, 3 * spec.patch_size**2), np.uint8)
        grids = np.asarray([[1, side, side]], np.int64)
        at = np.zeros(0, np.int64)
    return Batch(
        ids=tensor(pack.ids),
        positions=tensor(pack.positions)[:, None],
        layout=Layout.of(pack.lengths, device, pack.branches),
        patches=None if patches is None else tensor(patches),
        grids=None if grids is None else tensor(grids),
        at=None if at is None else tensor(at),
        keep=tensor(pack.keep),
        targets=tensor(pack.targets),
        weights=tensor(pack.weights),
    )


def _visual(pack: Pack, spec: VisionSpec) -> tuple[Any, Any, Any]:
    """Patches, grids and places of pictures and videos together, so that the tower runs once a pack."""
    parts = [part for part in (pack.images, pack.videos) if part is not None]
    if not parts:
        return None, None, None
    patches = [part.patches for part in parts]
    if len(parts) == 2:  # a picture beside a video takes the video's form: its one frame, doubled
        still = patches[0].reshape(len(patches[0]), 3, 1, -1)
        patches[0] = np.repeat(still, spec.temporal_patch_size, axis=2).reshape(len(still), -1)
    grids, at = [part.grids for part in parts], [part.at for part in parts]
    return np.concatenate(patches), np.concatenate(grids), np.concatenate(at)


def adapt(model: Any, spec: VisionSpec) -> None:
    """Teach a transformers Qwen-VL model to take packs.

    ``model(batch=Batch)`` then returns float32 logits (K, vocabulary) of the kept tokens, and with ``head=False``
    their hidden states (K, D) as they enter the head.
    """
    use_packed_attention(model)
    visual = model.model.visual
    visual.patch_embed.forward = MethodType(_embed_patches, visual.patch_embed)
    visual.patch_embed.proj.forward = MethodType(_project, visual.patch_embed.proj)
    visual.patch_embed.proj.tuyi_spec = spec
    last = model.model.language_model.layers[-1].mlp
    last.forward = MethodType(_mlp_where_read, last)
    model.forward = MethodType(_forward, model)


def _forward(self: Any, batch: Batch, head: bool = True) -> Tensor:
    self.model.language_model.layers[-1].mlp.tuyi_keep = batch.keep
    hidden_KD = _hidden_states(self, batch)[batch.keep]
    logits_KV: Tensor = self.lm_head(hidden_KD).float() if head else hidden_KD
    return logits_KV


def _hidden_states(model: Any, batch: Batch) -> Tensor:
    """The language model's last hidden states, (T, D)."""
    embeds_1TD = model.get_input_embeddings()(batch.ids)[None]
    extra: dict[str, Any] = {}
    if batch.patches is not None:
        assert batch.at is not None
        seen = model.model.visual(batch.patches, grid_thw=batch.grids)
        features_VD = seen.pooler_output.to(embeds_1TD.dtype)
        used = features_VD[: len(batch.at)]
        embeds_1TD = embeds_1TD.index_copy(1, batch.at, used[None])
        deep = getattr(seen, "deepstack_features", None)
        if len(used) < len(
            features_VD
        ):  # the tower ran only to keep step: its result must reach the loss with weight 0
            embeds_1TD = embeds_1TD + 0 * sum(x.sum() for x in (features_VD, *(deep or ())))
        elif deep:
            order = batch.at.argsort()
            mask_1T = torch.zeros(1, len(batch.ids), dtype=torch.bool, device=batch.ids.device)
            mask_1T[0, batch.at] = True
            extra = {"visual_pos_masks": mask_1T, "deepstack_visual_embeds": [x[order] for x in deep]}
    out = model.model.language_model(
        inputs_embeds=embeds_1TD, position_ids=batch.positions, use_cache=False, layout=batch.layout, **extra
    )
    hidden_TD: Tensor = out.last_hidden_state[0]
    return hidden_TD


def _mlp_where_read(self: Any, hidden_1TD: Tensor) -> Tensor:
    """The last layer's MLP, only at the tokens whose hidden state goes on to the head; nothing reads the others."""
    keep: Tensor = self.tuyi_keep
    read_1KD = type(self).forward(self, hidden_1TD[:, keep])
    return torch.zeros_like(hidden_1TD, dtype=read_1KD.dtype).index_copy(1, keep, read_1KD)


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
