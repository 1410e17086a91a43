"""The same rows read and the same model trained by LLaMA-Factory 0.9.5 and by tuyi.

Rows of the built-in sample (dialogues and pages, 0–3 pictures each) are exported as ShareGPT by ``tuyi.data.convert``.

1. Reading: LLaMA-Factory's own loader and picture plugin read the export; rows, token ids, supervised positions, image
   tokens, patch grids and pixels are compared with tuyi's encoder, row by row.
2. Loss: the built-in tiny model, saved once as an ordinary Hugging Face folder, is trained by both from the same
   weights, on the same rows in the same order, with the same batch, optimizer and schedule, in float32 on the CPU.
   tuyi runs once more with smaller packs, which changes nothing but the order of float32 sums: that is the noise.
3. Time: both are run in turn, several times; a step begins where the one before ended, so reading pictures is in it.

Pictures come in two forms: as they are, where the two sides resize them with different code, and already at the size
that the model sees, where neither side resizes and everything must be equal.

LLaMA-Factory cannot share an environment with tuyi (it holds transformers at 5.6), so it runs in one of its own::

    uv venv --python 3.11 lf
    uv pip install --python lf/bin/python --no-deps llamafactory==0.9.5
    uv pip install --python lf/bin/python torch==2.11.0 torchvision==0.26.0 torchaudio==2.11.0 transformers==5.6.0 \\
        tokenizers==0.22.2 peft==0.18.1 accelerate==1.11.0 trl==0.24.0 datasets==4.0.0 omegaconf==2.3.0 \\
        antlr4-python3-runtime==4.9.3 av==16.0.0 sentencepiece tiktoken scipy fire einops protobuf matplotlib
    python benchmarks/llamafactory.py --llamafactory-python lf/bin/python

Its ``qwen2_vl`` template adds a default system prompt and also teaches the newline behind ``<|im_end|>``; here that
template is registered without the two, so that both sides learn the same tokens. Gradient checkpointing is off.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

FULL, SMALL = 1_003_520, 21_952
"""Pixel budgets: the reference task's, which no picture of the sample exceeds, and the demo's, which all exceed."""
MIN_PIXELS, CUTOFF = 3_136, 8_192
FORMS = ("at model size", "as they are")
"""Of the pictures."""
LR, WARMUP_STEPS, SEED = 1e-3, 3, 42


# ---- the LLaMA-Factory side; runs in its own environment -------------------------------------------------------------


def llamafactory_arguments(job: dict[str, Any]) -> dict[str, Any]:
    """What its YAML file would say."""
    return {
        "stage": "sft", "do_train": True, "finetuning_type": "full", "template": "qwen2_vl_answer_only",
        "model_name_or_path": job["model"], "dataset_dir": job["data"], "dataset": "rows",
        "freeze_vision_tower": False, "freeze_multi_modal_projector": False, "disable_gradient_checkpointing": True,
        "image_max_pixels": job["max_pixels"], "image_min_pixels": MIN_PIXELS, "cutoff_len": CUTOFF,
        "disable_shuffling": True, "per_device_train_batch_size": job["batch"], "gradient_accumulation_steps": 1,
        "num_train_epochs": 1, "learning_rate": LR, "lr_scheduler_type": "cosine", "warmup_steps": WARMUP_STEPS,
        "optim": "adamw_torch", "weight_decay": 0.0, "max_grad_norm": 1.0, "seed": SEED, "use_cpu": True,
        "output_dir": job["out"], "overwrite_cache": True, "save_strategy": "no", "logging_steps": 1,
        "report_to": "none",
    }  # fmt: skip


def register_template() -> None:
    from dataclasses import replace

    from llamafactory.data.formatter import StringFormatter  # type: ignore[import-not-found]
    from llamafactory.data.template import TEMPLATES  # type: ignore[import-not-found]

    TEMPLATES["qwen2_vl_answer_only"] = replace(
        TEMPLATES["qwen2_vl"],
        default_system="",
        format_assistant=StringFormatter(slots=["{{content}}<|im_end|>"]),
    )


def llamafactory_reads(job: dict[str, Any]) -> dict[str, Any]:
    """Rows of several exports, each under a budget."""
    register_template()
    return {"rows": [read_export({**job, **one}, number) for number, one in enumerate(job["exports"])]}


def read_export(job: dict[str, Any], number: int) -> int:
    """Write every row, as its loader and picture plugin give it to the model, into an ``.npz`` file."""
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer  # type: ignore[import-not-found]
    from llamafactory.hparams import get_train_args  # type: ignore[import-not-found]
    from llamafactory.model import load_tokenizer  # type: ignore[import-not-found]

    model_args, data_args, training_args, *_ = get_train_args(llamafactory_arguments(job))
    loaded = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(loaded["tokenizer"], data_args)
    rows = get_dataset(template, model_args, data_args, training_args, stage="sft", **loaded)["train_dataset"]
    image = loaded["processor"].image_processor
    mean, std = (np.asarray(value, np.float32)[None, :, None, None] for value in (image.image_mean, image.image_std))
    arrays: dict[str, Any] = {}
    for at, row in enumerate(rows):
        arrays[f"ids{at}"] = np.asarray(row["input_ids"])
        arrays[f"labels{at}"] = np.asarray(row["labels"])
        pictures = row["images"] or []
        if not pictures:
            continue
        seen = template.mm_plugin.get_mm_inputs(
            pictures, [], [], [len(pictures)], [0], [0], [row["input_ids"]], loaded["processor"]
        )
        arrays[f"grids{at}"] = np.asarray(seen["image_grid_thw"])
        values = np.asarray(seen["pixel_values"]).reshape(-1, 3, 2, image.patch_size**2)
        assert np.array_equal(values[:, :, 0], values[:, :, 1]), "a still picture is one frame, doubled"
        arrays[f"pixels{at}"] = np.rint((values * std + mean)[:, :, 0] * 255).astype(np.uint8)
    np.savez(Path(job["out"]) / f"rows{number}.npz", **arrays)
    return len(rows)


def llamafactory_trains(job: dict[str, Any]) -> dict[str, Any]:
    from llamafactory.train.tuner import run_exp  # type: ignore[import-not-found]

    register_template()
    recorded = record()
    run_exp(llamafactory_arguments(job))
    return recorded


# ---- both sides ------------------------------------------------------------------------------------------------------


def record() -> dict[str, Any]:
    """Let every ``Trainer`` made from now on write its losses and step times into the returned dictionary."""
    import transformers
    from transformers import trainer

    recorded: dict[str, Any] = {"loss": [], "grad_norm": [], "lr": [], "seconds": [], "cpu": []}
    last, last_cpu = 0.0, 0.0

    class Recorder(transformers.TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            nonlocal last, last_cpu
            last, last_cpu = time.perf_counter(), time.process_time()
            recorded["dtype"] = str(next(model.parameters()).dtype)
            recorded["weights"] = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            nonlocal last, last_cpu
            now, now_cpu = time.perf_counter(), time.process_time()
            recorded["seconds"].append(now - last)
            recorded["cpu"].append(now_cpu - last_cpu)
            last, last_cpu = now, now_cpu

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                recorded["loss"].append(float(logs["loss"]))
                recorded["grad_norm"].append(float(logs["grad_norm"]))
                recorded["lr"].append(float(logs["learning_rate"]))

    defaults: list[Any] = trainer.DEFAULT_CALLBACKS
    defaults.append(Recorder)
    return recorded


def run_side(side: str, job_file: Path) -> None:
    """The inner process: one job of one side."""
    import torch

    job = json.loads(job_file.read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    result = {"lf-read": llamafactory_reads, "lf-train": llamafactory_trains, "tuyi-train": tuyi_trains}[side](job)
    (Path(job["out"]) / "result.json").write_text(json.dumps(result), encoding="utf-8")


def call(python: str, side: str, out: Path, **job: Any) -> dict[str, Any]:
    """Run a job in a process of its own and hand back its result."""
    out.mkdir(parents=True)
    file = out / "job.json"
    file.write_text(json.dumps({**job, "out": str(out)}), encoding="utf-8")
    threads = {"OMP_NUM_THREADS": str(job["threads"]), "TOKENIZERS_PARALLELISM": "false"}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(out / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    with (out / "log.txt").open("w", encoding="utf-8") as log:
        # -P: this file's folder must not be searched, or its name would hide the package
        done = subprocess.run(
            [python, "-P", __file__, "--side", side, "--job", str(file)],
            env={**os.environ, **threads, **offline},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        sys.exit(f"{side} failed; the end of its output:\n" + (out / "log.txt").read_text(encoding="utf-8")[-3000:])
    result: dict[str, Any] = json.loads((out / "result.json").read_text(encoding="utf-8"))
    return result


# ---- the tuyi side ---------------------------------------------------------------------------------------------------


def tuyi_trains(job: dict[str, Any]) -> dict[str, Any]:
    from tuyi.train.run import train
    from tuyi.train.settings import Freeze, TrainSettings

    recorded = record()
    steps = job["steps"]
    settings = TrainSettings(
        epochs=1, batch_rows=job["batch"], lr=LR, schedule="cosine", warmup=WARMUP_STEPS / steps, seed=SEED,
        freeze=Freeze(vision=False, projector=False), precision="fp32", pack_tokens=job["pack_tokens"],
        save_steps=steps, tensorboard=False,
    )  # fmt: skip
    out = Path(job["out"]) / "model"
    train(job["data"], out, task="www2025", model=job["model"], settings=settings, budget={"max_pixels": FULL})
    return recorded


def write_inputs(work: Path, rows: int, batch: int) -> None:
    """The start model and, for both forms of the pictures, the rows as they are and their ShareGPT export.

    The export is in the order in which tuyi's plan meets the rows, so that LLaMA-Factory, told not to shuffle, makes
    the same steps.
    """
    from tuyi.data import convert, read
    from tuyi.data.sample import write_sample
    from tuyi.model.load import load_frontend, load_model
    from tuyi.train.plan import Plan

    sample = write_sample(work / "as they are", seed=0, train_rows=rows)
    resize_pictures(sample.train, work / "at model size")
    plan = Plan([0] * rows, epochs=1, seed=SEED, batch_rows=batch)
    order = np.concatenate([plan.rows(step) for step in range(plan.steps)])
    for form in FORMS:
        items = json.loads((work / form / "train.json").read_text(encoding="utf-8"))
        ordered = work / form / "ordered.json"
        ordered.write_text(json.dumps([items[row] for row in order], ensure_ascii=False), encoding="utf-8")
        convert(ordered, work / form / "export" / "rows.json", "sharegpt")
    frontend = load_frontend("builtin:tiny", (row.text + (row.label or "") for row in read(sample.train)))
    load_model(frontend, device="cpu", seed=SEED).hf.save_pretrained(work / "start")
    frontend.processor.save_pretrained(work / "start")


def resize_pictures(train: Path, out: Path) -> None:
    """The same rows with every picture stored, without loss, at the size that the model sees under the full budget."""
    from PIL import Image
    from PIL.Image import Resampling

    from tuyi.vision.resize import smart_resize

    (out / "images").mkdir(parents=True)
    items = json.loads(train.read_text(encoding="utf-8"))
    for item in items:
        names = [str(Path(name).with_suffix(".png")) for name in item["image"]]
        for old, new in zip(item["image"], names):
            with Image.open(train.parent / "images" / old) as picture:
                tall, wide = smart_resize(picture.height, picture.width, 28, MIN_PIXELS, FULL)
                picture.convert("RGB").resize((wide, tall), Resampling.BICUBIC).save(out / "images" / new)
        item["image"] = names
    (out / "train.json").write_text(json.dumps(items, ensure_ascii=False), encoding="utf-8")


def compare_reading(folder: Path, start: Path, max_pixels: int, seen: Path) -> dict[str, Any]:
    """tuyi's encoding of each row against what LLaMA-Factory's loader made of it."""
    from tuyi.data import read
    from tuyi.encode.encoder import Encoder
    from tuyi.model.load import load_frontend
    from tuyi.predict.run import with_budget
    from tuyi.task import load_tasks

    frontend = load_frontend(str(start))
    tasks = with_budget(load_tasks("www2025"), {"max_pixels": max_pixels, "max_tokens": CUTOFF})
    encoder = Encoder(frontend.tokenizer, frontend.spec, tasks)
    theirs = np.load(seen)
    image_id = frontend.config.image_token_id
    found: dict[str, Any] = dict.fromkeys(("rows", "pictures", "ours", "theirs", "counts", "ids", "taught", "grids"), 0)
    off: list[np.ndarray] = []
    for number, example in enumerate(read(folder / "ordered.json")):
        row = encoder.encode(example, labelled=True)
        ids, labels = theirs[f"ids{number}"], theirs[f"labels{number}"]
        ours_seen, theirs_seen = int((row.ids == image_id).sum()), int((ids == image_id).sum())
        found["rows"] += 1
        found["pictures"] += len(row.media)
        found["ours"] += ours_seen
        found["theirs"] += theirs_seen
        found["counts"] += ours_seen == theirs_seen
        found["ids"] += np.array_equal(row.ids, ids)
        taught, shorter = np.where(row.supervised, row.ids, -100), min(len(row), len(ids))
        # counted from the end, so that a row whose pictures have another size is compared too
        found["taught"] += np.array_equal(taught[-shorter:], labels[-shorter:])
        grids = theirs[f"grids{number}"] if row.media else np.zeros((0, 3), int)
        same = [tuple(grid) == item.patches.grid for grid, item in zip(grids.tolist(), row.media, strict=True)]
        found["grids"] += sum(same)
        if row.media and all(same):
            ours = np.concatenate([item.patches.values for item in row.media]).astype(np.int16)
            off.append(np.abs(ours.reshape(-1) - theirs[f"pixels{number}"].reshape(-1)))
    apart = np.concatenate(off) if off else np.zeros(1, np.int16)
    return {**found, "largest": int(apart.max()), "mean": float(apart.mean())}


# ---- tables ----------------------------------------------------------------------------------------------------------


def print_reading(title: str, rows_of_theirs: int, found: dict[str, Any]) -> None:
    rows, pictures = found["rows"], found["pictures"]
    print(
        f"| {title} | {rows_of_theirs} / {rows} | {found['theirs']:,} / {found['ours']:,} | {found['counts']} | "
        f"{found['ids']} | {found['taught']} | {found['grids']} of {pictures} | "
        f"{found['largest']} (mean {found['mean']:.3f}) |",
        flush=True,
    )


def print_losses(title: str, theirs: dict[str, Any], ours: dict[str, Any], again: dict[str, Any] | None) -> None:
    for key in ("dtype", "weights"):
        assert theirs[key] == ours[key], (key, theirs[key], ours[key])
    assert np.allclose(theirs["lr"], ours["lr"], rtol=1e-6, atol=0), "the learning rates differ"
    a, b = np.asarray(theirs["loss"]), np.asarray(ours["loss"])
    print(f"\nLoss, pictures {title} ({ours['weights'] / 1e6:.2f} M weights learn, {ours['dtype']})\n")
    print("| step | LLaMA-Factory | tuyi | difference |\n|---|---|---|---|")
    for step, (x, y) in enumerate(zip(a, b, strict=True), 1):
        print(f"| {step} | {x:.6f} | {y:.6f} | {y - x:+.1e} |")
    norms = np.abs(np.asarray(theirs["grad_norm"]) / np.asarray(ours["grad_norm"]) - 1)
    print(f"\nlargest difference {np.abs(a - b).max():.1e}, of the gradient norm {norms.max():.1e} of itself")
    if again is not None:
        print(f"noise: smaller packs change tuyi's own loss by up to {np.abs(np.asarray(again['loss']) - b).max():.1e}")
    sys.stdout.flush()


def print_times(runs: dict[str, list[dict[str, Any]]], batch: int, threads: int) -> None:
    print(f"\nTime of a step, pictures at model size, {threads} thread(s), the first step left out\n")
    print(
        "| | s a step, median of each run | CPU s a step, median of each run | rows/s, median run |\n|---|---|---|---|"
    )
    middle: dict[str, dict[str, float]] = {"seconds": {}, "cpu": {}}
    for name, many in runs.items():
        medians = {clock: [float(np.median(run[clock][1:])) for run in many] for clock in middle}
        for clock in middle:
            middle[clock][name] = float(np.median(medians[clock]))
        cells = (", ".join(f"{value:.3f}" for value in medians[clock]) for clock in middle)
        print(f"| {name} | {' | '.join(cells)} | {batch / middle['seconds'][name]:.1f} |")
    wall, cpu = (middle[clock]["LLaMA-Factory"] / middle[clock]["tuyi"] for clock in middle)
    print(f"\ntuyi's speed over LLaMA-Factory's: {wall:.2f} x by the clock, {cpu:.2f} x by CPU time", flush=True)


def benchmark(python: str, work: Path, *, rows: int, batch: int, repeats: int, threads: int) -> None:
    write_inputs(work, rows, batch)
    start = work / "start"
    print(
        "Reading: LLaMA-Factory / tuyi; then rows that are equal\n\n| pictures, pixel budget | rows | image tokens | "
        "image tokens a row | token ids | supervised tokens | grids | pixels apart, of 255 |\n" + "|---" * 8 + "|"
    )
    common = {"model": str(start), "batch": batch, "steps": -(-rows // batch), "threads": threads}
    wanted = [("at model size", FULL), ("as they are", FULL), ("as they are", SMALL)]
    exports = [{"data": str(work / form / "export"), "max_pixels": pixels} for form, pixels in wanted]
    counts = call(python, "lf-read", work / "read", exports=exports, **common)["rows"]
    for number, (form, pixels) in enumerate(wanted):
        found = compare_reading(work / form, start, pixels, work / "read" / f"rows{number}.npz")
        print_reading(f"{form}, {pixels:,}", counts[number], found)
        if form == "at model size":
            assert found["ids"] == found["taught"] == found["counts"] == counts[number] == rows, "the rows differ"
            assert found["grids"] == found["pictures"], "the grids differ"
            assert found["largest"] == 0, "the pixels differ"
    for form in FORMS:
        them = {**common, "data": str(work / form / "export"), "max_pixels": FULL}
        us = {**common, "data": str(work / form / "train.json"), "pack_tokens": 16_384}
        timed: dict[str, list[dict[str, Any]]] = {"LLaMA-Factory": [], "tuyi": []}
        exact = form == "at model size"
        for turn in range(repeats if exact else 1):
            timed["LLaMA-Factory"].append(call(python, "lf-train", work / f"lf {form} {turn}", **them))
            timed["tuyi"].append(call(sys.executable, "tuyi-train", work / f"tuyi {form} {turn}", **us))
        us["pack_tokens"] = 1_024
        again = call(sys.executable, "tuyi-train", work / f"tuyi {form} again", **us) if exact else None
        print_losses(form, timed["LLaMA-Factory"][0], timed["tuyi"][0], again)
        if exact:
            print_times(timed, batch, threads)


def main() -> None:
    parser = argparse.ArgumentParser(description="LLaMA-Factory 0.9.5 against tuyi: the same rows, the same loss?")
    parser.add_argument("--llamafactory-python", metavar="PATH", help="Python of LLaMA-Factory's environment")
    parser.add_argument("--out", type=Path, help="keep everything in this new folder")
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--batch", type=int, default=8, help="rows of a step")
    parser.add_argument("--repeats", type=int, default=2, help="runs for the timing")
    parser.add_argument("--threads", type=int, default=1, help="of each side; with one, CPU time holds no waiting")
    parser.add_argument("--side", choices=("lf-read", "lf-train", "tuyi-train"), help=argparse.SUPPRESS)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        run_side(given.side, given.job)
        return
    if not given.llamafactory_python or not Path(given.llamafactory_python).is_file():
        parser.error("--llamafactory-python PATH is needed; this file's first lines say how to make that environment")
    with tempfile.TemporaryDirectory() as scratch:
        work = (given.out or Path(scratch)).resolve()
        benchmark(
            given.llamafactory_python,
            work,
            rows=given.rows,
            batch=given.batch,
            repeats=given.repeats,
            threads=given.threads,
        )


if __name__ == "__main__":
    main()
