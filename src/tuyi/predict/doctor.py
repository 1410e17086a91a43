"""What this machine has, what prediction would use of it, and what is in the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tuyi.cores import cpu_cores
from tuyi.errors import ModelError
from tuyi.model.tiny import NAMES
from tuyi.model.weights import Weights, weigh
from tuyi.predict.machine import (
    Gpu,
    Torch,
    find_gpus,
    find_torch,
    host_memory,
    torchvision_misfit,
    unmet_requirements,
)

__all__ = ["Diagnosis", "Problem", "Section", "diagnose"]

EXTRAS = {
    "vllm": "--engine vllm",
    "ray": "--engine ray",
    "openai": "--engine api",
    "deepspeed": "sharded training",
    "flash-attn-4": "FA4 attention",
}
"""Optional packages, and what each is for."""
NEEDED = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pillow")
"""Packages without which nothing is predicted; the others serve training, reports and video."""
_TOWERS = {"vision tower": (16, 16, 80, False), "language model": (28, 4, 128, True)}
"""Query heads, key heads, head size and causality of the two towers of Qwen2-VL-7B."""
_GIB = 2**30
_NEEDS_CAPABILITY = (8, 0)
_ROOM = 1.1
"""Memory that a model needs at least, in its weights: a tenth more for the smallest pack."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in the way, with its mending; ``fatal`` where prediction cannot run at all."""

    text: str
    fix: str
    fatal: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A group of facts: (name, value) lines under a title."""

    title: str
    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Facts and problems."""

    sections: tuple[Section, ...]
    problems: tuple[Problem, ...]

    @property
    def can_predict(self) -> bool:
        return not any(problem.fatal for problem in self.problems)


def diagnose(model: str | None = None) -> Diagnosis:
    """Look at this machine; nothing is loaded, downloaded or changed.

    Args:
        model: A built-in name, a folder or a hub id, to see whether it fits.
    """
    torch, gpus, memory = find_torch(), find_gpus(), host_memory()
    usable = torch.module is not None and torch.devices > 0
    if usable and not gpus:
        gpus = torch.gpus()
    sections = [
        Section("versions", tuple(_versions(torch))),
        Section("machine", tuple(_machine(gpus, torch, memory))),
        Section("prediction uses", tuple(_uses(torch))),
    ]
    problems = [*_software_problems(torch), *_gpu_problems(torch, gpus), *_decoder_problems()]
    if model is not None:
        try:
            weights = weigh(model)
        except ModelError as error:
            problems.append(Problem(str(error), "name a model folder, a hub id or builtin:tiny", fatal=True))
        else:
            sections.append(Section(f"model {model}", tuple(_model(weights, gpus if usable else ()))))
            problems.extend(_family_problems(weights))
            problems.extend(_fit_problems(weights, gpus if usable else (), memory))
    return Diagnosis(tuple(sections), tuple(problems))


def _versions(torch: Torch) -> Iterator[tuple[str, str]]:
    import platform
    from importlib import metadata

    yield "tuyi", f"{metadata.version('tuyi')}, Python {platform.python_version()}"
    build = f"CUDA {torch.cuda}" if torch.cuda else "CPU build"
    yield "torch", f"{torch.version} ({build})" if torch.module is not None else f"{torch.version} (broken)"
    others = ("transformers", "torchvision", "accelerate", "peft")
    yield "beside it", ", ".join(f"{name} {_version(name)}" for name in others)
    found = [f"{name} {_version(name)} ({what})" for name, what in EXTRAS.items() if _version(name) != "–"]
    missing = [name for name in EXTRAS if _version(name) == "–"]
    yield "extras", ", ".join(found) or "none"
    if missing:
        yield "not installed", ", ".join(missing)


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "–"


def _machine(gpus: tuple[Gpu, ...], torch: Torch, memory: tuple[int, int]) -> Iterator[tuple[str, str]]:
    yield "CPU", f"{cpu_cores()} cores, {memory[0] / _GIB:.0f} of {memory[1] / _GIB:.0f} GiB memory free"
    for index, gpu in enumerate(gpus):
        capability = ".".join(map(str, gpu.capability))
        yield (
            f"GPU {index}",
            (
                f"{gpu.name}, {gpu.free / _GIB:.0f} of {gpu.total / _GIB:.0f} GiB free, compute capability {capability}"
                + (f", driver {gpu.driver}" if gpu.driver else "")
            ),
        )
    if not gpus:
        yield "GPU", "none"
    elif torch.devices != len(gpus):
        yield "of them seen by torch", str(torch.devices)


def _uses(torch: Torch) -> Iterator[tuple[str, str]]:
    from tuyi.predict.settings import PredictSettings
    from tuyi.vision.resample import resampler

    settings = PredictSettings()
    if torch.module is not None:
        on_gpu = torch.devices > 0
        yield "device", (f"{torch.devices} GPU{'s' * (torch.devices > 1)} in bfloat16" if on_gpu else "CPU in float32")
        yield from kernels(torch.module, on_gpu)
    yield "picture decoder", _decoder()
    yield "picture resizer", resampler()
    yield "picture workers", str(settings.workers)
    if torch.module is not None and torch.devices == 0:
        from tuyi.predict.room import pack_tokens

        most = pack_tokens(None, torch.module.device("cpu"))
        yield "tokens a pack", f"{most}, of a small model shared out to one pack for each core"
    elif torch.devices:
        yield "tokens a pack", "as many as fit beside the weights; --model MODEL says how many"


def kernels(torch: Any, on_gpu: bool) -> Iterator[tuple[str, str]]:
    """What attention and matrix products would use; on a GPU by trying what is installed, as loading does."""
    from tuyi.model.kernels import KERNELS
    from tuyi.model.products import refused
    from tuyi.model.trials import fastest

    if not on_gpu:
        yield "attention, both towers", "dense, scaled_dot_product_attention"
        return
    device = torch.device("cuda", 0)
    found = [kernel for kernel in KERNELS.values() if kernel.present(device)]
    yield "attention kernels found", ", ".join(f"{kernel.name} ({kernel.comes_with})" for kernel in found) or "none"
    if not found:
        return
    for tower, shape in _TOWERS.items():
        try:
            picked = str(fastest(device, *shape))
        except torch.OutOfMemoryError:
            picked = "not tried: no memory free on GPU 0"
        yield f"attention, {tower}", picked
    why = refused(device)
    yield "matrix products", f"torch's; fused ones cannot be used: {why}" if why else "fused with what follows (quack)"


def _decoder() -> str:
    import PIL
    from PIL import features

    turbo = features.check("libjpeg_turbo")
    jpeg = f"libjpeg-turbo {features.version('libjpeg_turbo')}" if turbo else "plain libjpeg"
    webp = f"WebP {features.version('webp')}" if features.check("webp") else "no WebP"
    return f"Pillow {PIL.__version__}, {jpeg}, {webp}"


def _decoder_problems() -> Iterator[Problem]:
    from PIL import features

    if not features.check("libjpeg_turbo"):
        yield Problem(
            "Pillow was built without libjpeg-turbo: JPEG pictures take two to three times as long to read",
            "install its wheel: pip install --force-reinstall --only-binary :all: pillow",
        )
    if not features.check("webp"):
        yield Problem("Pillow cannot read WebP pictures", "install its wheel: pip install --force-reinstall pillow")


def _software_problems(torch: Torch) -> Iterator[Problem]:
    if torch.module is None:
        yield Problem(
            f"torch cannot be imported: {torch.error}",
            "install it anew for this machine; https://pytorch.org/get-started names the command",
            fatal=True,
        )
    for name, wanted, found in unmet_requirements():
        yield Problem(
            f"tuyi needs {f'{name} {wanted}'.rstrip()}, found {found or 'none'}",
            f"pip install '{name}{wanted}'",
            fatal=not found and name in NEEDED,
        )
    if torch.module is not None and (why := torchvision_misfit(torch.version)):
        yield Problem(
            f"torchvision {_version('torchvision')} does not fit torch {torch.version}: {why}",
            "install the two together, from the same index: pip install --force-reinstall torch torchvision",
            fatal=True,
        )


def _gpu_problems(torch: Torch, gpus: tuple[Gpu, ...]) -> Iterator[Problem]:
    if torch.module is None or not gpus:
        return
    if torch.cuda is None:
        yield Problem(
            f"this machine has a GPU ({gpus[0].name}), but torch {torch.version} is a CPU build: it would not be used",
            "install a CUDA build of torch and torchvision; https://pytorch.org/get-started names the command",
        )
    elif torch.devices == 0:
        yield Problem(
            f"torch {torch.version} for CUDA {torch.cuda} sees no GPU; driver {gpus[0].driver}",
            "update the driver, install a torch for an older CUDA, or look at CUDA_VISIBLE_DEVICES",
        )
    for index, gpu in enumerate(gpus if torch.devices else ()):
        if gpu.capability < _NEEDS_CAPABILITY:
            yield Problem(
                f"GPU {index} ({gpu.name}) has compute capability {'.'.join(map(str, gpu.capability))}; "
                "bfloat16 and packed attention need 8.0 (Ampere) or newer",
                "predict with --set predict.device=cpu, or on a newer GPU",
            )


def _model(weights: Weights, gpus: tuple[Gpu, ...]) -> Iterator[tuple[str, str]]:
    yield "family", weights.family
    if weights.parameters is None:
        yield "weights", "not on this machine yet; the first command that needs them downloads them"
        return
    yield "parameters", _count(weights.parameters)
    if weights.file_bytes:
        yield "files", _size(weights.file_bytes)
    loaded = _loaded_bytes(weights.parameters, bool(gpus))
    yield "in memory", f"{_size(loaded)} ({'bfloat16, on each GPU' if gpus else 'float32'})"
    if gpus and weights.folder is not None and weights.family in NAMES.values():
        from transformers import AutoConfig

        from tuyi.predict.room import tokens_in

        free = min(gpu.free for gpu in gpus) - loaded
        if free > 0:
            yield "tokens a pack", str(tokens_in(free, AutoConfig.from_pretrained(weights.folder)))


def _size(count: int) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / 2**20:.1f} MiB"


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} G" if parameters >= 1e9 else f"{parameters / 1e6:.2f} M"


def _loaded_bytes(parameters: int, on_gpu: bool) -> int:
    return parameters * (2 if on_gpu else 4)


def _family_problems(weights: Weights) -> Iterator[Problem]:
    if weights.parameters is not None and weights.family not in NAMES.values():
        yield Problem(
            f"it is a {weights.family} model; expected one of {', '.join(NAMES.values())}",
            "name a model of the Qwen2-VL, Qwen2.5-VL or Qwen3-VL families",
            fatal=True,
        )


def _fit_problems(weights: Weights, gpus: tuple[Gpu, ...], memory: tuple[int, int]) -> Iterator[Problem]:
    if weights.parameters is None:
        return
    needed = int(_loaded_bytes(weights.parameters, bool(gpus)) * _ROOM)
    places = [(f"GPU {index}", gpu.free, gpu.total) for index, gpu in enumerate(gpus)] or [("this host", *memory)]
    for name, free, total in places:
        if needed > total:
            yield Problem(
                f"the model needs {needed / _GIB:.1f} GiB and does not fit {name}, which has {total / _GIB:.1f} GiB",
                "choose a smaller model or a machine with more memory",
                fatal=True,
            )
        elif needed > free:
            yield Problem(
                f"the model needs {needed / _GIB:.1f} GiB; {name} has {free / _GIB:.1f} GiB free just now",
                "end what else is running there",
            )
