"""The way to the model: rows are encoded, packed and copied to its device while it works on earlier ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import torch

from tuyi.data.example import Example
from tuyi.encode.encoded import Encoded
from tuyi.encode.encoder import Encoder, LabelTokens, Look
from tuyi.encode.pack import Pack, group, pack, pack_prompts
from tuyi.errors import DataError
from tuyi.model.ahead import Ahead, Coming
from tuyi.model.decode import extended
from tuyi.model.forward import Batch, to_device
from tuyi.model.kept import Plan
from tuyi.predict.engine import SizedRow
from tuyi.task.task import Task
from tuyi.vision.pool import PicturePool

__all__ = ["Feed", "Ready"]

_WORTH_SHARING = 1024
"""Tokens that are one pack although lanes wait for another."""


@dataclass(frozen=True, eq=False, slots=True)
class Ready:
    """A pack whose tensors lie on the device.

    Args:
        encoded: Its rows.
        labels: The labels of each row's task; None for rows of which some is written freely. These stand with what
            every answer of theirs begins with.
        pack: Them laid out.
        batch: The pack on the device.
        keys: Of the visual features that are to be kept once it is through.
    """

    encoded: Sequence[Encoded]
    labels: Sequence[LabelTokens] | None
    pack: Pack
    batch: Batch
    keys: frozenset[bytes]


class Feed:
    """Encodes rows ahead of a model.

    Args:
        encoder: Of the model, with its tasks.
        device: Where packs go.
        pack_tokens: Most tokens of one pack, label branches included.
        workers: Pictures that are decoded at a time.
        window: Rows sorted by length together; also the most that wait for each other.
        lanes: Packs that pass the model at a time; fewer rows than fill as many are shared out evenly.
        pool: Processes that decode; threads of this process where None.
        features: Visual tokens whose features are kept for pictures that come again.
        on_bad_row: Called with what is wrong with a row that cannot be read after all; such a row stops everything
            where not given.
    """

    def __init__(
        self, encoder: Encoder, device: torch.device, *, pack_tokens: int, workers: int, window: int, lanes: int = 1,
        pool: PicturePool | None = None, features: int = 0, on_bad_row: Callable[[DataError], None] | None = None,
    ) -> None:  # fmt: skip
        self._encoder, self._pack_tokens, self._window, self._lanes = encoder, pack_tokens, window, lanes
        self._ahead = Ahead(device, workers=workers, pool=pool, on_bad_row=on_bad_row)
        self._plan = Plan(features)

    def packs(self, rows: Iterable[SizedRow]) -> Generator[Ready, None, None]:
        """Packs in the order in which they are to run: longest rows first in each window.

        Raises:
            DataError: A picture that cannot be read after all.
        """
        self._plan.clear()
        coming: deque[Coming[Ready]] = deque()
        try:
            for examples, tokens in self._grouped(rows):
                coming.append(self._start(examples, tokens))
                # ahead lie rows for every worker, and at least the pack after the one that runs
                while len(coming) > 2 and sum(len(one.rows) for one in coming) > 3 * self._ahead.workers:
                    if (ready := coming.popleft().pack.result()) is not None:
                        yield ready
            while coming:
                if (ready := coming.popleft().pack.result()) is not None:
                    yield ready
        finally:
            self._ahead.stop(coming)

    def close(self) -> None:
        """End the threads; the pool is its owner's."""
        self._ahead.close()

    def _grouped(self, rows: Iterable[SizedRow]) -> Iterator[tuple[list[Example], int]]:
        """Rows that pass the model together, and their tokens without branches."""
        rows = iter(rows)
        tasks = self._encoder.tasks
        while window := list(islice(rows, self._window)):
            # rows of a task side by side share the beginning of their prompts, rows with the same picture its features
            asked = [(tasks.of(row), row, size) for row, size in window]
            asked.sort(key=lambda one: (not one[0].answer.has_free, one[0].name, -one[2], _picture_bytes(one[1])))
            for _, alike in groupby(asked, lambda one: one[0].answer.has_free):
                sized = [((row, size), size + self._answer_tokens(task)) for task, row, size in alike]
                for together in group(sized, self._budget([tokens for _, tokens in sized])):
                    yield [row for row, _ in together], sum(tokens for _, tokens in together)

    def _budget(self, sizes: Sequence[int]) -> int:
        """Tokens of a pack, so that rows of these sizes keep all lanes busy."""
        if self._lanes == 1:
            return self._pack_tokens
        share = -(-sum(sizes) // self._lanes) + max(sizes)  # the last row of a pack may reach over its share
        return min(self._pack_tokens, max(share, _WORTH_SHARING))

    def _answer_tokens(self, task: Task) -> int:
        """Tokens that stand behind a prompt: every label in a branch of its own, or the longest answer."""
        answers = self._encoder.answers(task)
        return answers.most if task.answer.has_free else sum(answers.labels.branch_lengths)

    def _start(self, examples: list[Example], tokens: int) -> Coming[Ready]:
        spec = self._encoder.spec
        # patches of one frame; a video's are not cut by the pool
        pixel_bytes = tokens * spec.merge_size**2 * 3 * spec.patch_size**2
        return self._ahead.start([self._encoding(row) for row in examples], pixel_bytes, self._ready)

    def _encoding(self, row: Example) -> Callable[[Look | None], Encoded]:
        return lambda look: self._encoder.encode(row, labelled=False, look=look)

    def _ready(self, encoded: list[Encoded]) -> Ready:
        tasks = [self._encoder.tasks[row.task] for row in encoded]
        labels = None
        if not tasks[0].answer.has_free:
            labels = [self._encoder.labels(task) for task in tasks]
            packed = pack(encoded, labels, self._plan)
        else:
            encoded = [extended(row, self._encoder.answers(task).opening) for row, task in zip(encoded, tasks)]
            packed = pack_prompts(encoded, self._plan)
        visuals = [visual for visual in (packed.images, packed.videos) if visual is not None]
        self._plan.use([used for visual in visuals for used in visual.uses()])
        batch = to_device(packed, self._encoder.spec, self._ahead.device)
        return Ready(encoded, labels, packed, batch, frozenset(self._plan))


def _picture_bytes(row: Example) -> tuple[int, ...]:
    """Sizes of a row's picture files; equal for equal pictures. A missing file is found out by whoever reads it."""
    sources = [image.source for image in row.images]
    return tuple(len(one) if isinstance(one, bytes) else _size(one) for one in sources)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1
