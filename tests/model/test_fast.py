"""Compiled blocks: the same predictions, and no program for each new length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
import torch
from transformers import AttentionInterface

from tuyi.data.example import Example, Image, Text
from tuyi.encode.encoder import Encoder
from tuyi.model import attention
from tuyi.model.fast import compile_blocks, tune
from tuyi.model.load import load_frontend, load_model
from tuyi.predict.local import LocalEngine
from tuyi.predict.warm import warm_up
from tuyi.task.catalog import TaskSet

NAMES = {"qwen2_vl": "builtin:tiny", "qwen2_5_vl": "builtin:tiny-qwen2.5", "qwen3_vl": "builtin:tiny-qwen3"}


def graphs() -> int:
    """Programs that torch has compiled in this process so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing compiled before, nothing left behind."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    attention.register()


@pytest.mark.parametrize(
    "family",
    [name if name == "qwen2_vl" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_compiled_blocks_predict_the_same_with_no_program_for_each_length(
    family: str, tasks: TaskSet, picture: Callable[..., Image]
):
    torch.set_num_threads(1)
    frontend = load_frontend(NAMES[family], [text for one in tasks for text in one.wording])
    model, encoder = load_model(frontend, device="cpu"), Encoder(frontend.tokenizer, frontend.spec, tasks)
    packs = [[(row, encoder.length(row, labelled=False).tokens) for row in rows] for rows in several(picture)]
    with closing(LocalEngine(model, encoder, pack_tokens=100_000, workers=1)) as engine:
        expected = [list(engine.predict(rows)) for rows in packs]
        assert [len(many) for many in expected] == [1] * 6, "each a pack"
        compile_blocks(model.hf, backend="eager")
        before = graphs()
        warm_up(model)
        after = graphs()
        assert before < after <= before + 12, "one program for each part of a kind of block"
        for rows, (theirs,) in zip(packs, expected, strict=True):
            (ours,) = engine.predict(rows)
            for one, other in zip(ours, theirs, strict=True):
                assert (one.id, one.label) == (other.id, other.label)
                assert dict(one.logprobs) == pytest.approx(dict(other.logprobs), rel=1e-5, abs=1e-5)
            assert graphs() == after, f"compiled anew for {len(rows)} rows, the first {rows[0][0].id}"


def several(picture: Callable[..., Image]) -> list[list[Example]]:
    """Six packs: one row and nine, short and long, of one task and of two, with equal pictures and with none."""

    def row(name: str, *content: Any, task: str = "colour") -> Example:
        return Example(id=name, content=tuple(Text(x) if isinstance(x, str) else x for x in content), task=task)

    return [
        [row("one", picture(90, 60, seed=1), "what?")],
        [row(f"nine {i}", "你好" * i, picture(40 + 20 * i, 70, seed=i), "what?") for i in range(9)],
        [row("long", "这是什么" * 60, picture(300, 50, seed=3)), row("short", picture(30, 30, seed=4), "x")],
        [row(f"two {i}", picture(70, 90, seed=i), "what?", task=("colour", "shape")[i % 2]) for i in range(5)],
        [row(f"equal {i}", picture(70, 90), "what?" * (i + 1)) for i in range(3)],
        [row("text", "用户: 你好"), row("more text", "用户: 你好，这个能用吗"), row("z", "zz", task="shape")],
    ]


def test_attention_stays_between_the_compiled_parts():
    compile_blocks(load_model(load_frontend("builtin:tiny", ["text"]), device="cpu").hf, backend="eager")
    registered = AttentionInterface()[attention.NAME]
    assert registered is not attention.packed_attention
    assert getattr(registered, "_torchdynamo_disable", False)
    attention.register()
    assert AttentionInterface()[attention.NAME] is attention.packed_attention


def test_a_cpu_has_nothing_to_tune():
    hf = load_model(load_frontend("builtin:tiny", ["text"]), device="cpu").hf
    before = {name: module.forward for name, module in hf.named_modules()}
    assert tune(hf) == []
    assert attention.choose_kernels(hf) == {}
    assert {name: module.forward for name, module in hf.named_modules()} == before
    assert not any(hasattr(module, "tuyi_kernel") for module in hf.modules())
