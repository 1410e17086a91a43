"""Many processes: every engine learns what one process does, whoever gets which rows, and resumes on other numbers."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Job, Processes, losses

import tuyi
from tuyi.data.example import Example, Text
from tuyi.data.write import ExampleWriter
from tuyi.errors import TrainingError
from tuyi.model.folder import read_info
from tuyi.train.loss import answer_loss
from tuyi.train.plan import Plan, spread
from tuyi.train.settings import Freeze, TrainSettings

EXAMPLES = Path(__file__).parents[2] / "examples" / "deepspeed"
ZERO = ["zero2", "zero2-offload", "zero3", "zero3-offload"]
ENGINES = ["ddp", "fsdp", *ZERO]
TASK = {
    "name": "what",
    "tasks": [{
        "name": "what", "prompt": "{content} {labels}", "labels": ["A", "B"],
        "budget": {"max_pixels": 3136, "min_pixels": 1024, "max_tokens": 256, "video_max_pixels": 1024},
    }],
}  # fmt: skip
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs DeepSpeed")


@pytest.fixture(scope="module")
def processes() -> Processes:
    return Processes()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, picture, clip) -> Path:
    """Four rows of text alone, four of a picture alone, four of a video alone."""
    file = tmp_path_factory.mktemp("mixed") / "rows.jsonl"
    with ExampleWriter(file, "messages") as writer:
        for number in range(4):
            words = " ".join(f"word{(number * 7 + at) % 13}" for at in range(20 + number))
            for kind, part in (("text", Text(words)), ("picture", picture(56, 56, number)), ("video", clip)):
                example = Example(f"{kind}-{number}", (part,), task="what", label="AB"[number % 2])
                writer.write(example)
    return file


def settings_of(engine: str, folder: Path, **more: Any) -> dict[str, Any]:
    """Settings of a short run; DeepSpeed's own as our examples have them, but for memory that a CPU cannot lock."""
    cpu = not torch.cuda.is_available()
    given: dict[str, Any] = {
        "epochs": 2, "batch_rows": 2, "lr": 2e-3, "save_steps": 3, "weight_decay": 0.1, "tensorboard": False,
        "workers": 1, **more,
    }  # fmt: skip
    if engine.startswith("fsdp"):
        given |= {"fsdp": True, "fsdp_offload": engine == "fsdp-offload"}
    if engine in ZERO:
        found = json.loads((EXAMPLES / f"{engine}.json").read_text())
        for offload in ("offload_optimizer", "offload_param"):
            if cpu and offload in found["zero_optimization"]:
                found["zero_optimization"][offload]["pin_memory"] = False
        file = folder / f"{engine}.json"
        file.write_text(json.dumps(found))
        given["deepspeed"] = str(file)
    return given


def close(found: list[float], expected: list[float]) -> None:
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=2e-4, atol=2e-4)


@pytest.fixture(scope="module")
def alone(mixed, tmp_path_factory) -> Path:
    """What one process without any engine learns."""
    folder = tmp_path_factory.mktemp("alone")
    from tuyi.task.catalog import parse_tasks

    settings = TrainSettings.model_validate(settings_of("alone", folder))
    tuyi.train(mixed, folder / "model", task=parse_tasks(TASK, "what"), settings=settings)
    return folder / "model"


@pytest.fixture(scope="module")
def untied(alone, tmp_path_factory) -> Path:
    """The same model with a head of its own, as the larger Qwen models have."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = tmp_path_factory.mktemp("untied") / "model"
    model = AutoModelForImageTextToText.from_pretrained(alone)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 1.5)
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(alone).save_pretrained(folder)
    (folder / "tuyi.json").write_bytes((alone / "tuyi.json").read_bytes())
    again = AutoModelForImageTextToText.from_pretrained(folder)
    assert not torch.equal(again.lm_head.weight, again.get_input_embeddings().weight)
    return folder


@pytest.fixture
def group():
    """A group of this process alone."""
    from torch import distributed

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def sharded(frontend, *, freeze=None, **settings) -> Any:
    from tuyi.model.load import load_model
    from tuyi.train.sharded import shard
    from tuyi.train.trainable import freeze_parts

    given = TrainSettings(fsdp=True, **settings)
    model = load_model(frontend, device="cpu", dtype="float32" if given.precision == "fp32" else "bfloat16", seed=3)
    freeze_parts(model.hf, freeze or Freeze(vision=False, projector=False))
    shard(model.hf, given, torch.device("cpu"))
    return model


def batch_of(twin, model, *parts) -> Any:
    from tuyi.encode.pack import pack
    from tuyi.model.forward import to_device

    row = twin.encoder.encode(Example("x", parts, task="colour", label="A"), labelled=True)
    return to_device(pack([row]), model.spec, torch.device("cpu"), always_see=True)


def test_spread_weights_are_float32_and_compute_as_16_bit_ones_do(twin, picture, group):
    from tuyi.model.load import load_model

    model = sharded(twin.model.frontend, precision="bf16")
    plain = load_model(twin.model.frontend, device="cpu", dtype="bfloat16", seed=3)
    batch = batch_of(twin, model, picture(), Text("?"))
    scored = model.hf(batch=batch, scored=True)
    torch.testing.assert_close(scored, plain.hf(batch=batch, scored=True), rtol=0, atol=0)
    answer_loss(scored, batch).backward()
    assert all(weight.dtype == weight.grad.dtype == torch.float32 for weight in model.hf.parameters())
    assert all(hasattr(weight, "full_tensor") for weight in model.hf.parameters())


def test_a_frozen_tower_stays_whole(twin, picture, group):
    model = sharded(twin.model.frontend, freeze=Freeze(), precision="bf16")
    tower = list(model.hf.model.visual.parameters())
    assert all(weight.dtype == torch.bfloat16 and not hasattr(weight, "full_tensor") for weight in tower)
    assert all(hasattr(weight, "full_tensor") for weight in model.hf.model.language_model.parameters())
    batch = batch_of(twin, model, picture(), Text("?"))
    answer_loss(model.hf(batch=batch, scored=True), batch).backward()
    assert all(weight.grad is None for weight in tower)


def test_parts_are_written_read_and_gathered(twins, picture, group, tmp_path):
    from tuyi.train.sharded import gather, read_parts, write_parts

    twin = twins("qwen2_vl")
    model = sharded(twin.model.frontend, precision="fp32")
    batch = batch_of(twin, model, picture(), Text("?"))

    def stepped() -> tuple[torch.optim.Optimizer, dict[str, torch.Tensor]]:
        optimizer = torch.optim.AdamW(model.hf.parameters(), lr=1e-2)
        answer_loss(model.hf(batch=batch, scored=True), batch).backward()
        optimizer.step()
        model.hf.zero_grad()
        return optimizer, gather(model.hf, torch.float32, torch.device("cpu"))

    optimizer, first = stepped()
    write_parts(tmp_path, model.hf, optimizer)
    averages = [state["exp_avg"].full_tensor() for state in optimizer.state.values()]
    other, second = stepped()
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert {name for name, _ in model.hf.named_parameters()} == first.keys()
    read_parts(tmp_path, model.hf)
    again = gather(model.hf, torch.float32, torch.device("cpu"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    read_parts(tmp_path, model.hf, other)
    found = [state["exp_avg"].full_tensor() for state in other.state.values()]
    assert all(torch.equal(one, two) for one, two in zip(averages, found, strict=True))
    assert {weight.dtype for weight in gather(model.hf, torch.bfloat16, torch.device("cpu")).values()} == {
        torch.bfloat16
    }
    with pytest.raises(TrainingError, match=r"checkpoint .*none cannot be read: .*remove it to resume from the one"):
        read_parts(tmp_path / "none", model.hf)


def test_the_mixed_rows_fall_to_processes_by_kind(alone, mixed):
    from tuyi.data.source import scan
    from tuyi.encode.survey import survey

    model = tuyi.load(alone)
    rows = survey(scan(mixed), model.encoder, labelled=True)
    plan = Plan(rows.tokens, epochs=2, seed=42, batch_rows=2)
    pairs = set()
    for step in range(plan.steps):
        at = plan.rows(step)
        shares = spread(at, plan.tokens[at].tolist(), 2, 16384)
        kinds = [[rows.rows[row].id.partition("-")[0] for pack in packs for row in pack] for packs in shares]
        assert [len(kind) for kind in kinds] == [1, 1]
        pairs.add((kinds[0][0], kinds[1][0]))
    assert plan.steps == 12
    # one process has text alone while the other has pictures, or video, alone
    assert {("text", "picture"), ("text", "video")} <= pairs
    assert {kind for pair in pairs for kind in pair} == {"text", "picture", "video"}


@pytest.mark.slow
@pytest.mark.parametrize("engine", [pytest.param(e, marks=needs_deepspeed if e in ZERO else ()) for e in ENGINES])
def test_two_processes_with_rows_of_different_kinds_learn_what_one_does(processes, mixed, alone, tmp_path, engine):
    from transformers import AutoModelForImageTextToText

    out = tmp_path / "model"
    failed = processes.train(Job(mixed, out, TASK, settings_of(engine, tmp_path)), 2)
    assert not failed, failed
    close(losses(out), losses(alone))
    expected = AutoModelForImageTextToText.from_pretrained(alone).state_dict()
    found, report = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for name, weight in found.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=1e-3)
    assert read_info(out) is not None
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


RESUMES = [
    ("ddp", 2, 1), ("ddp", 1, 2), ("fsdp", 2, 1), ("fsdp", 1, 2), ("zero2", 2, 1), ("zero2-offload", 1, 2),
    ("zero3", 2, 1), ("zero3-offload", 1, 2),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "before", "after"),
    [pytest.param(*one, marks=needs_deepspeed if one[0] in ZERO else ()) for one in RESUMES],
)
def test_a_run_goes_on_with_another_number_of_processes(processes, mixed, alone, tmp_path, engine, before, after):
    settings = settings_of(engine, tmp_path)
    failed = processes.train(Job(mixed, tmp_path / "model", TASK, settings, stop=7), before)
    assert not failed, failed
    assert len(losses(tmp_path / "model")) == 7
    failed = processes.train(Job(mixed, tmp_path / "model", TASK, settings, {"resume": True}), after)
    assert not failed, failed
    assert "checkpoint-6" in (tmp_path / "model.0.log").read_text()
    close(losses(tmp_path / "model"), losses(alone))


@pytest.mark.slow
@needs_deepspeed
def test_averages_that_deepspeed_would_mix_up_are_refused(processes, mixed, tmp_path):
    settings = settings_of("zero2", tmp_path)
    found = json.loads((tmp_path / "zero2.json").read_text())
    found["zero_optimization"]["round_robin_gradients"] = True
    (tmp_path / "zero2.json").write_text(json.dumps(found))
    failed = processes.train(Job(mixed, tmp_path / "model", TASK, settings, stop=4), 2)
    assert not failed, failed
    found["zero_optimization"]["round_robin_gradients"] = False
    (tmp_path / "zero2.json").write_text(json.dumps(found))
    failed = processes.train(Job(mixed, tmp_path / "model", TASK, settings, {"resume": True}), 1)
    assert "was written by 2 processes, this run has 1" in failed
    assert "resume with 2 processes" in failed
    assert len(losses(tmp_path / "model")) == 4


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp", pytest.param("zero3", marks=needs_deepspeed)])
def test_the_best_weights_of_a_validated_run_are_kept(processes, mixed, untied, tmp_path, engine):
    settings = settings_of(engine, tmp_path, epochs=1, save_steps=None, eval_steps=2, lr=1e-2)
    more = {"valid": mixed, "model": str(untied)}
    failed = processes.train(Job(mixed, tmp_path / "model", None, settings, more), 2)
    assert not failed, failed
    scores = read_info(tmp_path / "model").scores
    predicted = tuyi.predict(tmp_path / "model", mixed, tmp_path / "p.jsonl")
    found = {one.id: one.label for one in tuyi.read_predictions(predicted.out)}
    right = sum(found[row.id] == row.label for row in tuyi.read(mixed)) / 12
    assert abs(right - scores["what_accuracy"]) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp", pytest.param("zero3", marks=needs_deepspeed)])
def test_adapters_are_gathered_and_merged(processes, mixed, untied, tmp_path, engine):
    more = {"method": "lora", "lora": {"rank": 4}, "epochs": 1, "lr": 1e-2, "gradient_checkpointing": True}
    settings = settings_of("alone", tmp_path, **more)
    expected = tmp_path / "alone"
    failed = processes.train(Job(mixed, expected, None, settings, {"model": str(untied)}), 1)
    assert not failed, failed
    found = tmp_path / "model"
    settings = settings_of(engine, tmp_path, **more)
    failed = processes.train(Job(mixed, found, None, settings, {"model": str(untied)}), 2)
    assert not failed, failed
    close(losses(found), losses(expected))
    from safetensors.torch import load_file

    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        theirs, ours = load_file(expected / file), load_file(found / file)
        assert theirs.keys() == ours.keys()
        for name, weight in ours.items():
            torch.testing.assert_close(weight, theirs[name], rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize(
    "engine", [pytest.param(e, marks=needs_deepspeed if e in ZERO else ()) for e in (*ENGINES, "fsdp-offload")]
)
def test_two_gpus_learn_what_one_does_and_go_on_as_one(processes, mixed, tmp_path, engine):
    alone = tmp_path / "alone"
    failed = processes.train(Job(mixed, alone, TASK, settings_of("alone", tmp_path, lr=1e-3)), 1)
    assert not failed, failed
    out, settings = tmp_path / "model", settings_of(engine, tmp_path, lr=1e-3)
    for world, stop, more in ((2, 7, {}), (1, None, {"resume": True})):
        failed = processes.train(Job(mixed, out, TASK, settings, more, stop), world)
        assert not failed, failed
    torch.testing.assert_close(torch.tensor(losses(out)), torch.tensor(losses(alone)), rtol=0.05, atol=0.05)
    predicted = tuyi.predict(out, mixed, tmp_path / "p.jsonl")
    assert len(list(tuyi.read_predictions(predicted.out))) == 12
