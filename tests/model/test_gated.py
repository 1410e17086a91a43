"""A gated MLP that learns, against torch's own gradients: by torch on a CPU, by quack's kernels on a GPU."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tuyi.data.example import Example
from tuyi.encode.encoder import Encoder
from tuyi.encode.pack import pack
from tuyi.model import products
from tuyi.model.fast import compile_blocks, tune
from tuyi.model.forward import to_device
from tuyi.model.gated import fuse_gated_mlps, gated_mlp
from tuyi.model.load import Model, load_frontend, load_model
from tuyi.task.catalog import TaskSet

NAMES = ["builtin:tiny", "builtin:tiny-qwen2.5", "builtin:tiny-qwen3"]


def parts(rows: int, width: int, height: int, out: int, **where: Any) -> list[Tensor]:
    """Input, gate, up and down."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, rows, width), (height, width), (height, width), (out, height))
    made = [torch.randn(shape, generator=generator) * shape[-1] ** -0.5 for shape in shapes]
    made[0] *= 3 * width**0.5
    return [one.to(**where).requires_grad_() for one in made]


def gradients(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, *, fused: bool) -> list[Tensor]:
    """The output, and gradients of all parts for one that weighs its values."""
    out = gated_mlp(x, gate, up, down)[0] if fused else F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)
    weights = torch.linspace(-1, 1, out.numel(), device=out.device, dtype=out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad(out, (x, gate, up, down), weights)]


def test_gradients_are_torchs():
    given = parts(7, 24, 40, 16, dtype=torch.float64)
    for one, other in zip(gradients(*given, fused=True), gradients(*given, fused=False), strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)


def test_the_operator_is_one_that_compilers_can_hold():
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(gated_mlp, tuple(parts(7, 24, 40, 16)), test_utils=checks)


def losses_and_gradients(model: Model, tasks: TaskSet, examples: list[Example]) -> tuple[Tensor, dict[str, Tensor]]:
    encoder = Encoder(model.frontend.tokenizer, model.spec, tasks)
    batch = to_device(pack([encoder.encode(row, labelled=True) for row in examples]), model.spec, model.device)
    found = model.hf(batch=batch, scored=True)
    found.sum().backward()
    gradients = {name: weight.grad for name, weight in model.hf.named_parameters() if weight.grad is not None}
    model.hf.zero_grad()
    return found.detach(), gradients


def twins(name: str, tasks: TaskSet, **where: Any) -> tuple[Model, Model]:
    frontend = load_frontend(name, [text for one in tasks for text in one.wording])
    model = load_model(frontend, seed=3, **where)
    return model, Model(copy.deepcopy(model.hf), frontend)


@pytest.mark.parametrize(("name", "compiled"), [*((name, False) for name in NAMES), (NAMES[0], True)])
def test_a_model_learns_the_same(name: str, compiled: bool, tasks: TaskSet, rows: dict[str, Example]):
    examples = [rows[key] for key in ("image", "text", "images")]
    plain, fused = twins(name, tasks, device="cpu", dtype="float32")
    assert fuse_gated_mlps(fused.hf.model.language_model) == len(fused.hf.model.language_model.layers)
    assert fuse_gated_mlps(fused.hf.model.visual) == 0, "its layers have biases, or no gate"
    if compiled:
        compile_blocks(fused.hf, "aot_eager")
    (expected, right), (found, made) = (losses_and_gradients(model, tasks, examples) for model in (plain, fused))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert made.keys() == right.keys()
    for key, gradient in right.items():
        torch.testing.assert_close(made[key], gradient, atol=1e-5, rtol=1e-4)


def test_frozen_weights_and_adapters_stay_with_torch(tasks: TaskSet):
    model, _ = twins("builtin:tiny", tasks, device="cpu", dtype="float32")
    layers = model.hf.model.language_model.layers
    layers[0].mlp.up_proj.weight.requires_grad_(False)
    layers[1].mlp.down_proj = nn.Sequential(layers[1].mlp.down_proj)
    assert fuse_gated_mlps(model.hf.model.language_model) == len(layers) - 2


def near(found: Tensor, right: Tensor) -> bool:
    return bool((found.float() - right).norm() < 0.01 * right.norm())


@pytest.mark.gpu
@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("rows", [1024, 3001])
@pytest.mark.parametrize(("width", "height"), [(256, 1280), (1536, 8960), (3584, 2048)])
@pytest.mark.parametrize("in_one_piece", [True, False])
def test_kernels_are_torchs(rows: int, width: int, height: int, in_one_piece: bool):
    given = parts(rows, width, height, width, device="cuda", dtype=torch.bfloat16)
    if in_one_piece:
        products.join(given[1], given[2])
    exact = [one.detach().float().requires_grad_() for one in given]
    for one, other in zip(gradients(*given, fused=True), gradients(*exact, fused=False), strict=True):
        assert one.dtype is torch.bfloat16
        assert near(one, other)


@pytest.mark.gpu
@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("compiled", [False, True])
def test_models_learn_the_same_on_a_gpu(
    name: str, compiled: bool, tasks: TaskSet, rows: dict[str, Example], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(products, "MANY", 1)
    examples = [rows[key] for key in ("image", "text", "images")]
    plain, fused = twins(name, tasks, device="cuda", dtype="bfloat16")
    plain.hf.float()
    assert any("and its gradient" in line for line in tune(fused.hf.model.language_model, gradient=True))
    if compiled:
        compile_blocks(fused.hf)
    (expected, right), (found, made) = (losses_and_gradients(model, tasks, examples) for model in (plain, fused))
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0.05)
    for key, gradient in right.items():
        if ".mlp." in key and "language" in key:
            assert (made[key].float() - gradient).norm() < 0.1 * gradient.norm(), key
