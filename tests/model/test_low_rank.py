"""Adapters added where the product is made, against peft's own way: by torch on a CPU, by quack's kernels on a GPU."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tuyi.model import products
from tuyi.model.load import load_frontend, load_model
from tuyi.model.low_rank import fuse_adapters
from tuyi.train.settings import Freeze, LoraSettings
from tuyi.train.trainable import add_lora


def adapted(width: int, out: int, *, bias: bool = True, dora: bool = False, **where: Any) -> Any:
    """A linear layer with an adapter that has learned something."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(
        nn.Sequential(nn.Linear(width, out, bias=bias)).to(**where),
        LoraConfig(r=4, lora_alpha=6, target_modules=["0"], use_dora=dora),
        autocast_adapter_dtype=False,
    )
    layer: Any = model.base_model.model[0]
    nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    return layer


def gradients(layer: Any, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    out = layer(x)
    weights = torch.linspace(-1, 1, out.numel(), device=out.device, dtype=out.dtype).view_as(out)
    learning = [weight for weight in layer.parameters() if weight.requires_grad]
    assert len(learning) == 2
    return [out.detach(), *torch.autograd.grad(out, [x, *learning], weights)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("compiled", [False, True])
def test_adapters_learn_the_same(bias: bool, compiled: bool):
    plain = adapted(24, 40, bias=bias, dtype=torch.float64)
    fused = copy.deepcopy(plain)
    assert fuse_adapters(fused) == 1
    x = torch.randn(1, 7, 24, dtype=torch.float64)
    run = torch.compile(fused, backend="aot_eager", dynamic=True) if compiled else fused
    for one, other in zip(gradients(run, x), gradients(plain, x), strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)


def test_weights_and_biases_get_their_gradients_too():
    torch.manual_seed(0)
    x, weight, bias, more = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 5, 8), (6, 8), (6,), (2, 5, 6))
    )
    torch.autograd.gradcheck(products.linear, (x, weight, bias, more))
    torch.library.opcheck(products.linear, (x, weight, bias, more))


def test_other_adapters_stay_pefts():
    assert fuse_adapters(adapted(24, 40, dora=True)) == 0
    two = adapted(24, 40)
    two.update_layer("second", r=4, lora_alpha=6, config=two_settings())
    two.set_adapter(["default", "second"])
    assert fuse_adapters(two) == 0
    merged = adapted(24, 40)
    merged.merge()
    assert fuse_adapters(merged) == 0


def two_settings() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, lora_alpha=6)


def test_every_adapter_of_a_model():
    hf = load_model(load_frontend("builtin:tiny", ["text"]), device="cpu").hf
    freeze = Freeze(vision=True, projector=True, language=False)
    add_lora(hf, LoraSettings(), freeze)
    layers = len(hf.model.language_model.layers)
    assert fuse_adapters(hf) == 7 * layers


@pytest.mark.gpu
@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("rows", [1024, 3001])
@pytest.mark.parametrize(("width", "out"), [(1536, 8960), (3584, 512), (18944, 3584)])
def test_kernels_are_torchs(rows: int, width: int, out: int):
    layer = adapted(width, out, device="cuda", dtype=torch.bfloat16)
    exact = copy.deepcopy(layer).float()
    assert fuse_adapters(layer) == 1
    x = torch.randn(1, rows, width, device="cuda", dtype=torch.bfloat16)
    for one, other in zip(gradients(layer, x), gradients(exact, x.float()), strict=True):
        assert one.dtype is torch.bfloat16
        assert (one.float() - other).norm() < 0.01 * other.norm()
