"""Several processes of one machine that train together, as torchrun would start them; forked from one that has imported
all, since importing takes longer than their runs.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_IMPORTED = ["sklearn.metrics", "tuyi.model.write", "tuyi.predict.local", "tuyi.train.fit", "tuyi.train.sharded"]
_PATIENCE = 240


@dataclass(frozen=True)
class Job:
    """A call of ``tuyi.train``.

    Args:
        data, out: Of the call.
        task: A task file, or a task set as plain data.
        settings: Training settings as plain data.
        more: Further keyword arguments.
        stop: The step before which the run is stopped, as Ctrl-C would.
    """

    data: Path
    out: Path
    task: Any
    settings: dict[str, Any]
    more: dict[str, Any] = field(default_factory=dict)
    stop: int | None = None


class Processes:
    """Starts processes."""

    def __init__(self) -> None:
        import torch

        # what has asked for a GPU cannot be forked
        self._context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "forkserver")
        if self._context.get_start_method() == "forkserver":
            self._context.set_forkserver_preload(_IMPORTED)

    def train(self, job: Job, world: int) -> str:
        """Train on so many processes.

        Returns:
            What the first failing process wrote; empty where all went well.

        Raises:
            AssertionError: They hang.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        logs = [job.out.with_name(f"{job.out.name}.{rank}.log") for rank in range(world)]
        started = [
            self._context.Process(target=_work, args=(job, rank, world, port, logs[rank])) for rank in range(world)
        ]
        for process in started:
            process.start()
        deadline = time.monotonic() + _PATIENCE
        while any(process.is_alive() for process in started) and time.monotonic() < deadline:
            if any(process.exitcode for process in started):  # as torchrun does, end the others a little later
                deadline = min(deadline, time.monotonic() + 5)
            time.sleep(0.05)
        codes = [process.exitcode for process in started]
        for process in started:
            process.kill()
            process.join()
        told = [log.read_text(encoding="utf-8", errors="replace") for log in logs]
        failed = [one for one, code in zip(told, codes) if code]
        assert failed or None not in codes, f"the processes hang: {codes}\n" + "\n".join(told)
        return failed[0] if failed else ""


def losses(folder: Path) -> list[float]:
    """The losses of all steps, in order."""
    entries = [json.loads(line) for line in (folder / "loss.jsonl").read_text(encoding="utf-8").splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


def _work(job: Job, rank: int, world: int, port: int, log: Path) -> None:
    """The life of one process; its end passes over all that waits for others."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    with log.open("w", buffering=1, encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        code = 1
        try:
            _train(job)
            code = 0
        finally:
            if code:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _train(job: Job) -> None:
    from importlib import import_module

    import torch
    from rich.console import Console

    import tuyi
    from tuyi.task.catalog import parse_tasks
    from tuyi.train.settings import TrainSettings

    torch.set_num_threads(1)
    if "deepspeed" in job.settings and not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
        _no_compiler()
    if job.stop is not None:
        trainer = import_module("tuyi.train.trainer").PackTrainer
        plain = trainer.training_step

        def stopping(self: Any, *given: Any, **more: Any) -> Any:
            if self.state.global_step == job.stop:
                raise KeyboardInterrupt
            return plain(self, *given, **more)

        trainer.training_step = stopping
    task = parse_tasks(job.task, job.task["name"]) if isinstance(job.task, dict) else job.task
    settings = TrainSettings.model_validate(job.settings)
    try:
        tuyi.train(job.data, job.out, task=task, settings=settings, console=Console(width=200), **job.more)
    except KeyboardInterrupt:
        assert job.stop is not None


def _no_compiler() -> None:
    """Let DeepSpeed talk through gloo instead of a library that it would compile first."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
