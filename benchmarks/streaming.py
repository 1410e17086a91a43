"""Peak memory of reading, checking, converting and surveying against the number of rows.

    python benchmarks/streaming.py [ROWS …]

Each cell is a process of its own, so its peak is its own. Rows are the challenge's dialogues with one picture each,
drawn from a hundred different files.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

STEPS = {
    "import alone": "import tuyi.data.source",
    "read": "from tuyi.data.source import read\nfor row in read(path): pass",
    "check": "from tuyi.data.check import check\nfrom tuyi.task import load_tasks\ncheck(path, load_tasks('www2025'))",
    "convert": "from tuyi.data.convert import convert\nconvert(path, path.with_name('out.json'), 'sharegpt')",
    "survey": (
        "from tuyi.data.source import scan\nfrom tuyi.encode import Encoder\nfrom tuyi.encode.survey import survey\n"
        "from tuyi.model.load import load_frontend\nfrom tuyi.task import load_tasks\n"
        "tasks = load_tasks('www2025')\nfrontend = load_frontend('builtin:tiny', tasks.tasks[0].wording)\n"
        "survey(scan(path), Encoder(frontend.tokenizer, frontend.spec, tasks), labelled=True)"
    ),
}
MEASURE = """
import resource, sys
from pathlib import Path
path = Path(sys.argv[1])
{step}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def write(folder: Path, rows: int) -> Path:
    """Write ``rows`` rows in the challenge's layout."""
    from tuyi.task import load_tasks

    head, tail = load_tasks("www2025")["www2025-intent"].wording
    (folder / "images").mkdir(parents=True)
    for index in range(100):
        Image.new("RGB", (64, 64), (index, 2 * index, 255 - index)).save(folder / "images" / f"{index}.jpg")
    with (folder / "train.json").open("w", encoding="utf-8") as file:
        for index in range(rows):
            text = f"{head}用户: <image>\n客服: 您好\n用户: 第{index}个问题，这个会生锈吗{tail}"
            row = {"id": str(index), "instruction": text, "input": "", "output": "是否会生锈"}
            file.write(("[" if not index else ",\n") + json.dumps({**row, "image": [f"{index % 100}.jpg"]}))
        file.write("]")
    return folder / "train.json"


def main() -> None:
    """Print the table."""
    sizes = [int(size) for size in sys.argv[1:]] or [1_000, 100_000]
    print("step | " + " | ".join(f"{size:,} rows: MB, seconds" for size in sizes))
    with tempfile.TemporaryDirectory() as folder:
        files = [write(Path(folder) / str(size), size) for size in sizes]
        for name, step in STEPS.items():
            cells = []
            for file in files:
                started = time.perf_counter()
                command = [sys.executable, "-c", MEASURE.format(step=step), str(file)]
                peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
                cells.append(f"{peak:.0f}, {time.perf_counter() - started:.1f}")
            print(f"{name} | " + " | ".join(cells), flush=True)


if __name__ == "__main__":
    main()
