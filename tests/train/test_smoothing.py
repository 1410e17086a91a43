"""Label smoothing: the shares of a row's labels, and gradients equal to those of every label as a row of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tuyi.data.example import Example, Text
from tuyi.encode.encoder import Encoder
from tuyi.encode.pack import pack
from tuyi.encode.survey import survey
from tuyi.errors import ConfigError
from tuyi.model.forward import to_device
from tuyi.task.catalog import parse_tasks
from tuyi.train.loss import answer_loss
from tuyi.train.mixing import read_answers
from tuyi.train.settings import TrainSettings
from tuyi.train.shares import Share, shares_of, tokens_with_labels


@pytest.fixture
def examples(picture):
    """Two tasks, a picture that comes twice, a row without one, weights."""
    return [
        Example("a", (picture(70, 90, 1), Text(" 什么颜色")), task="colour", label="红色"),
        Example("b", (Text("没有图片"),), task="colour", label="红色(浅)", weight=2.0),
        Example("c", (picture(60, 60, 2), Text("和"), picture(70, 90, 1)), task="shape", label="Round", weight=0.5),
    ]


def smoothed(twin, examples, smoothing):
    rows = survey(examples, twin.encoder, labelled=True)
    answers = read_answers(rows, twin.encoder.tasks)
    return shares_of(answers, twin.encoder.tasks, TrainSettings(label_smoothing=smoothing))


def taught(twin, examples, shares):
    """The pack of rows that are taught distributions."""
    encoded = [twin.encoder.encode(example, labelled=False) for example in examples]
    labels = [twin.encoder.labels(twin.encoder.tasks.of(example)) for example in examples]
    return pack(encoded, labels, shares=[share.hard for share in shares])


def gradients(model, losses):
    """Gradients of all weights, of losses one after the other."""
    model.zero_grad()
    total = 0.0
    for loss in losses:
        loss.backward()
        total += float(loss.detach())
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    return total, found


def packed_loss(twin, packed):
    batch = to_device(packed, twin.model.spec, twin.model.device, always_see=True)
    return answer_loss(twin.model.hf(batch=batch, scored=True), batch)


def assert_equal_gradients(found, expected):
    assert expected.keys() <= found.keys()
    assert len(expected) > 50
    scale = max(float(gradient.norm()) for gradient in expected.values())
    for name, gradient in expected.items():
        difference = float((found[name] - gradient).norm())
        assert difference <= 1e-5 * max(float(gradient.norm()), 1e-2 * scale), (name, difference)


def single_losses(twin, examples, shares):
    """Each label of each row as a row of its own, as `test_gradients` compares with transformers, times its share."""
    for example, share in zip(examples, shares, strict=True):
        for label, part in zip(twin.encoder.tasks.of(example).labels.names, share.hard, strict=True):
            one = replace(example, label=label, weight=example.weight * float(part))
            yield packed_loss(twin, pack([twin.encoder.encode(one, labelled=True)]))


def test_no_smoothing_is_plain_training(twin, examples):
    shares = [Share(hard) for hard in (np.eye(7)[3], np.eye(7)[5], np.eye(3)[0])]
    plain = pack([twin.encoder.encode(example, labelled=True) for example in examples])
    expected_loss, expected = gradients(twin.model.hf, [packed_loss(twin, plain)])
    loss, found = gradients(twin.model.hf, [packed_loss(twin, taught(twin, examples, shares))])
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert_equal_gradients(found, expected)


def test_smoothed_gradients_are_those_of_every_label_by_itself(twin, examples):
    shares = smoothed(twin, examples, 0.2)
    expected_loss, expected = gradients(twin.model.hf, single_losses(twin, examples, shares))
    loss, found = gradients(twin.model.hf, [packed_loss(twin, taught(twin, examples, shares))])
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert_equal_gradients(found, expected)


def test_smoothing_takes_from_the_answer_and_gives_to_all(twins, examples):
    twin = twins("qwen2_vl")
    shares = smoothed(twin, [*examples, replace(examples[0], id="d")], 0.1)
    names = [twin.encoder.tasks.of(example).labels.names for example in examples]
    for share, labels, label in zip(shares, names, ("红色", "红色(浅)", "round"), strict=False):
        expected = np.full(len(labels), 0.1 / len(labels))
        expected[labels.index(label)] += 0.9
        np.testing.assert_allclose(share.hard, expected, rtol=1e-6)
        assert share.hard.sum() == pytest.approx(1)
        assert share.teacher is None
    assert len(shares) == 4
    assert shares[0] is shares[3]
    assert smoothed(twin, examples, 0) is None


def test_rows_take_up_all_their_labels(twins, examples):
    twin = twins("qwen2_vl")
    rows = survey(examples, twin.encoder, labelled=True)
    shares = smoothed(twin, examples, 0.1)
    found = tokens_with_labels(rows, read_answers(rows, twin.encoder.tasks), twin.encoder, [None, *shares[1:]])
    assert found[0] == rows.tokens[0]
    found[0] = tokens_with_labels(rows, read_answers(rows, twin.encoder.tasks), twin.encoder, shares)[0]
    each = [len(taught(twin, [example], smoothed(twin, [example], 0.1)).ids) for example in examples]
    assert found.tolist() == each


@pytest.mark.parametrize("answer", ["reason", "open"])
def test_answers_with_free_text_are_refused(twins, answer):
    rest = {} if answer == "open" else {"labels": ["x", "y"]}
    tasks = parse_tasks(
        {"name": "two", "tasks": [{"name": "plain", "labels": ["x", "y"]}, {"name": "long", "answer": answer, **rest}]},
        "two",
    )
    frontend = twins("qwen2_vl").model.frontend
    encoder = Encoder(frontend.tokenizer, frontend.spec, tasks)
    row = Example("1", (Text("?"),), task="plain", label="x")
    rows = [row, replace(row, id="2", task="long", rationale="so")]
    settings = TrainSettings(label_smoothing=0.1)
    assert len(shares_of(read_answers(survey(rows[:1], encoder, labelled=True), tasks), tasks, settings)) == 1
    with pytest.raises(ConfigError, match="label_smoothing needs tasks that answer with a label alone, and task long"):
        shares_of(read_answers(survey(rows, encoder, labelled=True), tasks), tasks, settings)


def test_settings_hold_smoothing_below_one():
    with pytest.raises(ValueError, match="less than 1"):
        TrainSettings(label_smoothing=1)
