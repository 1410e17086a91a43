"""The same rows learned by tuyi and by LLaMA-Factory, beside the least time that the chip allows.

    python benchmarks/train.py --tiny
    python benchmarks/train.py --quality --out quality
    python benchmarks/train.py --size 2b --method full --rows 320 --epochs 2 --work FOLDER --set pack_tokens=32768
    python benchmarks/train.py --size 7b --method lora --run small:pack_tokens=8192 --run large:pack_tokens=32768

Weights are random at the real sizes, rows have the shapes of the WWW2025 challenge with its labels. One call makes
model and rows once and trains in each way named, in a process of its own each. It prints the machine, the measured
matrix rate, the floor of this very workload (:mod:`floor`), and for each way how fast it was:

- first epoch: after the first steps, which compile and warm up and stand in a line of their own;
- later epochs, in which features of a frozen tower may be kept; their second share is of a floor without the tower;
- all steps, those first ones included.

Rows differ in size, so work is counted in the floor's operations and given as rows of mean size. Reading, resizing and
packing are in it, loading and writing the model are not; both are printed. LLaMA-Factory runs as its own example files
say (batch 1, gradient checkpointing) and tuned (batch 8, for LoRA 4, no checkpointing, Liger where it is installed, 12
workers), with our pixels and lengths; :mod:`llamafactory` says how its environment is made.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

from floor import Flops, RowWork, count_flops, matrix_rate, row_work
from machine import begin
from models import make_model
from stretches import cost, show, show_ratios
from trainers import Interpreter, Job, Recipe, launch
from workload import kept_or_temporary, make_workload, texts

MAX_TOKENS = 8192
_AS_RUN_PASSES = {"full": 2, "lora": 8}
"""Passes of a step in LLaMA-Factory's example files."""
_TUNED_BATCH = {"full": 8, "lora": 4}

Launch: TypeAlias = tuple[str, str, Job, Interpreter]
"""Name, side, job, interpreter."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny model on the CPU, against the usual script")
    parser.add_argument("--quality", action="store_true", help="loss curves and accuracy of the tiny model on digits")
    parser.add_argument("--size", choices=("tiny", "2b", "7b"), default="2b")
    parser.add_argument("--rows", type=int, default=320)
    parser.add_argument("--epochs", type=float, help="2, and 12 with --quality, where not given")
    parser.add_argument("--method", default="full", help="full, lora, dora or qlora; several with commas between")
    parser.add_argument("--run", action="append", default=[], metavar="NAME:KEY=VALUE,…", help="a run of its own")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings of all tuyi runs")
    parser.add_argument("--gpus", default="1", help="how many train together; several counts with commas between")
    parser.add_argument("--max-pixels", type=int, default=1_003_520)
    parser.add_argument("--picture-pixels", type=int, help="draw pictures no larger than this")
    parser.add_argument("--warm-steps", type=int, default=4, help="first steps that count as warm-up")
    parser.add_argument("--limit", type=float, help="seconds of training after which a run stops")
    parser.add_argument("--save", choices=("none", "model", "all"), default="model", help="all: checkpoints too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="torch device; the GPU where there is one")
    parser.add_argument("--llamafactory-python", default="", metavar="PATH", help="Python of its environment")
    parser.add_argument("--llamafactory-path", default="", metavar="FOLDER", help="folder with it, put on PYTHONPATH")
    parser.add_argument("--llamafactory", default="as-run,tuned", help="which of the two ways")
    parser.add_argument("--llamafactory-limit", type=float, default=90, help="seconds of training after which it stops")
    parser.add_argument("--steps", type=int, default=5, help="steps of --tiny")
    parser.add_argument("--seeds", type=int, default=2, help="seeds of --quality")
    parser.add_argument("--precisions", default="fp32,bf16,bf16-sr", help="of --quality")
    parser.add_argument("--work", type=Path, help="keep model and data here; what lies there is used again")
    parser.add_argument("--out", type=Path, help="write everything measured as JSON; with --quality, a folder")
    args = parser.parse_args()
    args.epochs = args.epochs or (12 if args.quality else 2)
    if unknown := sorted(set(args.method.split(",")) - {"full", "lora", "dora", "qlora"}):
        parser.error(f"unknown method {unknown[0]!r}; expected full, lora, dora or qlora")
    if unknown := sorted(set(args.llamafactory.split(",")) - {"as-run", "tuned"}):
        parser.error(f"unknown way {unknown[0]!r} to run LLaMA-Factory; expected as-run or tuned")
    return args


def main() -> None:
    """Print the tables."""
    args = _arguments()
    with kept_or_temporary(args.work) as folder:
        work = folder.resolve()
        if args.tiny or args.quality:
            import train_quality
            import train_tiny

            (train_tiny.run if args.tiny else train_quality.run)(args, work)
        else:
            run(args, work)


def run(args: argparse.Namespace, work: Path) -> None:
    """Make model and rows, train in every way, print."""
    import torch

    device, facts = begin(args.device)
    model, data = prepare(args, work, device)
    common: dict[str, Any] = {
        "model": str(model), "task": "www2025", "max_pixels": args.max_pixels, "max_tokens": MAX_TOKENS,
        "device": device,
    }  # fmt: skip
    works, forward = count(args, model, data)
    speed = matrix_rate(device, repeats=30 if device.startswith("cuda") else 10)
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    print(f"matrix rate {speed / 1e12:.4g} TFLOP/s", flush=True)
    measured: dict[str, Any] = {}
    jobs = chain(tuyi_jobs(args, work, data, common), peers(args, work, data, common))
    for name, side, job, interpreter in jobs:
        done = launch(side, job, interpreter)
        shutil.rmtree(Path(job.out) / "model", ignore_errors=True)  # a few large ones fill a disk
        learning = learns(job.settings) if side == "tuyi" else {"method": job.recipe.method}
        costs = {id_: cost(works[id_], flops, **learning) for id_, flops in forward.items()}
        told = {"method": learning["method"], "gpus": job.gpus, "peer": side != "tuyi"}
        measured[name] = show(name, done, costs, speed * job.gpus, args.warm_steps) | told
    show_ratios(measured)
    if args.out is not None:
        table = {
            "machine": facts, "matrix_flops_per_second": speed, "size": args.size, "rows": len(works),
            "max_pixels": args.max_pixels, "arguments": sys.argv[1:], "runs": measured,
        }  # fmt: skip
        args.out.write_text(json.dumps(table, ensure_ascii=False, indent=1), encoding="utf-8")


def prepare(args: argparse.Namespace, work: Path, device: str) -> tuple[Path, Path]:
    """The model folder and the data file; made where they are not there from an earlier call."""
    from tuyi.model.quiet import no_progress_bars

    started = time.perf_counter()
    with no_progress_bars():
        model = make_model(work / args.size, args.size, texts(), device=device)
    print(f"model made in {time.perf_counter() - started:.1f} s", end="", flush=True)
    started = time.perf_counter()
    folder = work / f"rows-{args.rows}-{args.seed}"
    data = folder / "train.json"
    if not data.exists():
        make_workload(folder, args.rows, args.seed, max_picture_pixels=args.picture_pixels, labelled=True)
    print(f", rows in {time.perf_counter() - started:.1f} s", flush=True)
    return model, data


def count(args: argparse.Namespace, model: Path, data: Path) -> tuple[dict[str, RowWork], dict[str, Flops]]:
    """What each row brings to the model, and the operations of its forward pass."""
    from tuyi.model.load import load_frontend
    from tuyi.model.tasks import with_budget
    from tuyi.task import load_tasks

    frontend = load_frontend(str(model))
    tasks = with_budget(load_tasks("www2025"), {"max_pixels": args.max_pixels, "max_tokens": MAX_TOKENS})
    works = row_work(data, frontend, tasks, labelled=True)
    mean = sum(one.tokens for one in works.values()) / len(works)
    patches = [number for one in works.values() for number in one.patches]
    print(
        f"{len(works)} rows, {mean:.0f} tokens a row, {len(patches)} pictures of {sum(patches) / len(patches):.0f} "
        f"patches, at most {args.max_pixels:,} pixels"
    )
    return works, {id_: count_flops(frontend.config, one) for id_, one in works.items()}


def tuyi_jobs(args: argparse.Namespace, work: Path, data: Path, common: dict[str, Any]) -> Iterator[Launch]:
    """What tuyi is to do."""
    counts = [int(count) for count in args.gpus.split(",")]
    for run_name, settings in named_runs(args).items():
        for gpus in counts:
            name = run_name if gpus == 1 else f"{run_name} on {gpus} GPUs"
            job = Job(
                data=str(data), out=str(_fresh(work, name)), settings=tuple(settings), limit=args.limit, gpus=gpus,
                save=args.save, **common,
            )  # fmt: skip
            yield name, "tuyi", job, Interpreter()


def named_runs(args: argparse.Namespace) -> dict[str, list[str]]:
    """Settings of each tuyi run, by name; those of ``--run`` win over those of ``--set``."""
    base = [f"epochs={args.epochs:g}", "tensorboard=false", *args.set]
    methods = args.method.split(",")
    if not args.run:
        return {method: [*base, f"method={method}"] for method in methods}
    runs = {}
    for one in args.run:
        name, _, settings = one.partition(":")
        runs[name] = [*base, f"method={methods[0]}", *filter(None, re.split(r",(?=[\w.]+=)", settings))]
    return runs


def learns(settings: Sequence[str]) -> dict[str, Any]:
    """What of the model learns under these settings, as :func:`floor.training_flops` takes it."""
    from tuyi.config import load_settings
    from tuyi.train.settings import Freeze, TrainRun

    train = load_settings(TrainRun, None, [f"train.{item}" for item in settings], data="-", out="-").train
    freeze = train.freeze or Freeze()
    return {"method": train.method, "tower": not freeze.vision, "projector": not freeze.projector}


def peers(args: argparse.Namespace, work: Path, data: Path, common: dict[str, Any]) -> Iterator[Launch]:
    """What LLaMA-Factory is to do, for each method that tuyi's runs use."""
    from tuyi.data import convert, read

    if not (args.llamafactory_python or args.llamafactory_path):
        return
    interpreter = Interpreter(args.llamafactory_python or sys.executable, args.llamafactory_path)
    export = data.parent / "export"
    if not (export / "rows.json").exists():
        convert(data, export / "rows.json", "sharegpt")
    ids = [row.id for row in read(data)]
    gpu = common["device"].startswith("cuda")  # Liger's kernels are Triton's
    methods = {learns(settings)["method"] for settings in named_runs(args).values()}
    for method in sorted(methods & _TUNED_BATCH.keys()):
        for way in args.llamafactory.split(","):
            tuned, lr = way == "tuned", {"full": 1e-5, "lora": 1e-4}[method]
            batch = _TUNED_BATCH[method] if tuned else 1
            passes = 16 // batch if tuned else _AS_RUN_PASSES[method]
            recipe = Recipe(
                method, batch, passes, lr=lr, checkpointing=not tuned, liger=tuned and gpu, workers=12 if tuned else 4,
                precision="bf16" if gpu else "fp32",
            )  # fmt: skip
            rows = batch * passes
            steps = tuple(ids[at : at + rows] for at in range(0, len(ids), rows))
            name = f"llamafactory {method} {way}"
            job = Job(
                data=str(export), out=str(_fresh(work, name)), recipe=recipe, steps=steps,
                limit=args.llamafactory_limit, **common,
            )  # fmt: skip
            yield name, "llamafactory", job, interpreter


def _fresh(work: Path, name: str) -> Path:
    return work / f"{name.replace(' ', '-')}-{time.time_ns()}"


if __name__ == "__main__":
    main()
