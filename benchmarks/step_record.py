"""What a transformers ``Trainer`` does, step by step: when each step was finished, on which rows, at which loss.

It uses callbacks alone, so it records any program that trains with a ``Trainer``. On a GPU the times are those at which
the GPU finished, taken from events in its stream: the record never waits for the GPU, so it slows nothing down.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Enough", "Trained", "record"]


class Enough(Exception):
    """Training is over and what comes after it is not wanted."""


@dataclass(slots=True)
class Trained:
    """What a training run did.

    Args:
        load_seconds: From the start of the process's work to the training loop.
        loop_seconds: In the training loop.
        finished: For each optimizer step the seconds since the loop began and the ids of its rows.
        waited: Seconds before each step that the loop waited for its rows.
        loss, grad_norm, lr: As logged.
        learning: Weights that learn.
        dtype: Of the weights that learn.
        checkpoint_seconds, write_seconds: Writing checkpoints, and the finished model.
        peak_bytes, reserved_bytes: Most GPU memory in tensors, and taken from the GPU.
        scores: On held-out rows.
        told: What it said.
        skipped: Why it was not run.
    """

    load_seconds: float = 0.0
    loop_seconds: float = 0.0
    finished: list[tuple[float, list[str]]] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    learning: int = 0
    dtype: str = ""
    checkpoint_seconds: float = 0.0
    write_seconds: float = 0.0
    peak_bytes: int = 0
    reserved_bytes: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    skipped: str = ""


def record(
    began: float, *, steps: Sequence[list[str]] = (), limit: float | None = None, save: str = "model"
) -> Trained:
    """Let every ``Trainer`` made from now on write what it does into the returned object.

    Args:
        began: When the process's work began, by ``time.perf_counter``.
        steps: Ids of each step's rows; where none are given, the ``Trainer``'s data set is asked: ``ids(step)``.
        limit: Seconds after which training stops.
        save: ``all``, ``model`` (no checkpoints), or ``none``: :class:`Enough` is raised when training is over.
    """
    import torch
    import transformers
    from transformers import trainer

    done = Trained()
    gpu = torch.cuda.is_available()
    moments: list[Any] = []
    free = start = 0.0  # when the loop was last free to ask for rows; when it began

    def moment() -> Any:
        if not gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    class Recorder(transformers.TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            nonlocal free, start
            learning = [weight for weight in model.parameters() if weight.requires_grad]
            done.learning, done.dtype = sum(weight.numel() for weight in learning), str(learning[0].dtype)
            start = free = time.perf_counter()
            done.load_seconds = start - began
            moments.append(moment())

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            done.waited.append(time.perf_counter() - free)

        def on_step_end(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any) -> None:
            nonlocal free
            moments.append(moment())
            step = state.global_step - 1
            done.finished.append((0.0, list(steps[step] if steps else train_dataloader.dataset.ids(step))))
            free = time.perf_counter()
            if limit is not None and free - start > limit:
                control.should_training_stop = True
            if save != "all":
                control.should_save = False

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            nonlocal free
            for key, values in (("loss", done.loss), ("grad_norm", done.grad_norm), ("learning_rate", done.lr)):
                if logs and key in logs and "loss" in logs:
                    values.append(float(logs[key]))
            free = time.perf_counter()

        def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            nonlocal free
            free = time.perf_counter()

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            nonlocal free
            now = time.perf_counter()
            done.checkpoint_seconds += now - free
            free = now

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if gpu:
                torch.cuda.synchronize()
            done.loop_seconds = time.perf_counter() - start
            if gpu:
                done.peak_bytes = torch.cuda.max_memory_allocated()
                done.reserved_bytes = torch.cuda.max_memory_reserved()
                seconds = [moments[0].elapsed_time(event) / 1e3 for event in moments[1:]]
            else:
                seconds = [at - moments[0] for at in moments[1:]]
            done.finished[:] = [(at, ids) for at, (_, ids) in zip(seconds, done.finished, strict=True)]
            if save == "none":
                raise Enough

    defaults: list[Any] = trainer.DEFAULT_CALLBACKS
    defaults.append(Recorder)
    return done
