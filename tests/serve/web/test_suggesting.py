"""Suggestions that are asked ahead: how rows are asked, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuyi.data.example import Example, Image, Text, Turn, Video
from tuyi.encode.store import RowStore
from tuyi.predict.local import LocalEngine
from tuyi.serve.refusals import RefusalError
from tuyi.serve.web import suggesting
from tuyi.serve.web.corrections_file import CorrectionsFile
from tuyi.serve.web.label_tab import _Desk
from tuyi.serve.web.labelling import Labelling
from tuyi.serve.web.suggesting import Suggester
from tuyi.task.catalog import TaskSet


def labelling_of(folder: Path, tasks: TaskSet, *rows: Example) -> Labelling:
    store = RowStore()
    for row in rows:
        store.append(row)
    return Labelling(store, tasks, CorrectionsFile(folder / "c.csv"))


class Service:
    """Answers as it is told, and counts how much it is asked at a time."""

    def __init__(self, *answers: dict[str, Any] | RefusalError) -> None:
        self.answers, self.asked, self.now, self.most = list(answers), 0, 0, 0

    async def classify(self, body: bytes, gone: Any, owner: bytes, history: Any) -> dict[str, Any]:
        self.asked, self.now = self.asked + 1, self.now + 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.05)
        self.now -= 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, RefusalError):
            raise answer
        return answer


SQUARE = {"label": "square", "probabilities": {"round": 0.2, "square": 0.7, "z": 0.1}, "rationale": "corners"}


def row(number: int) -> Example:
    return Example(f"r{number}", (Text(f"what is {number}?"),), task="shape")


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not done():
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suggesting, "_AGAIN_S", 0.01)


def test_all_rows_are_read_a_few_at_a_time_while_somebody_is_at_work(tmp_path, tasks, monkeypatch):
    labelling, service = labelling_of(tmp_path, tasks, *map(row, range(10))), Service(SQUARE)
    suggester = Suggester(labelling, service)  # type: ignore[arg-type]

    async def work() -> None:
        suggester.wake()
        suggester.wake()
        await until(lambda: labelling.progress("w").read == 10)

    asyncio.run(work())
    assert service.asked == 10
    assert 1 < service.most <= 4
    found = labelling.row("w")
    assert found is not None
    assert found.suggestion is not None
    assert (found.suggestion.first, found.suggestion.rationale) == ("square", "corners")


def test_it_rests_where_nobody_labels_and_goes_on_when_somebody_comes(tmp_path, tasks, monkeypatch):
    labelling, service = labelling_of(tmp_path, tasks, *map(row, range(6))), Service(SQUARE)
    suggester = Suggester(labelling, service)  # type: ignore[arg-type]

    async def work() -> None:
        monkeypatch.setattr(suggesting, "_AWAKE_S", 0.0)
        suggester.wake()
        await asyncio.sleep(0.1)
        assert service.asked <= 4
        monkeypatch.setattr(suggesting, "_AWAKE_S", 60.0)
        suggester.wake()
        await until(lambda: labelling.progress("w").read == 6)

    asyncio.run(work())


def test_a_busy_server_is_asked_again_and_a_row_that_it_refuses_is_left_to_the_person(tmp_path, tasks):
    busy, never = RefusalError(429, "full"), RefusalError(400, "too long")
    labelling = labelling_of(tmp_path, tasks, row(0))
    service = Service(busy, busy, SQUARE)

    async def work(service: Service, labelling: Labelling) -> None:
        Suggester(labelling, service).wake()  # type: ignore[arg-type]
        await until(lambda: labelling.progress("w").read == 1)

    asyncio.run(work(service, labelling))
    assert service.asked == 3
    assert labelling.row("w").why == "unlabelled"  # type: ignore[union-attr]
    for answer, times in ((never, 1), (busy, 5)):
        (tmp_path / str(times)).mkdir()
        labelling, service = labelling_of(tmp_path / str(times), tasks, row(0)), Service(answer)
        asyncio.run(work(service, labelling))
        found = labelling.row("w")
        assert found is not None
        assert found.suggestion is not None
        assert (service.asked, found.why, found.suggestion.problem) == (times, "unread", answer.message)


def test_a_picture_that_is_gone_is_no_end(tmp_path, tasks):
    gone = Example("gone", (Image(tmp_path / "gone.png", "gone.png"),), task="shape")
    labelling = labelling_of(tmp_path, tasks, gone, row(1))

    async def work() -> None:
        Suggester(labelling, Service(SQUARE)).wake()  # type: ignore[arg-type]
        await until(lambda: labelling.progress("w").read == 2)

    asyncio.run(work())
    labelling.skip("w", labelling.row("w").example.id)  # type: ignore[union-attr]
    found = labelling.row("w")
    assert found is not None
    assert found.suggestion is not None
    assert found.suggestion.problem == "part 1 cannot be read: No such file or directory"


def test_the_models_own_probabilities_for_every_kind_of_row(
    tmp_path, served, twins, tasks, picture: Callable[..., Image], clip: Video
):
    from tuyi.serve.app import _engine
    from tuyi.serve.metrics import Metrics
    from tuyi.serve.service import Service as RealService
    from tuyi.serve.settings import ServeSettings

    (tmp_path / "one.png").write_bytes(picture(60, 40, seed=5).source)  # type: ignore[arg-type]
    talk = (Turn("user", (Text("早"), picture(40, 40, seed=6))), Turn("assistant", (Text("早上好"),)))
    rows = [
        Example("text", (Text("圆的吗？"),), task="shape"),
        Example("picture", (Text("this "), Image(tmp_path / "one.png", "one.png"), Text(" one")), task="colour"),
        Example("video", (clip, Text("and this?")), task="shape"),
        Example("talk", (Text("what?"),), task="shape", history=talk),
    ]
    labelling = labelling_of(tmp_path, tasks, *rows)
    settings = ServeSettings(workers=2)
    engine = _engine(served, settings, Metrics(), lambda error: None)

    async def work() -> None:
        engine.start(asyncio.get_running_loop())
        service = RealService(served, settings, engine)
        Suggester(labelling, service).wake()
        await until(lambda: labelling.progress("w").read == 4)
        await asyncio.to_thread(engine.close)
        service.close()

    asyncio.run(work())
    twin = twins("qwen2_vl")
    local = LocalEngine(twin.model, twin.encoder, pack_tokens=4096, workers=2)
    predicted = local.predict((row, twin.encoder.length(row).tokens) for row in rows)
    said = {one.id: one for many in predicted for one in many}
    local.close()
    for _ in rows:
        found = labelling.row("w")
        assert found is not None
        assert found.suggestion is not None
        assert not found.suggestion.problem
        expected = said[found.example.id].probabilities
        assert dict(found.suggestion.probabilities) == pytest.approx(dict(expected), abs=1e-4)
        labelling.skip("w", found.example.id)


@pytest.mark.parametrize(
    "asked",
    [
        None, [], "look", {}, {"act": "look"}, {"act": "remove", "walk": "w"}, {"act": "decide", "walk": "w"},
        {"act": "decide", "walk": "w", "id": "r0", "action": "burn", "revision": 0},
        {"act": "decide", "walk": "w", "id": "other", "action": "keep", "revision": 0},
        {"act": "decide", "walk": "w", "id": "r0", "action": "change", "label": "purple", "revision": 0},
    ],
)  # fmt: skip
def test_what_no_page_would_ask_decides_nothing(tmp_path, tasks, asked):
    desk = _Desk(labelling_of(tmp_path, tasks, row(0)), Service(SQUARE))  # type: ignore[arg-type]
    answer = asyncio.run(desk.answer(asked))
    assert answer.keys() == {"problem"}
    assert not (tmp_path / "c.csv").exists()


def test_a_revision_that_is_none_is_that_of_no_row(tmp_path, tasks):
    desk = _Desk(labelling_of(tmp_path, tasks, row(0)), Service(SQUARE))  # type: ignore[arg-type]
    asked = {"act": "decide", "walk": "w", "id": "r0", "action": "keep", "revision": "0"}
    assert asyncio.run(desk.answer(asked))["told"] == "conflict"
    assert not (tmp_path / "c.csv").exists()
