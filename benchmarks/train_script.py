"""Training as people write it with plain transformers: the processor, padded batches, the model's own loss, AdamW.

The one thing that it takes from tuyi is each row's wording, so that both learn the same.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines import capped_folder
from step_record import Trained

if TYPE_CHECKING:
    from trainers import Job

__all__ = ["train_with_transformers"]

_END = "<|im_end|>"


def train_with_transformers(job: Job, began: float) -> tuple[Trained, Path]:
    """Train all weights on the rows of ``job.steps``; returns what was done and the folder of the trained model."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor, get_cosine_schedule_with_warmup

    recipe, done = job.recipe, Trained()
    folder = capped_folder(Path(job.model), Path(job.out) / "capped", job.max_pixels)
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.padding_side = "right"
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    model = model.to(job.device).train()
    rows = _rows(job)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, recipe.warmup_steps, len(job.steps))
    done.learning, done.dtype = sum(weight.numel() for weight in model.parameters()), str(model.dtype)
    begun = time.perf_counter()
    done.load_seconds = begun - began
    for ids in job.steps:
        asked = time.perf_counter()
        batch = _batch(processor, [rows[id_] for id_ in ids]).to(job.device)
        done.waited.append(time.perf_counter() - asked)
        with torch.autocast(job.device, torch.bfloat16, enabled=recipe.precision == "bf16"):
            loss = model(**batch).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        done.lr.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        done.loss.append(loss.item())
        done.grad_norm.append(norm.item())
        done.finished.append((time.perf_counter() - begun, ids))
    if torch.cuda.is_available():
        done.peak_bytes, done.reserved_bytes = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    trained = Path(job.out) / "model"
    model.save_pretrained(trained)
    processor.save_pretrained(trained)
    return done, trained


def _rows(job: Job) -> dict[str, tuple[list[dict[str, str]], list[str], str]]:
    """(chat content, picture files, answer) of each row, by id, in the wording that tuyi gives it."""
    from tuyi.data.example import Text
    from tuyi.data.source import read
    from tuyi.model.tasks import with_budget
    from tuyi.task import load_tasks

    tasks = with_budget(load_tasks(job.task), job.budget)
    found = {}
    for row in read(Path(job.data)):
        task = tasks.of(row)
        parts = task.ask(row).parts()
        content = [
            {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": "image"} for part in parts
        ]
        files = [str(part.source) for part in parts if not isinstance(part, Text)]
        found[row.id] = (content, files, task.target(row) or "")
    return found


def _batch(processor: Any, rows: list[tuple[list[dict[str, str]], list[str], str]]) -> Any:
    """Padded inputs whose labels are the answers and the tokens that end them."""
    from PIL import Image

    texts = []
    for content, _, answer in rows:
        asked = [{"role": "user", "content": content}]
        texts.append(processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False) + answer + _END)
    pictures = [Image.open(file).convert("RGB") for _, files, _ in rows for file in files]
    batch = processor(text=texts, images=pictures or None, padding=True, return_tensors="pt")
    labels = batch["input_ids"].new_full(batch["input_ids"].shape, -100)
    for row, (_, _, answer) in enumerate(rows):
        end = int(batch["attention_mask"][row].sum())
        begin = end - len(processor.tokenizer(answer + _END).input_ids)
        labels[row, begin:end] = batch["input_ids"][row, begin:end]
    batch["labels"] = labels
    return batch
