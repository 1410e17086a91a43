"""`tuyi doctor`: on this machine as it is, and on made-up ones with something wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from typer.testing import CliRunner

from tuyi.cli import app
from tuyi.errors import ModelError
from tuyi.model import kernels, products, trials
from tuyi.model.load import load_frontend
from tuyi.model.weights import weigh
from tuyi.predict import doctor, machine
from tuyi.predict.machine import Gpu, Torch

GPU = Gpu("Some GPU", "570.1", 70 * 2**30, 80 * 2**30, (9, 0))


def texts(found: doctor.Diagnosis) -> str:
    return "\n".join(f"{problem.text} -> {problem.fix}" for problem in found.problems)


def pretend(monkeypatch: pytest.MonkeyPatch, gpus: tuple[Gpu, ...], found: Torch) -> None:
    monkeypatch.setattr(doctor, "find_gpus", lambda: gpus)
    monkeypatch.setattr(doctor, "find_torch", lambda: found)
    monkeypatch.setattr(doctor, "kernels", lambda module, on_gpu: iter(()))


def model_folder(folder: Path, *shapes: tuple[int, ...]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen2_vl"}')
    for number, shape in enumerate(shapes):
        save_file({f"w{number}": np.zeros(shape, np.float16)}, folder / f"model-{number}.safetensors")
    return folder


def test_this_machine_in_one_screen() -> None:
    done = CliRunner().invoke(app, ["doctor", "--model", "builtin:tiny"])
    assert done.exit_code == 0, done.output
    for title in ("versions", "machine", "prediction uses", "model builtin:tiny"):
        assert f"\n{title}\n" in f"\n{done.output}"
    assert "libjpeg-turbo" in done.output
    assert torch.__version__ in done.output
    assert "attention" in done.output
    assert len(done.output.splitlines()) < 40


def test_without_torch_it_still_answers() -> None:
    code = "import sys; sys.modules['torch'] = None; sys.argv = ['tuyi', 'doctor']; from tuyi.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "cannot predict: torch cannot be imported" in done.stdout
    assert "libjpeg-turbo" in done.stdout
    assert "Traceback" not in done.stderr


def test_cpu_build_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, (GPU,), Torch(torch, "2.15.0", None))
    found = doctor.diagnose()
    assert "has a GPU (Some GPU), but torch 2.15.0 is a CPU build" in texts(found)
    assert "install a CUDA build" in texts(found)
    assert found.can_predict


def test_torch_that_sees_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, (GPU,), Torch(torch, "2.15.0", "13.2"))
    assert "torch 2.15.0 for CUDA 13.2 sees no GPU; driver 570.1" in texts(doctor.diagnose())


def test_old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    old = Gpu("Old GPU", "570.1", 2**30, 2**30, (7, 5))
    pretend(monkeypatch, (GPU, old), Torch(torch, "2.15.0", "13.2", devices=2))
    assert "GPU 1 (Old GPU) has compute capability 7.5" in texts(doctor.diagnose())
    assert "GPU 0" not in texts(doctor.diagnose())


@pytest.mark.parametrize("why", [None, "quack is not installed"])
def test_kernels_of_a_gpu(why: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    fa2 = kernels.KERNELS["fa2"]
    asked = []

    def fastest(device: torch.device, *shape: int) -> trials.Pick:
        asked.append(shape)
        if len(asked) == 2:
            raise torch.OutOfMemoryError
        return trials.Pick(fa2, {"fa2": 250.0}, {"fa4": "no such module"})

    monkeypatch.setattr(kernels.Kernel, "present", lambda self, device: self.name in ("fa2", "fa4"))
    monkeypatch.setattr(trials, "fastest", fastest)
    monkeypatch.setattr(products, "refused", lambda device: why)
    lines = dict(doctor.kernels(torch, True))
    assert lines["attention kernels found"] == "fa2 (torch), fa4 (flash-attn-4)"
    assert lines["attention, vision tower"].startswith("fa2 (TFLOP/s here: fa2 250; fa4 cannot be used: no such module")
    assert lines["attention, language model"] == "not tried: no memory free on GPU 0"
    assert asked == [(16, 16, 80, False), (28, 4, 128, True)]
    assert ("quack is not installed" in lines["matrix products"]) is (why is not None)


def test_gpus_as_the_driver_lists_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 'NVIDIA H200, 570.86.15, 143000, 143771, 9.0'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert machine.find_gpus() == (Gpu("NVIDIA H200", "570.86.15", 143000 * 2**20, 143771 * 2**20, (9, 0)),)
    command.write_text("#!/bin/sh\nexit 9\n")
    assert machine.find_gpus() == ()


def test_memory_of_this_host() -> None:
    free, total = machine.host_memory()
    assert 2**28 < free <= total


@pytest.mark.parametrize(
    ("wanted", "tag", "text"),
    [
        ("==2.11.0", "", "it needs torch ==2.11.0"),
        (">=2.14", "+cu132", "it is built for cu132"),
        (">=2.14", "+cpu", ""),
        ("==2.15.0", "", ""),
    ],
)
def test_torchvision_of_another_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wanted: str, tag: str, text: str
) -> None:
    package, facts = tmp_path / "torchvision", tmp_path / "torchvision-0.30.0.dist-info"
    package.mkdir()
    facts.mkdir()
    (package / "__init__.py").touch()
    (package / "version.py").write_text(f"__version__ = '0.30.0{tag}'\n")
    head = "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.30.0\n"
    (facts / "METADATA").write_text(f"{head}Requires-Dist: torch {wanted}\n")
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert machine.torchvision_misfit("2.15.0+cpu") == text


def test_unmet_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["transformers>=99", "no-such-package-at-all>=1", "numpy", "ray>=2000; extra == 'ray'"]
    monkeypatch.setattr(machine.metadata, "requires", lambda name: asked if name == "tuyi" else [])
    found = doctor.diagnose()
    assert "tuyi needs transformers >=99, found" in texts(found)
    assert "pip install 'transformers>=99'" in texts(found)
    assert "tuyi needs no-such-package-at-all >=1, found none" in texts(found)
    assert "ray" not in texts(found)


def test_size_from_headers(tmp_path: Path) -> None:
    weights = weigh(str(model_folder(tmp_path / "m", (3, 5), (7,), ())))
    assert (weights.family, weights.parameters) == ("qwen2_vl", 3 * 5 + 7 + 1)
    assert weights.file_bytes == sum(file.stat().st_size for file in (tmp_path / "m").glob("*.safetensors"))


def test_broken_weights(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", (3, 5))
    (folder / "model-0.safetensors").write_bytes(b"<html>not found</html>")
    with pytest.raises(ModelError, match="is not a safetensors file; download it anew"):
        weigh(str(folder))
    (folder / "model-0.safetensors").unlink()
    with pytest.raises(ModelError, match="has no weights: expected"):
        weigh(str(folder))
    assert not doctor.diagnose(str(folder)).can_predict


def test_model_that_does_not_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = str(model_folder(tmp_path / "m", (1024, 1024)))  # 2 MiB in bfloat16

    def on(free: int, total: int) -> doctor.Diagnosis:
        gpu = Gpu("Small GPU", "570.1", free * 2**20, total * 2**20, (9, 0))
        pretend(monkeypatch, (gpu,), Torch(torch, "2.15.0", "13.2", devices=1))
        return doctor.diagnose(folder)

    assert "does not fit GPU 0" in texts(on(1, 2))
    assert not on(1, 2).can_predict
    assert "free just now" in texts(on(1, 80))
    assert on(1, 80).can_predict
    assert "GPU 0" not in texts(on(80, 80))


def test_tokens_a_pack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", (8, 8))
    load_frontend("builtin:tiny", ["text"]).config.save_pretrained(folder)
    for free, expected in ((2**20, 1024), (GPU.free, 32768)):
        gpu = Gpu("Some GPU", "570.1", free, GPU.total, (9, 0))
        pretend(monkeypatch, (gpu,), Torch(torch, "2.15.0", "13.2", devices=1))
        lines = dict(line for section in doctor.diagnose(str(folder)).sections for line in section.lines)
        assert lines["tokens a pack"] == str(expected)


def test_model_of_another_family(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", (8, 8))
    (folder / "config.json").write_text('{"model_type": "llava"}')
    found = doctor.diagnose(str(folder))
    assert "it is a llava model; expected one of qwen2_vl, qwen2_5_vl, qwen3_vl" in texts(found)
    assert not found.can_predict


def test_no_such_model() -> None:
    done = CliRunner().invoke(app, ["doctor", "--model", "./nowhere"])
    assert done.exit_code == 1
    assert "cannot predict: model folder ./nowhere does not exist" in done.output
