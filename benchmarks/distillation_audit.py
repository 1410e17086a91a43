"""Labels flipped at random: how many `tuyi audit` finds, and what a model is worth before and after mending them.

    python benchmarks/distillation_audit.py --work audit-work --out audit.json

For each data set and seed a tenth of the training labels is replaced by another label of the same task. The audit runs
with its defaults; the corrected rows take every suggestion that is likelier than not (``--apply-suggested 0.5``). The
same model is trained on the flipped, the corrected and the true labels and judged on held-out rows with true labels.
A cell that is finished is not run again, one that was killed goes on; the table is of the cells that are there.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import runpy
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from cells import Cells, interval
from tuyi.config import load_settings
from tuyi.data import ExampleWriter, Image, read
from tuyi.data.example import Part
from tuyi.data.sample import write_sample
from tuyi.distill.audit import audit, audit_settings
from tuyi.distill.corrected import apply_corrections
from tuyi.distill.label_issues import Method
from tuyi.evaluate.judge import EvaluateSettings, evaluate
from tuyi.predict.run import predict
from tuyi.task import TaskSet, load_tasks
from tuyi.train.run import train
from tuyi.train.settings import TrainRun, TrainSettings
from tuyi.vision.image import load_rgb
from tuyi.whole import write_whole

SHARE, THRESHOLD, SIDE = 0.1, 0.5, 224
METHODS: tuple[Method, ...] = ("prune_by_class", "prune_by_noise_rate", "both", "confident_learning")
DIGITS = Path(__file__).parent.parent / "examples" / "digits"
SCENES = """\
extends: www2025/www2025-scene
prompt: "{content}"
budget: {max_pixels: 15680, max_tokens: 512}
"""
"""The sample's pages without the task's long wording: what the built-in model learns from in minutes."""


@dataclass(frozen=True)
class DataSet:
    """Rows with true labels, and how they are learned."""

    train: Path
    test: Path
    tasks: TaskSet
    model: TrainSettings


def digits(work: Path) -> DataSet:
    """Handwritten digits, 1,438 rows to learn and 359 held out."""
    folder = work / "digits"
    if not folder.exists():
        runpy.run_path(str(DIGITS / "prepare.py"))["write"](folder)
    tasks = load_tasks(DIGITS / "task.yaml")
    settings = load_settings(
        TrainRun, DIGITS / "run.yaml", ["train.tensorboard=false", "train.epochs=6"], out=folder, data=folder
    ).train
    return DataSet(folder / "train", folder / "test", tasks, settings)


def shrunk(part: Part) -> Part:
    """A picture at about the size that the budget allows, so that no epoch has to decode the large one."""
    if not isinstance(part, Image):
        return part
    picture = load_rgb(part)
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return Image(file.getvalue(), f"{Path(part.name).stem}.png")


def scenes(work: Path) -> DataSet:
    """The drawn pages of the built-in sample, 1,200 to learn and 240 held out, in 12 kinds."""
    folder = work / "sample"
    if not (folder / "test_labelled.json").exists():
        write_sample(folder, seed=0)
    both = load_tasks("www2025")
    files = {part: folder / f"{part}-scenes.jsonl" for part in ("train", "test_labelled")}
    for part, file in files.items():
        with ExampleWriter(file, "messages", force=True) as writer:
            for row in read(folder / f"{part}.json"):
                if both.of(row).name == "www2025-scene":
                    writer.write(replace(row, content=tuple(shrunk(part) for part in row.content)))
    (work / "scenes.yaml").write_text(SCENES, encoding="utf-8")
    settings = TrainSettings(epochs=6, batch_rows=16, lr=1e-3, weight_decay=0.01, tensorboard=False)
    return DataSet(files["train"], files["test_labelled"], load_tasks(work / "scenes.yaml"), settings)


DATA = {"digits": digits, "scenes": scenes}


def flip(given: DataSet, out: Path, seed: int) -> dict[str, tuple[str, str]]:
    """Write the rows with a tenth of their labels replaced; the true and the written label of each row, by id."""
    rows = list(read(given.train))
    names: dict[str, list[str]] = {}
    for row in rows:
        assert row.label is not None
        names.setdefault(given.tasks.of(row).name, []).append(row.label)
    rng = random.Random(seed)
    wrong = set(rng.sample(range(len(rows)), round(SHARE * len(rows))))
    labels = {}
    with ExampleWriter(out, "messages", force=True) as writer:
        for number, row in enumerate(rows):
            others = sorted({*names[given.tasks.of(row).name]} - {row.label})
            label = rng.choice(others) if number in wrong else row.label
            labels[row.id] = (str(row.label), str(label))
            writer.write(replace(row, label=label))
    return labels


def run_cell(name: str, seed: int, work: Path) -> dict[str, Any]:
    """One data set with one seed."""
    given = DATA[name](work)
    cell = work / f"{name}-{seed}"
    cell.mkdir(parents=True, exist_ok=True)
    flipped, corrected = cell / "flipped.jsonl", cell / "corrected.jsonl"
    labels = flip(given, flipped, seed)
    started = perf_counter()
    overrides = (f"seed={seed}", f"train.seed={seed}")
    audit(flipped, cell / "audit", task=given.tasks, settings=audit_settings(overrides=overrides))
    seconds = perf_counter() - started
    found: dict[str, Any] = {"rows": len(labels), "flipped": sum(old != new for old, new in labels.values())}
    found["audit_seconds"] = round(seconds, 1)
    found["methods"] = {method: _found(cell, flipped, method, labels, overrides) for method in METHODS}
    for file in (corrected, corrected.with_name("corrected.jsonl.corrections.json")):
        file.unlink(missing_ok=True)
    apply_corrections(
        flipped, cell / "audit" / "corrections.csv", corrected, tasks=given.tasks, apply_suggested=THRESHOLD
    )
    found["wrong_after"] = sum(row.label != labels[row.id][0] for row in read(corrected))
    found["f1"] = {
        kind: _f1(given, data, cell / kind, seed)
        for kind, data in (("flipped", flipped), ("corrected", corrected), ("true", given.train))
    }
    return found


def _found(
    cell: Path, flipped: Path, method: Method, labels: Mapping[str, tuple[str, str]], overrides: Sequence[str]
) -> dict[str, float]:
    """Recall and precision of a method on the distributions that the audit made."""
    settings = audit_settings(overrides=[*overrides, f"method={method}", "near_pictures=false"])
    tasks = load_recorded(cell / "audit" / "audit.json")
    done = audit(
        flipped, cell / method, task=tasks, predictions=cell / "audit" / "predictions.jsonl", settings=settings
    )
    issues = {issue.judged.id for issue in done.issues}
    wrong = {id for id, (old, new) in labels.items() if old != new}
    agreement = statistics.mean(one.agreement or 0.0 for one in done.tasks.values())
    return {
        "issues": len(issues),
        "recall": len(issues & wrong) / len(wrong),
        "precision": len(issues & wrong) / max(1, len(issues)),
        "agreement": agreement,
    }


def load_recorded(file: Path) -> TaskSet:
    """The tasks that an audit asked."""
    return TaskSet.model_validate(json.loads(file.read_text(encoding="utf-8"))["asked"]["tasks"])


def _f1(given: DataSet, data: Path, out: Path, seed: int) -> float:
    """Weighted F1 on the held-out rows of a model that learned ``data``."""
    kept = out / "f1.json"
    if not kept.exists():
        settings = given.model.model_copy(update={"seed": seed})
        train(data, out, task=given.tasks, settings=settings, resume=(out / "run.json").exists())
        predictions = predict(out, given.test, out / "predictions.jsonl").out
        judged = evaluate(predictions, given.test, out / "report", settings=EvaluateSettings(mistakes=0))
        write_whole(kept, json.dumps(judged.overall["weighted_f1"].value))
    return float(json.loads(kept.read_text(encoding="utf-8")))


def table(cells: Mapping[str, Any]) -> dict[str, Any]:
    """Means and intervals over the seeds of each data set."""
    found: dict[str, Any] = {}
    for name in DATA:
        many = [cell for key, cell in cells.items() if key.rpartition("-")[0] == name]
        if not many:
            continue
        found[name] = {
            "seeds": len(many),
            **{
                f"{method} {score}": interval([cell["methods"][method][score] for cell in many])
                for method in METHODS
                for score in ("recall", "precision")
            },
            "wrong_before": interval([cell["flipped"] / cell["rows"] for cell in many]),
            "wrong_after": interval([cell["wrong_after"] / cell["rows"] for cell in many]),
            **{
                f"f1 {kind}": interval([cell["f1"][kind] for cell in many]) for kind in ("flipped", "corrected", "true")
            },
            "f1 gained": interval([cell["f1"]["corrected"] - cell["f1"]["flipped"] for cell in many]),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("audit-work"), help="folder for data, audits and models")
    parser.add_argument("--out", type=Path, default=Path("audit.json"), help="results, written after each cell")
    parser.add_argument("--data", default="digits,scenes", help="data sets, commas between")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    cells = Cells(args.out, {}, table)
    for seed in range(args.seeds):
        for name in args.data.split(","):
            cells.run(f"{name}-{seed}", partial(run_cell, name, seed, args.work))
    for name, rows in table(cells.done).items():
        print(f"\n{name} | mean of {rows['seeds']} seeds (95 % interval)")
        for score, value in rows.items():
            if isinstance(value, dict):
                print(f"{score} | {value['mean']:.3f} ({value['low']:.3f}–{value['high']:.3f})")


if __name__ == "__main__":
    main()
