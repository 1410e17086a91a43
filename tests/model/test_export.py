"""Exported folders: equal logits in plain transformers, the files that readers want, and what cannot be exported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import tuyi
from tuyi.cli import app
from tuyi.data.example import Example
from tuyi.encode.pack import pack
from tuyi.errors import ConfigError, ModelError, OutputError
from tuyi.model.adapters import merge_adapter
from tuyi.model.folder import FolderInfo, read_info, versions, write_info
from tuyi.model.forward import to_device
from tuyi.model.load import load_frontend, load_model, peek
from tuyi.model.write import write_model
from tuyi.task.catalog import TaskSet
from tuyi.train.settings import Freeze, LoraSettings, TrainSettings
from tuyi.train.trainable import add_lora

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
OPEN = Freeze(vision=False, projector=False)


@pytest.fixture(scope="module")
def bases(twins: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model folder of each family, float32."""
    made = {}
    for family in FAMILIES:
        made[family] = tmp_path_factory.mktemp("bases") / family
        write_model(twins(family).model.hf, twins(family).model.frontend.processor, made[family])
    return made


def adapted(base: Path, *, dora: bool = False, freeze: Freeze = OPEN, dtype: str = "float32") -> Any:
    """A model with adapters that change something, the same ones every time."""
    torch.manual_seed(0)
    hf = load_model(load_frontend(str(base)), device="cpu", dtype=dtype).hf
    model = add_lora(hf, LoraSettings(rank=4), freeze, dora=dora).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_((0.15 * torch.randn(weight.shape, generator=generator)).to(weight.dtype) / weight.ndim)
    return model


@pytest.fixture(scope="module")
def adapter(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the Qwen2-VL base; tests that break it break a copy."""
    folder = tmp_path_factory.mktemp("adapters") / "a"
    adapted(bases["qwen2_vl"]).save_pretrained(folder)
    return folder


def same_as(folder: Path, twin: Any, model: Any, example: Example) -> None:
    """Plain transformers gets from ``folder`` what ``model`` gives here, in float32."""
    from transformers import AutoModelForImageTextToText

    packed = pack([twin.encoder.encode(example, labelled=True)])
    plain = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = model(batch=to_device(packed, twin.model.spec, torch.device("cpu")))
        found = plain(**twin.inputs(example, example.label)).logits[0, -len(expected) - 1 : -1]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_is_merged_into_its_base(
    twin: Any, bases: dict[str, Path], rows: dict[str, Example], tmp_path: Path, dora: bool
):
    base = bases[twin.model.spec.family]
    model = adapted(base, dora=dora)
    model.save_pretrained(tmp_path / "adapter")
    done = tuyi.export(tmp_path / "adapter", tmp_path / "out")
    assert (done.base, done.dtype, done.files, done.tasks) == (str(base), "float32", 1, ())
    same_as(tmp_path / "out", twin, model, rows["mixed"])
    untrained = load_model(load_frontend(str(base)), device="cpu").hf.state_dict()
    merged = load_model(load_frontend(str(tmp_path / "out")), device="cpu").hf.state_dict()
    assert sum(not torch.equal(untrained[name], merged[name]) for name in untrained) >= 33
    assert not (tmp_path / "out" / "tuyi.json").exists()


def test_readers_find_all_that_they_want(bases: dict[str, Path], adapter: Path, tmp_path: Path, twins):
    from transformers import AutoImageProcessor, AutoProcessor

    tuyi.export(adapter, tmp_path / "out", shard_size="1MB")
    out = tmp_path / "out"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == len(list(out.glob("model-*.safetensors"))) == 5
    assert set(index["weight_map"]) == set(load_file(bases["qwen2_vl"] / "model.safetensors"))
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["Qwen2VLForConditionalGeneration"]
    assert "attn_implementation" not in json.dumps(config)
    assert {path.name for path in out.iterdir() if path.suffix != ".safetensors"} == {
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors.index.json",
        "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
        "video_preprocessor_config.json",
    }  # fmt: skip
    processor = AutoProcessor.from_pretrained(out)
    theirs = twins("qwen2_vl").model.frontend.processor
    assert processor.chat_template == theirs.chat_template
    for part in ("image_processor", "video_processor"):
        assert getattr(processor, part).to_dict() == getattr(theirs, part).to_dict()
    older = tmp_path / "older"
    older.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(out / name, older / name)
    assert AutoImageProcessor.from_pretrained(older).to_dict() == theirs.image_processor.to_dict()


@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
@pytest.mark.parametrize("dora", [False, True])
def test_weights_are_merged_in_float32_and_rounded_once(
    bases: dict[str, Path], tmp_path: Path, stored: str, dora: bool
):
    model = adapted(bases["qwen2_vl"], dora=dora, dtype=stored)
    model.save_pretrained(tmp_path / "adapter")
    base = load_model(load_frontend(str(bases["qwen2_vl"])), device="cpu", dtype=stored).hf
    weights = {name: weight.clone() for name, weight in base.state_dict().items()}
    found = merge_adapter(base, tmp_path / "adapter", torch.bfloat16).state_dict()
    saved = {key: value.float() for key, value in load_file(tmp_path / "adapter" / "adapter_model.safetensors").items()}
    checked = 0
    for name, weight in weights.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        expected = weight.float()
        if f"{stem}.lora_A.weight" in saved:
            expected = expected + 16 / 4 * saved[f"{stem}.lora_B.weight"] @ saved[f"{stem}.lora_A.weight"]
            if dora:
                length = saved[f"{stem}.lora_magnitude_vector"] / expected.norm(dim=1)
                expected = length[:, None] * expected
            checked += 1
        different = (found[name] != expected.bfloat16()).float().mean()
        assert different <= (1e-3 if dora else 0), name  # the order of DoRA's factors moves a last bit of float32
    assert checked == 35


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_weights_of_another_dtype(bases: dict[str, Path], tmp_path: Path, dtype: str):
    done = tuyi.export(bases["qwen2_vl"], tmp_path / "out", dtype=dtype)
    assert (done.base, done.dtype) == (None, dtype)
    saved = load_file(tmp_path / "out" / "model.safetensors")
    exact = load_file(bases["qwen2_vl"] / "model.safetensors")
    assert saved.keys() == exact.keys()
    assert all(torch.equal(saved[name], exact[name].to(getattr(torch, dtype))) for name in exact)
    assert load_frontend(str(tmp_path / "out")).config.dtype is getattr(torch, dtype)
    again = tuyi.export(tmp_path / "out", tmp_path / "again")
    assert again.dtype == dtype


def test_weights_that_float16_cannot_hold(bases: dict[str, Path], tmp_path: Path):
    folder = Path(shutil.copytree(bases["qwen2_vl"], tmp_path / "large"))
    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = 1e6
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="some weights are too large for float16; export in bfloat16 or float32"):
        tuyi.export(folder, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_a_peer_with_older_names(
    twins, bases: dict[str, Path], adapter: Path, rows: dict[str, Example], tmp_path: Path
):
    """Names as transformers 4 had them, targets as a pattern, the weights in 16 bits."""
    folder = Path(shutil.copytree(adapter, tmp_path / "older"))
    weights = load_file(folder / "adapter_model.safetensors")
    renamed = {
        key.replace("model.model.language_model.", "model.model.").replace(
            "model.model.visual.", "model.visual."
        ): value
        for key, value in weights.items()
    }
    assert renamed.keys().isdisjoint(weights.keys())
    save_file(renamed, folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"] = r".*(?:_proj|\.qkv|attn\.proj|fc1|fc2|mlp\.0|mlp\.2)"
    config["base_model_name_or_path"] = "/somewhere/else"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"belongs to /somewhere/else; say with --base where that is.*does not exist"):
        tuyi.export(folder, tmp_path / "out")
    tuyi.export(folder, tmp_path / "out", base=str(bases["qwen2_vl"]))
    same_as(tmp_path / "out", twins("qwen2_vl"), adapted(bases["qwen2_vl"]), rows["images"])


@pytest.fixture(scope="module")
def run(bases: dict[str, Path], tasks: TaskSet, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run with adapters leaves: the merged model, the adapter, and checkpoints."""
    out = tmp_path_factory.mktemp("runs") / "run"
    merged = tuyi.export(adapter, out).out
    info = FolderInfo(
        tasks=tasks, base_model="org/base", versions=versions(), calibration={"colour": {"temperature": 1.5}}
    )
    write_info(merged, info)
    shutil.copytree(adapter, out / "adapter")
    shutil.copytree(adapter, out / "checkpoints" / "checkpoint-4")
    shutil.copytree(bases["qwen2_vl"], out / "checkpoints" / "checkpoint-10")
    asked = {"model": str(bases["qwen2_vl"]), "tasks": tasks.model_dump(mode="json"), "settings": {"lr": 1e-4}}
    (out / "run.json").write_text(json.dumps(asked, ensure_ascii=False), encoding="utf-8")
    return out


@pytest.mark.parametrize("what", [".", "adapter", "checkpoints/checkpoint-4"])
def test_a_run_its_adapter_and_a_checkpoint_remember_their_tasks(run: Path, tasks: TaskSet, tmp_path: Path, what: str):
    done = tuyi.export(run / what, tmp_path / "out")
    info = read_info(tmp_path / "out")
    assert info is not None
    assert info.tasks == tasks
    assert done.tasks == tuple(task.name for task in tasks)
    merged, found = (load_file(folder / "model.safetensors") for folder in (run, tmp_path / "out"))
    assert all(torch.equal(merged[name], found[name]) for name in merged)
    if what.startswith("checkpoints"):
        assert (info.base_model, info.settings) == (str(load_base(run)), {"lr": 1e-4})
        assert info.temperature("colour") == 1.0, "a temperature belongs to the finished model"
    else:
        assert info == read_info(run)
        assert info.temperature("colour") == 1.5


def load_base(run: Path) -> Any:
    return json.loads((run / "run.json").read_text(encoding="utf-8"))["model"]


def test_a_whole_checkpoint(run: Path, bases: dict[str, Path], tasks: TaskSet, tmp_path: Path):
    tuyi.export(run / "checkpoints" / "checkpoint-10", tmp_path / "out")
    exact, found = (load_file(folder / "model.safetensors") for folder in (bases["qwen2_vl"], tmp_path / "out"))
    assert all(torch.equal(exact[name], found[name]) for name in exact)
    info = read_info(tmp_path / "out")
    assert info is not None
    assert info.tasks == tasks


@pytest.mark.slow
def test_a_real_run_and_its_checkpoint(bases: dict[str, Path], tmp_path: Path):
    from PIL import Image

    for colour in ("red", "green"):
        (tmp_path / "data" / colour).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (56, 56), colour).save(tmp_path / "data" / colour / f"{number}.png")
    task = tmp_path / "colours.yaml"
    task.write_text("name: colours\nlabels: [red, green]\nbudget: {max_pixels: 3136, max_tokens: 64}\n")
    for method in ("full", "lora"):
        settings = TrainSettings(method=method, max_steps=2, batch_rows=4, save_steps=2, lr=1e-3, tensorboard=False)
        run = tmp_path / method
        tuyi.train(tmp_path / "data", run, task=str(task), model=str(bases["qwen2_vl"]), settings=settings)
        tuyi.export(run / "checkpoints" / "checkpoint-2", tmp_path / f"{method}-2")
        tuyi.export(run, tmp_path / f"{method}-end")
        found, expected, again = (
            load_file(folder / "model.safetensors")
            for folder in (tmp_path / f"{method}-2", run, tmp_path / f"{method}-end")
        )
        assert found.keys() == expected.keys() == again.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert all(torch.equal(again[name], expected[name]) for name in expected)
        predicted = tuyi.predict(tmp_path / f"{method}-2", tmp_path / "data", tmp_path / f"{method}.jsonl")
        assert predicted.rows == 8


def test_models_that_cannot_be_exported(run: Path, adapter: Path, bases: dict[str, Path], tmp_path: Path):
    out = tmp_path / "out"

    def changed(name: str, **config: Any) -> Path:
        folder = Path(shutil.copytree(adapter, tmp_path / name))
        said = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**said, **config}))
        return folder

    (tmp_path / "empty").mkdir()
    unfinished = tmp_path / "unfinished"
    for number in (4, 10):
        shutil.copytree(adapter, unfinished / "checkpoints" / f"checkpoint-{number}")
    nobody = changed("nobody", base_model_name_or_path=None)
    no_weights = changed("no-weights")
    (no_weights / "adapter_model.safetensors").unlink()
    broken = changed("broken")
    (broken / "adapter_config.json").write_text("{")
    quantised = Path(shutil.copytree(bases["qwen2_vl"], tmp_path / "quantised"))
    config = json.loads((quantised / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantised / "config.json").write_text(json.dumps(config))
    for model, base, message in (
        ("builtin:tiny", None, "builtin:tiny is made when it is trained; there is nothing to export"),
        (tmp_path / "empty", None, "empty is not a model folder: it has no config.json$"),
        (tmp_path / "none", None, "model folder .*/none does not exist"),
        (unfinished, None, "unfinished holds a run that is not finished.*the newest is .*/checkpoint-10"),
        (nobody, None, "nobody does not say which model it belongs to; name it with --base"),
        (nobody, "builtin:tiny", "An adapter of a built-in model cannot be merged apart from its run"),
        (nobody, str(tmp_path / "empty"), "empty is not a model folder"),
        (no_weights, None, "no-weights has no adapter_model.safetensors: the adapter's weights are missing"),
        (broken, None, "adapter_config.json cannot be read: "),
        (changed("kind", peft_type="IA3"), None, "is an adapter of type IA3; expected LORA"),
        (nobody, str(quantised), "quantised is quantised; give the same model in 16 bits with --base"),
    ):
        with pytest.raises(ModelError, match=message):
            tuyi.export(model, out, base=base)
    assert not out.exists()
    with pytest.raises(ModelError, match=r"is merged with `tuyi export .*/a --out FOLDER`"):
        peek(str(adapter))


def test_adapters_that_do_not_fit(twins, bases: dict[str, Path], adapter: Path, tmp_path: Path):
    def with_weights(name: str, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
        folder = Path(shutil.copytree(adapter, tmp_path / name))
        weights = load_file(folder / "adapter_model.safetensors")
        change(weights)
        save_file(weights, folder / "adapter_model.safetensors")
        return folder

    def wide(weights: dict[str, torch.Tensor]) -> None:
        name = next(key for key in weights if key.endswith("q_proj.lora_A.weight"))
        weights[name] = torch.zeros(4, 64)

    def unnumbered(weights: dict[str, torch.Tensor]) -> None:
        next(iter(weights.values())).view(-1)[0] = float("nan")

    def shared(weights: dict[str, torch.Tensor]) -> None:
        weights["base_model.model.lm_head.lora_A.weight"] = torch.zeros(4, 128)
        weights["base_model.model.lm_head.lora_B.weight"] = torch.zeros(len(head), 4)

    head = twins("qwen2_vl").model.hf.lm_head.weight
    fits = "does not fit the model: "
    cut = with_weights("cut", lambda weights: None)
    (cut / "adapter_model.safetensors").write_bytes(b"cut")
    targets = with_weights("targets", lambda weights: None)
    tied = with_weights("tied", shared)
    for folder, module in (
        (targets, ["c_attn"]),
        (tied, [*json.loads((adapter / "adapter_config.json").read_text())["target_modules"], "lm_head"]),
    ):
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": module}))
    for folder, base, message in (
        (adapter, bases["qwen2_5_vl"], fits),
        (with_weights("wide", wide), None, fits + "Error.* in loading state_dict"),
        (with_weights("less", lambda weights: [weights.pop(key) for key in list(weights)[:2]]), None, fits + "2 of"),
        (with_weights("more", lambda weights: weights.update({"x.lora_A.weight": head.data})), None, "0 .* 1 of its"),
        (with_weights("nan", unnumbered), None, "is broken: some of its weights are not numbers"),
        (cut, None, fits),
        (targets, None, fits + "Target modules .*c_attn.* not found"),
        (tied, None, "changes lm_head or the embeddings, which this model shares"),
    ):  # fmt: skip
        with pytest.raises(ModelError, match=message):
            tuyi.export(folder, tmp_path / "out", base=str(base) if base else None)
    assert not (tmp_path / "out").exists()


def test_settings_and_places_that_cannot_be_used(bases: dict[str, Path], tmp_path: Path):
    base = bases["qwen2_vl"]
    with pytest.raises(ConfigError, match="dtype: expected one of bfloat16, float16, float32, found 'fp8'"):
        tuyi.export(base, tmp_path / "out", dtype="fp8")
    with pytest.raises(ConfigError, match="shard size: expected a number and KB, MB or GB, such as 5GB; found 'much'"):
        tuyi.export(base, tmp_path / "out", shard_size="much")
    with pytest.raises(ConfigError, match=r"is no adapter: it has no adapter_config.json; leave --base out"):
        tuyi.export(base, tmp_path / "out", base="org/base")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file is a file; expected a folder"):
        tuyi.export(base, tmp_path / "file")
    with pytest.raises(OutputError, match="is not empty; choose another folder"):
        tuyi.export(base, base)
    with pytest.raises(OutputError, match=r"file/out cannot be written: Not a directory"):
        tuyi.export(base, tmp_path / "file" / "out")
    (tmp_path / "out").mkdir()
    assert tuyi.export(base, tmp_path / "out").out == tmp_path / "out"


def test_a_full_disk_leaves_nothing(bases: dict[str, Path], tmp_path: Path):
    """The limit of a file's size stands for the disk's: writing fails in the middle of the weights."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        with pytest.raises(OutputError, match=r"out cannot be written: .*(File too large|os error 27)"):
            tuyi.export(bases["qwen2_vl"], tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_the_command(run: Path, adapter: Path, bases: dict[str, Path], tmp_path: Path):
    def called(*words: str) -> Any:
        return CliRunner().invoke(app, ["export", *words])

    done = called(str(run), "--out", str(tmp_path / "a"), "--dtype", "bfloat16", "--shard-size", "1MB")
    assert done.exit_code == 0, done.output
    assert f"{tmp_path / 'a'}: bfloat16, 3 weight files, 0.00 GB" in done.output
    assert "tasks: colour, shape, talk" in done.output
    done = called(str(adapter), "--out", str(tmp_path / "b"), "--base", str(bases["qwen2_vl"]))
    assert f"{tmp_path / 'b'}: adapter merged into {bases['qwen2_vl']}, float32, 1 weight file" in done.output
    assert "no task is known of it: predict with --task" in done.output
    assert called(str(run), "--out", str(tmp_path / "c"), "--dtype", "int4").exit_code == 2
