"""The model folder: plain transformers opens it, ``tuyi.json`` survives, and what is broken is named."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tuyi.data.example import Example
from tuyi.encode.encoder import Encoder
from tuyi.encode.pack import pack
from tuyi.errors import ModelError
from tuyi.model.folder import FolderInfo, read_info, versions, write_info
from tuyi.model.forward import to_device
from tuyi.model.load import load_frontend, load_model, peek
from tuyi.model.tiny import NAMES
from tuyi.task.catalog import TaskSet


def save(twin: Any, folder: Path, info: FolderInfo | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    twin.model.hf.save_pretrained(folder)
    twin.model.frontend.processor.save_pretrained(folder)
    if info is not None:
        write_info(folder, info)
    return folder


@pytest.fixture
def info(tasks: TaskSet) -> FolderInfo:
    return FolderInfo(
        tasks=tasks,
        base_model="builtin:tiny",
        versions=versions(),
        settings={"train": {"lr": 1e-5}},
        calibration={"colour": {"temperature": 1.25}},
        scores={"colour": {"weighted_f1": 0.9}},
    )


@pytest.fixture(scope="module")
def saved(twins: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2-VL folder without ``tuyi.json``; tests that break it break a copy."""
    return save(twins("qwen2_vl"), tmp_path_factory.mktemp("saved") / "model")


def copied(saved: Path, to: Path) -> Path:
    return Path(shutil.copytree(saved, to))


def answers(encoder: Encoder, model: Any, example: Example) -> torch.Tensor:
    packed = pack([encoder.encode(example, labelled=True)])
    with torch.inference_mode():
        logits: torch.Tensor = model.hf(batch=to_device(packed, model.spec, model.device))
    return logits


def test_plain_transformers_opens_a_saved_folder(twin: Any, rows: dict[str, Example], tmp_path: Path, info: FolderInfo):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = save(twin, tmp_path / "model", info)
    config = (folder / "config.json").read_text(encoding="utf-8")
    assert "tuyi" not in config
    assert "attn_implementation" not in config
    plain = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32)
    theirs = AutoProcessor.from_pretrained(folder)
    assert type(plain) is type(twin.reference)
    assert type(theirs) is type(twin.processor)
    for name in ("image", "video"):
        example = rows[name]
        text = twin.conversation(example, example.label)
        assert theirs.tokenizer(text).input_ids == twin.processor.tokenizer(text).input_ids
        inputs = twin.inputs(example, example.label)
        with torch.inference_mode():
            expected, found = twin.reference(**inputs).logits, plain(**inputs).logits
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert theirs.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}]}], add_generation_prompt=True
    ) == ("<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|><|im_end|>\n<|im_start|>assistant\n")


def test_a_saved_folder_opens_again_and_gives_the_same(
    twin: Any, rows: dict[str, Example], tmp_path: Path, info: FolderInfo
):
    folder = save(twin, tmp_path / "model", info)
    frontend = load_frontend(str(folder))
    assert frontend.spec == twin.model.spec
    assert frontend.info == info
    model = load_model(frontend, device="cpu")
    assert model.hf.dtype is torch.float32
    example = rows["mixed"]
    encoder = Encoder(frontend.tokenizer, frontend.spec, info.tasks)
    torch.testing.assert_close(
        answers(encoder, model, example), answers(twin.encoder, twin.model, example), atol=1e-5, rtol=1e-5
    )


def test_bfloat16_is_near(twins: Callable[[str], Any], rows: dict[str, Example], saved: Path):
    twin = twins("qwen2_vl")
    model = load_model(load_frontend(str(saved)), device="cpu", dtype="bfloat16")
    assert model.hf.dtype is torch.bfloat16
    found, exact = (answers(twin.encoder, one, rows["image"]) for one in (model, twin.model))
    assert (found.softmax(-1) - exact.softmax(-1)).abs().max() < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_equal_seeds_give_equal_built_in_models(name: str):
    texts = ["一些文字 some text"] * 3
    first, second = (load_frontend(name, texts) for _ in range(2))
    assert first.tokenizer.get_vocab() == second.tokenizer.get_vocab()
    assert first.info is None
    assert first.spec.family == NAMES[name] == first.config.model_type
    one, two, other = (
        load_model(front, device="cpu", seed=seed).hf.state_dict()
        for front, seed in ((first, 1), (second, 1), (first, 2))
    )
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)
    assert sum(weight.numel() for weight in one.values()) < 8_000_000


def test_the_info_file_survives(tmp_path: Path, info: FolderInfo):
    assert read_info(tmp_path) is None
    write_info(tmp_path, info)
    assert read_info(tmp_path) == info
    assert peek_with_config(tmp_path) == info
    assert [path.name for path in tmp_path.glob("*.part")] == []
    assert info.temperature("colour") == 1.25
    assert info.temperature("shape") == 1.0
    assert set(versions()) == {"tuyi", "torch", "transformers", "accelerate", "peft"}


def peek_with_config(folder: Path) -> FolderInfo | None:
    (folder / "config.json").write_text("{}")
    return peek(str(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], r"tuyi.json: 1 problem\n  FolderInfo: Invalid JSON"),
        (lambda text: "[]", r"tuyi.json: 1 problem\n  FolderInfo: "),
        (
            lambda text: text.replace('"base_model"', '"base_modell"'),
            r"base_modell: unknown setting; did you mean 'base_model'",
        ),
        (lambda text: text.replace('"红色（深）"', '"红色(浅)"'), r"tasks.tasks.0.labels: .*are the same label"),
        (lambda text: json.dumps({**json.loads(text), "format": "x"}), r"  format: Input should be a valid integer"),
    ],
)
def test_a_broken_info_file_is_told_apart(tmp_path: Path, info: FolderInfo, change: Callable[[str], str], message: str):
    write_info(tmp_path, info)
    file = tmp_path / "tuyi.json"
    file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        read_info(tmp_path)


def test_names_that_are_no_model(tmp_path: Path):
    with pytest.raises(ModelError, match=r"built-in models are builtin:tiny, .*; found 'builtin:small'"):
        peek("builtin:small")
    with pytest.raises(
        ModelError, match=r"model folder .*/none does not exist; expected a folder, a hub id or builtin:tiny"
    ):
        peek(str(tmp_path / "none"))
    with pytest.raises(ModelError, match="model folder none does not exist"):
        peek("none")
    with pytest.raises(ModelError, match="model folder a/b/c does not exist"):
        peek("a/b/c")
    with pytest.raises(ModelError, match=r"is not a model folder: it has no config.json$"):
        peek(str(tmp_path))
    assert peek("Qwen/Qwen2-VL-7B-Instruct") is None
    for name in NAMES:
        assert peek(name) is None
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelError, match=r"model folder .*/file does not exist"):
        load_frontend(str(tmp_path / "file"))


def test_a_folder_with_the_model_inside_says_where(tmp_path: Path):
    for name in ("checkpoint-2", "checkpoint-10"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"has no config.json; it has checkpoint-10, checkpoint-2 inside"):
        peek(str(tmp_path))


def test_an_adapter_is_not_a_model(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="is an adapter without its model"):
        peek(str(tmp_path))


def test_a_model_of_another_family(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match="is a llama model; expected one of qwen2_vl, qwen2_5_vl, qwen3_vl"):
        load_frontend(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "never_heard_of"}))
    with pytest.raises(ModelError, match=r"cannot be loaded: .*never_heard_of"):
        load_frontend(str(tmp_path))
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(ModelError, match=f"model {tmp_path} cannot be loaded: "):
        load_frontend(str(tmp_path))


def test_a_folder_without_processor_files(saved: Path, tmp_path: Path):
    folder = copied(saved, tmp_path / "m")
    kept = {"config.json", "model.safetensors", "generation_config.json"}
    for file in folder.iterdir():
        if file.name not in kept:
            file.unlink()
    with pytest.raises(ModelError, match=f"model {folder} cannot be loaded: "):
        load_frontend(str(folder))


def test_broken_weights(saved: Path, tmp_path: Path):
    folder = copied(saved, tmp_path / "m")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:4], b"", b"\0" * 200):
        weights.write_bytes(broken)
        with pytest.raises(ModelError, match=f"the weights of model {folder} cannot be loaded: "):
            load_model(load_frontend(str(folder)), device="cpu")
    weights.unlink()
    with pytest.raises(ModelError, match=f"the weights of model {folder} cannot be loaded: .*model.safetensors"):
        load_model(load_frontend(str(folder)), device="cpu")


def test_missing_and_misshapen_weights(saved: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    folder = copied(saved, tmp_path / "m")
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    name = next(key for key in tensors if key.endswith("norm.weight") and "layers" not in key and "blocks" not in key)
    kept = copy.copy(tensors)
    del kept[name]
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"model {folder} lacks 1 of its weights, the first is .*norm.weight"):
        load_model(load_frontend(str(folder)), device="cpu")
    save_file({**tensors, name: torch.ones(3)}, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"model {folder}"):
        load_model(load_frontend(str(folder)), device="cpu")
