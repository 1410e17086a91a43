"""The engine that a run asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from tuyi.encode.encoder import Encoder
from tuyi.model.folder import need_one_model
from tuyi.model.load import Frontend
from tuyi.predict.engine import Engine, SizedRow
from tuyi.predict.loading import WORTH_COMPILING, Job, open_local

__all__ = ["open_engine"]


def open_engine(
    job: Job,
    encoder: Encoder,
    frontend: Frontend,
    *,
    trial: Sequence[SizedRow] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> Engine:
    """The engine of a run.

    Args:
        job: What for.
        encoder, frontend: Of the same model.
        trial: Rows to try fp8 on.
        tell: Called with lines that say what was chosen.

    Raises:
        ModelError: The model cannot be loaded, or precision fp8 changes too many labels; or there is a model for each
            task, and the engine runs one.
        EngineError: An engine outside this process cannot be started or reached.
        ConfigError: Settings that do not go together, or a package that the engine needs is missing.
    """
    settings = job.settings
    if settings.engine in ("api", "vllm"):
        need_one_model(job.model, frontend.info)
    if settings.engine == "api":
        from tuyi.predict.api import ApiEngine

        return ApiEngine(encoder, frontend.tokenizer, settings.api, info=frontend.info, skip=job.skip)
    if settings.engine == "vllm":
        from tuyi.predict.vllm import VllmEngine

        return VllmEngine(job.model, encoder, frontend.tokenizer, settings.vllm, info=frontend.info, skip=job.skip)
    devices = _devices(settings.device)
    if settings.engine == "local" and len(devices) == 1:
        settings = settings.model_copy(update={"device": devices[0]})
        return open_local(replace(job, settings=settings), frontend, trial=trial, tell=tell)
    if settings.precision == "fp8" and not settings.force_fp8:
        alone = settings.model_copy(update={"device": devices[0], "compile": False})
        open_local(replace(job, settings=alone), frontend, trial=trial, tell=tell).close()
        torch.cuda.empty_cache()
        settings = settings.model_copy(update={"force_fp8": True})
    if settings.engine == "ray":
        from tuyi.predict.cluster import RayEngine

        return RayEngine(job.model, job.tasks, settings, settings.address, tell, job.skip)
    from tuyi.predict.devices import DevicesEngine

    if settings.compile is None:
        compiled = devices[0].startswith("cuda") and job.rows >= WORTH_COMPILING * len(devices)
        settings = settings.model_copy(update={"compile": compiled})
    return DevicesEngine(job.model, job.tasks, settings, devices, tell, job.skip)


def _devices(named: str | None) -> list[str]:
    """The devices to run on, each with its number."""
    if named is not None:
        return [name.strip() for name in named.split(",")]
    count = torch.cuda.device_count()
    return [f"cuda:{index}" for index in range(count)] or ["cpu"]
