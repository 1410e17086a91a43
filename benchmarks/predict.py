"""The same rows labelled by every engine present, beside the least time that the chip allows.

    python benchmarks/predict.py --tiny
    python benchmarks/predict.py --size 7b --rows 768 --engines script,local,local-fp8,vllm --vllm-path FOLDER

Weights are random at the real sizes, rows have the shapes of the WWW2025 challenge. One run prints the machine, the
measured matrix rate, the floor of this very workload (:mod:`floor`), and for each engine:

- whole: rows a second from the first row's turn to the last label, without model loading and compilation;
- steady: the work finished after the first quarter of the work, over the time it took. Rows differ in size and engines
  take them in different orders, so work is counted in the floor's operations and given as rows of mean size;
- share: of the floor's rate.

Every engine starts from files and ends with labels, in a process of its own. The script does the first rows alone
where all would take long.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from engines import ENGINES, Job, Result
from floor import Flops, count_flops, floor_rate, matrix_rate, row_work, total
from machine import begin
from models import make_model
from workload import kept_or_temporary, make_workload, texts

__all__ = ["Rates", "rates"]

WARM_SHARE = 0.25
_VLLM_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast an engine was.

    Args:
        rows: Rows it did.
        first_seconds: From the first row's turn to the first label.
        whole: Rows a second over everything but model loading.
        steady: Rows of the workload's mean size a second after the warm-up.
        flops: Operations a second, of the floor's count, after the warm-up.
    """

    rows: int
    first_seconds: float
    whole: float
    steady: float
    flops: float


def rates(result: Result, work: dict[str, float], warm_share: float = WARM_SHARE) -> Rates:
    """Rates from the times at which rows were finished.

    Args:
        result: Of an engine.
        work: Operations of each row of the workload.
        warm_share: Share of the work that counts as warm-up.
    """
    mean = statistics.mean(work.values())
    done = sum(work[id_] for _, ids in result.finished for id_ in ids)
    rows = sum(len(ids) for _, ids in result.finished)
    so_far, index = 0.0, 0
    # the warm-up ends with the pack that passes its share; at least one pack comes after it
    while index < len(result.finished) - 1:
        so_far += sum(work[id_] for id_ in result.finished[index][1])
        index += 1
        if so_far >= warm_share * done:
            break
    first, last = result.finished[0][0], result.finished[-1][0]
    begin = result.finished[index - 1][0] if index else 0.0
    flops = (done - so_far) / (last - begin)
    return Rates(rows, first, rows / (last + result.host_seconds), flops / mean, flops)


def measure(engine: str, job: Job, vllm_path: str) -> Result:
    """Run an engine in a process of its own."""
    out = Path(job.out)
    out.mkdir(parents=True, exist_ok=True)
    job_file, result_file = out / "job.json", out / "result.json"
    job_file.write_text(json.dumps(asdict(job)), encoding="utf-8")
    environment = dict(os.environ)
    if engine == "vllm":
        environment |= _VLLM_ENVIRONMENT
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (vllm_path, environment.get("PYTHONPATH"))))
    command = [sys.executable, str(Path(__file__).with_name("engines.py")), engine, str(job_file), str(result_file)]
    log = out / "log.txt"
    with log.open("w", encoding="utf-8") as file:
        code = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])
        return Result(skipped=f"ended with code {code}; the end of {log}:\n{tail}")
    return Result(**json.loads(result_file.read_text(encoding="utf-8")))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny model, small pictures, CPU, script against local")
    parser.add_argument("--size", choices=("tiny", "2b", "7b"), default="7b")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--script-rows", type=int, default=32, help="rows of the one-by-one script")
    parser.add_argument("--max-pixels", type=int, default=1_003_520, help="12845056 is native resolution")
    parser.add_argument("--picture-pixels", type=int, help="draw pictures no larger than this")
    parser.add_argument("--engines", default="script,local", help=f"of {','.join(ENGINES)}")
    parser.add_argument("--task", default="www2025", help="task name or file, asked by all engines alike")
    parser.add_argument("--tasks", default="scene,intent", help="which kinds of rows")
    parser.add_argument("--copies", type=int, default=1, help="times each row stands in the data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="torch device; the GPU where there is one")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings of tuyi predict")
    parser.add_argument("--vllm-path", default="", help="folder with vLLM, put on its PYTHONPATH")
    parser.add_argument("--vllm-prefix-caching", action="store_true")
    parser.add_argument("--vllm-eager", action="store_true", help="no CUDA graphs and compilation: starts sooner")
    parser.add_argument("--work", type=Path, help="keep model, data and predictions here; a model there is used again")
    parser.add_argument("--out", type=Path, help="write everything measured as JSON")
    args = parser.parse_args()
    if args.tiny:
        args.size, args.device, args.engines = "tiny", "cpu", "script,local"
        args.rows, args.script_rows = min(args.rows, 160), 12
        args.max_pixels, args.picture_pixels = 12_544, 50_176
    if unknown := sorted(set(args.engines.split(",")) - set(ENGINES)):
        parser.error(f"unknown engine {unknown[0]}; expected some of {', '.join(ENGINES)}")
    return args


def main() -> None:
    """Print the tables."""
    args = _arguments()
    with kept_or_temporary(args.work) as folder:
        run(args, folder)


def run(args: argparse.Namespace, work_folder: Path) -> None:
    """Make model and rows, run every engine, print."""
    import torch

    from tuyi.model.load import load_frontend
    from tuyi.model.tasks import with_budget
    from tuyi.task import load_tasks

    device, facts = begin(args.device)
    model = make_model(work_folder / args.size, args.size, texts(), device=device)
    started = time.perf_counter()
    data = make_workload(
        work_folder / f"rows-{args.rows}-{args.seed}-{args.tasks}-{args.copies}", args.rows, args.seed,
        tasks=args.tasks.split(","), max_picture_pixels=args.picture_pixels, copies=args.copies,
    )  # fmt: skip
    print(f"rows written in {time.perf_counter() - started:.1f} s", flush=True)
    budget = {"max_pixels": args.max_pixels, "max_tokens": 8192 if args.max_pixels <= 1_003_520 else 30_000}
    frontend = load_frontend(str(model))
    works = row_work(data, frontend, with_budget(load_tasks(args.task), budget))
    flops = {id_: count_flops(frontend.config, one) for id_, one in works.items()}
    speed = matrix_rate(device, repeats=30 if device.startswith("cuda") else 10)
    parts, floor = total(flops.values()), floor_rate(list(flops.values()), speed)
    images = [count for one in works.values() for count in one.patches]
    print(
        f"{len(works)} rows, {statistics.mean(one.tokens for one in works.values()):.0f} tokens a row, "
        f"{len(images)} pictures of {statistics.mean(images):.0f} patches, at most {args.max_pixels:,} pixels\n"
        f"matrix rate {speed / 1e12:.3g} TFLOP/s; floor {floor:.1f} rows/s, "
        + ", ".join(f"{name} {value / parts.sum:.0%}" for name, value in asdict(parts).items()),
        flush=True,
    )
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    results: dict[str, Result] = {}
    for engine in args.engines.split(","):
        out = work_folder / f"{engine}-{os.getpid()}-{time.time_ns()}"
        job = Job(
            model=str(model), data=str(data), out=str(out), task=args.task, budget=budget, device=device,
            rows=args.script_rows if engine == "script" else None, settings=tuple(args.set),
            prefix_caching=args.vllm_prefix_caching, eager=args.vllm_eager,
        )  # fmt: skip
        results[engine] = measure(engine, job, args.vllm_path)
    sums = {id_: one.sum for id_, one in flops.items()}
    measured = {name: rates(result, sums) for name, result in results.items() if not result.skipped}
    show(results, measured, floor, speed)
    for name, result in results.items():
        for line in result.told:
            print(f"{name}: {line}")
        if result.spent:
            show_spent(name, result, parts, speed)
    if args.out is not None:
        table = {
            "machine": facts, "matrix_flops_per_second": speed, "floor_rows_per_second": floor, "flops": asdict(parts),
            "rows": len(works), "max_pixels": args.max_pixels, "size": args.size, "task": args.task,
            "engines": {
                name: {**(asdict(measured[name]) if name in measured else {}), "load_seconds": result.load_seconds,
                       "host_seconds": result.host_seconds, "spent": result.spent, "skipped": result.skipped,
                       "told": result.told, "peak_bytes": result.peak_bytes, "finished": result.finished}
                for name, result in results.items()
            },
        }  # fmt: skip
        args.out.write_text(json.dumps(table, ensure_ascii=False, indent=1), encoding="utf-8")


def show(results: dict[str, Result], measured: dict[str, Rates], floor: float, speed: float) -> None:
    """The table of engines."""
    print("\nengine | rows | load s | first label s | rows/s whole | rows/s steady | share of floor | GB | same labels")
    first = next((name for name in results if name.startswith("local") and name in measured), None)
    for name, result in results.items():
        if name not in measured:
            print(f"{name} | not run: {result.skipped}")
            continue
        rate = measured[name]
        same = "–" if first is None else _agreement(result.labels, results[first].labels)
        print(
            f"{name} | {rate.rows} | {result.load_seconds:.1f} | {rate.first_seconds:.1f} | {rate.whole:.2f} | "
            f"{rate.steady:.2f} | {rate.flops / speed:.1%} | {result.peak_bytes / 2**30:.1f} | {same}"
        )
    print(f"floor | | | | | {floor:.2f} | 100%")
    for name in measured:
        for other in measured:
            if name.startswith("local") and not other.startswith("local"):
                ours, theirs = measured[name], measured[other]
                print(
                    f"{name} is {ours.steady / theirs.steady:.2f} × {other} steady, "
                    f"{ours.whole / theirs.whole:.2f} × whole"
                )


def _agreement(labels: dict[str, str], others: dict[str, str]) -> str:
    both = labels.keys() & others.keys()
    return f"{sum(labels[id_] == others[id_] for id_ in both)}/{len(both)}"


def show_spent(name: str, result: Result, parts: Flops, speed: float) -> None:
    """Where an engine's time went, beside what the floor gives to the same part."""
    least = {field.name: getattr(parts, field.name) / speed for field in fields(Flops)}
    language = least["language_linears"] + least["language_attention"]
    tower = least["tower_linears"] + least["tower_attention"] + least["merger"]
    print(f"\n{name}: seconds by part, of {result.finished[-1][0]:.1f}")
    for part, seconds in result.spent.items():
        floor = {"language": language, "tower": tower}.get(part)
        print(f"  {part} {seconds:.2f}" + (f" (floor {floor:.2f})" if floor is not None else ""))


if __name__ == "__main__":
    main()
