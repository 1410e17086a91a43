"""Cells of a table, run one by one and kept: a finished one is not run again, whatever killed the one behind it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from scipy.stats import t as student

from machine import machine
from tuyi.model.quiet import no_progress_bars
from tuyi.whole import write_whole

__all__ = ["Cells", "interval"]


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean and 95 % interval over seeds, by Student's t."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return {"mean": mean, "low": mean, "high": mean}
    half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return {"mean": mean, "low": mean - half, "high": mean + half}


class Cells:
    """The cells of a results file.

    Args:
        out: The file; cells that it holds count.
        made_with: What cells of one file have in common.
        table: The table of the cells there are, kept beside them; none where not given.

    Raises:
        SystemExit: The file's cells were made with something else.
    """

    def __init__(
        self,
        out: Path,
        made_with: Mapping[str, Any],
        table: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        self._out, self._table = out, table
        self._result = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {**made_with, "cells": {}}
        for name, value in made_with.items():
            if self._result[name] != value:
                raise SystemExit(
                    f"{out} holds cells made with --{name} {self._result[name]}; choose another --out and --work"
                )
        self._result["machine"] = machine("cpu")

    @property
    def done(self) -> dict[str, Any]:
        """The cells by key."""
        cells: dict[str, Any] = self._result["cells"]
        return cells

    def run(self, key: str, cell: Callable[[], Mapping[str, Any]]) -> None:
        """Run a cell that is missing, write the file, print the cell."""
        if key in self.done:
            return
        started = perf_counter()
        with no_progress_bars():
            found = cell()
        self.done[key] = {**found, "seconds": round(perf_counter() - started, 1)}
        if self._table is not None:
            self._result["table"] = self._table(self.done)
        write_whole(self._out, json.dumps(self._result, ensure_ascii=False, indent=1) + "\n")
        print(f"{key}: {json.dumps(self.done[key])}", flush=True)
