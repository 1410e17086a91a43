"""The warm-up: passes of several lengths, through the model as it is."""

from __future__ import annotations

from typing import Any

import pytest

from tuyi.encode.pack import Pack
from tuyi.predict import scoring
from tuyi.predict.warm import warm_up


def test_passes_of_several_lengths(twin: Any, monkeypatch: pytest.MonkeyPatch):
    packs: list[Pack] = []
    score = scoring.score_tokens

    def spy(model: Any, batch: Any, packed: Pack) -> Any:
        packs.append(packed)
        assert not batch.ids.is_inference(), "as the tensors of a run: compiled code tells the two apart"
        scores = score(model, batch, packed)
        assert scores.isfinite().all()
        return scores

    monkeypatch.setattr(scoring, "score_tokens", spy)
    weights = {name: weight.clone() for name, weight in twin.model.hf.state_dict().items()}
    assert 0 < warm_up(twin.model) < 60
    assert len(packs) == 3
    for distinct in (
        {len(pack.ids) for pack in packs},
        {len(pack.rows) for pack in packs},
        {len(pack.keep) for pack in packs},
        {int(pack.images.grids.prod(1).sum()) for pack in packs if pack.images},
    ):
        assert len(distinct) == 3
    for pack in packs:
        assert pack.shared
        assert pack.branches is not None
        assert len(set(pack.lengths)) == len(pack.rows), "rows of different lengths"
    assert all((weights[name] == weight).all() for name, weight in twin.model.hf.state_dict().items())
