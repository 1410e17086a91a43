"""Write scikit-learn's handwritten digits as a folder per label, 80 % to train on and 20 % held out.

python examples/digits/prepare.py digits
tuyi train digits/train --task examples/digits/task.yaml --config examples/digits/run.yaml --out digits/model
tuyi predict digits/model digits/test --out digits/pred.jsonl
tuyi evaluate digits/pred.jsonl digits/test --out digits
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def write(out: Path, side: int = 56) -> None:
    """Write ``out/train/LABEL/*.png`` and ``out/test/LABEL/*.png``, each digit ``side`` pixels wide and high."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    held_out = set(order[: len(order) // 5].tolist())
    for index, (image, label) in enumerate(zip(digits.images, digits.target)):
        folder = out / ("test" if index in held_out else "train") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = Image.fromarray((255 - image / 16 * 255).astype(np.uint8))
        pixels.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{index:04d}.png")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("digits"))
