"""How to predict: speed, place and engine; nothing here changes what is asked."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tuyi.config import Settings
from tuyi.cores import reading_workers
from tuyi.data.options import ReadOptions
from tuyi.predict.api import ApiSettings
from tuyi.predict.vllm import VllmSettings

__all__ = ["PredictRun", "PredictSettings"]


class PredictSettings(Settings):
    """How to predict; what to ask is the model's own task."""

    engine: Literal["local", "ray", "vllm", "api"] = "local"
    """Who runs the model: this machine, a Ray cluster, vLLM or a server."""
    pack_tokens: int | None = Field(default=None, gt=0)
    """Most tokens that pass the model together; as many as the memory found at start holds where not given."""
    workers: int = Field(default=reading_workers(), gt=0)
    """Processes, on a CPU threads, that read pictures ahead of the model."""
    device: str | None = None
    """Torch device, or several with commas between; all GPUs where there are any, else the CPU."""
    precision: Literal["bfloat16", "float32", "fp8"] | None = None
    """Numbers that are multiplied; bfloat16 on a GPU, float32 on a CPU where not given."""
    force_fp8: bool = False
    """Go on with fp8 although it changes more than 0.5 % of the labels of the rows that it is tried on."""
    compile: bool | None = None
    """Whether to compile the model's blocks; where not given, on a GPU for 1,000 rows and more."""
    max_output_tokens: int | None = Field(default=None, gt=0)
    """Most tokens that the answer of a row may have, terminator included; free text is shortened to keep to it."""
    max_calls: int | None = Field(default=None, gt=0)
    """Most calls of a model that a row may take; a run whose engine could need more is refused."""
    draft: bool = False
    """Decode large JPEGs at a fraction of their size: quicker, with other pixels than the model was taught with."""
    address: str | None = None
    """Address of the Ray cluster; one on this machine where not given."""
    api: ApiSettings = ApiSettings()
    """The server of ``engine=api``."""
    vllm: VllmSettings = VllmSettings()
    """The settings of ``engine=vllm``."""


class PredictRun(Settings):
    """What ``--set`` and ``--read`` can change of a prediction run."""

    predict: PredictSettings = PredictSettings()
    """How to predict."""
    budget: dict[str, Any] = Field(default_factory=dict)
    """Budget settings to use instead of the model's, such as ``max_pixels``."""
    read: ReadOptions = ReadOptions()
    """How to read the data."""
