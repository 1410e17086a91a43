"""Where the time of a prediction run goes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["Clock"]


class Clock:
    """Times the parts of each pass without making the device wait.

    Args:
        model: The adapted model; its two towers are watched.
    """

    def __init__(self, model: Any) -> None:
        self._on_gpu = model.device.type == "cuda"
        self._spent = {"tower": 0.0, "language": 0.0, "labels": 0.0}
        self._waited = 0.0
        self._began = time.perf_counter()
        self._marks: dict[str, Any] = {}
        self._open: deque[dict[str, Any]] = deque()
        self._hooks: list[Any] = []
        for name, part in (("tower", model.model.visual), ("language", model.model.language_model)):
            self._hooks.append(part.register_forward_pre_hook(lambda *_, name=name: self._mark(f"{name} begins")))
            self._hooks.append(part.register_forward_hook(lambda *_, name=name: self._mark(f"{name} ends")))

    def start(self) -> None:
        """Forget what was before."""
        self._spent = dict.fromkeys(self._spent, 0.0)
        self._waited, self._began = 0.0, time.perf_counter()
        self._open.clear()
        self._marks = {}

    def stop(self) -> None:
        """Watch the model no longer."""
        while self._hooks:
            self._hooks.pop().remove()

    def waited(self, seconds: float) -> None:
        """The model had nothing to do for want of encoded rows."""
        self._waited += seconds

    def scored(self) -> None:
        """The labels of a pass are scored."""
        self._mark("labels end")
        self._open.append(self._marks)
        self._marks = {}
        while self._open and self._is_over(self._open[0]):
            self._add(self._open.popleft())

    def spent(self, beside: Sequence[Clock] = ()) -> dict[str, float]:
        """Seconds by part since the start; ``host`` is what is left of the whole.

        Args:
            beside: Clocks of models that passes went through side by side; their mean counts.
        """
        known = dict(self._parts())
        for clock in beside:
            for name, seconds in clock._parts().items():
                known[name] += seconds / len(beside)
        known["vision wait"] = self._waited
        whole = time.perf_counter() - self._began
        return {**known, "host": max(0.0, whole - sum(known.values()))}

    def _parts(self) -> dict[str, float]:
        if self._on_gpu:
            torch.cuda.synchronize()
        while self._open:
            self._add(self._open.popleft())
        return self._spent

    def _mark(self, name: str) -> None:
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks[name] = event
        else:
            self._marks[name] = time.perf_counter()

    def _is_over(self, marks: dict[str, Any]) -> bool:
        return not self._on_gpu or bool(marks["labels end"].query())

    def _add(self, marks: dict[str, Any]) -> None:
        def between(begin: str, end: str) -> float:
            if self._on_gpu:
                return float(marks[begin].elapsed_time(marks[end])) / 1e3
            return float(marks[end] - marks[begin])

        if "tower begins" in marks:
            self._spent["tower"] += between("tower begins", "tower ends")
        self._spent["language"] += between("language begins", "language ends")
        self._spent["labels"] += between("language ends", "labels end")
