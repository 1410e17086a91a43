"""Normalisation in one kernel against torch's formula: the kernel itself on a GPU, interpreted on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tuyi.model.load import load_frontend, load_model

NAMES = {"builtin:tiny": 2, "builtin:tiny-qwen2.5": 0, "builtin:tiny-qwen3": 2}
"""Built-in models, and layer norms in a block of their tower."""

norms: Any = pytest.importorskip("tuyi.model.norms", reason="needs triton")


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """In float64; the root-mean-square form rounds before the weight, as transformers does."""
    values = x.double()
    if bias is not None:
        return nn.functional.layer_norm(values, x.shape[-1:], weight.double(), bias.double(), eps)
    values = values * torch.rsqrt(values.square().mean(-1, keepdim=True) + eps)
    return values.to(x.dtype).double() * weight.double()


def tensors(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator) * 3 + 1.5
    weight, bias = (torch.randn(shape[-1], generator=generator) for _ in range(2))
    return x.to(device, dtype), weight.to(device, dtype), bias.to(device, dtype)


SHAPES = [(5, 96), (1, 7, 128), (3, 4, 1280), (2, 3584), (1, 8192), (3, 100)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_are_torchs(shape: tuple[int, ...], dtype: torch.dtype):
    x, weight, bias = tensors(shape, dtype, "cuda")
    off = 1e-5 if dtype is torch.float32 else 2e-2
    for found, expected in (
        (norms.layer_norm(x, weight, bias, 1e-6), reference(x, weight, bias, 1e-6)),
        (norms.rms_norm(x, weight, 1e-6), reference(x, weight, None, 1e-6)),
        (norms.rms_norm(x.transpose(0, -2), weight, 1e-6), reference(x.transpose(0, -2), weight, None, 1e-6)),
    ):
        assert found.dtype is dtype
        assert found.is_contiguous()
        torch.testing.assert_close(found.double(), expected, atol=off, rtol=off)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_norm_of_a_model_stays_what_it_was(name: str, dtype: str):
    hf = load_model(load_frontend(name, ["text"]), device="cuda", dtype=dtype).hf
    found = [module for module in hf.modules() if is_norm(module)]
    inputs = [tensors((6, module.weight.shape[0]), module.weight.dtype, "cuda")[0] for module in found]
    with torch.inference_mode():
        before = [module(x) for module, x in zip(found, inputs, strict=True)]
        norms.fuse_norms(hf)
        after = [module(x) for module, x in zip(found, inputs, strict=True)]
    off = 1e-5 if dtype == "float32" else 2e-2
    for one, other in zip(after, before, strict=True):
        torch.testing.assert_close(one, other, atol=off, rtol=off)


def is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")


@pytest.mark.parametrize("name", NAMES)
def test_every_norm_of_a_model_is_replaced_and_nothing_else(name: str):
    hf = load_model(load_frontend(name, ["text"]), device="cpu").hf
    before = {key: module.forward.__func__ for key, module in hf.named_modules()}
    norms.fuse_norms(hf)
    changed = {key for key, module in hf.named_modules() if module.forward.__func__ is not before[key]}
    assert changed == {key for key, module in hf.named_modules() if is_norm(module)}
    layers = sum(isinstance(module, nn.LayerNorm) for module in hf.model.visual.blocks.modules())
    assert layers == NAMES[name] * 3
    forms: dict[bool, Callable[..., Tensor]] = {True: norms._layer_forward, False: norms._rms_forward}
    for module in hf.modules():
        if is_norm(module):
            assert module.forward.__func__ is forms[isinstance(module, nn.LayerNorm)]


@pytest.mark.parametrize("shape", [(5, 96), (2, 3, 128)])
def test_compilers_are_told_the_shape(shape: tuple[int, ...]):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x, weight = torch.empty(shape, dtype=torch.bfloat16).transpose(0, -2), torch.empty(shape[-1])
        for out in (norms.layer_norm(x, weight, weight, 1e-6), norms.rms_norm(x, weight, 1e-6)):
            assert (out.shape, out.dtype) == (x.shape, x.dtype)
            assert out.is_contiguous()


SCRIPT = """
import torch
from test_norms import norms, reference, tensors
for shape in ((5, 96), (2, 3, 100)):
    for dtype in (torch.float32, torch.bfloat16):
        x, weight, bias = tensors(shape, dtype, "cpu")
        off = 1e-5 if dtype is torch.float32 else 2e-2
        for found, expected in (
            (norms.layer_norm(x, weight, bias, 1e-6), reference(x, weight, bias, 1e-6)),
            (norms.rms_norm(x, weight, 1e-6), reference(x, weight, None, 1e-6)),
        ):
            assert found.dtype is dtype
            torch.testing.assert_close(found.double(), expected, atol=off, rtol=off)
            print("same")
"""


@pytest.mark.slow
def test_the_kernels_interpreted_are_torchs():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["same"] * 8
