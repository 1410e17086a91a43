"""Packing changes nothing of what is learned: gradients equal those of plain transformers, row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tuyi.data.example import Example, Text
from tuyi.encode.pack import pack
from tuyi.model.forward import to_device
from tuyi.train.trainer import answer_loss


def rows(picture, clip):
    return [
        Example("a", (picture(70, 90, 1), Text(" 什么颜色")), task="colour", label="红色"),
        Example("b", (Text("没有图片"),), task="colour", label="A", weight=2.0),
        Example("c", (picture(60, 60, 2), Text("和"), picture(90, 40, 3)), task="shape", label="round", weight=0.5),
        Example("d", (clip, Text(" ?")), task="shape", label="z"),
    ]


def reference_gradients(twin, examples):
    """Gradients of the weighted sum of answer losses in the never-adapted model, one row at a time."""
    twin.reference.zero_grad()
    for example in examples:
        encoded = twin.encoder.encode(example, labelled=True)
        answer = twin.encoder.tasks.of(example).target(example)
        inputs = twin.inputs(example, answer)
        if not example.images and not example.videos:
            inputs.pop("mm_token_type_ids", None)
        logits = twin.reference(**inputs).logits[0]
        at = np.flatnonzero(encoded.supervised)
        loss = torch.nn.functional.cross_entropy(
            logits[at - 1], torch.from_numpy(encoded.ids[at]).long(), reduction="sum"
        )
        (loss * example.weight).backward()
    return {name: weight.grad.clone() for name, weight in twin.reference.named_parameters() if weight.grad is not None}


def test_packed_gradients_are_those_of_single_rows(twin, picture, clip):
    examples = rows(picture, clip)
    expected = reference_gradients(twin, examples)
    model = twin.model.hf
    model.zero_grad()
    encoded = [twin.encoder.encode(example, labelled=True) for example in examples]
    for some in (encoded[:1], encoded[1:]):
        batch = to_device(pack(some), twin.model.spec, twin.model.device, always_see=True)
        answer_loss(model(batch=batch, scored=True), batch).backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    assert expected.keys() <= found.keys()
    scale = max(float(gradient.norm()) for gradient in expected.values())
    for name, gradient in expected.items():
        difference = float((found[name] - gradient).norm())
        assert difference <= 1e-5 * max(float(gradient.norm()), 1e-2 * scale), (
            name,
            difference,
            float(gradient.norm()),
        )


def test_a_pack_without_pictures_still_runs_the_tower(twin):
    example = Example("b", (Text("没有图片"),), task="colour", label="A")
    packed = pack([twin.encoder.encode(example, labelled=True)])
    model = twin.model.hf
    model.zero_grad()
    seen = to_device(packed, twin.model.spec, twin.model.device, always_see=True)
    blind = to_device(packed, twin.model.spec, twin.model.device)
    assert blind.tower is None
    with torch.no_grad():
        torch.testing.assert_close(model(batch=seen), model(batch=blind))
    answer_loss(model(batch=seen, scored=True), seen).backward()
    tower = [weight.grad for weight in model.model.visual.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in tower)
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_weights_scale_a_row(twin, picture, weight):
    example = Example("a", (picture(), Text("?")), task="colour", label="红", weight=weight)
    batch = to_device(pack([twin.encoder.encode(example, labelled=True)]), twin.model.spec, twin.model.device)
    with torch.no_grad():
        plain = torch.nn.functional.cross_entropy(twin.model.hf(batch=batch), batch.targets, reduction="sum")
        torch.testing.assert_close(answer_loss(twin.model.hf(batch=batch, scored=True), batch), plain * weight)
