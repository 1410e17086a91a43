"""One way to train over one workload, in a process of its own, with the time at which every step was finished.

``python -P benchmarks/trainers.py SIDE JOB.json RESULT.json`` is how :mod:`train` runs it: ``tuyi`` through its public
door; ``llamafactory``, whose environment holds no tuyi; ``script``, the loop that people write with plain transformers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# behind all else: in front, this folder's llamafactory.py would hide the package of that name
sys.path.append(str(Path(__file__).parent))

from step_record import Enough, Trained, record

__all__ = ["SIDES", "Interpreter", "Job", "Recipe", "launch", "llamafactory_arguments"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a peer is told to do; tuyi has its settings.

    Args:
        method: ``full`` or ``lora`` (rank 8 beside every linear of the language model).
        batch: Rows that pass together.
        accumulate: Passes of an optimizer step.
        lr, warmup_steps: Cosine schedule.
        freeze: Whether tower and projector keep their weights.
        checkpointing: Gradient checkpointing.
        liger: Liger's kernels, where that package is installed.
        workers: Processes that read rows.
        precision: ``bf16`` or ``fp32``.
        answer_only: LLaMA-Factory's template without its system prompt and the newline that it teaches behind the
            answer, so that it learns what the others learn.
        epochs: Passes over the rows.
    """

    method: str = "full"
    batch: int = 1
    accumulate: int = 1
    lr: float = 1e-5
    warmup_steps: int = 0
    freeze: bool = True
    checkpointing: bool = False
    liger: bool = False
    workers: int = 0
    precision: str = "bf16"
    answer_only: bool = False
    epochs: int = 1


@dataclass(frozen=True, slots=True)
class Job:
    """What every side gets.

    Args:
        model: Model folder.
        data: Labelled rows; for LLaMA-Factory a folder with a ShareGPT export named ``rows``.
        out: Folder for what the side writes.
        task: Task name or file.
        max_pixels, max_tokens: The budget of a picture and of a row.
        device: Torch device.
        settings: ``KEY=VALUE`` settings of ``tuyi train``.
        recipe: Of the peers.
        steps: Ids of the rows of each step, for the peers.
        held_out: Labelled rows to score in the end.
        gpus: Processes that train together, by ``torchrun``.
        threads: Of torch.
        limit: Seconds after which training stops.
        save: ``all``, ``model`` or ``none``.
    """

    model: str
    data: str
    out: str
    task: str
    max_pixels: int
    max_tokens: int
    device: str
    settings: tuple[str, ...] = ()
    recipe: Recipe = field(default_factory=Recipe)
    steps: tuple[list[str], ...] = ()
    held_out: str = ""
    gpus: int = 1
    threads: int | None = None
    limit: float | None = None
    save: str = "model"

    @property
    def budget(self) -> dict[str, int]:
        return {"max_pixels": self.max_pixels, "max_tokens": self.max_tokens}


@dataclass(frozen=True, slots=True)
class Interpreter:
    """The Python of a side.

    Args:
        python: Its program.
        path: A folder whose packages hide those of its environment.
    """

    python: str = sys.executable
    path: str = ""


def launch(side: str, job: Job, interpreter: Interpreter | None = None) -> Trained:
    """Run a side in a process of its own."""
    used, out = interpreter or Interpreter(), Path(job.out)
    out.mkdir(parents=True)
    job_file, result_file, log = out / "job.json", out / "result.json", out / "log.txt"
    job_file.write_text(json.dumps(asdict(job)), encoding="utf-8")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(out / "cache")}
    environment |= {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    if job.threads:
        environment["OMP_NUM_THREADS"] = str(job.threads)
    if not job.device.startswith("cuda"):
        environment["CUDA_VISIBLE_DEVICES"] = ""
    if used.path:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (used.path, environment.get("PYTHONPATH"))))
    many = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={job.gpus}"] if job.gpus > 1 else []
    command = [used.python, "-P", *many, __file__, side, str(job_file), str(result_file)]
    with log.open("w", encoding="utf-8") as file:
        code = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])
        return Trained(skipped=f"ended with code {code}; the end of {log}:\n{tail}")
    return Trained(**json.loads(result_file.read_text(encoding="utf-8")))


def run_tuyi(job: Job, began: float) -> Trained:
    """``tuyi train`` through its public door."""
    from rich.console import Console

    from tuyi.config import load_settings
    from tuyi.train.run import train
    from tuyi.train.settings import TrainRun

    done = record(began, limit=job.limit, save=job.save)
    _count_waiting(done)
    out = Path(job.out) / "model"
    run = load_settings(TrainRun, None, [f"train.{item}" for item in job.settings], data=job.data, out=str(out))
    console = Console(file=sys.stdout, record=True, width=200)
    try:
        train(
            run.data, out, task=job.task, model=job.model, settings=run.train, budget=job.budget, console=console,
        )  # fmt: skip
    except Enough:
        pass
    else:
        done.write_seconds = time.perf_counter() - began - done.load_seconds - done.loop_seconds
    told = console.export_text(styles=False).splitlines()
    done.told = [line for line in told if line.strip() and not line.startswith("step ")]
    if job.held_out:
        done.scores = {"accuracy": _accuracy(out, job)}
    return done


def _count_waiting(done: Trained) -> None:
    """Let waiting for packs, which happens inside a step where no callback sees it, count as waiting for rows."""
    from tuyi.train.feed import Feed

    plain = Feed.packs

    def packs(feed: Feed, step: int) -> Iterator[Any]:
        coming = plain(feed, step)
        while True:
            asked = time.perf_counter()
            one = next(coming, None)
            done.waited[-1] += time.perf_counter() - asked
            if one is None:
                return
            yield one

    Feed.packs = packs  # type: ignore[method-assign, assignment]


def _accuracy(model: Path, job: Job) -> float:
    """Share of the held-out rows whose label a trained model folder finds."""
    from importlib import import_module

    from tuyi.data.source import read

    run = import_module("tuyi.predict.run")  # by name, for in the package `tuyi.predict` is the verb
    out = Path(job.out) / "predictions.jsonl"
    run.predict(str(model), job.held_out, out, task=job.task, budget=job.budget)
    found = {row["id"]: row["label"] for row in map(json.loads, out.read_text(encoding="utf-8").splitlines())}
    gold = {row.id: row.label for row in read(job.held_out)}
    assert found.keys() == gold.keys()
    right = sum(found[id_] == label for id_, label in gold.items())
    return float(right / len(gold))


def llamafactory_arguments(job: Job) -> dict[str, Any]:
    """What LLaMA-Factory's YAML file would say: its own examples, with our data, pixels and length."""
    recipe, gpu = job.recipe, job.device.startswith("cuda")
    said: dict[str, Any] = {
        "stage": "sft", "do_train": True, "model_name_or_path": job.model, "finetuning_type": recipe.method,
        "template": "qwen2_vl_answer_only" if recipe.answer_only else "qwen2_vl",
        "dataset_dir": job.data, "dataset": "rows", "overwrite_cache": True, "disable_shuffling": True,
        "image_max_pixels": job.max_pixels, "image_min_pixels": 3136, "cutoff_len": job.max_tokens,
        "per_device_train_batch_size": recipe.batch, "gradient_accumulation_steps": recipe.accumulate,
        "num_train_epochs": recipe.epochs, "learning_rate": recipe.lr, "lr_scheduler_type": "cosine",
        "warmup_steps": recipe.warmup_steps, "weight_decay": 0.0, "max_grad_norm": 1.0, "seed": 42,
        "bf16": recipe.precision == "bf16", "use_cpu": not gpu, "dataloader_num_workers": recipe.workers,
        "disable_gradient_checkpointing": not recipe.checkpointing, "output_dir": str(Path(job.out) / "model"),
        "save_strategy": "no", "logging_steps": 1, "report_to": "none",
    }  # fmt: skip
    if gpu:
        said["preprocessing_num_workers"] = 16
    if recipe.liger and find_spec("liger_kernel"):
        said["enable_liger_kernel"] = True
    if recipe.method == "lora":
        return {**said, "lora_rank": 8, "lora_target": "all"}
    return {**said, "freeze_vision_tower": recipe.freeze, "freeze_multi_modal_projector": recipe.freeze}


def run_llamafactory(job: Job, began: float) -> Trained:
    """LLaMA-Factory, as ``llamafactory-cli train`` runs it."""
    from dataclasses import replace

    from llamafactory.data.formatter import StringFormatter  # type: ignore[import-not-found]
    from llamafactory.data.template import TEMPLATES  # type: ignore[import-not-found]
    from llamafactory.train.tuner import run_exp  # type: ignore[import-not-found]

    TEMPLATES["qwen2_vl_answer_only"] = replace(
        TEMPLATES["qwen2_vl"],
        default_system="",
        format_assistant=StringFormatter(slots=["{{content}}<|im_end|>"]),
    )
    arguments = llamafactory_arguments(job)
    done = record(began, steps=job.steps, limit=job.limit, save="none")
    with suppress(Enough):
        run_exp(arguments)
    done.told = [f"Liger {'on' if arguments.get('enable_liger_kernel') else 'off'}"]
    return done


def run_script(job: Job, began: float) -> Trained:
    """What people write: processor, padded batches, the model's own loss, AdamW."""
    from train_script import train_with_transformers

    done, model = train_with_transformers(job, began)
    if job.held_out:
        done.scores = {"accuracy": _accuracy(model, job)}
    return done


SIDES: dict[str, Callable[[Job, float], Trained]] = {
    "tuyi": run_tuyi,
    "llamafactory": run_llamafactory,
    "script": run_script,
}


def main() -> None:
    """Run one side and write what it did."""
    began = time.perf_counter()
    side, job_file, result_file = sys.argv[1:]
    value = json.loads(Path(job_file).read_text(encoding="utf-8"))
    lists = {name: tuple(value[name]) for name in ("settings", "steps")}
    job = Job(**{**value, **lists, "recipe": Recipe(**value["recipe"])})
    if job.threads:
        import torch

        torch.set_num_threads(job.threads)
    done = SIDES[side](job, began)
    if os.environ.get("RANK", "0") == "0":
        Path(result_file).write_text(json.dumps(asdict(done), ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
