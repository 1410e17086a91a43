"""Rounding kernels against torch's formula: compiled for GPUs without one, interpreted on a CPU, run on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tuyi.model.fp8 import rounded_by_torch

rounding: Any = pytest.importorskip("tuyi.model.rounding", reason="needs triton")
needs_fp8 = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="needs Ada or Hopper"
)
SHAPES = [(1, 16), (5, 96), (3, 100), (7, 3584), (4, 8960), (2, 18944)]


def rows(shape: tuple[int, int], seed: int, dtype: torch.dtype, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(shape, generator=generator) * torch.logspace(-3, 3, shape[0])[:, None]
    found[-1] = 0
    return found.to(device, dtype)


def check(shape: tuple[int, int], dtype: torch.dtype, device: str) -> None:
    """Both kernels give what torch's formula gives, but for the last bit where a value lies between two."""
    x, up = (rows(shape, seed, dtype, device) for seed in (0, 1))
    for found, expected in (
        (rounding.rounded(x), rounded_by_torch(x)),
        (rounding.swiglu_rounded(x, up), rounded_by_torch(F.silu(x) * up)),
    ):
        (values, scale), (right, right_scale) = found, expected
        assert values.dtype is right.dtype is torch.float8_e4m3fn
        assert (values.shape, scale.shape) == (shape, (shape[0], 1))
        torch.testing.assert_close(scale, right_scale, rtol=2e-2 if dtype is torch.bfloat16 else 1e-5, atol=0)
        one, other = values.float() * scale, right.float() * right_scale
        step = torch.maximum(other.abs() / 8, 2**-9 * right_scale)  # from one number of 8 bits to the next
        # triton's interpreter loses the carry where a value is rounded up to a power of two
        carried = [part.float().frexp().mantissa.abs() == 0.5 for part in (values, right)]
        whole = ~(carried[0] | carried[1]) | (device == "cuda")
        assert ((one - other).abs() <= 1.1 * step)[whole].all()
        assert (values.float() != right.float()).float().mean() < 0.1


@pytest.mark.gpu
@needs_fp8
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_are_torchs(shape: tuple[int, int], dtype: torch.dtype):
    check(shape, dtype, "cuda")


SCRIPT = """
import torch
from test_rounding import check
for shape in ((1, 16), (5, 96), (3, 100), (2, 5000)):
    check(shape, torch.float32, "cpu")
    check(shape, torch.bfloat16, "cpu")
    print("same")
"""


def test_the_kernels_interpreted_are_torchs():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["same"] * 4


@pytest.mark.parametrize(("capability", "warps", "block"), [(89, 4, 4096), (90, 16, 32768)])
def test_kernels_can_be_compiled_for_gpus_that_are_not_here(capability: int, warps: int, block: int):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    for kernel in (rounding._round_kernel, rounding._swiglu_kernel):
        types = dict.fromkeys(kernel.arg_names, "*bf16")
        types |= {"out_ptr": "*fp8e4nv", "scale_ptr": "*fp32", "width": "i32", "BLOCK": "constexpr"}
        source = ASTSource(kernel, types, {"BLOCK": block})
        made = compile(source, GPUTarget("cuda", capability, 32), {"num_warps": warps})
        assert len(made.asm["cubin"]) > 1000


def test_compilers_are_told_the_shapes():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x = torch.empty(64, 5, dtype=torch.bfloat16).t()
        for values, scale in (rounding.rounded(x), rounding.swiglu_rounded(x, x)):
            assert (values.shape, values.dtype, scale.shape, scale.dtype) == (
                (5, 64), torch.float8_e4m3fn, (5, 1), torch.float32,
            )  # fmt: skip
            assert values.is_contiguous()
