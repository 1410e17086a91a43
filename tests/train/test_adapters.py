"""Adapters: where they stand, what they compute, what is saved of them, and four bits."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import tuyi
from tuyi.data.example import Example
from tuyi.encode.pack import pack
from tuyi.errors import ConfigError, OutputError, TrainingError
from tuyi.model.forward import to_device
from tuyi.model.load import Model, load_frontend, load_model
from tuyi.model.write import write_model
from tuyi.train.progress import read_log
from tuyi.train.settings import Freeze, LoraSettings, TrainSettings
from tuyi.train.trainable import add_lora, count, freeze_parts, restore_adapters

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
NOTHING = Freeze(vision=False, projector=False)


@pytest.fixture(scope="module")
def folders(twins: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model folder of each family."""
    made = {}
    for family in FAMILIES:
        made[family] = tmp_path_factory.mktemp("bases") / family
        write_model(twins(family).model.hf, twins(family).model.frontend.processor, made[family])
    return made


def loaded(folder: Path, dtype: str = "float32", **options: Any) -> Model:
    return load_model(load_frontend(str(folder)), device="cpu", dtype=dtype, **options)


def stir(adapted: Any, seed: int = 0) -> Any:
    """Adapters that change something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if weight.requires_grad:
                size = 0.2 if "magnitude" in name else 0.15 * weight.shape[1] ** -0.5
                weight.add_(size * torch.randn(weight.shape, generator=generator).to(weight.dtype))
    return adapted


def logits(twin: Any, hf: Any, example: Example) -> torch.Tensor:
    packed = pack([twin.encoder.encode(example, labelled=True)])
    found: torch.Tensor = hf(batch=to_device(packed, twin.model.spec, torch.device("cpu")))
    return found


@pytest.mark.parametrize(
    ("freeze", "parts"),
    [
        (Freeze(), {"language"}),
        (NOTHING, {"language", "projector", "vision"}),
        (Freeze(vision=True, projector=False, language=True), {"projector"}),
        (Freeze(vision=False, projector=True, language=True), {"vision"}),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_layer_of_the_open_parts_gets_an_adapter(
    folders: dict[str, Path], tmp_path: Path, family: str, freeze: Freeze, parts: set[str]
):
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from transformers import AutoModelForImageTextToText

    def part(name: str) -> str:
        if "visual" not in name:
            return "language"
        return "projector" if "merger" in name else "vision"

    plain = AutoModelForImageTextToText.from_pretrained(folders[family])
    linear = {name for name, module in plain.named_modules() if isinstance(module, nn.Linear)} - {"lm_head"}
    expected = {name for name in linear if part(name) in parts}
    adapted = add_lora(loaded(folders[family]).hf, LoraSettings(), freeze)
    adapted.save_pretrained(tmp_path)
    opened = PeftModel.from_pretrained(plain, tmp_path)
    assert {part(name) for name in expected} == parts
    for model in (adapted, opened):
        found = {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}
        assert {name.removeprefix("base_model.model.") for name in found} == expected
    learning, everything = count(adapted)
    assert learning == sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    assert everything == learning + sum(weight.numel() for weight in loaded(folders[family]).hf.parameters())


class Casts(TorchDispatchMode):
    """Counts conversions."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += func is torch.ops.aten._to_copy.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_adapters_compute_in_the_dtype_of_the_base(folders: dict[str, Path], dtype: str):
    for dora in (False, True):
        adapted = add_lora(loaded(folders["qwen2_vl"], dtype).hf, LoraSettings(), NOTHING, dora=dora)
        assert {str(w.dtype) for w in adapted.parameters()} == {f"torch.{dtype}"}
    plain = add_lora(loaded(folders["qwen2_vl"], dtype).hf, LoraSettings(), NOTHING)
    layer = plain.base_model.model.model.language_model.layers[0].mlp.up_proj
    with Casts() as casts:
        assert layer(torch.ones(3, 128, dtype=getattr(torch, dtype))).dtype is getattr(torch, dtype)
        assert casts.seen == 0
        torch.ones(1).bfloat16()
        assert casts.seen == 1


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_dora_is_pefts(folders: dict[str, Path], dropout: float):
    """Outputs and gradients against peft's own layers, in float32, after the adapters have learned something."""
    from peft import LoraConfig, get_peft_model

    layers = nn.ModuleDict({"bias": nn.Linear(24, 40), "none": nn.Linear(24, 40, bias=False)})
    config = LoraConfig(r=4, lora_alpha=7, lora_dropout=dropout, use_dora=True, target_modules=["bias", "none"])
    reference = get_peft_model(copy.deepcopy(layers), config)
    ours = get_peft_model(layers, config)
    from tuyi.train.dora import sharpen

    sharpen(ours)
    stir(reference, seed=1)
    ours.load_state_dict(reference.state_dict())
    for name in ("bias", "none"):
        results = []
        for model in (reference, ours):
            torch.manual_seed(5)
            x = torch.randn(6, 24, requires_grad=True)
            y = model.base_model.model[name].train()(x)
            (y * torch.randn(6, 40)).sum().backward()
            learned = [w.grad for n, w in model.named_parameters() if w.requires_grad and f".{name}." in n]
            assert len(learned) == 3
            results.append([y, x.grad, *learned])
        for expected, found in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    state = ours.state_dict()
    assert all(torch.allclose(state[name], weight, atol=1e-6) for name, weight in reference.state_dict().items())


def test_dora_in_16_bits_sees_small_changes_of_length(folders: dict[str, Path]):
    base = loaded(folders["qwen2_vl"], "bfloat16").hf
    plain = base.model.language_model.layers[0].mlp.up_proj
    x = torch.randn(50, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad():
        before = plain(x)
        layer = add_lora(base, LoraSettings(), Freeze(), dora=True).base_model.model.model.language_model.layers[0]
        assert torch.equal(layer.mlp.up_proj(x), before), "an adapter that has learned nothing changes nothing"
        dora = layer.mlp.up_proj.lora_magnitude_vector["default"]
        dora.weight.add_(0.001 * dora.square.sqrt())
        low, high = (layer.mlp.up_proj.get_submodule(name)["default"] for name in ("lora_A", "lora_B"))
        added = dora(x, lora_A=low, lora_B=high, scaling=2.0, base_layer=plain, base_result=before)
    torch.testing.assert_close(added, 0.001 * before, rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("settings", "dora"), [(LoraSettings(rank=4), False), (LoraSettings(rslora=True), False), (LoraSettings(), True)]
)
def test_peft_opens_a_saved_adapter(
    twin: Any, folders: dict[str, Path], rows: dict[str, Example], tmp_path: Path, settings: LoraSettings, dora: bool
):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    base = folders[twin.model.spec.family]
    adapted = stir(add_lora(loaded(base).hf, settings, NOTHING, dora=dora)).eval()
    adapted.save_pretrained(tmp_path)
    plain = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(plain, tmp_path).eval()
    example = rows["images"]
    with torch.inference_mode():
        found = logits(twin, adapted, example)
        expected = theirs(**twin.inputs(example, example.label)).logits[0, -len(found) - 1 : -1]
        untrained = logits(twin, twin.model.hf, example)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - untrained).abs().max() > 0.1


@pytest.mark.parametrize(("dtype", "dora"), [("float32", False), ("bfloat16", False), ("bfloat16", True)])
def test_adapters_are_restored_in_place(folders: dict[str, Path], tmp_path: Path, dtype: str, dora: bool):
    first, second = (
        stir(add_lora(loaded(folders["qwen2_vl"], dtype).hf, LoraSettings(), Freeze(), dora=dora), seed)
        for seed in (1, 2)
    )
    first.save_pretrained(tmp_path)
    held = {name: weight for name, weight in second.named_parameters() if weight.requires_grad}
    wanted = {name: weight for name, weight in first.named_parameters() if weight.requires_grad}
    assert any(not torch.equal(held[name], wanted[name]) for name in held)
    restore_adapters(second, tmp_path)
    assert len(held) == len(wanted) == (63 if dora else 42)
    for name, weight in second.named_parameters():
        if weight.requires_grad:
            assert held[name] is weight
            assert weight.dtype is getattr(torch, dtype)
            assert torch.equal(weight, wanted[name]), name


def test_a_checkpoint_with_other_adapters_is_refused(folders: dict[str, Path], tmp_path: Path):
    def adapted(family: str = "qwen2_vl", freeze: Freeze | None = None, dora: bool = False, **settings: Any) -> Any:
        return add_lora(loaded(folders[family]).hf, LoraSettings(**settings), freeze or Freeze(), dora=dora)

    adapted(rank=4).save_pretrained(tmp_path)
    restore_adapters(adapted(rank=4), tmp_path)
    for other, message in (
        (adapted(rank=8), "has adapters with r 4, this run's have 8; resume with the settings"),
        (adapted(rank=4, alpha=3), "with lora_alpha 16, this run's have 3"),
        (adapted(rank=4, rslora=True), "with use_rslora False, this run's have True"),
        (adapted(rank=4, dora=True), "with use_dora False, this run's have True"),
        (adapted(rank=4, freeze=NOTHING), r"for other layers than this run: \d+ differ, the first is .*visual"),
    ):
        with pytest.raises(TrainingError, match=message):
            restore_adapters(other, tmp_path)
    with pytest.raises(TrainingError, match=f"the adapters of {tmp_path / 'none'} cannot be read: .*No such file"):
        restore_adapters(adapted(rank=4), tmp_path / "none")
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=f"the adapters of {tmp_path} cannot be read: "):
        restore_adapters(adapted(rank=4), tmp_path)


def test_a_run_is_not_resumed_with_other_adapters(folders, pictures, colours, tmp_path):
    settings = TrainSettings(method="lora", max_steps=1, batch_rows=4, tensorboard=False)
    options = {"task": colours, "model": str(folders["qwen2_vl"])}
    tuyi.train(pictures, tmp_path / "run", settings=settings, **options)
    for update, message in (
        ({"lora": LoraSettings(rank=4)}, "its settings.lora.rank is '8', this run's is '4'"),
        ({"method": "dora"}, "its settings.method is 'lora', this run's is 'dora'"),
        ({"method": "full"}, "its settings.method is 'lora', this run's is 'full'"),
    ):
        with pytest.raises(OutputError, match=message):
            tuyi.train(pictures, tmp_path / "run", settings=settings.model_copy(update=update), resume=True, **options)


@pytest.fixture
def broken_off(folders, pictures, colours, tmp_path, monkeypatch) -> Callable[[str], tuple[Path, dict[str, Any]]]:
    """Makes a run in 16 bits that was stopped behind its first checkpoint, and says how it was called."""
    from tuyi.train.progress import Teller

    plain = Teller.on_step_end

    def stopping(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        plain(self, args, state, control, **more)
        if state.global_step == 3:
            raise KeyboardInterrupt

    def make(method: str) -> tuple[Path, dict[str, Any]]:
        settings = TrainSettings(
            method=method, epochs=2, batch_rows=8, save_steps=2, lr=2e-2, precision="bf16", tensorboard=False
        )
        options = {"task": colours, "model": str(folders["qwen2_vl"]), "settings": settings}
        with monkeypatch.context() as patch:
            patch.setattr(Teller, "on_step_end", stopping)
            with pytest.raises(KeyboardInterrupt):
                tuyi.train(pictures, tmp_path / "broken-off", **options)
        return tmp_path / "broken-off", options

    return make


@pytest.mark.parametrize("method", ["lora", "dora", "qlora"])
def test_adapters_of_16_bits_go_on_with_the_same_losses(broken_off, pictures, tmp_path, method):
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    out, options = broken_off(method)
    tuyi.train(pictures, out, resume=True, **options)
    tuyi.train(pictures, tmp_path / "unbroken", **options)
    found, expected = (
        [(entry["step"], entry["loss"]) for entry in read_log(folder / "loss.jsonl") if "loss" in entry]
        for folder in (out, tmp_path / "unbroken")
    )
    assert [step for step, _ in expected] == [1, 2, 3, 4, 5, 6]
    assert found == expected


def test_a_checkpoint_of_other_adapters_stops_a_run_before_its_first_step(broken_off, folders, pictures):
    out, options = broken_off("lora")
    other = add_lora(loaded(folders["qwen2_vl"], "bfloat16").hf, LoraSettings(rank=4), Freeze())
    other.save_pretrained(out / "checkpoints" / "checkpoint-2")
    before = (out / "loss.jsonl").read_text()
    with pytest.raises(TrainingError, match="checkpoint-2 has adapters with r 4, this run's have 8"):
        tuyi.train(pictures, out, resume=True, **options)
    assert (out / "loss.jsonl").read_text() == before


@pytest.mark.parametrize("method", ["lora", "dora", "qlora"])
def test_a_run_learns_and_is_merged(folders, pictures, colours, tmp_path, method):
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    settings = TrainSettings(method=method, epochs=3, batch_rows=8, lr=2e-2, tensorboard=False)
    out = tmp_path / "run"
    tuyi.train(pictures, out, task=colours, model=str(folders["qwen2_vl"]), valid=pictures, settings=settings)
    losses = [entry["loss"] for entry in read_log(out / "loss.jsonl") if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
    before, after = (loaded(folder).hf.state_dict() for folder in (folders["qwen2_vl"], out))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == 21
    assert not any("visual" in name for name in changed)
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert config["use_dora"] is (method == "dora")
    assert config["base_model_name_or_path"] == str(folders["qwen2_vl"])
    assert not [*out.glob("*.bin"), *(out / "adapter").glob("*.bin")]
    assert not (out / ".saving").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_four_bits(twins, folders: dict[str, Path], rows: dict[str, Example], family: str):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = loaded(folders[family], four_bit=True).hf
    small = {name for name, module in model.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)}
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert small == {name for name in linear if name.startswith("model.language_model.")}
    assert len(small) == 21
    layer = model.model.language_model.layers[1].mlp.gate_proj.weight
    assert (layer.quant_state.quant_type, layer.quant_state.nested) == ("nf4", True)
    freeze_parts(model, Freeze())
    adapted = add_lora(model, LoraSettings(), Freeze())
    whole = add_lora(loaded(folders[family]).hf, LoraSettings(), Freeze())
    assert count(adapted) == count(whole)
    with torch.inference_mode():
        exact, near = (logits(twins(family), one.eval(), rows["image"]).log_softmax(-1) for one in (whole, adapted))
    assert 0 < (near - exact).abs().mean() < 0.5
    for _ in range(2):  # after a pass without gradients, too
        adapted.train()
        logits(twins(family), adapted, rows["image"]).square().sum().backward()
        learned = [w.grad for n, w in adapted.named_parameters() if "lora_B" in n]
        assert len(learned) == 21
        assert all(grad is not None and grad.abs().sum() > 0 for grad in learned)
        adapted.zero_grad()
        with torch.inference_mode():
            logits(twins(family), adapted.eval(), rows["image"])


def test_four_bits_that_cannot_be(folders, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="builtin:tiny starts from random weights"):
        load_model(load_frontend("builtin:tiny", ["some text"]), device="cpu", four_bit=True)
    with pytest.raises(ConfigError, match="qlora keeps the whole model on each GPU; leave deepspeed out"):
        tuyi.load_settings(TrainSettings, None, ["method=qlora", "deepspeed=zero3.json"])
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"4-bit weights need the package bitsandbytes: pip install 'tuyi\[qlora\]'"):
        loaded(folders["qwen2_vl"], four_bit=True)
