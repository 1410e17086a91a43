"""The state of a distillation: which stages are done, with what result, and proof that their files are untouched."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import Field, ValidationError

from tuyi.config import Settings, explain_errors
from tuyi.errors import OutputError
from tuyi.model.folder import FILE
from tuyi.whole import write_whole

__all__ = ["StageName", "Stages"]

StageName: TypeAlias = Literal["label", "rows", "train", "predict", "judge", "place"]
_WEIGHTS = (".safetensors", ".bin")


class Mark(Settings):
    """What a file was like when its stage was done."""

    size: int
    digest: str


class Stage(Settings):
    """A stage that is done."""

    round: int
    name: StageName
    files: dict[str, Mark] = Field(default_factory=dict)
    """By path within the folder of the rounds."""
    result: dict[str, Any] = Field(default_factory=dict)


class State(Settings):
    """What ``state.json`` holds."""

    record: dict[str, Any]
    """What the run was asked to do."""
    stages: list[Stage] = Field(default_factory=list)


class Stages:
    """The stages of the run whose rounds lie in ``folder``; written whole after each of them.

    Args:
        out: The model folder that the run will write.
        record: What the run is asked to do; another one must not go on with it.
        tell: Called with lines that say what is done again.

    Raises:
        OutputError: ``out`` is taken by something else or another run, or a file of a finished stage has changed.
    """

    def __init__(self, out: Path, record: Mapping[str, Any], tell: Callable[[str], None]) -> None:
        self.folder = out / "rounds"
        self._file = self.folder / "state.json"
        self._tell = tell
        if self._file.exists():
            self._state = self._read()
            self._compare(out, record)
            self._drop_removed()
            self._verify()
            return
        if out.exists() and (not out.is_dir() or (out / FILE).exists() or self.folder.exists()):
            raise OutputError(f"{out} is taken and holds no rounds to go on with; choose another --out or remove it")
        self._state = State(record=json.loads(json.dumps(record)))
        self._write()

    def of(self, number: int) -> Path:
        """The folder of a round."""
        return self.folder / f"{number:02d}"

    def result(self, number: int, name: StageName) -> dict[str, Any] | None:
        """What came of a stage; None where it is not done."""
        return next((one.result for one in self._state.stages if (one.round, one.name) == (number, name)), None)

    def done(self, number: int, name: StageName, files: Iterable[Path], result: Mapping[str, Any]) -> dict[str, Any]:
        """Record a stage with its files."""
        marks = {path.relative_to(self.folder).as_posix(): _mark(path) for path in files}
        stage = Stage(round=number, name=name, files=marks, result=dict(result))
        self._state.stages.append(stage)
        self._write()
        return stage.result

    def remove_weights(self, number: int) -> None:
        """Remove the weights of a round's model, which nobody will ask any more."""
        if self._has_weights(number):
            for stage in self._state.stages:
                for name in [name for name in stage.files if stage.round == number and name.endswith(_WEIGHTS)]:
                    del stage.files[name]
            self._write()  # first, so that nobody misses them
        for path in self.of(number).rglob("*"):
            if path.name.endswith(_WEIGHTS):
                path.unlink()

    def _has_weights(self, number: int) -> bool:
        names = [name for stage in self._state.stages if stage.round == number for name in stage.files]
        return any(name.endswith(_WEIGHTS) for name in names)

    def _read(self) -> State:
        try:
            return State.model_validate_json(self._file.read_bytes())
        except ValidationError as error:
            raise OutputError(f"{explain_errors(error, str(self._file), State)}\nchoose another --out") from error

    def _compare(self, out: Path, record: Mapping[str, Any]) -> None:
        now = json.loads(json.dumps(record))
        for key in sorted(now.keys() | self._state.record.keys()):
            before = self._state.record.get(key)
            if before != now.get(key):
                raise OutputError(
                    f"{out} holds other rounds: their {key} is {_short(before)}, this run's is {_short(now.get(key))}; "
                    "choose another --out"
                )

    def _drop_removed(self) -> None:
        """Forget the rounds from the first one on whose folder somebody removed, and those that it was made from."""
        rounds = sorted({stage.round for stage in self._state.stages})
        removed = next((number for number in rounds if not self.of(number).is_dir()), None)
        if removed is None:
            return
        first = removed
        while first > 1 and not self._has_weights(first - 1):  # its labels come from the round before
            first -= 1
        if first == 1 and self._state.record.get("teacher") is None and not self._has_weights(0):
            first = 0
        self._tell(f"{self.of(removed)} is gone: rounds from {first} on are done again")
        for number in reversed(rounds):  # from the end, so that a kill in between leaves this to be found again
            if number >= first:
                shutil.rmtree(self.of(number), ignore_errors=True)
        kept = [stage for stage in self._state.stages if stage.round < first]
        self._state = self._state.model_copy(update={"stages": kept})
        self._write()

    def _verify(self) -> None:
        for stage in self._state.stages:
            for name, mark in stage.files.items():
                path = self.folder / name
                if not path.is_file() or path.stat().st_size != mark.size or _mark(path) != mark:
                    raise OutputError(
                        f"{path} {'has changed' if path.is_file() else 'is gone'} since stage {stage.name} of round "
                        f"{stage.round} wrote it; put it back, or remove {self.of(stage.round)} to do that round and "
                        "those after it again"
                    )

    def _write(self) -> None:
        write_whole(self._file, self._state.model_dump_json(indent=1))


def _mark(path: Path) -> Mark:
    with path.open("rb") as file:
        return Mark(size=path.stat().st_size, digest=hashlib.file_digest(file, "blake2b").hexdigest()[:32])


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "…"
