"""8-bit linear layers, and what 16 bits do to a model's answers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tuyi.data.example import Example
from tuyi.encode.encoder import Encoder
from tuyi.encode.pack import pack
from tuyi.errors import ModelError
from tuyi.model import fp8
from tuyi.model.fast import tune
from tuyi.model.forward import to_device
from tuyi.model.fp8 import Fp8Linear, use_fp8
from tuyi.model.load import Model, load_frontend, load_model
from tuyi.predict.calibrated import normalise
from tuyi.predict.scoring import score_labels
from tuyi.task.catalog import TaskSet

NAMES = ["builtin:tiny", "builtin:tiny-qwen2.5", "builtin:tiny-qwen3"]
gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
needs_fp8 = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="needs Ada or Hopper"
)


def layer(inside: int = 64, out: int = 48, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inside, out, bias=bias).to(torch.bfloat16)


def test_rounding_keeps_three_bits_of_each_number():
    torch.manual_seed(0)
    rows = torch.randn(6, 200) * torch.tensor([1e-6, 1e-2, 1.0, 10.0, 1e4, 0.0])[:, None]
    rows[2, 0] = 1000.0
    values, scale = fp8.rounded_by_torch(rows)
    assert values.dtype is torch.float8_e4m3fn
    assert scale.shape == (6, 1)
    back = values.float() * scale
    largest = rows.abs().amax(1, keepdim=True)
    near = (back - rows).abs() <= 2**-4 * rows.abs() + 2**-10 * largest / 448 * 1.01
    assert near.all()
    assert (values.float().abs().amax(1) == torch.tensor([448.0] * 5 + [0.0])).all(), "all of the range is used"
    assert not back[5].any()
    assert back.isfinite().all()


@pytest.mark.usefixtures("eight_bit_products")
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_in_8_bits_is_nearly_the_layer(bias: bool):
    linear = layer(bias=bias)
    rounded = Fp8Linear(linear)
    assert_near(linear, rounded, torch.randn(2, 7, 64).to(torch.bfloat16))
    assert rounded(torch.zeros(1, 3, 64, dtype=torch.bfloat16)).isfinite().all()
    assert not list(rounded.state_dict()) or list(rounded.state_dict()) == ["bias"]


def assert_near(linear: nn.Linear, rounded: Fp8Linear, x: Tensor) -> None:
    with torch.inference_mode():
        found, expected = rounded(x), linear(x)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    off = (found - expected).float().norm() / expected.float().norm()
    assert 0.001 < off < 0.05


@pytest.mark.usefixtures("eight_bit_products")
def test_a_large_value_costs_its_own_row_alone():
    linear, x = layer(), torch.randn(4, 64).to(torch.bfloat16)
    rounded = Fp8Linear(linear)
    wild = x.clone()
    wild[2, 5] = 30_000.0
    assert torch.equal(rounded(wild)[[0, 1, 3]], rounded(x)[[0, 1, 3]])
    with torch.no_grad():
        before = Fp8Linear(linear)(x)
        linear.weight[7, 3] = 500.0
        after = Fp8Linear(linear)(x)
    others = [index for index in range(48) if index != 7]
    assert torch.equal(before[:, others], after[:, others])


def test_a_cpu_is_told_what_to_do():
    hf = load_model(load_frontend("builtin:tiny", ["text"]), device="cpu").hf
    with pytest.raises(ModelError, match=r"fp8 needs a GPU of compute capability 8\.9 or more.*; use bfloat16"):
        use_fp8(hf)
    assert not any(isinstance(module, Fp8Linear) for module in hf.modules())


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A model of some layers that says that it is on a GPU."""

    def make(capability: tuple[int, int], *layers: nn.Module) -> Any:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        found = SimpleNamespace(device=torch.device("cuda"))
        return SimpleNamespace(
            parameters=lambda: iter([found]),
            model=SimpleNamespace(language_model=SimpleNamespace(layers=nn.ModuleList(layers))),
        )

    return make


def test_old_gpus_and_odd_sizes_are_refused_and_left_as_they_are(pretend: Callable[..., Any]):
    blocks = [nn.Sequential(layer(64, 48), nn.GELU()), nn.Sequential(layer(48, 40))]
    with pytest.raises(ModelError, match=r"8\.9"):
        use_fp8(pretend((8, 0), *blocks))
    with pytest.raises(ModelError, match=r"multiples of 16; 0 is 48 x 40; use bfloat16"):
        use_fp8(pretend((9, 0), *blocks))
    assert isinstance(blocks[0][0], nn.Linear), "nothing was replaced before the odd one was found"


def test_every_linear_layer_of_the_blocks_is_replaced(pretend: Callable[..., Any]):
    block = nn.ModuleDict({"inner": nn.Sequential(layer(64, 48), nn.GELU()), "out": layer(48, 64, bias=False)})
    model = pretend((8, 9), block, nn.Sequential(layer(16, 32)))
    assert use_fp8(model) == 3
    kinds = [type(module).__name__ for module in model.model.language_model.layers.modules()]
    assert kinds.count("Fp8Linear") == 3
    assert "Linear" not in kinds


@pytest.mark.usefixtures("eight_bit_products")
@pytest.mark.parametrize("name", NAMES)
def test_an_mlp_rounds_its_input_once_and_its_middle_as_it_is_made(
    name: str, pretend: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    rounding: Any = pytest.importorskip("tuyi.model.rounding", reason="needs triton")
    rounds: list[tuple[int, ...]] = []

    def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
        rounds.append(tuple(x.shape))
        return fp8.rounded_by_torch(x)

    monkeypatch.setattr(rounding, "rounded", rounded)
    monkeypatch.setattr(rounding, "swiglu_rounded", lambda gate, up: rounded(nn.functional.silu(gate) * up))
    hf = load_model(load_frontend(name, ["text"]), device="cpu", dtype="bfloat16").hf
    layers = hf.model.language_model.layers
    assert use_fp8(pretend((9, 0), *layers)) == 3 * 7
    x = torch.randn(1, 5, 128).to(torch.bfloat16)
    for layer in layers:
        rounds.clear()
        with torch.inference_mode():
            found = layer.mlp(x)
            assert rounds == [(5, 128), (5, 256)]
            expected = type(layer.mlp).forward(layer.mlp, x)
        assert torch.equal(found, expected)


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@gpu
@needs_fp8
@pytest.mark.parametrize(("inside", "out"), [(64, 48), (1536, 8960), (3584, 512)])
def test_the_gpus_layer_is_nearly_the_layer(inside: int, out: int):
    linear = layer(inside, out).cuda()
    rounded = Fp8Linear(linear)
    for shape in ((1, 1), (1, 7), (2, 333)):
        x = torch.randn(*shape, inside, device="cuda", dtype=torch.bfloat16)
        assert_near(linear, rounded, x)
        with torch.inference_mode():
            values, scale = fp8.rounded_by_torch(x.view(-1, inside))
            expected = (values.float() * scale) @ (rounded.weight_8.float().t() * rounded.scale)
            found = rounded(x).view(-1, out).float()
        torch.testing.assert_close(found, expected + linear.bias.float(), atol=3e-2, rtol=2e-2)


def loaded(name: str, tasks: TaskSet, device: str) -> tuple[Model, Encoder]:
    torch.set_num_threads(1)
    frontend = load_frontend(name, [text for one in tasks for text in one.wording])
    model = load_model(frontend, device=device, dtype="bfloat16", seed=1)
    return model, Encoder(frontend.tokenizer, frontend.spec, tasks)


def packed(model: Model, encoder: Encoder, rows: list[Example]) -> list[np.ndarray[Any, Any]]:
    labels = [encoder.labels(encoder.tasks.of(row)) for row in rows]
    scores = score_labels(model, [encoder.encode(row, labelled=False) for row in rows], labels)
    return [normalise(one) for one in scores]


def one_by_one(model: Model, encoder: Encoder, row: Example) -> np.ndarray[Any, Any]:
    """Each label in a sequence of its own."""
    names = encoder.labels(encoder.tasks.of(row)).names
    scores = []
    for name in names:
        answered = pack([encoder.encode(replace(row, label=name), labelled=True)])
        batch = to_device(answered, model.spec, model.device)
        with torch.inference_mode():
            logprobs = model.hf(batch=batch).log_softmax(-1)
        scores.append(float(logprobs.gather(1, batch.targets[:, None]).sum()))
    return normalise(np.asarray(scores, np.float32))


PACK = ["image", "image-first", "text", "image-last", "images", "history", "system", "video"]


@gpu
@needs_fp8
@pytest.mark.parametrize("name", NAMES)
def test_a_model_in_8_bits_keeps_its_labels(name: str, tasks: TaskSet, rows: dict[str, Example]):
    model, encoder = loaded(name, tasks, "cuda")
    examples = [rows[key] for key in PACK]
    before = packed(model, encoder, examples)
    assert use_fp8(model.hf) == 3 * 7
    after = packed(model, encoder, examples)
    for one, other in zip(before, after, strict=True):
        sure = np.sort(one)[-1] - np.sort(one)[-2] > 0.1
        assert not sure or one.argmax() == other.argmax()
        assert abs(one - other).max() < 0.25  # random weights: labels are nearly even, and 3 bits of mantissa few
    assert any((one != other).any() for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("device", "tuned"),
    [
        ("cpu", False),
        pytest.param("cuda", False, marks=[gpu, needs_gpu]),
        pytest.param("cuda", True, marks=[gpu, needs_gpu]),
    ],
)
def test_scores_in_16_bits_are_those_of_every_label_alone(
    name: str, device: str, tuned: bool, tasks: TaskSet, rows: dict[str, Example]
):
    """But for rounding: neither way is further off what float32 says of these rows than the other, by and large."""
    model, encoder = loaded(name, tasks, device)
    exact = Model(copy.deepcopy(model.hf).cpu().float(), model.frontend)
    if tuned:
        chosen = [line.split(":")[0] for line in tune(model.hf)]
        assert chosen == ["attention of the tower", "attention of the language", "matrix products"]
    examples = [rows[key] for key in PACK]
    ours, wanted = packed(model, encoder, examples), packed(exact, encoder, examples)
    alone = [one_by_one(model, encoder, row) for row in examples]
    for row, one, other in zip(examples, ours, alone, strict=True):
        np.testing.assert_allclose(one, other, atol=0.02, err_msg=row.id)

    def off(found: list[np.ndarray[Any, Any]]) -> float:
        return float(np.mean([abs(one - right).max() for one, right in zip(found, wanted, strict=True)]))

    assert off(ours) < 2 * off(alone)
    assert off(ours) < 0.01
