"""One engine over one workload, in a process of its own, with the time at which every row was finished.

``python benchmarks/engines.py ENGINE JOB.json RESULT.json`` is how :mod:`predict` runs it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["ENGINES", "Job", "Result", "capped_folder"]

OUTPUT_TOKENS = 6
"""What the usual script generates; five tokens of a label and its end."""
IN_FLIGHT, DECODERS = 96, 12


@dataclass(frozen=True, slots=True)
class Job:
    """What every engine gets.

    Args:
        model: Model folder.
        data: Rows in the challenge's form.
        out: Folder for what the engine writes.
        task: Task name or file.
        budget: ``max_pixels`` and ``max_tokens``.
        device: Torch device.
        rows: How many of the rows to do; None is all.
        settings: ``KEY=VALUE`` settings of ``tuyi predict``; none by default.
        prefix_caching, eager: Of vLLM.
    """

    model: str
    data: str
    out: str
    task: str
    budget: dict[str, int]
    device: str
    rows: int | None = None
    settings: tuple[str, ...] = ()
    prefix_caching: bool = False
    eager: bool = False


@dataclass(slots=True)
class Result:
    """What an engine did.

    Args:
        load_seconds: From the start of the process's work to the first row's turn, the rows' own work not counted.
        host_seconds: Work on the rows before the first row's turn.
        finished: (seconds since the first row's turn, ids finished then), in order.
        labels: The label of each row, as the engine spells it.
        spent: Seconds by part, where the engine says so.
        told: What it said while it loaded.
        peak_bytes: Most GPU memory in use, where torch of this process knows.
        skipped: Why it was not run.
    """

    load_seconds: float = 0.0
    host_seconds: float = 0.0
    finished: list[tuple[float, list[str]]] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    peak_bytes: int = 0
    skipped: str = ""


def _rows(job: Job) -> list[tuple[str, str, list[dict[str, str]], tuple[str, ...]]]:
    """(id, task, chat content, labels) of each row, in the wording that tuyi gives it."""
    from tuyi.data.example import Text
    from tuyi.data.source import read
    from tuyi.model.tasks import with_budget
    from tuyi.task import load_tasks

    tasks = with_budget(load_tasks(job.task), job.budget)
    found = []
    for row in list(read(Path(job.data)))[: job.rows]:
        task = tasks.of(row)
        parts = task.ask(row).parts()
        content = [
            {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": "image", "path": str(part)}
            for part in parts
        ]
        found.append((row.id, task.name, content, task.labels.names if task.labels else ()))
    return found


def capped_folder(model: Path, out: Path, max_pixels: int) -> Path:
    """The same model, its files linked, with its processor's pixel cap set, as its users set it."""
    out.mkdir(parents=True, exist_ok=True)
    for file in model.iterdir():
        target = out / file.name
        if not target.exists():
            target.symlink_to(file.resolve())
    config = json.loads((model / "processor_config.json").read_text(encoding="utf-8"))
    config["image_processor"]["size"] = {"shortest_edge": 3136, "longest_edge": max_pixels}
    files = {"processor": config, "preprocessor": config["image_processor"]}
    files["video_preprocessor"] = config["video_processor"]
    for name, value in files.items():
        path = out / f"{name}_config.json"
        path.unlink(missing_ok=True)
        path.write_text(json.dumps({**value, "processor_class": config["processor_class"]}), encoding="utf-8")
    return out


def run_script(job: Job) -> Result:
    """What people write: the processor and ``generate``, one row at a time."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    result, started = Result(), time.perf_counter()
    folder = capped_folder(Path(job.model), Path(job.out) / "capped", job.budget["max_pixels"])
    rows = _rows(job)
    processor = AutoProcessor.from_pretrained(folder)
    dtype = torch.bfloat16 if job.device.startswith("cuda") else torch.float32
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    model = model.to(job.device).eval()
    begun = time.perf_counter()
    result.load_seconds = begun - started
    for id_, _, content, _ in rows:
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        ).to(job.device)  # fmt: skip
        out = model.generate(**inputs, max_new_tokens=OUTPUT_TOKENS, do_sample=False)
        answer = out[0, inputs["input_ids"].shape[1] :]
        result.labels[id_] = processor.tokenizer.decode(answer, skip_special_tokens=True)
        result.finished.append((time.perf_counter() - begun, [id_]))
    result.peak_bytes = torch.cuda.max_memory_allocated() if job.device.startswith("cuda") else 0
    return result


def run_local(job: Job) -> Result:
    """``tuyi predict`` through its public door, with its defaults."""
    import torch

    from tuyi.config import load_settings

    # by name, for in the package `tuyi.predict` is the verb
    run = import_module("tuyi.predict.run")
    overrides = [*(["device=cpu"] if job.device == "cpu" else []), *job.settings]
    settings = load_settings(run.PredictRun, None, [f"predict.{item}" for item in overrides]).predict
    result, marks, plain_survey = Result(), [], run.survey

    def timed_survey(*args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        found = plain_survey(*args, **kwargs)
        result.host_seconds = time.perf_counter() - begun
        return found

    # the look at every row comes before the model is loaded, yet is work on the rows
    run.survey = timed_survey  # type: ignore[attr-defined]
    out = Path(job.out) / "predictions.jsonl"
    started = time.perf_counter()
    summary = run.predict(
        job.model, job.data, out, task=job.task, settings=settings, budget=job.budget,
        progress=lambda done, _: marks.append((time.perf_counter(), done)),
        tell=result.told.append,
    )  # fmt: skip
    begun = marks[-1][0] - summary.seconds
    result.load_seconds = begun - started - result.host_seconds
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    result.labels = {row["id"]: row["label"] for row in rows}
    at = 0
    for moment, done in marks:
        result.finished.append((moment - begun, [row["id"] for row in rows[at:done]]))
        at = done
    result.spent = dict(summary.spent)
    result.peak_bytes = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return result


def run_local_fp8(job: Job) -> Result:
    """The same with FP8 linears."""
    return run_local(replace(job, settings=("precision=fp8", *job.settings)))


def run_vllm(job: Job) -> Result:
    """vLLM as tuned for this work: decoding and rendering in threads, 96 requests in flight, a choice of labels."""
    return asyncio.run(_vllm(job))


async def _vllm(job: Job) -> Result:
    from transformers import AutoTokenizer
    from vllm import SamplingParams  # type: ignore[import-not-found]
    from vllm.engine.arg_utils import AsyncEngineArgs  # type: ignore[import-not-found]
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams  # type: ignore[import-not-found]
    from vllm.v1.engine.async_llm import AsyncLLM  # type: ignore[import-not-found]

    result, started = Result(), time.perf_counter()
    folder = capped_folder(Path(job.model), Path(job.out) / "capped", job.budget["max_pixels"])
    rows = _rows(job)
    most = max(sum(part["type"] == "image" for part in content) for _, _, content, _ in rows)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    params = {
        task: SamplingParams(
            temperature=0,
            max_tokens=1 + max(len(tokenizer(name, add_special_tokens=False).input_ids) for name in names),
            structured_outputs=StructuredOutputsParams(choice=list(names)),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        for task, names in {task: names for _, task, _, names in rows}.items()
    }
    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=str(folder), dtype="bfloat16", max_model_len=32768, max_num_batched_tokens=8192, max_num_seqs=128,
            limit_mm_per_prompt={"image": most, "video": 0}, mm_processor_cache_gb=0, renderer_num_workers=12,
            enable_prefix_caching=job.prefix_caching, gpu_memory_utilization=0.9, enforce_eager=job.eager,
            disable_log_stats=True,
        )
    )  # fmt: skip
    begun = time.perf_counter()
    result.load_seconds = begun - started
    slots, decoders = asyncio.Semaphore(IN_FLIGHT), ThreadPoolExecutor(DECODERS)

    async def one(id_: str, task: str, content: list[dict[str, str]]) -> None:
        async with slots:
            prompt, pictures = await asyncio.get_running_loop().run_in_executor(decoders, _render, tokenizer, content)
            request: dict[str, Any] = {"prompt": prompt}
            if pictures:
                request["multi_modal_data"] = {"image": pictures}
            # rendered first, in vLLM's own threads: generate() would do it in the event loop and hold up all others
            (rendered,) = await engine.renderer.render_cmpl_async([request])
            answers = [out.outputs[0].text async for out in engine.generate(rendered, params[task], id_)]
        result.labels[id_] = answers[-1]
        result.finished.append((time.perf_counter() - begun, [id_]))

    await asyncio.gather(*(one(id_, task, content) for id_, task, content, _ in rows))
    engine.shutdown()
    return result


def _render(tokenizer: Any, content: list[dict[str, str]]) -> tuple[str, list[Any]]:
    from PIL import Image

    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return prompt, [Image.open(part["path"]).convert("RGB") for part in content if part["type"] == "image"]


ENGINES: dict[str, Callable[[Job], Result]] = {
    "script": run_script,
    "local": run_local,
    "local-fp8": run_local_fp8,
    "vllm": run_vllm,
}


def main() -> None:
    """Run one engine and write what it did."""
    from tuyi.errors import TuyiError

    name, job_file, result_file = sys.argv[1:]
    value = json.loads(Path(job_file).read_text(encoding="utf-8"))
    job = Job(**{**value, "settings": tuple(value["settings"])})
    try:
        result = ENGINES[name](job)
    except TuyiError as error:
        result = Result(skipped=str(error))
    Path(result_file).write_text(json.dumps(asdict(result), ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
