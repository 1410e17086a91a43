"""Everything that the usual recipe sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from tuyi.config import Settings
from tuyi.data.options import ReadOptions

__all__ = ["Freeze", "LoraSettings", "TrainRun", "TrainSettings"]


class Freeze(Settings):
    """Which parts of the model keep their weights."""

    vision: bool = True
    """The vision tower."""
    projector: bool = True
    """The merger between tower and language model."""
    language: bool = False
    """The language model, embeddings and head included."""

    @model_validator(mode="after")
    def _something_learns(self) -> Freeze:
        if self.vision and self.projector and self.language:
            raise ValueError("vision, projector and language are all frozen; nothing would be trained")
        return self


class LoraSettings(Settings):
    """Low-rank adapters (arXiv 2106.09685), on every linear layer of the parts that are not frozen."""

    rank: int = Field(default=8, gt=0)
    alpha: int = Field(default=16, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class TrainSettings(Settings):
    """How to train. What is asked belongs to the task."""

    method: Literal["full", "lora"] = "full"
    """Whether the weights themselves are trained, or low-rank adapters beside them, merged at the end."""
    lora: LoraSettings = LoraSettings()
    freeze: Freeze | None = None
    """Frozen parts; for pretrained models the tower and the projector, for built-in ones nothing, where not given."""
    epochs: float = Field(default=3.0, gt=0)
    """Passes over the rows."""
    max_steps: int | None = Field(default=None, gt=0)
    """Stop after this many optimizer steps, whatever the epochs."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate; 1e-5 for full, 1e-4 for LoRA, 1e-3 for built-in models, where not given."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after the warm-up."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's running averages."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this norm; 0 leaves them alone."""
    batch_rows: int = Field(default=16, gt=0)
    """Rows in one optimizer step, over all processes."""
    batch_tokens: int | None = Field(default=None, gt=0)
    """Tokens in one optimizer step, over all processes; instead of ``batch_rows``."""
    pack_tokens: int = Field(default=16384, gt=0)
    """Most tokens that pass the model together; a step of more is done in several passes. Memory, not learning."""
    precision: Literal["bf16", "fp32"] | None = None
    """bf16: computed in bfloat16, weights kept in float32; on a GPU bf16, on a CPU fp32, where not given."""
    gradient_checkpointing: bool = False
    """Compute activations twice to hold fewer of them."""
    seed: int = 42
    """Of row order, adapters, and a built-in model's weights."""
    workers: int | None = Field(default=None, ge=0)
    """Processes that read pictures; none on a CPU, up to 12 a GPU, where not given."""
    save_steps: int | None = Field(default=None, gt=0)
    """Optimizer steps between checkpoints; four a run where not given."""
    keep_checkpoints: int = Field(default=2, gt=0)
    """Older checkpoints are removed, the best one excepted."""
    eval_steps: int | None = Field(default=None, gt=0)
    """Optimizer steps between evaluations on the validation rows; as ``save_steps`` where not given."""
    early_stop: int | None = Field(default=None, gt=0)
    """Stop after this many evaluations without a better weighted F1."""
    keep_best: bool = True
    """Whether the checkpoint with the best weighted F1 becomes the model, where there are validation rows."""
    log_steps: int = Field(default=1, gt=0)
    """Optimizer steps between two entries of the loss log."""
    deepspeed: Path | None = None
    """A DeepSpeed settings file (JSON)."""
    tensorboard: bool = True
    """Whether to write TensorBoard logs into ``logs/``."""


class TrainRun(Settings):
    """A whole run, as a run file says it."""

    data: Path
    """Labelled rows."""
    out: Path
    """Model folder to write."""
    task: str | None = None
    """A built-in task or YAML file; the model's own where not given."""
    model: str = "builtin:tiny"
    """A built-in name, a folder, or a hub id."""
    valid: Path | None = None
    """Labelled rows to score during training."""
    read: ReadOptions = ReadOptions()
    """How to read the data."""
    budget: dict[str, Any] = Field(default_factory=dict)
    """Budget settings to use instead of the task's, such as ``max_pixels``."""
    train: TrainSettings = TrainSettings()
    """How to train."""
