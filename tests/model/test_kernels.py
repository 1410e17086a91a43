"""The choice of an attention kernel; on a GPU each kernel that is there, against attention written out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dense_kernel import dense_kernel
from torch import Tensor

from tuyi.model import kernels, trials
from tuyi.model.kernels import KERNELS, Kernel, attend, varlen_available
from tuyi.model.segments import Segments
from tuyi.model.trials import Pick, fastest

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


def exactly(q: Tensor, k: Tensor, v: Tensor, at: Segments, scale: float) -> tuple[Tensor, Tensor]:
    """Attention segment by segment, in float64."""
    return dense_kernel(q.double(), k.double(), v.double(), at, scale)


def segments(queries: list[int], keys: list[int], causal: bool, device: str) -> Segments:
    cu_q, cu_k = (torch.tensor([0, *x], device=device).cumsum(0).to(torch.int32) for x in (queries, keys))
    return Segments(cu_q, cu_k, max(queries), max(keys), causal)


# --- the choice -------------------------------------------------------------------------------------------------------


class Stopwatch:
    """The GPU's clock, moved by fake kernels."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at = 0.0

    def record(self) -> None:
        self.at = Stopwatch.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: Stopwatch) -> float:
        return (other.at - self.at) * 1e3


def fake(name: str, seconds: float, error: Exception | None = None, off: float = 0.0) -> Kernel:
    def run(q: Tensor, k: Tensor, v: Tensor, at: Segments, scale: float) -> tuple[Tensor, Tensor]:
        if error is not None:
            raise error
        assert scale == q.shape[-1] ** -0.5
        assert at.cu_q[-1] == len(q)
        assert at.cu_k[-1] == len(k) == len(v)
        assert (at.max_q, at.max_k) == tuple(int(cu.diff().max()) for cu in (at.cu_q, at.cu_k))
        Stopwatch.now += seconds
        return q + off, torch.zeros(q.shape[1], len(q))

    return Kernel(name, f"package of {name}", (), (0, 0), run)


@pytest.fixture
def choice(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Chooses among fake kernels, all of them present."""

    def of(*fakes: Kernel, causal: bool = False) -> Pick:
        monkeypatch.setattr(trials, "KERNELS", {kernel.name: kernel for kernel in fakes})
        fastest.cache_clear()
        return fastest(torch.device("cpu"), 2, 1, 16, causal)

    monkeypatch.setattr(Kernel, "present", lambda self, device: True)
    monkeypatch.setattr(torch.cuda, "Event", Stopwatch)
    yield of
    fastest.cache_clear()


@pytest.mark.parametrize("causal", [False, True])
def test_the_fastest_is_chosen_by_its_rate(choice: Any, causal: bool):
    pick = choice(fake("fa2", 4e-3), fake("quick", 1e-3), fake("slow", 8e-3), causal=causal)
    assert pick.kernel.name == "quick"
    assert pick.refused == {}
    lengths = [1536, 1024, 1536, 1536, 2048] if causal else [4096, 3072, 4096, 4096]
    flops = sum(2 * 2 * n * n * 2 * 16 for n in lengths) / (2 if causal else 1)
    assert pick.rates == pytest.approx({"fa2": flops / 4e9, "quick": flops / 1e9, "slow": flops / 8e9})


def test_a_wrong_kernel_is_refused_however_fast(choice: Any):
    pick = choice(fake("fa2", 4e-3), fake("wrong", 1e-6, off=0.1), fake("odd", 1e-6, off=math.nan))
    assert pick.kernel.name == "fa2"
    assert pick.refused == dict.fromkeys(("wrong", "odd"), "its results differ from those of fa2")
    assert list(pick.rates) == ["fa2"]


def test_rows_with_more_keys_than_queries_are_tried_too(choice: Any):
    def run(q: Tensor, k: Tensor, v: Tensor, at: Segments, scale: float) -> tuple[Tensor, Tensor]:
        return q + (0.1 if at.max_k > at.max_q else 0.0), torch.zeros(q.shape[1], len(q))

    pick = choice(fake("fa2", 4e-3), Kernel("equal", "", (), (0, 0), run), causal=True)
    assert pick.refused == {"equal": "its results differ from those of fa2"}


@pytest.mark.parametrize(
    "error", [RuntimeError("no plan\nfor this"), ImportError("no plan"), TypeError("no plan"), ValueError("no plan")]
)
def test_a_kernel_that_fails_is_told_of(choice: Any, error: Exception):
    pick = choice(fake("fa2", 4e-3), fake("broken", 1e-6, error))
    assert pick.kernel.name == "fa2"
    assert pick.refused == {"broken": "no plan"}


def test_a_failure_without_words_has_a_name(choice: Any):
    assert choice(fake("fa2", 1.0), fake("broken", 1.0, AssertionError())).refused == {"broken": "AssertionError"}


def test_one_choice_for_each_shape(choice: Any):
    one = choice(fake("fa2", 1e-3))
    assert fastest(torch.device("cpu"), 2, 1, 16, False) is one
    assert fastest(torch.device("cpu"), 2, 2, 16, False) is not one


def test_what_a_choice_says():
    pick = Pick(KERNELS["cudnn"], {"fa2": 249.6, "cudnn": 511.2}, {})
    assert str(pick) == "cudnn (TFLOP/s here: cudnn 511, fa2 250)"
    other = Pick(
        KERNELS["fa2"], {"fa2": 249.6}, {"fa4": "no such size", "cudnn": "its results differ from those of fa2"}
    )
    assert str(other) == (
        "fa2 (TFLOP/s here: fa2 250; fa4 cannot be used: no such size; "
        "cudnn cannot be used: its results differ from those of fa2)"
    )


def test_presence_needs_a_gpu_and_a_package(monkeypatch: pytest.MonkeyPatch):
    gpu = torch.device("cuda")
    there = Kernel("a", "p", ("no.such.package", "json"), (8, 0), kernels._fa2)
    missing = Kernel("b", "p", ("no.such.package", "none_such"), (8, 0), kernels._fa2)
    assert not there.present(torch.device("cpu"))
    for capability, expected in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert there.present(gpu) is expected
        assert not missing.present(gpu)


def test_kernels_take_16_bits_on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(kernels, "_is_ampere", lambda device: True)
    assert varlen_available(gpu)
    assert varlen_available(gpu, torch.float16)
    assert not varlen_available(gpu, torch.float32)
    assert not varlen_available(cpu)
    monkeypatch.setattr(kernels, "_is_ampere", lambda device: False)
    assert not varlen_available(gpu)


def test_attend_falls_back_to_what_every_gpu_has(monkeypatch: pytest.MonkeyPatch):
    called: list[Any] = []
    monkeypatch.setitem(KERNELS, "fa2", SimpleNamespace(run=lambda *args: called.append(args) or ("fa2", args[-1])))
    other: Any = SimpleNamespace(run=lambda *args: ("other", args[-1]))
    q = torch.zeros(4, 2, 64)
    at = segments([4], [4], True, "cpu")
    assert attend(q, q, q, at, None) == ("fa2", 0.125)
    assert attend(q, q, q, at, 0.5) == ("fa2", 0.5)
    assert attend(q, q, q, at, 0.5, other) == ("other", 0.5)
    assert called[0][3] is at


# --- on a GPU ---------------------------------------------------------------------------------------------------------

SHAPES = {
    "tower": (16, 16, 80, False),
    "tower of Qwen3": (16, 16, 72, False),
    "language 2B": (12, 2, 128, True),
    "language 7B": (28, 4, 128, True),
    "branches see prompts": (28, 4, 128, False),
    "one head each": (8, 8, 64, True),
}
LENGTHS: dict[str, tuple[list[int], list[int]]] = {
    "equal": ([256, 256], [256, 256]),
    "short and long": ([1, 700, 3, 1300], [1, 700, 3, 1300]),
    "keys before the queries": ([5, 1, 130, 64], [900, 40, 131, 1024]),
}


def inputs(heads: int, kv_heads: int, size: int, at: Segments, device: str = "cuda") -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(int(at.cu_q[-1]), heads, size, generator=generator)
    k, v = (torch.randn(int(at.cu_k[-1]), kv_heads, size, generator=generator) for _ in range(2))
    q, k, v = (x.to(device, torch.bfloat16) for x in (q, k, v))
    return q, k, v


def usable(kernel: Kernel, heads: int, kv_heads: int, size: int, causal: bool) -> None:
    """Skips a kernel that is not here, or that the choice would refuse for this shape."""
    device = torch.device("cuda")
    if not kernel.present(device):
        pytest.skip(f"{kernel.comes_with} is not installed, or the GPU is too old")
    refused = fastest(device, heads, kv_heads, size, causal).refused
    if kernel.name in refused:
        pytest.skip(f"refused here: {refused[kernel.name]}")


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [pytest.param(name, marks=needs_gpu) for name in KERNELS])
def test_a_kernel_is_attention_written_out(name: str, shape: str, lengths: str):
    heads, kv_heads, size, causal = SHAPES[shape]
    usable(KERNELS[name], heads, kv_heads, size, causal)
    at = segments(*LENGTHS[lengths], causal, "cuda")
    q, k, v = inputs(heads, kv_heads, size, at)
    out, lse = KERNELS[name].run(q, k, v, at, 0.11)
    expected, normaliser = exactly(q, k, v, at, 0.11)
    assert out.dtype is torch.bfloat16
    assert lse.dtype is torch.float32
    assert lse.shape == (heads, len(q))
    torch.testing.assert_close(out.double(), expected, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(lse.double(), normaliser, atol=5e-3, rtol=1e-3)


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs_gpu) for name in KERNELS])
def test_a_kernel_takes_slices_and_new_lengths(name: str):
    """Queries behind others, heads that lie beside others, one shape after another through kept plans."""
    usable(KERNELS[name], 12, 2, 128, True)
    usable(KERNELS[name], 12, 2, 128, False)
    for last in (3, 90, 17):
        at = segments([20, last], [40, 200 + last], False, "cuda")
        both = segments([20, last], [20, last], True, "cuda")
        q, k, v = inputs(12, 2, 128, at)
        wide = torch.cat([q, k[: len(q)], v[: len(q)]], dim=1)
        behind = torch.cat([torch.zeros_like(q), q])[len(q) :]
        for found, expected in (
            (KERNELS[name].run(behind, k, v, at, 0.1), exactly(q, k, v, at, 0.1)),
            (
                KERNELS[name].run(wide[:, :12], wide[:, 12:14], wide[:, 14:], both, 0.1),
                exactly(q, k[: len(q)], v[: len(q)], both, 0.1),
            ),
        ):
            torch.testing.assert_close(found[0].double(), expected[0], atol=2e-2, rtol=2e-2)
            torch.testing.assert_close(found[1].double(), expected[1], atol=5e-3, rtol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_choice_on_this_gpu():
    pick = fastest(torch.device("cuda"), 16, 16, 80, False)
    assert "fa2" in pick.rates
    assert pick.rates[pick.kernel.name] == max(pick.rates.values())
    present = {name for name, kernel in KERNELS.items() if kernel.present(torch.device("cuda"))}
    assert pick.rates.keys() | pick.refused.keys() == present
    assert "differ" not in str(pick.refused)


@pytest.mark.parametrize("gradient", ["right", "wrong", "none"])
def test_what_learns_is_tried_with_its_gradients(monkeypatch: pytest.MonkeyPatch, gradient: str):
    """A kernel without gradients is not tried, and one with wrong ones is refused, however fast it is."""
    monkeypatch.setattr(Kernel, "present", lambda self, device: True)
    monkeypatch.setattr(torch.cuda, "Event", Stopwatch)

    def run(q: Tensor, k: Tensor, v: Tensor, at: Segments, scale: float) -> tuple[Tensor, Tensor]:
        assert q.requires_grad
        Stopwatch.now += 1e-3
        wide = (k + v)[: len(q)].repeat_interleave(2, dim=1)
        return q + (wide if gradient == "right" else 1.2 * wide - 0.2 * wide.detach()), k

    def slow(q: Tensor, k: Tensor, v: Tensor, at: Segments, scale: float) -> tuple[Tensor, Tensor]:
        Stopwatch.now += 4e-3
        return q + (k + v)[: len(q)].repeat_interleave(2, dim=1), k

    fakes = (
        Kernel("fa2", "", (), (0, 0), slow, "torch"),
        Kernel("quick", "", (), (0, 0), run, None if gradient == "none" else "torch"),
    )
    monkeypatch.setattr(trials, "KERNELS", {kernel.name: kernel for kernel in fakes})
    fastest.cache_clear()
    try:
        pick = fastest(torch.device("cpu"), 2, 1, 16, True, True)
    finally:
        fastest.cache_clear()
    assert pick.kernel.name == ("quick" if gradient == "right" else "fa2")
    assert pick.refused == ({"quick": "its results differ from those of fa2"} if gradient == "wrong" else {})
