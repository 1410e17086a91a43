"""Everything that the usual recipe sets."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tuyi.config import Settings
from tuyi.data.options import ReadOptions
from tuyi.vision.augment import Augment

__all__ = ["Freeze", "LoraSettings", "ReasonSettings", "SoftSettings", "TrainRun", "TrainSettings"]

Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


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
    rslora: bool = False
    """Whether they count alpha / √rank instead of alpha / rank (arXiv 2312.03732)."""


class SoftSettings(Settings):
    """How rows with a teacher's distribution over the labels learn from it (arXiv 1503.02531)."""

    weight: float = Field(default=0.5, ge=0, le=1)
    """Share of the divergence to the teacher in the loss of such a row; the rest is the cross-entropy of its label."""
    temperature: float = Field(default=2.0, gt=0, allow_inf_nan=False)
    """Both distributions are made flatter by this, so that unlikely labels count; 1 leaves them as they are."""


class ReasonSettings(Settings):
    """How rationales are learned in rows of their own beside the plain labels (arXiv 2305.02301)."""

    weight: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """What a row's reason counts beside its label; rationales are not learned where not given."""
    prompt: str | None = None
    """How the reason is asked for, with ``{content}`` for the row; in the language of the task where not given."""

    @field_validator("prompt")
    @classmethod
    def _holds_content(cls, prompt: str | None) -> str | None:
        try:
            fields = [field for _, field, _, _ in string.Formatter().parse(prompt or "{content}") if field is not None]
        except ValueError:
            fields = []
        if fields != ["content"]:
            raise ValueError(f"expected {{content}} once and no other braces, found {prompt!r}")
        return prompt


class TrainSettings(Settings):
    """How to train. What is asked belongs to the task."""

    method: Literal["full", "lora", "dora", "qlora"] = "full"
    """Whether the weights themselves are trained, or low-rank adapters beside them, merged at the end: dora learns the
    lengths of the weights' rows apart (arXiv 2402.09353), qlora keeps the language model in 4 bits (2305.14314)."""
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
    sampling: Literal["plain", "balanced"] = "plain"
    """plain: every row once an epoch; balanced: as many rows an epoch, every label of a task equally often."""
    task_weights: dict[str, Weight] | None = None
    """Shares of the tasks among an epoch's rows, by name; as the rows are, where not given."""
    apart: bool = False
    """Whether each task of the set gets a model of its own, since tasks learned together can see-saw."""
    class_weights: Literal["balanced"] | dict[str, Weight] | None = None
    """Factors on the loss of rows, by label, 1 where not named; balanced: rows / (labels x rows of the label)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread over all labels of the row's task (arXiv 1512.00567)."""
    soft: SoftSettings = SoftSettings()
    """How rows with soft labels learn."""
    reasons: ReasonSettings = ReasonSettings()
    """Whether and how rationales are learned beside the labels."""
    pack_tokens: int | None = Field(default=None, gt=0)
    """Most tokens that pass the model together; a step of more is done in several passes. Memory, not learning; as many
    as the memory found at start holds where not given."""
    precision: Literal["bf16", "bf16-sr", "fp32"] | None = None
    """bf16: computed in bfloat16, weights updated in float32; bf16-sr: weights rounded by chance instead, 2 bytes less
    each; on a GPU bf16, on a CPU fp32, where not given."""
    gradient_checkpointing: bool | None = None
    """Compute activations twice to hold fewer of them; only where memory asks for it, where not given."""
    compile: bool | None = None
    """Whether to compile the model's blocks; where not given, on a GPU for 1,000 rows and more, epochs counted."""
    keep_features: Literal["auto", "device", "host", "disk", "none"] = "auto"
    """Where the features of a frozen vision tower wait for the next epoch; auto: where there is room."""
    spike: float | None = Field(default=3.0, gt=1)
    """Stop when a loss is over this many times the largest of the first 20."""
    seed: int = 42
    """Of row order, adapters, and a built-in model's weights."""
    augment: Augment | None = None
    """How pictures are changed before they are learned from; off where not given."""
    workers: int | None = Field(default=None, gt=0)
    """Processes, on a CPU threads, that read pictures; 1 on a CPU, up to 16 a GPU, where not given."""
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
    fsdp: bool = False
    """Whether weights, gradients and optimizer are spread over the processes by torch's FSDP2."""
    fsdp_offload: bool = False
    """Whether they wait in CPU memory until they are needed."""
    deepspeed: Path | None = None
    """A DeepSpeed settings file (JSON), for ZeRO."""
    tensorboard: bool = True
    """Whether to write TensorBoard logs into ``logs/``."""

    @model_validator(mode="after")
    def _mixed_or_apart(self) -> TrainSettings:
        if self.apart and self.task_weights is not None:
            raise ValueError("task_weights mixes the tasks of one model, apart makes a model of each; leave one out")
        return self

    @model_validator(mode="after")
    def _one_engine(self) -> TrainSettings:
        engine = "deepspeed" if self.deepspeed is not None else "fsdp"
        if self.deepspeed is not None and self.fsdp:
            raise ValueError("deepspeed and fsdp both spread the weights over processes; leave one of them out")
        if self.fsdp_offload and not self.fsdp:
            raise ValueError("fsdp_offload is a part of fsdp; set fsdp=true too, or leave it out")
        if self.deepspeed is None and not self.fsdp:
            return self
        if self.method == "qlora":
            raise ValueError(f"qlora keeps the whole model on each GPU; leave {engine} out, or use lora")
        if self.precision == "bf16-sr":
            raise ValueError(
                f"{engine} spreads 32-bit weights, there is nothing to round by chance; use precision=bf16"
            )
        return self


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
