"""Steps that are recorded: the same logits as steps that are not, whoever comes and goes in between."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any
from weakref import ref

import pytest
import torch

from tuyi.data.example import Example
from tuyi.encode.encoded import Encoded
from tuyi.model import steps
from tuyi.model.decode import Decoder, Live
from tuyi.model.forward import adapt
from tuyi.model.load import Model
from tuyi.model.steps import Again, Steps

NAMES = ["image", "text", "images", "video", "history"]


class Recorder:
    """Notes what is recorded, and does it each time anew; as a graph, it holds nothing of what the work reads."""

    def __init__(self) -> None:
        self.recorded = self.played = 0

    def __call__(self, work: Again) -> Again:
        self.recorded += 1
        held = ref(work)

        def again() -> torch.Tensor:
            self.played += 1
            found = held()
            assert found is not None, "what a record reads lives as long as it does"
            return found()

        return again


def joined(decoder: Decoder, rows: Sequence[Encoded]) -> list[Live]:
    found = decoder.join(rows, [40] * len(rows))
    assert found is not None
    return found[0]


def talk(decoder: Decoder, rows: Sequence[Encoded], late: Encoded) -> list[torch.Tensor]:
    """Logits of steps among which rows leave, join, are cut and go on with several tokens."""
    live, found = joined(decoder, rows), []
    for step in range(5):
        found.append(decoder.extend(live, [[20 + step + at] for at in range(len(live))]))
    found.append(decoder.extend(live, [[30 + at, 40] for at in range(len(live))]))
    decoder.leave([live.pop(1)])
    found += [decoder.extend(live, [[50 + at] for at in range(len(live))]) for _ in range(4)]
    decoder.cut(live[0], len(live[0]) - 3)
    live += joined(decoder, [late])
    found += [decoder.extend(live, [[60 + at] for at in range(len(live))]) for _ in range(2)]
    decoder.leave(live[1:])
    found += [decoder.extend(live[:1], [[70 + step]]) for step in range(4)]
    return found


def test_recorded_steps_say_the_same(twin: Any, rows: dict[str, Example]):
    encoded = [twin.encoder.encode(rows[name], labelled=False) for name in [*NAMES, "mixed"]]
    plain, recorded, recorder = Decoder(twin.model, 6000), Decoder(twin.model, 6000), Recorder()
    recorded._steps = Steps(twin.model, recorded.cache, recorder)
    expected, found = talk(plain, encoded[:-1], encoded[-1]), talk(recorded, encoded[:-1], encoded[-1])
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)
    # 5 and 5 rows as 8, 4 as 4, 1 as 1; two steps of each before it is recorded
    assert (recorder.recorded, recorder.played) == (3, 5 + 2 - 2 + 4 - 2 + 4 - 2)


def test_more_rows_than_are_worth_it_are_not_recorded(
    twin: Any, rows: dict[str, Example], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(steps, "_SIZES", (1, 2))
    decoder, recorder = Decoder(twin.model, 3000), Recorder()
    decoder._steps = Steps(twin.model, decoder.cache, recorder)
    live = joined(decoder, [twin.encoder.encode(rows["text"], labelled=False)] * 3)
    for _ in range(5):
        decoder.extend(live, [[20]] * 3)
    assert recorder.recorded == 0


def test_longer_rows_are_recorded_anew(twin: Any, rows: dict[str, Example], monkeypatch: pytest.MonkeyPatch):
    """A record is made for so many keys of a row."""
    encoded = twin.encoder.encode(rows["text"], labelled=False)
    monkeypatch.setattr(steps, "_SHORTEST", 1 << len(encoded).bit_length())
    decoder, recorder = Decoder(twin.model, 3000), Recorder()
    decoder._steps = Steps(twin.model, decoder.cache, recorder)
    found = decoder.join([encoded], [600])
    assert found is not None
    for step in range((1 << len(encoded).bit_length()) - len(encoded)):
        decoder.extend(found[0], [[20 + step % 7]])
    assert recorder.recorded == 1
    for step in range(3):
        decoder.extend(found[0], [[20 + step]])
    assert recorder.recorded == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("compiled", [False, True])
def test_graphs_say_the_same(twin: Any, rows: dict[str, Example], monkeypatch: pytest.MonkeyPatch, compiled: bool):
    from tuyi.model.fast import compile_blocks

    hf = copy.deepcopy(twin.model.hf)
    for weight in hf.parameters():
        weight.data = weight.data.bfloat16()
    hf.to("cuda")
    adapt(hf, twin.model.spec)
    if compiled:
        compile_blocks(hf)
    model = Model(hf, twin.model.frontend)
    encoded = [twin.encoder.encode(rows[name], labelled=False) for name in [*NAMES, "mixed"]]
    played = count_replays(monkeypatch)
    found = talk(Decoder(model, 6000), encoded[:-1], encoded[-1])
    assert len(played) == 9
    monkeypatch.setattr(steps, "_WORTH", 1000)
    expected = talk(Decoder(model, 6000), encoded[:-1], encoded[-1])
    assert len(played) == 9
    for one, other in zip(expected, found, strict=True):
        assert float((one - other).abs().max()) < 0.1 * float(one.std())


def count_replays(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    played: list[None] = []
    replay: Callable[[Any], None] = torch.cuda.CUDAGraph.replay

    def counted(self: Any) -> None:
        played.append(None)
        replay(self)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)
    return played
