"""Scores of the validation rows while a model is trained."""

from __future__ import annotations

from collections.abc import Callable

from tuyi.encode.encoder import Encoder
from tuyi.encode.survey import Survey
from tuyi.model.load import Model
from tuyi.train.line import Line

__all__ = ["validation"]


def validation(model: Model, encoder: Encoder, rows: Survey, line: Line) -> Callable[[], dict[str, float]]:
    """A function that scores the validation rows with the weights as they are then.

    Every process scores every row: where weights are sharded, all have to run the same passes anyway.

    Args:
        model: The model in training.
        encoder: Of the same model.
        rows: Labelled rows.
        line: The run's way to the model; its picture pool is used.

    Returns:
        A function of nothing, returning weighted F1 and accuracy of each task and the mean F1, named ``eval_…``.
    """
    from sklearn.metrics import accuracy_score, f1_score

    from tuyi.predict.local import LocalEngine

    tasks = encoder.tasks
    gold: dict[str, tuple[str, str]] = {}
    for row in rows.rows:
        task = tasks.of(row)
        assert task.labels is not None
        assert row.label is not None
        gold[row.id] = (task.name, task.labels.canonical(row.label))
    assert line.settings.pack_tokens is not None, "an open line knows them"
    assert line.settings.workers is not None, "settings are resolved first"
    lanes = line.steps.lanes
    engine = LocalEngine(
        model, encoder, pack_tokens=line.settings.pack_tokens // lanes, workers=line.settings.workers, pool=line.pool,
        lanes=lanes,
    )  # fmt: skip
    line.closing.callback(engine.close)

    def evaluate() -> dict[str, float]:
        model.hf.eval()
        found = {one.id: one.label for many in engine.predict(zip(rows.rows, rows.tokens)) for one in many}
        scores: dict[str, float] = {}
        for name in sorted({task for task, _ in gold.values()}):
            ids = [row for row, (task, _) in gold.items() if task == name]
            true, guess = [gold[row][1] for row in ids], [found[row] for row in ids]
            scores[f"eval_{name}_weighted_f1"] = float(f1_score(true, guess, average="weighted", zero_division=0))
            scores[f"eval_{name}_accuracy"] = float(accuracy_score(true, guess))
        f1s = [score for key, score in scores.items() if key.endswith("_weighted_f1")]
        return {"eval_weighted_f1": sum(f1s) / len(f1s), **scores}

    return evaluate
