"""A model made ready to be served."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuyi.encode.encoder import Encoder
from tuyi.model.folder import FolderInfo
from tuyi.model.load import Frontend, Model, load_frontend, peek
from tuyi.model.tasks import choose_tasks, with_budget
from tuyi.serve.settings import ServeSettings
from tuyi.task.catalog import TaskSet

__all__ = ["Served", "open_model"]


@dataclass(frozen=True, eq=False, slots=True)
class Served:
    """What is served.

    Args:
        name: What clients call it.
        encoder: With the tasks that are answered.
        info: Where calibration temperatures come from.
        models: By task; the same for all where there is one.
        pack_tokens: Most tokens that pass a model together.
        cache_tokens: Most tokens of all answers that a model writes at a time, with their prompts.
        features: Visual tokens whose features each model keeps.
        created: Seconds since 1970 at which it was made ready.
    """

    name: str
    encoder: Encoder
    info: FolderInfo | None
    models: Mapping[str, Model]
    pack_tokens: int
    cache_tokens: int
    features: int
    created: int

    @property
    def tasks(self) -> TaskSet:
        """The tasks that are answered."""
        return self.encoder.tasks


def open_model(
    model: str, settings: ServeSettings, *, task: str | TaskSet | None = None, budget: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Served:  # fmt: skip
    """Load a model onto its device, ready to answer; where each task has its own, all of them.

    Args:
        model: A model folder, hub id or built-in name.
        settings: Place and speed.
        task: Needed where the model has no task of its own.
        budget: Budget settings to use instead of the model's.
        tell: Called with lines that say what was chosen.

    Raises:
        ModelError: The model cannot be loaded.
        TaskError: The model has another task, or none and none is given.
    """
    from tuyi.predict.room import cache_tokens, kept_features, pack_tokens
    from tuyi.predict.warm import warm_up

    info = peek(model)
    tasks = with_budget(choose_tasks(model, info, task), budget)
    frontend = load_frontend(model, [text for one in tasks for text in one.wording])
    members = frontend.info.members if frontend.info is not None else {}
    folders = {one.name: str(Path(model) / members[one.name]) if members else model for one in tasks}
    opened: dict[str, Model] = {}
    for folder in dict.fromkeys(folders.values()):
        opened[folder] = _loaded(frontend if folder == model else load_frontend(folder), settings, tell)
    first = next(iter(opened.values()))
    seconds = sum(warm_up(one) for one in opened.values())
    tell(f"warmed up in {seconds:.1f} s")
    most = settings.pack_tokens or pack_tokens(first.hf, first.device, writes=True)
    return Served(
        name=settings.name or Path(model).name,
        encoder=Encoder(frontend.tokenizer, frontend.spec, tasks),
        info=frontend.info,
        models={name: opened[folder] for name, folder in folders.items()},
        pack_tokens=most,
        cache_tokens=cache_tokens(first.hf, first.device, most) // len(opened),
        features=kept_features(first.hf.config, first.device) // len(opened),
        created=int(time.time()),
    )


def _loaded(frontend: Frontend, settings: ServeSettings, tell: Callable[[str], None]) -> Model:
    from tuyi.model.fast import compile_blocks, load_tuned

    model = load_tuned(frontend, settings.device, settings.precision, tell)
    is_gpu = model.device.type == "cuda"
    if settings.compile if settings.compile is not None else is_gpu:
        compile_blocks(model.hf)
    return model
