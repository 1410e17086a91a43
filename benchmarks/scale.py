"""Time and memory of `tuyi predict` against the number of rows.

    python benchmarks/scale.py [ROWS …]

Each count is a process of its own, so its peak is its own. Rows are short: a sentence, and in every second row a small
picture, drawn from a hundred different files; the built-in model with random weights labels them on the CPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

TASK = """
name: short
prompt: "{content} {labels}"
labels: [yes, no, unsure]
budget: {max_pixels: 3136, max_tokens: 256}
"""
MEASURE = """
import resource, sys, time
import tuyi
data, task, out = sys.argv[1:]
began = time.perf_counter()
done = tuyi.predict("builtin:tiny", data, out, task=task)
whole = time.perf_counter() - began
used = resource.getrusage(resource.RUSAGE_SELF)
print(done.rows, done.seconds, whole, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
"""


def write(folder: Path, rows: int) -> Path:
    """Write ``rows`` rows as messages of JSONL."""
    (folder / "images").mkdir(parents=True)
    for index in range(100):
        Image.new("RGB", (28, 28), (index, 2 * index, 255 - index)).save(folder / "images" / f"{index}.png")
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for index in range(rows):
            picture = [f"images/{index % 100}.png"] if index % 2 else []
            text = f"{'<image>' * len(picture)}question {index % 977} of {index % 31}"
            row = {"id": str(index), "messages": [{"role": "user", "content": text}], "images": picture}
            file.write(json.dumps(row) + "\n")
    return folder / "rows.jsonl"


def main() -> None:
    """Print the table."""
    sizes = [int(size) for size in sys.argv[1:]] or [1_000, 10_000, 100_000]
    print("rows | predicting, s | rows/s | with survey and start, s | CPU s | peak MB")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "task.yaml").write_text(TASK, encoding="utf-8")
        for size in sizes:
            data = write(folder / str(size), size)
            command = [
                sys.executable,
                "-c",
                MEASURE,
                str(data),
                str(folder / "task.yaml"),
                str(folder / f"{size}.jsonl"),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-5:]
            rows, seconds, whole, cpu, peak = map(float, done)
            print(
                f"{rows:,.0f} | {seconds:.1f} | {rows / seconds:.0f} | {whole:.1f} | {cpu:.1f} | {peak:.0f}", flush=True
            )


if __name__ == "__main__":
    main()
