"""From picture file to patches: CPU time of every way that is installed, one thread, and pictures a second of the pool.

    python benchmarks/vision.py [--pictures 48] [--repeats 5] [--workers 2] [--tiny]

Pictures are made up with the sizes and file sizes of the WWW2025 challenge. Each time is the least of the repeats,
picture by picture, all ways in turn, so that other work on the machine hits none of them alone. simplejpeg, opencv and
PyTurboJPEG are measured where they are installed; tuyi needs none of them.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from pictures import save_screenshot
from tuyi.data.example import Image
from tuyi.vision.image import load_rgb, probe_image
from tuyi.vision.patches import image_grid, image_patches
from tuyi.vision.pool import PicturePool
from tuyi.vision.resample import resample, resampler
from tuyi.vision.spec import VisionSpec
from workload import draw_shapes

SPEC = VisionSpec("qwen2_vl")
MIN_PIXELS = 3136
CAPS = {"capped at 1,003,520 px": 1_003_520, "native (cap 12,845,056 px)": 12_845_056}
Way = Callable[[Path], Any]


def decoders() -> dict[str, Way | None]:
    """Decoders of JPEG to 8-bit RGB in memory; None where one is absent."""

    def pillow(path: Path) -> Any:
        return Pillow.open(path).load()

    def torchvision(path: Path) -> Any:
        from torchvision.io import ImageReadMode, decode_jpeg, read_file

        return decode_jpeg(read_file(str(path)), mode=ImageReadMode.RGB)

    ways: dict[str, Way | None] = {"Pillow": pillow, "torchvision": torchvision}
    simplejpeg, cv2, turbojpeg = map(_optional, ("simplejpeg", "cv2", "turbojpeg"))
    ways["simplejpeg"] = simplejpeg and (lambda path: simplejpeg.decode_jpeg(path.read_bytes()))
    ways["opencv"] = cv2 and (lambda path: cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR_RGB))
    try:
        turbo = turbojpeg and turbojpeg.TurboJPEG()
    except RuntimeError:  # the system has no libturbojpeg for it
        turbo = None
    ways["PyTurboJPEG"] = turbo and (lambda path: turbo.decode(path.read_bytes(), pixel_format=turbojpeg.TJPF_RGB))
    return ways


def resizers(pictures: dict[Path, Pillow.Image], cap: int) -> dict[str, Way | None]:
    """Resizers of decoded pictures, bicubic with antialiasing on uint8; None where one is absent."""
    import torch

    sizes = {path: _size(picture, cap) for path, picture in pictures.items()}
    tensors = {path: torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] for path, picture in pictures.items()}

    def in_torch(path: Path) -> Any:
        size = sizes[path][::-1]
        return torch.nn.functional.interpolate(tensors[path], size, mode="bicubic", antialias=True)

    return {
        "Pillow": lambda path: pictures[path].resize(sizes[path], Pillow.Resampling.BICUBIC),
        "torch, channels last": in_torch,
        resampler(): None if resampler().startswith("Pillow") else lambda path: resample(pictures[path], sizes[path]),
    }


def processors(cap: int) -> dict[str, Way | None]:
    """From file to model input: transformers' two processors, and ours."""
    from transformers import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    def ours(path: Path, draft: bool = False) -> Any:
        return image_patches(Image(path), SPEC, MIN_PIXELS, cap, draft=draft)

    limits = {"shortest_edge": MIN_PIXELS, "longest_edge": cap}
    default, plain = Qwen2VLImageProcessor(size=limits), Qwen2VLImageProcessorPil(size=limits)
    return {
        "transformers, torchvision backend": lambda path: default(Pillow.open(path), return_tensors="pt"),
        "transformers, PIL backend": lambda path: plain(Pillow.open(path), return_tensors="pt"),
        "tuyi": ours,
        "tuyi, scaled decode (other pixels)": lambda path: ours(path, draft=True),
    }


def measure(ways: dict[str, Way | None], paths: Sequence[Path], repeats: int) -> dict[str, float]:
    """CPU milliseconds a picture of each way that is present."""
    present = {name: way for name, way in ways.items() if way}
    least = {name: [float("inf")] * len(paths) for name in present}
    for index, path in enumerate(paths):
        for _ in range(repeats):
            for name, way in present.items():
                start = time.process_time()
                way(path)
                least[name][index] = min(least[name][index], time.process_time() - start)
    return {name: 1000 * sum(times) / len(times) for name, times in least.items()}


def show(title: str, ways: dict[str, Way | None], paths: Sequence[Path], repeats: int) -> float:
    """One table, the first way being the baseline; returns its milliseconds a picture."""
    found = measure(ways, paths, repeats)
    baseline = next(iter(found.values()))
    print(f"\n{title}\n{'':44}{'ms CPU':>8}{'pictures / core s':>19}{'ratio':>8}")
    for name in ways:
        show_line(name, found.get(name), baseline)
    return baseline


def show_line(name: str, milliseconds: float | None, baseline: float) -> None:
    """One way's time; None where it is absent."""
    if milliseconds is None:
        print(f"  {name:42}{'absent':>8}")
    else:
        print(f"  {name:42}{milliseconds:8.2f}{1000 / milliseconds:19.1f}{baseline / milliseconds:8.2f}")


def show_pool(paths: Sequence[Path], cap: int, workers: int, repeats: int, baseline: float) -> None:
    """CPU time of a pool's worker, picture by picture, and what the pool makes of all cores at once."""
    sizes = {path: 3 * SPEC.patch_size**2 * _area(*_grid(probe_image(Image(path)), cap)) for path in paths}
    with PicturePool(workers) as pool, ThreadPoolExecutor(workers) as threads:

        def through(pack: Sequence[Path]) -> None:
            with pool.block(sum(sizes[path] for path in pack)) as block:
                list(threads.map(lambda path: pool.patches(Image(path), SPEC, MIN_PIXELS, cap, block), pack))

        def cpu_of_one(path: Path) -> float:
            before = _cpu(pool.pids)
            through([path])
            return _cpu(pool.pids) - before

        through([path for path in paths for _ in range(workers)])
        least = [min(cpu_of_one(path) for _ in range(repeats)) for path in paths]
        show_line("tuyi, in a pool's worker", 1000 * sum(least) / len(least), baseline)
        walls, owns = [], []
        for _ in range(repeats):
            wall, own = time.perf_counter(), time.process_time()
            for start in range(0, len(paths), 16):
                through(paths[start : start + 16])
            walls.append((time.perf_counter() - wall) / len(paths))
            owns.append((time.process_time() - own) / len(paths))
    print(f"  pool of {workers}: {1 / min(walls):.1f} pictures/s; the caller's own CPU {1000 * min(owns):.2f} ms each")


def _cpu(pids: Sequence[int]) -> float:
    """CPU seconds of single-threaded processes since their start; Linux only."""
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids) / 1e9


def _grid(info: Any, cap: int) -> tuple[int, int, int]:
    return image_grid(info.width, info.height, SPEC, MIN_PIXELS, cap)


def _area(t: int, h: int, w: int) -> int:
    return t * h * w


def _size(picture: Pillow.Image, cap: int) -> tuple[int, int]:
    _, h, w = _grid(picture, cap)
    return w * SPEC.patch_size, h * SPEC.patch_size


def _optional(module: str) -> Any | None:
    try:
        return import_module(module)
    except ImportError:
        return None


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tiny", action="store_true", help="few small pictures: does it run?")
    args = parser.parse_args()
    if args.tiny:
        args.pictures, args.repeats = 4, 2
    import torch

    torch.set_num_threads(1)
    if cv2 := _optional("cv2"):
        cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        shapes = draw_shapes(args.pictures, max_picture_pixels=200_000 if args.tiny else None)
        flat = [picture for shape in shapes for picture in shape.pictures][: args.pictures]
        names = [save_screenshot(Path(folder), str(index), shape, index) for index, shape in enumerate(flat)]
        paths = [Path(folder, name) for name in names]
        pixels = [width * height for width, height, _ in flat]
        sizes = [path.stat().st_size for path in paths]
        print(
            f"{len(paths)} pictures, median {np.median(pixels) / 1e6:.2f} Mpx, {np.median(sizes) / 1e3:.0f} kB; "
            f"one thread; least of {args.repeats}"
        )
        jpegs = [path for path in paths if path.suffix == ".jpg"]
        show("decode, JPEG", decoders(), jpegs, args.repeats)
        decoded = {path: load_rgb(Image(path)) for path in jpegs[:16]}
        for title, cap in CAPS.items():
            show(f"resize, {title}", resizers(decoded, cap), list(decoded), args.repeats)
        for title, cap in CAPS.items():
            baseline = show(f"file to patches, {title}", processors(cap), paths, args.repeats)
            show_pool(paths, cap, args.workers, args.repeats, baseline)


if __name__ == "__main__":
    main()
