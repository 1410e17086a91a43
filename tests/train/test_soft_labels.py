"""Soft labels: loss and gradients equal a plain implementation, every label of every row in a sequence of its own."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from processes import Job, Processes

import tuyi
from tuyi.data.example import Example, Text, Turn
from tuyi.data.problem import Problem
from tuyi.data.write import ExampleWriter
from tuyi.encode.encoder import Encoder
from tuyi.encode.survey import survey
from tuyi.errors import ConfigError, DataError
from tuyi.task.catalog import parse_tasks
from tuyi.train.feed import Feed, Lesson
from tuyi.train.loss import answer_loss
from tuyi.train.mixing import read_answers
from tuyi.train.reasons import lessons
from tuyi.train.settings import ReasonSettings, SoftSettings, TrainSettings
from tuyi.train.shares import shares_of
from tuyi.train.steps import Steps
from tuyi.train.taught import teach

COLOURS = {"A": 0.05, "红": 0.5, "红色": 0.25, "红色（浅）": 0.2}
SHAPES = {"round": 0.7, "z": 0.3}


@pytest.fixture
def examples(picture):
    """With a teacher and without, a label beside soft labels and none, weights, an open row with earlier answers."""
    told = Turn("user", (Text("你好"),)), Turn("assistant", (Text("可以的"),))
    return [
        Example("a", (picture(70, 90, 1), Text(" 什么颜色")), task="colour", label="红色", soft=COLOURS),
        Example("b", (Text("没有图片"),), task="colour", label="红色(浅)", weight=2.0),
        Example("c", (picture(60, 60, 2), Text("和")), task="shape", soft=SHAPES, weight=0.5),
        Example("d", (Text("?"),), task="talk", label="红色的。", history=told),
    ]


def taken(twin, examples):
    """The survey of rows as they are learned."""
    return survey(lessons(examples, twin.encoder.tasks, ReasonSettings()), twin.encoder, labelled=True)


def learned(twin, examples, settings, *, pack_tokens=100_000):
    """Loss and gradients of one step that holds all rows, by way of the feed."""
    rows = taken(twin, examples)
    taught = teach(rows, twin.encoder, settings)
    steps = Steps(rows, taught.plan, taught.weights, rank=0, world=1, pack_tokens=pack_tokens)
    assert steps.rows_in(0) == len(examples)
    lesson = Lesson(taught.shares, settings.soft)
    feed = Feed(steps, twin.encoder, torch.device("cpu"), workers=1, lesson=lesson, features=None)
    model, total, count = twin.model.hf, 0.0, 0
    model.zero_grad(set_to_none=True)
    try:
        for ready, _ in feed.packs(0):
            count += 1
            loss = answer_loss(model(batch=ready.batch, scored=True), ready.batch, ready.soft) / steps.weight(0)
            loss.backward()
            total += float(loss.detach())
    finally:
        feed.close()
    assert count == (1 if pack_tokens > 10_000 else len(examples))
    return total, gradients_of(model)


def gradients_of(model):
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def answer_log_prob(twin, example):
    """log P(answer | prompt) of a row in the never-adapted model, and how many tokens that is."""
    encoded = twin.encoder.encode(example, labelled=True)
    inputs = twin.inputs(example, example.label)
    if not example.images:
        inputs.pop("mm_token_type_ids", None)
    at = np.flatnonzero(encoded.supervised)
    logits = twin.reference(**inputs).logits[0]
    every = logits[at - 1].log_softmax(1)
    return every[torch.arange(len(at)), torch.from_numpy(encoded.ids[at]).long()].sum(), len(at)


def expected_loss(twin, examples, settings):
    """The same by plain transformers."""
    model, alpha, hot = twin.reference, settings.soft.weight, settings.soft.temperature
    model.zero_grad(set_to_none=True)
    losses, total = [], 0.0
    for example in examples:
        labels = twin.encoder.tasks.of(example).labels
        if labels is None:
            log_prob, count = answer_log_prob(twin, example)
            losses.append(-log_prob * example.weight)
            total += count * example.weight
            continue
        found = [answer_log_prob(twin, replace(example, label=name)) for name in labels.names]
        scores = torch.stack([score for score, _ in found])
        soft = {labels.canonical(text): share for text, share in (example.soft or {}).items()}
        label = labels.canonical(example.label) if example.label else max(soft, key=soft.get)
        at = labels.names.index(label)
        hard = torch.full_like(scores, settings.label_smoothing / len(labels))
        hard[at] += 1 - settings.label_smoothing
        loss = -(hard * scores).sum()
        if soft:
            teacher = torch.tensor([soft.get(name, 0.0) for name in labels.names]) ** (1 / hot)
            teacher /= teacher.sum()
            kl = torch.nn.functional.kl_div((scores / hot).log_softmax(0), teacher, reduction="sum")
            loss = (1 - alpha) * loss + alpha * hot**2 * kl
        losses.append(loss * example.weight)
        total += found[at][1] * example.weight
    loss = sum(losses) / total
    loss.backward()
    return float(loss.detach()), gradients_of(model)


def assert_equal(found, expected):
    (loss, gradients), (expected_loss, expected_gradients) = found, expected
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert expected_gradients.keys() <= gradients.keys()
    assert len(expected_gradients) > 50
    scale = max(float(gradient.norm()) for gradient in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        difference = float((gradients[name] - gradient).norm())
        assert difference <= 1e-5 * max(float(gradient.norm()), 1e-2 * scale), (name, difference)


def of(weight=0.5, temperature=2.0, **more):
    return TrainSettings(soft=SoftSettings(weight=weight, temperature=temperature), **more)


def test_gradients_are_those_of_every_label_by_itself(twin, examples):
    assert_equal(learned(twin, examples, of()), expected_loss(twin, examples, of()))


@pytest.mark.parametrize(
    "settings",
    [of(0.3, 5.0), of(1.0, 1.0), of(0.5, 0.5, label_smoothing=0.2)],
    ids=["hot", "the teacher alone", "smoothed"],
)
def test_gradients_under_other_settings(twins, examples, settings):
    twin = twins("qwen2_vl")
    some = examples[:3] if settings.label_smoothing else examples
    assert_equal(learned(twin, some, settings), expected_loss(twin, some, settings))


def test_packing_changes_nothing(twins, examples):
    twin = twins("qwen2_vl")
    assert_equal(learned(twin, examples, of(), pack_tokens=1), learned(twin, examples, of()))


def test_weight_0_is_training_on_labels_alone(twins, examples):
    twin = twins("qwen2_vl")
    plain = [replace(example, soft=None, label=example.label or "round") for example in examples]
    assert_equal(learned(twin, examples, of(0.0)), learned(twin, plain, TrainSettings()))
    assert teach(taken(twin, examples), twin.encoder, of(0.0)).shares is None


def test_the_teacher_alone_at_temperature_1_is_the_cross_entropy_of_normalised_labels(twins, examples):
    twin = twins("qwen2_vl")
    (row,) = examples[:1]
    _, found = learned(twin, [row], of(1.0, 1.0))
    labels = twin.encoder.tasks.of(row).labels
    scores = [answer_log_prob(twin, replace(row, label=name)) for name in labels.names]
    count = scores[labels.names.index("红色")][1]
    teacher = torch.tensor(labels.distribution(COLOURS))
    loss = torch.nn.functional.cross_entropy(torch.stack([score for score, _ in scores]), teacher)
    twin.reference.zero_grad(set_to_none=True)
    (loss / count).backward()
    assert_equal((0.0, found), (0.0, gradients_of(twin.reference)))


def test_class_weights_and_balanced_sampling_apply(twins, examples):
    twin = twins("qwen2_vl")
    some = [replace(one, id=f"{one.id}{at}") for one in examples[:3] for at in range(2)]
    settings = of(class_weights={"红色": 3.0}, sampling="balanced", batch_rows=6)
    rows = taken(twin, some)
    assert list(teach(rows, twin.encoder, settings).weights) == [3, 3, 2, 2, 0.5, 0.5]
    drawn = teach(rows, twin.encoder, settings).plan.rows(0)
    assert sorted(drawn.tolist()) == [0, 1, 2, 3, 4, 5]


def test_a_teacher_is_flattened_by_the_temperature(twins, examples):
    twin = twins("qwen2_vl")
    rows = taken(twin, examples)
    shares = shares_of(read_answers(rows, twin.encoder.tasks), twin.encoder.tasks, of(0.25, 2.0))
    assert [share is None for share in shares] == [False, True, False, True]
    np.testing.assert_allclose(shares[0].hard, [0, 0, 0, 0.75, 0, 0, 0])
    flat = np.sqrt([0.05, 0, 0.5, 0.25, 0, 0.2, 0])
    np.testing.assert_allclose(shares[0].teacher, flat / flat.sum(), rtol=1e-6)
    np.testing.assert_allclose(shares[2].hard, [0.75, 0, 0])  # nobody labelled it: the teacher's likeliest
    sharp = shares_of(read_answers(rows, twin.encoder.tasks), twin.encoder.tasks, of(0.25, 1e-3))
    np.testing.assert_allclose(sharp[0].teacher, [0, 0, 1, 0, 0, 0, 0])


def test_rows_without_a_label_learn_the_likeliest_one(tasks, examples):
    found = list(lessons(examples, tasks, ReasonSettings()))
    assert [row.label for row in found] == ["红色", "红色(浅)", "round", "红色的。"]
    assert found[1] is examples[1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"soft": {"roond": 1.0}}, "id c: soft labels: label 'roond' is not one of the task's 3 labels; .*'round'"),
        ({"soft": {"round": 0.5, "ROUND": 0.5}}, "soft labels: 'round' stands there twice, as 'ROUND' too"),
        ({"task": "talk"}, "the row has soft labels, and task talk is open: it has no labels"),
    ],
)
def test_soft_labels_of_no_label_are_bad_rows(tasks, examples, row, message):
    (found,) = lessons([replace(examples[2], **row)], tasks, ReasonSettings())
    assert isinstance(found, Problem)
    assert re.search(message, str(found))


def test_reasoned_answers_refuse_soft_labels(twins):
    frontend = twins("qwen2_vl").model.frontend
    tasks = parse_tasks({"name": "long", "tasks": [{"name": "long", "labels": ["x", "y"], "answer": "reason"}]}, "long")
    encoder = Encoder(frontend.tokenizer, frontend.spec, tasks)
    rows = survey([Example("1", (Text("?"),), label="x", rationale="so", soft={"x": 1.0})], encoder, labelled=True)
    with pytest.raises(
        ConfigError, match="soft labels need tasks that answer with a label alone, and task long writes"
    ):
        teach(rows, encoder, of())
    assert teach(rows, encoder, of(0.0)).shares is None


@pytest.mark.parametrize(
    ("key", "value"), [("weight", 1.5), ("weight", -0.1), ("temperature", 0.0), ("temperature", float("inf"))]
)
def test_settings_out_of_range(key, value):
    with pytest.raises(ValueError, match=key):
        SoftSettings(**{key: value})


@pytest.fixture
def softly(pictures, tmp_path):
    """The pictures, two thirds of them with soft labels, half of these with nothing else."""
    file, labels = tmp_path / "rows.jsonl", ("red", "green", "blue")
    with ExampleWriter(file, "messages") as writer:
        for number, row in enumerate(tuyi.read(pictures)):
            if number % 3:
                soft = {label: 0.9 if label == row.label else 0.05 for label in labels}
                row = replace(row, soft=soft, label=None if number % 2 else row.label)
            writer.write(row)
    return file


def losses(folder):
    entries = [json.loads(line) for line in (folder / "loss.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


def test_a_run_on_soft_labels(pictures, colours, softly, settings, tmp_path):
    from rich.console import Console

    console = Console(record=True, quiet=False, width=200, file=(tmp_path / "told").open("w"))
    done = tuyi.train(softly, tmp_path / "model", task=colours, valid=pictures, settings=settings, console=console)
    assert "16 of 24 rows have soft labels, learned by 0.5 at temperature 2" in console.export_text()
    assert done.rows == 24
    assert done.loss < losses(done.out)[0]
    assert done.scores["weighted_f1"] > 0.5


def test_validation_wants_labels(colours, softly, settings, tmp_path):
    with pytest.raises(DataError, match=r"8 rows cannot be used:\n.*expected a label, found none"):
        tuyi.train(softly, tmp_path / "model", task=colours, valid=softly, settings=settings)


TASK = {"name": "colours", "labels": ["red", "green", "blue"], "budget": {"max_pixels": 3136, "max_tokens": 256}}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_two_processes_learn_from_teachers_and_reasons_what_one_does(softly, quick, tmp_path, engine):
    file = tmp_path / "all.jsonl"
    with ExampleWriter(file, "messages") as writer:
        for number, row in enumerate(tuyi.read(softly)):
            writer.write(replace(row, rationale="so it looks" if number % 2 else None))
    given = {**quick, "reasons": {"weight": 0.5}, "workers": 1}
    tasks = {"name": "colours", "tasks": [TASK]}
    alone = tuyi.train(file, tmp_path / "alone", task=parse_tasks(tasks, "c"), settings=TrainSettings(**given))
    failed = Processes().train(Job(file, tmp_path / "two", tasks, {**given, "fsdp": engine == "fsdp"}), 2)
    assert not failed, failed
    assert losses(tmp_path / "two") == pytest.approx(losses(alone.out), rel=2e-4, abs=2e-4)


def test_a_stopped_run_goes_on_with_the_same_losses(colours, softly, settings, tmp_path, monkeypatch):
    from tuyi.train.progress import Teller

    whole = tuyi.train(softly, tmp_path / "whole", task=colours, settings=settings)
    plain = Teller.on_step_end

    def stopping(self, args, state, control, **more):
        plain(self, args, state, control, **more)
        if state.global_step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Teller, "on_step_end", stopping)
        with pytest.raises(KeyboardInterrupt):
            tuyi.train(softly, tmp_path / "model", task=colours, settings=settings)
    tuyi.train(softly, tmp_path / "model", task=colours, settings=settings, resume=True)
    assert losses(tmp_path / "model") == pytest.approx(losses(whole.out), rel=1e-5)
