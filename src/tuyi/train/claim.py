"""A run's folder, taken for it: what the run was asked to do lies in it, so that no other run goes on with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tuyi.errors import OutputError
from tuyi.model.folder import FILE
from tuyi.train.process import first_process
from tuyi.whole import write_whole

__all__ = ["RECORD", "claim", "release"]

RECORD = "run.json"


def claim(out: Path, record: dict[str, Any], resume: bool) -> None:
    """Take ``out`` for a run, or make sure that the run in it is this one.

    Args:
        out: The folder; made where missing.
        record: What the run is asked to do, as plain data.
        resume: Whether it may have been begun.

    Raises:
        OutputError: ``out`` is taken, holds another run, or cannot be written.
    """
    file = out / RECORD
    if resume and file.exists():
        earlier = json.loads(file.read_text(encoding="utf-8"))
        for key in record:
            if earlier.get(key) != record[key]:
                raise OutputError(f"{out} holds another run: {_difference(key, earlier.get(key), record[key])}")
        return
    if not first_process():
        return
    if not resume and (file.exists() or (out / FILE).exists()):
        raise OutputError(f"{out} holds a run already; pass --resume to go on with it, or choose another --out")
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; expected a folder to write the model into")
    write_whole(file, json.dumps(record, ensure_ascii=False, indent=1))


def release(out: Path) -> None:
    """Give a folder back after a run that failed before its first step; one that was begun stays taken."""
    begun = [out / FILE, *out.glob("loss.jsonl"), *out.glob("*/loss.jsonl")]
    if first_process() and not any(file.exists() for file in begun):
        (out / RECORD).unlink(missing_ok=True)


def _difference(key: str, earlier: Any, now: Any) -> str:
    if isinstance(earlier, dict) and isinstance(now, dict):
        for name in sorted(earlier.keys() | now.keys()):
            if earlier.get(name) != now.get(name):
                return _difference(f"{key}.{name}", earlier.get(name), now.get(name))
    return f"its {key} is {str(earlier)[:80]!r}, this run's is {str(now)[:80]!r}; choose another --out"
