"""One GPU against several: rows a second of `DevicesEngine`, and the share of so many times one GPU that it reaches.

Every count of devices gets the same rows per device, all different, and the same processor cores per device; models are
loaded and warmed up before the clock starts, and it stops with the last row::

    python benchmarks/many_gpus.py --size 7b --counts 1 2 4 --rows 1500
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

from models import make_model
from tuyi.data.source import scan
from tuyi.encode.encoder import Encoder
from tuyi.encode.survey import survey
from tuyi.model.load import load_frontend
from tuyi.predict.devices import DevicesEngine
from tuyi.predict.settings import PredictSettings
from tuyi.task import load_tasks
from workload import make_workload, texts

WARM_ROWS = 200  # for each device; never counted


def rows_per_second(model: str, tasks: Any, rows: list[Any], count: int, args: argparse.Namespace) -> float:
    """Rows a second of ``count`` devices, warm-up left out."""
    devices = [f"cuda:{number}" if args.kind == "cuda" else "cpu" for number in range(count)]
    cores = max(1, (os.cpu_count() or 1) // max(args.counts))
    settings = PredictSettings(workers=cores * count, compile=args.kind == "cuda")
    engine = DevicesEngine(model, tasks, settings, devices, print)
    try:
        warm = min(WARM_ROWS, args.rows // 4) * count
        for _ in engine.predict(islice(rows, warm)):
            pass
        timed = rows[warm : warm + args.rows * count]
        started, done = time.perf_counter(), 0
        for predictions in engine.predict(timed):
            done += len(predictions)
        seconds = time.perf_counter() - started
    finally:
        engine.close()
    assert done == len(timed) == args.rows * count
    return done / seconds


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("tiny", "2b", "7b"), default="tiny")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, default=40, help="rows for each device")
    parser.add_argument("--kind", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--folder", type=Path, help="where model and rows are kept; a temporary one if not given")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        most = max(args.counts)
        model = str(make_model(folder / args.size, args.size, texts(), device="cuda" if args.kind == "cuda" else "cpu"))
        data = make_workload(folder / "rows", (args.rows + min(WARM_ROWS, args.rows // 4)) * most)
        tasks, frontend = load_tasks("www2025"), load_frontend(model)
        found = survey(scan(data), Encoder(frontend.tokenizer, frontend.spec, tasks), labelled=False)
        rows = list(zip(found.rows, found.tokens))
        print("devices  rows/s  of so many times the first")
        first = None
        for count in args.counts:
            rate = rows_per_second(model, tasks, rows, count, args)
            first = first or rate / count
            print(f"{count:7}  {rate:6.2f}  {rate / (first * count):.3f}", flush=True)


if __name__ == "__main__":
    main()
