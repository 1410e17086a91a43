"""The training benchmark's own numbers: floor against torch's counter, record of steps, what the peers are told."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from engines import capped_folder
from floor import Flops, RowWork, count_flops, row_work, training_flops
from models import make_model
from step_record import Enough, Trained, record
from stretches import Cost, cost, show, show_ratios, stretches
from train import learns, named_runs, peers
from train_script import _batch, _rows
from train_tiny import export_in_order, loss_gap
from trainers import Job, Recipe, llamafactory_arguments
from tuyi.data.source import read
from tuyi.encode.encoder import Encoder
from tuyi.model.load import load_frontend
from tuyi.model.tasks import with_budget
from tuyi.model.tiny import build_weights
from tuyi.task import load_tasks
from workload import make_workload, texts


@pytest.mark.parametrize(("method", "tower"), [("full", False), ("lora", False), ("full", True)])
def test_training_floor_counts_what_torch_counts(method: str, tower: bool) -> None:
    config = load_frontend("builtin:tiny", texts()).config
    config._attn_implementation = config.text_config._attn_implementation = "eager"
    config.vision_config._attn_implementation = "eager"
    model = build_weights(config, 0)
    for name, weight in model.named_parameters():
        weight.requires_grad_(tower if ".visual." in name else method == "full")
    if method == "lora":  # gradients flow through frozen linears, as they do to the adapters
        model.get_input_embeddings().register_forward_hook(lambda _, __, embeds: embeds.requires_grad_())
    grids = torch.tensor([[1, 8, 6]])
    patches, words = 48, 30
    ids = torch.full((1, words + patches // 4), 40)
    ids[0, words - 1 : words - 1 + patches // 4] = config.image_token_id
    with FlopCounterMode(display=False) as counter:
        model(
            input_ids=ids, pixel_values=torch.randn(patches, 3 * 2 * 14 * 14), image_grid_thw=grids,
            mm_token_type_ids=(ids == config.image_token_id).int(), logits_to_keep=1,
        ).logits.sum().backward()  # fmt: skip
    forward = count_flops(config, RowWork(ids.shape[1], (patches,)))
    ours = training_flops(forward, method=method, tower=tower, projector=tower)
    head = (3 if method == "full" else 2) * 2 * config.text_config.hidden_size * config.text_config.vocab_size
    # torch's dense attention computes both halves of the causal square, the floor one; pixels have no gradient
    pixels = 2 * patches * 3 * 2 * 14**2 * config.vision_config.embed_dim if tower else 0
    expected = ours.sum + ours.language_attention + head - pixels
    assert counter.get_total_flops() == pytest.approx(expected, rel=5e-3)


def test_kept_features_cost_no_tower() -> None:
    forward = Flops(100.0, 10.0, 20.0, 5.0, 1.0)
    assert cost(RowWork(7, (4,)), forward, method="full") == Cost(7, 356.0, 330.0)
    assert cost(RowWork(7, (4,)), forward, method="lora") == Cost(7, 256.0, 230.0)
    assert cost(RowWork(7, (4,)), forward, projector=True) == Cost(7, 358.0, 333.0)
    learning = cost(RowWork(7, (4,)), forward, tower=True)
    assert learning == Cost(7, 407.0, 407.0)


def test_labelled_rows_are_the_same_rows(tmp_path: Path) -> None:
    plain = list(read(make_workload(tmp_path / "plain", 60, seed=3, max_picture_pixels=6_000)))
    data = make_workload(tmp_path / "labelled", 60, seed=3, max_picture_pixels=6_000, labelled=True)
    assert data.name == "train.json"
    rows, tasks = list(read(data)), with_budget(load_tasks("www2025"), {"max_pixels": 12_544})
    assert [row.text for row in rows] == [row.text for row in plain]
    assert all(row.label is None for row in plain)
    labels = {tasks.of(row).labels.canonical(row.label) for row in rows}
    assert len(labels) > 20
    frontend = load_frontend("builtin:tiny", texts())
    work = row_work(data, frontend, tasks, labelled=True)
    encoder = Encoder(frontend.tokenizer, frontend.spec, tasks)
    assert {row.id: encoder.length(row).tokens for row in rows} == {id_: one.tokens for id_, one in work.items()}


def test_stretches() -> None:
    costs = {id_: Cost(10 * at, 100.0 * at, 80.0 * at) for at, id_ in enumerate("abcd", 1)}
    finished = [(5.0, ["a", "b"]), (6.0, ["c"]), (8.0, ["d"]), (9.0, ["d", "a"]), (9.5, ["b", "c"])]
    found = stretches(finished, costs, 1)
    assert list(found) == ["warm-up", "first epoch", "later epochs", "all after warm-up", "all"]
    assert (found["warm-up"].seconds, found["warm-up"].tokens) == (5.0, 30)
    first, later = found["first epoch"], found["later epochs"]
    assert (first.steps, first.rows, first.seconds, first.tokens, first.flops) == (2, 2, 3.0, 70, 700.0)
    assert (later.steps, later.rows, later.seconds, later.flops_kept) == (2, 4, 1.5, 800.0)
    assert (found["all"].seconds, found["all"].flops) == (9.5, 2000.0)
    # a run that was stopped within its first epoch; warm-up leaves it one step
    short = stretches(finished[:2], costs, 9)
    assert {name: one.steps for name, one in short.items()} == {"warm-up": 1, "first epoch": 1, "all": 2}


def test_table_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    costs = {"a": Cost(10, 200.0, 160.0), "b": Cost(30, 400.0, 320.0)}
    ours = Trained(
        finished=[(3.0, ["a"]), (5.0, ["b"]), (6.0, ["b", "a"])], waited=[0.5, 0.0, 0.25], loss=[3.0, 2.0, 1.0],
        told=["compiled"],
    )  # fmt: skip
    theirs = Trained(finished=[(4.0, ["a"]), (8.0, ["b"])], waited=[1.0, 2.0], loss=[3.0, 2.0])
    measured = {
        "full": show("full", ours, costs, 600.0, 1) | {"method": "full", "gpus": 1, "peer": False},
        "peer": show("peer", theirs, costs, 600.0, 1) | {"method": "full", "gpus": 1, "peer": True},
        "broken": show("broken", Trained(skipped="no memory"), costs, 600.0, 1),
    }
    show_ratios(measured)
    told = capsys.readouterr().out.splitlines()
    assert "full: floor 2.0 rows/s, 2.5 where the tower's features are known" in told
    # the second row is 4/3 rows of mean size; in two seconds, of 600 operations each
    assert "  first epoch | 1 | 1 | 2.0 | 0.67 | 15 | 33.3%" in told
    assert "  later epochs | 1 | 2 | 1.0 | 2.00 | 40 | 100.0% (80.0% of that without the tower)" in told
    assert "  compiled" in told
    assert "broken: not run: no memory" in told
    ratios = "2.00 × first epoch, 6.00 × later epochs, 3.33 × all after warm-up, 2.00 × all"
    assert told[-1] == f"full over the first epoch of peer: {ratios}"
    assert measured["full"]["stretches"]["all"]["rows_per_second"] == pytest.approx(4 / 6)


class _Rows(torch.utils.data.Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, step: int) -> dict[str, Any]:
        time.sleep(0.02)
        return {"x": torch.ones(2) * step}

    def ids(self, step: int) -> list[str]:
        return [f"{step}a", f"{step}b"]


class _Line(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = torch.nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.line(x).square().mean()}


@pytest.fixture
def callbacks() -> Iterator[None]:
    defaults: list[Any] = transformers.trainer.DEFAULT_CALLBACKS
    before = list(defaults)
    yield
    defaults[:] = before


def _train(folder: Path) -> None:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=1, max_steps=6, logging_steps=1, save_steps=3,
        use_cpu=True, report_to="none", disable_tqdm=True, learning_rate=0.1, remove_unused_columns=False,
    )  # fmt: skip
    transformers.Trainer(model=_Line(), args=arguments, train_dataset=_Rows()).train()


@pytest.mark.usefixtures("callbacks")
def test_record_of_a_run(tmp_path: Path) -> None:
    done = record(time.perf_counter(), save="all")
    _train(tmp_path)
    assert [ids for _, ids in done.finished] == [[f"{step}a", f"{step}b"] for step in range(6)]
    ends = [at for at, _ in done.finished]
    assert ends == sorted(ends)
    assert len(done.loss) == len(done.lr) == len(done.grad_norm) == len(done.waited) == 6
    assert sum(done.waited) >= 6 * 0.02  # accelerate's loader reads a row ahead, so that single steps differ
    assert (done.learning, done.dtype) == (3, "torch.float32")
    assert done.load_seconds > 0
    assert done.checkpoint_seconds > 0
    assert (tmp_path / "checkpoint-6").is_dir()


@pytest.mark.usefixtures("callbacks")
def test_record_ends_a_run_early(tmp_path: Path) -> None:
    done = record(time.perf_counter(), steps=[[f"row{step}"] for step in range(6)], limit=0.0, save="none")
    with pytest.raises(Enough):
        _train(tmp_path)
    assert [ids for _, ids in done.finished] == [["row0"]]
    assert not list(tmp_path.glob("checkpoint-*"))


def _arguments(**given: Any) -> Namespace:
    base = {"method": "full", "epochs": 2.0, "set": [], "run": [], "llamafactory": "as-run,tuned"}
    return Namespace(**{**base, "llamafactory_python": "", "llamafactory_path": "", "llamafactory_limit": 9.0, **given})


def test_runs_are_named() -> None:
    both = named_runs(_arguments(method="full,lora", set=["compile=true"]))
    assert list(both) == ["full", "lora"]
    assert both["lora"] == ["epochs=2", "tensorboard=false", "compile=true", "method=lora"]
    own = named_runs(_arguments(method="lora", run=["small:pack_tokens=4096,betas=[0.9,0.95]", "plain"]))
    assert own["small"][-3:] == ["method=lora", "pack_tokens=4096", "betas=[0.9,0.95]"]
    assert learns(own["small"]) == {"method": "lora", "tower": False, "projector": False}
    assert learns(["freeze={vision: false, projector: false}"]) == {"method": "full", "tower": True, "projector": True}


def test_llamafactory_as_run_and_tuned(tmp_path: Path) -> None:
    data = make_workload(tmp_path / "rows", 20, max_picture_pixels=6_000, labelled=True)
    common = {"model": "m", "task": "www2025", "max_pixels": 1000, "max_tokens": 2000, "device": "cuda"}
    assert list(peers(_arguments(), tmp_path, data, common)) == []
    found = list(peers(_arguments(method="full,lora", llamafactory_path="there"), tmp_path, data, common))
    ways = ["full as-run", "full tuned", "lora as-run", "lora tuned"]
    assert [name for name, *_ in found] == [f"llamafactory {way}" for way in ways]
    assert all((side, interpreter.path) == ("llamafactory", "there") for _, side, _, interpreter in found)
    as_run, tuned, _, lora = (job for _, _, job, _ in found)
    assert [id_ for ids in tuned.steps for id_ in ids] == [row.id for row in read(data)]
    assert [len(ids) for ids in tuned.steps] == [16, 4]
    assert len(as_run.steps[0]) == 2
    said = llamafactory_arguments(as_run)
    assert (said["per_device_train_batch_size"], said["disable_gradient_checkpointing"]) == (1, False)
    assert (said["freeze_vision_tower"], said["bf16"], said["use_cpu"]) == (True, True, False)
    said = llamafactory_arguments(tuned)
    assert (said["per_device_train_batch_size"], said["gradient_accumulation_steps"]) == (8, 2)
    assert (said["disable_gradient_checkpointing"], said["dataloader_num_workers"]) == (True, 12)
    said = llamafactory_arguments(lora)
    assert (said["per_device_train_batch_size"], said["lora_target"], said["lora_rank"]) == (4, "all", 8)
    entry = json.loads((data.parent / "export" / "dataset_info.json").read_text(encoding="utf-8"))
    assert list(entry) == ["rows"]


def test_export_keeps_the_order_asked_for(tmp_path: Path) -> None:
    data = make_workload(tmp_path, 8, max_picture_pixels=6_000, labelled=True)
    rows = {row.id: row for row in read(data)}
    order = sorted(rows, reverse=True)[:6]
    exported = list(read(export_in_order(data, order, tmp_path / "export") / "rows.json"))
    assert [row.label for row in exported] == [rows[id_].label for id_ in order]
    assert [row.text for row in exported] == [rows[id_].text for id_ in order]


def test_script_learns_what_tuyi_learns(tmp_path: Path) -> None:
    from transformers import AutoProcessor

    data = make_workload(tmp_path / "rows", 6, seed=1, max_picture_pixels=20_000, labelled=True)
    model = make_model(tmp_path / "m", "tiny", texts())
    job = Job(str(model), str(data), str(tmp_path), "www2025", 50_176, 8192, "cpu")
    processor = AutoProcessor.from_pretrained(capped_folder(model, tmp_path / "capped", job.max_pixels))
    processor.tokenizer.padding_side = "right"
    rows = _rows(job)
    batch = _batch(processor, list(rows.values()))
    frontend = load_frontend(str(model))
    encoder = Encoder(frontend.tokenizer, frontend.spec, with_budget(load_tasks(job.task), job.budget))
    examples = list(read(data))
    assert [row.id for row in examples] == list(rows)
    for number, example in enumerate(examples):
        ours = encoder.encode(example, labelled=True)
        ids, labels = batch["input_ids"][number].numpy(), batch["labels"][number].numpy()
        assert np.array_equal(ids[: len(ours)], ours.ids)
        assert np.array_equal(labels[: len(ours)], np.where(ours.supervised, ours.ids, -100))
        assert (labels[len(ours) :] == -100).all()


def test_loss_gap() -> None:
    one = Trained(loss=[3.0, 2.0], lr=[0.0, 1e-3])
    assert loss_gap(one, Trained(loss=[3.0, 2.5], lr=[0.0, 1e-3])) == 0.5
    with pytest.raises(ValueError, match=r"expected equal learning rates, found them 1\.0e-04 apart"):
        loss_gap(one, Trained(loss=[3.0, 2.0], lr=[1e-4, 1e-3]))
    with pytest.raises(ValueError, match="expected runs of equal length, found 2 and 1 steps"):
        loss_gap(one, Trained(loss=[3.0], lr=[0.0]))


def test_recipe_defaults_freeze() -> None:
    said = llamafactory_arguments(Job("m", "d", "o", "t", 1, 2, "cpu", recipe=Recipe(freeze=False, answer_only=True)))
    assert (said["freeze_vision_tower"], said["template"], said["use_cpu"]) == (False, "qwen2_vl_answer_only", True)


@pytest.mark.slow
def test_tiny_run_end_to_end(tmp_path: Path) -> None:
    """tuyi and the usual script, in processes of their own: the same loss in every step."""
    program = Path(__file__).parents[2] / "benchmarks" / "train.py"
    command = [sys.executable, str(program), "--tiny", "--steps", "3", "--out", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "largest loss difference" in done.stdout
    runs = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["runs"]
    assert list(runs) == ["tuyi", "script"]
    assert len(runs["tuyi"]["loss"]) == 3
    assert runs["tuyi"]["loss"] == pytest.approx(runs["script"]["loss"], abs=1e-5)
