"""The way to the model in training: the packs of each step, made while the model works on earlier ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import count as numbers

import numpy as np
import torch
from numpy.typing import NDArray

from tuyi.data.example import Image
from tuyi.encode.answer import LabelTokens
from tuyi.encode.encoded import Encoded, Media
from tuyi.encode.encoder import Encoder, Look
from tuyi.encode.pack import Pack, pack
from tuyi.model.ahead import Ahead, Coming
from tuyi.model.forward import Batch, to_device
from tuyi.train.features import Features, Fetched
from tuyi.train.settings import SoftSettings
from tuyi.train.shares import Share, answer_apart, whole_answers
from tuyi.train.soft import SoftTargets, soft_targets
from tuyi.train.steps import Steps
from tuyi.vision.augment import Augment
from tuyi.vision.patches import image_patches
from tuyi.vision.pool import PicturePool
from tuyi.vision.spec import ImagePatches, VisionSpec

__all__ = ["Feed", "Lesson", "Ready"]

_CACHE_BYTES = 1 << 30


@dataclass(frozen=True, eq=False, slots=True)
class Lesson:
    """What is taught beside the rows themselves.

    Args:
        shares: For each row what it is taught about its task's labels; None for its answer alone.
        soft: How a teacher's distribution is learned.
        augment: How pictures are changed.
        seed: Of these changes.
    """

    shares: Sequence[Share | None] | None = None
    soft: SoftSettings = field(default_factory=SoftSettings)
    augment: Augment | None = None
    seed: int = 0


@dataclass(frozen=True, eq=False, slots=True)
class Ready:
    """A pack on the device, the visual features that are known, and what a teacher says of its rows."""

    batch: Batch
    kept: Fetched | None
    soft: SoftTargets | None


@dataclass(frozen=True, eq=False, slots=True)
class _Job:
    """A pack to be made: its step, whether it is the step's last, its rows."""

    step: int
    is_last: bool
    rows: tuple[int, ...]


class Feed:
    """Makes the packs of a run's steps.

    Args:
        steps: The run.
        encoder: Of the model.
        device: Where packs go.
        workers: Rows that are encoded at a time.
        pool: Processes that decode pictures; threads of this process where None.
        lesson: What is taught beside the rows.
        features: Where features of a frozen tower are kept; None where they are not.
        always_see: Whether packs without pictures pass the tower too.
    """

    def __init__(
        self, steps: Steps, encoder: Encoder, device: torch.device, *, workers: int, pool: PicturePool | None = None,
        lesson: Lesson | None = None, features: Features | None = None, always_see: bool = True,
    ) -> None:  # fmt: skip
        self._steps, self._encoder, self._always_see = steps, encoder, always_see
        self._lesson, self._features = lesson or Lesson(), features
        self._ahead = Ahead(device, workers=workers, pool=pool)
        self._jobs: Iterator[_Job] = iter(())
        self._coming: deque[tuple[_Job, Coming[Ready]]] = deque()
        self._next: int | None = None
        self._encoded: dict[int, Encoded] = {}
        self._room = _CACHE_BYTES
        self._labels = cache(self._labels_of)
        self._keeps_pixels = pool is None and features is None and self._lesson.augment is None

    def packs(self, step: int) -> Iterator[tuple[Ready, bool]]:
        """The packs of a step, each with whether it is the last; steps are asked for in turn, from any on.

        Raises:
            DataError: A picture that cannot be read after all.
        """
        if self._next is None:
            self._jobs = self._from(step)
        assert self._next in (None, step), "features that packs count on are made by those before them"
        self._next = step + 1
        while True:
            self._start()
            job, coming = self._coming.popleft()
            assert job.step == step
            ready = coming.pack.result()
            assert ready is not None
            yield ready, job.is_last
            if job.is_last:
                return

    def close(self) -> None:
        """End the threads; the pool and the features are their owner's."""
        if self._features is not None:
            self._features.close()  # wakes who waits for features that nobody will make
        self._ahead.stop([coming for _, coming in self._coming])
        self._ahead.close()

    def _from(self, step: int) -> Iterator[_Job]:
        for at in range(step, len(self._steps)):
            packs = self._steps.packs(at)
            for number, rows in enumerate(packs):
                yield _Job(at, number == len(packs) - 1, tuple(rows))

    def _start(self) -> None:
        """Begin packs: ahead lie rows for every worker, and at least the pack after those that run next."""
        packs, rows_ahead = 2 + self._steps.lanes, 3 * self._ahead.workers
        while len(self._coming) < packs or sum(len(job.rows) for job, _ in self._coming) < rows_ahead:
            job = next(self._jobs, None)
            if job is None:
                return
            # an empty pack holds one row that weighs nothing, so that this process keeps step with the others
            rows = job.rows or (int(np.argmin(np.asarray(self._steps.rows.tokens))),)
            epoch = int(self._steps.epoch_at(job.step))
            spec = self._encoder.spec
            pixel_bytes = sum(self._steps.rows.patches[row] for row in rows if not self._is_known(row))
            encodings = [partial(self._encode, row, epoch) for row in rows]
            make = partial(self._made, rows, bool(job.rows))
            self._coming.append((job, self._ahead.start(encodings, pixel_bytes * 3 * spec.patch_size**2, make)))

    def _is_known(self, row: int) -> bool:
        """Whether a row is encoded and needs no pixels any more."""
        return row in self._encoded

    def _encode(self, row: int, epoch: int, look: Look | None) -> Encoded:
        if row in self._encoded:
            return self._encoded[row]
        example = self._steps.rows.rows[row]
        encoded = self._encoder.encode(example, labelled=self._share(row) is None, look=self._changed(look, row, epoch))
        encoded = replace(encoded, weight=self._steps.weights[row])
        if self._keeps_pixels:
            self._remember(row, encoded)
        return encoded

    def _changed(self, look: Look | None, row: int, epoch: int) -> Look | None:
        """The same look, at pictures that are changed anew in each epoch."""
        augment = self._lesson.augment
        if augment is None:
            return look
        pictures = numbers()

        def changed(image: Image, spec: VisionSpec, min_pixels: int, max_pixels: int) -> ImagePatches:
            source = np.random.SeedSequence([self._lesson.seed, epoch, row, next(pictures)])
            seed = int(source.generate_state(1, np.uint64)[0])
            cut: Callable[..., ImagePatches] = look or image_patches
            return cut(image, spec, min_pixels, max_pixels, augment=augment, seed=seed)

        return changed

    def _made(self, rows: Sequence[int], counts: bool, encoded: list[Encoded]) -> Ready:
        known: frozenset[bytes] = frozenset()
        if self._features is not None:
            keys = [_key(row, number) for row, one in zip(rows, encoded) for number in range(len(one.media))]
            known = frozenset(key for key in keys if key in self._features)
            encoded = [self._with_keys(row, one, self._features) for row, one in zip(rows, encoded)]
        if not counts:
            encoded = [replace(one, weight=0.0) for one in encoded]
        # rows lie sorted by length, since dense attention computes neighbours of equal length together
        order = sorted(range(len(encoded)), key=lambda at: len(encoded[at]))
        encoded, rows = [encoded[at] for at in order], [rows[at] for at in order]
        packed, soft = self._packed(rows, encoded, known)
        visuals = [visual for visual in (packed.images, packed.videos) if visual is not None]
        used = [key for visual in visuals for key, _ in visual.known]
        kept = None if self._features is None else self._features.fetch(used)
        batch = to_device(packed, self._encoder.spec, self._ahead.device, always_see=self._always_see)
        return Ready(batch, kept, soft)

    def _share(self, row: int) -> Share | None:
        """What a row is taught about its labels."""
        return None if self._lesson.shares is None else self._lesson.shares[row]

    def _packed(
        self, rows: Sequence[int], encoded: list[Encoded], known: Container[bytes]
    ) -> tuple[Pack, SoftTargets | None]:
        """The pack of rows with their answers, or with their labels where some are taught about them."""
        shares = [self._share(row) for row in rows]
        if all(share is None for share in shares):
            return pack(encoded, known=known), None
        prompts: list[Encoded] = []
        labels: list[LabelTokens] = []
        hard: list[NDArray[np.float32]] = []
        for one, share in zip(encoded, shares):
            prompt, answer = answer_apart(one) if share is None else (one, self._labels(one.task))
            prompts.append(prompt)
            labels.append(answer)
            hard.append(np.ones(1, np.float32) if share is None else share.hard)
        packed = pack(prompts, labels, known, hard)
        teachers = [None if share is None else share.teacher for share in shares]
        return packed, soft_targets(packed, teachers, self._lesson.soft, self._ahead.device)

    def _labels_of(self, task: str) -> LabelTokens:
        return whole_answers(self._encoder, self._encoder.tasks[task])

    def _with_keys(self, row: int, encoded: Encoded, features: Features) -> Encoded:
        """The row, its pictures under the keys by which their features are kept."""
        media = []
        for number, one in enumerate(encoded.media):
            key = _key(row, number)
            count = sum(end - begin for begin, end in one.spans)
            media.append(replace(one, key=key if features.admit(key, count) else None))
        encoded = replace(encoded, media=tuple(media))
        if all(one.key is not None for one in media) and row not in self._encoded:
            self._remember(row, replace(encoded, media=tuple(map(_without_pixels, media))))
        return encoded

    def _remember(self, row: int, encoded: Encoded) -> None:
        size = 20 * len(encoded) + sum(one.patches.values.nbytes for one in encoded.media)
        if size <= self._room:
            self._room -= size
            self._encoded[row] = encoded


def _key(row: int, number: int) -> bytes:
    return f"{row}/{number}".encode()


def _without_pixels(media: Media) -> Media:
    none = np.empty((0, media.patches.values.shape[1]), np.uint8)
    return replace(media, patches=replace(media.patches, values=none))
