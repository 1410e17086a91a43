"""Fused blocks against transformers' own: the same formula by torch on a CPU, quack's kernels on a GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from tuyi.data.example import Example
from tuyi.encode.encoder import Encoder
from tuyi.model import products
from tuyi.model.blocks import fuse_products
from tuyi.model.fast import compile_blocks, tune
from tuyi.model.fp8 import Fp8Linear, use_fp8
from tuyi.model.load import Model, load_frontend, load_model
from tuyi.model.write import parted
from tuyi.predict.scoring import score_labels
from tuyi.task.catalog import TaskSet

NAMES = ["builtin:tiny", "builtin:tiny-qwen2.5", "builtin:tiny-qwen3"]


Scores = Callable[[Model], Tensor]


def made(name: str, tasks: TaskSet, dtype: str = "float32", device: str = "cpu") -> Model:
    frontend = load_frontend(name, [text for one in tasks for text in one.wording])
    return load_model(frontend, device=device, dtype=dtype, seed=3)


@pytest.fixture
def scores_of(tasks: TaskSet, rows: dict[str, Example]) -> Scores:
    """A model's scores of the labels of some rows, in one pack."""
    examples = [rows[key] for key in ("image", "text", "images", "video")]

    def of(model: Model) -> Tensor:
        encoder = Encoder(model.frontend.tokenizer, model.spec, tasks)
        labels = [encoder.labels(tasks.of(row)) for row in examples]
        scores = score_labels(model, [encoder.encode(row, labelled=False) for row in examples], labels)
        return torch.cat([torch.as_tensor(one) for one in scores])

    return of


@pytest.mark.parametrize("name", NAMES)
def test_fused_blocks_are_transformers_blocks(name: str, tasks: TaskSet, scores_of: Scores):
    plain, fused = made(name, tasks), made(name, tasks)
    layers = fused.hf.model.language_model.layers
    blocks = len(fused.hf.model.visual.blocks) + len(layers)
    assert fuse_products(fused.hf) == blocks
    torch.testing.assert_close(scores_of(fused), scores_of(plain), atol=1e-5, rtol=1e-5)
    for own, other in zip(fused.hf.state_dict().items(), plain.hf.state_dict().items(), strict=True):
        assert own[0] == other[0]
        assert torch.equal(own[1], other[1])


@pytest.mark.parametrize("name", NAMES)
def test_every_product_of_a_block_is_fused(
    name: str, tasks: TaskSet, scores_of: Scores, monkeypatch: pytest.MonkeyPatch
):
    model = made(name, tasks)
    fuse_products(model.hf)
    left: list[str] = []
    names = {id(module): path for path, module in model.hf.named_modules()}

    def seen(self: nn.Linear, x: Tensor) -> Tensor:
        left.append(names[id(self)].split(".", 2)[-1])
        return F.linear(x, self.weight, self.bias)

    monkeypatch.setattr(nn.Linear, "forward", seen)
    scores_of(model)
    in_blocks = {name for name in left if "layers." in name or "blocks." in name}
    assert {name.rsplit(".", 1)[1] for name in in_blocks} <= {"q_proj", "k_proj", "v_proj"}


def test_gate_and_up_lie_in_one_piece_of_memory(tasks: TaskSet, tmp_path: Path):
    model = made("builtin:tiny", tasks)
    mlp = model.hf.model.language_model.layers[0].mlp
    gate, up = mlp.gate_proj.weight, mlp.up_proj.weight
    both = torch.cat([gate, up])
    assert parted(model.hf) is None
    assert products.one_piece(gate, up).data_ptr() != gate.data_ptr()
    fuse_products(model.hf)
    assert torch.equal(products.one_piece(gate, up), both)
    assert products.one_piece(gate, up).data_ptr() == gate.data_ptr()
    apart = parted(model.hf)
    assert apart is not None
    assert all(weight.untyped_storage().nbytes() == weight.nbytes for weight in apart.values())
    model.hf.save_pretrained(tmp_path, state_dict=apart)
    written = load_file(tmp_path / "model.safetensors")
    name = next(name for name in written if name.endswith("layers.0.mlp.up_proj.weight"))
    assert torch.equal(written[name], up)


def test_inner_sizes_that_kernels_cannot_fetch_are_widened(tasks: TaskSet, scores_of: Scores, tmp_path: Path):
    model = made("builtin:tiny-qwen2.5", tasks)
    for block in model.hf.model.visual.blocks:
        for name, width in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
            layer = getattr(block.mlp, name)
            layer.weight.data = layer.weight.data.split(layer.weight.shape[width] - 5, width)[0].contiguous()
            layer.out_features, layer.in_features = layer.weight.shape
            if name != "down_proj":
                layer.bias.data = layer.bias.data[:-5]
    before = {name: weight.clone() for name, weight in model.hf.state_dict().items()}
    expected = scores_of(model)
    fuse_products(model.hf)
    assert {block.mlp.tuyi_kind for block in model.hf.model.visual.blocks} == {"wide"}
    assert all(size % 16 == 0 for size in model.hf.model.visual.blocks[0].mlp.tuyi_wide[2].shape)
    torch.testing.assert_close(scores_of(model), expected, atol=1e-5, rtol=1e-5)
    model.hf.save_pretrained(tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    assert sum(x.numel() for x in written.values()) == sum(x.numel() for x in model.hf.parameters())
    for name, weight in model.hf.state_dict().items():
        assert torch.equal(weight, before[name])


def test_other_layers_stay(tasks: TaskSet, scores_of: Scores):
    model = made("builtin:tiny", tasks)
    layer = model.hf.model.language_model.layers[0]

    class Other(nn.Linear):
        pass

    other = Other(*reversed(layer.self_attn.o_proj.weight.shape), bias=False)
    other.load_state_dict(layer.self_attn.o_proj.state_dict())
    layer.self_attn.o_proj = other
    plain = scores_of(copy.deepcopy(model))
    assert fuse_products(model.hf.model.language_model) == len(model.hf.model.language_model.layers) - 1
    torch.testing.assert_close(scores_of(model), plain, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("eight_bit_products")
@pytest.mark.parametrize("biased", [False, True])
def test_8_bits(biased: bool, tasks: TaskSet, scores_of: Scores):
    plain, fused = (made("builtin:tiny", tasks, "bfloat16") for _ in range(2))
    for model in (plain, fused) if biased else ():
        for layer in model.hf.model.language_model.layers:
            for linear in (layer.self_attn.o_proj, layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
                linear.bias = nn.Parameter(torch.linspace(-1, 1, linear.out_features, dtype=torch.bfloat16))
    fuse_products(fused.hf)
    for model in (plain, fused):
        for parent in model.hf.model.language_model.layers.modules():
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, Fp8Linear(child))
    fuse_products(fused.hf.model.language_model)
    torch.testing.assert_close(scores_of(fused), scores_of(plain), atol=0.05, rtol=0.05)


def test_compilers_are_told_the_shapes():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x, weight = torch.empty(1, 7, 32), torch.empty(48, 32)
        assert products.linear(x, weight, None, torch.empty(1, 7, 48)).shape == (1, 7, 48)
        assert products.linear_activation(x, weight, torch.empty(48), "quick_gelu").shape == (1, 7, 48)
        assert products.linear_swiglu(x, weight, weight, None, None).shape == (1, 7, 48)


def test_only_hopper():
    assert "Hopper" in (products.refused(torch.device("cpu")) or "")


def near(found: Tensor, right: Tensor, off: float = 2**-8) -> bool:
    """To within the rounding of a result to bfloat16, by and large."""
    return bool((found.float() - right.float()).norm() < off * right.float().norm())


@pytest.mark.gpu
@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("rows", [1024, 3001, 5120])
@pytest.mark.parametrize(("inner", "columns"), [(256, 1280), (1280, 3840), (3584, 512), (8960, 1536)])
def test_kernels_are_torchs(rows: int, inner: int, columns: int):
    x, weight, bias, more = (
        torch.randn(shape, device="cuda", dtype=torch.bfloat16) * scale
        for shape, scale in (
            ((1, rows, inner), 1),
            ((columns, inner), inner**-0.5),
            ((columns,), 1),
            ((1, rows, columns), 1),
        )
    )
    wide = x.float() @ weight.float().t()
    assert near(products.linear(x, weight, None, None), wide)
    assert near(products.linear(x, weight, bias, None), wide + bias)
    assert near(products.linear(x, weight, None, more), wide + more)
    assert near(products.linear(x, weight, bias, more), wide + bias + more)
    for name, activation in (
        ("quick_gelu", lambda y: y * torch.sigmoid(1.702 * y)), ("gelu_tanh", lambda y: F.gelu(y, approximate="tanh")),
    ):  # fmt: skip
        assert near(products.linear_activation(x, weight, bias, name), activation(wide + bias))
    gate, up = wide.chunk(2, dim=-1)
    halves = weight.chunk(2)
    assert near(products.linear_swiglu(x, *halves, None, None), F.silu(gate) * up)
    gate_bias, up_bias = bias.chunk(2)
    assert near(products.linear_swiglu(x, *halves, gate_bias, up_bias), F.silu(gate + gate_bias) * (up + up_bias))


@pytest.mark.gpu
@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("rows", [1024, 3001])
@pytest.mark.parametrize(("inner", "columns"), [(256, 1280), (3584, 3584), (8960, 1536)])
def test_kernels_of_8_bits_are_torchs(rows: int, inner: int, columns: int):
    from tuyi.model.fp8 import rounded_by_torch

    x, weight, more = (
        torch.randn(shape, device="cuda") for shape in ((rows, inner), (columns, inner), (rows, columns))
    )
    (x_8, scale), (weight_8, beside) = rounded_by_torch(x), rounded_by_torch(weight * inner**-0.5)
    more = more.bfloat16()
    wide = (x_8.float() * scale) @ (weight_8.float() * beside).t()
    # the 8-bit unit adds up with fewer bits than float32 has
    assert near(products.linear_8(x_8, scale, weight_8, beside.t().contiguous(), more), wide + more, 0.01)
    gate, up = wide.chunk(2, dim=-1)
    columns = beside.t().contiguous().chunk(2, dim=1)
    assert near(products.swiglu_8(x_8, scale, *weight_8.chunk(2), *columns), F.silu(gate) * up, 0.01)


@pytest.mark.gpu
@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("compiled", [False, True])
def test_fused_models_on_a_gpu(
    name: str, compiled: bool, tasks: TaskSet, scores_of: Scores, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(products, "MANY", 1)
    plain, fused = (made(name, tasks, "bfloat16", "cuda") for _ in range(2))
    assert any(line.startswith("matrix products: fused") for line in tune(fused.hf))
    if compiled:
        compile_blocks(fused.hf)
    torch.testing.assert_close(scores_of(fused), scores_of(plain), atol=0.05, rtol=0.05)
    use_fp8(fused.hf)
    torch.testing.assert_close(scores_of(fused), scores_of(plain), atol=0.5, rtol=0.2)
