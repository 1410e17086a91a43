"""What a run tells while it goes: progress, the loss log, the loss curve."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from tuyi.train.steps import Steps

__all__ = ["Teller", "last_loss", "plot_loss", "read_log"]


class Teller(TrainerCallback):
    """Shows progress with rate and time left, and writes the loss log as the run goes.

    Args:
        log: JSONL file, one object for each logged step or evaluation; a resumed run cuts it back to where it resumes.
        steps: The run.
        console: Where to show progress; on anything but a terminal a line is printed for every tenth of the run.
    """

    def __init__(self, log: Path, steps: Steps, console: Console) -> None:
        self._log, self._steps, self._console = log, steps, console
        self._bar: Progress | None = None
        self._loss, self._started, self._rows, self._begin = float("nan"), 0.0, 0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        kept = [entry for entry in read_log(self._log) if entry["step"] <= state.global_step]
        self._log.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
        self._started, self._rows, self._begin = time.perf_counter(), 0, state.global_step
        if self._console.is_terminal:
            columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
            self._bar = Progress(*columns, console=self._console)
            self._bar.start()
            self._task = self._bar.add_task("training", total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._rows += self._steps.rows_in(state.global_step - 1)
        if self._bar is not None:
            rate = self._rows / (time.perf_counter() - self._started)
            told = f"loss {self._loss:.4f}  {rate:.1f} rows/s  epoch {self._steps.epoch_at(state.global_step):.2f}"
            self._bar.update(self._task, completed=state.global_step, description=told)

    def _tell(self, state: Any) -> None:
        """One line, where there is no terminal to draw a bar on."""
        seconds = time.perf_counter() - self._started
        left = (state.max_steps - state.global_step) * seconds / (state.global_step - self._begin)
        self._console.print(
            f"step {state.global_step}/{state.max_steps}  epoch {self._steps.epoch_at(state.global_step):.2f}  "
            f"loss {self._loss:.4f}  {self._rows / seconds:.1f} rows/s  {left:.0f} s left",
            highlight=False,
        )

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        logs = logs or {}
        if "loss" in logs:
            self._loss = float(logs["loss"])
            tenth = max(1, state.max_steps // 10)
            if self._bar is None and (state.global_step % tenth == 0 or state.global_step == state.max_steps):
                self._tell(state)
        entry = {
            key: value
            for key, value in logs.items()
            if key in ("loss", "grad_norm", "learning_rate") or key.startswith("eval_")
        }
        if entry:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **entry}) + "\n")

    def close(self) -> None:
        """Give the terminal back; also after a run that was stopped."""
        if self._bar is not None:
            self._bar.stop()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a loss log; empty where there is none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def last_loss(entries: list[dict[str, Any]]) -> float:
    """Mean loss of the last tenth of a log's steps; not a number where it has none."""
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail) if tail else float("nan")


def plot_loss(log: Path, out: Path) -> None:
    """Draw the loss of each step, a running mean, and the validation score where there is one."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    entries = read_log(log)
    steps = [entry["step"] for entry in entries if "loss" in entry]
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    smooth, mean = [], None
    for loss in losses:
        mean = loss if mean is None else 0.9 * mean + 0.1 * loss
        smooth.append(mean)
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes.plot(steps, losses, color="#9db7d5", linewidth=1, label="loss")
    axes.plot(steps, smooth, color="#1f4e8c", linewidth=2, label="running mean")
    axes.set(xlabel="optimizer step", ylabel="loss per answer token", ylim=(0, None))
    axes.grid(alpha=0.25)
    scored = [(entry["step"], entry["eval_weighted_f1"]) for entry in entries if "eval_weighted_f1" in entry]
    if scored:
        right = axes.twinx()
        right.plot(*zip(*scored), color="#c0561f", marker="o", label="validation weighted F1")
        right.set(ylabel="weighted F1", ylim=(0, 1))
        right.legend(loc="upper center")
    axes.legend(loc="upper right")
    figure.savefig(out)
    plt.close(figure)
