"""The audit: which rows are issues, and the folder that it writes."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tuyi.cli import app
from tuyi.data import read
from tuyi.distill.audit import AuditSummary, audit, audit_settings
from tuyi.distill.audit_tasks import tasks_to_ask
from tuyi.distill.corrections import read_corrections
from tuyi.distill.label_issues import Issue, Judged, Twins, find_issues, label_issues
from tuyi.errors import (
    ConfigError,
    DataError,
    ModelError,
    OutputError,
    TaskError,
    TuyiError,
)
from tuyi.predict.prediction import Prediction
from tuyi.task import TaskSet

LABELS = ("质量", "价格", "物流（慢）")
TASKS = TaskSet.model_validate(
    {
        "name": "both",
        "tasks": [
            {"name": "topic", "labels": list(LABELS), "prompt": "{content} → {labels}"},
            {"name": "mood", "labels": ["good", "bad"]},
            {"name": "talk", "answer": "open"},
        ],
    }
)


def planted(rows: int = 300, seed: int = 0) -> tuple[Any, Any, Any]:
    """Labels of which every tenth is wrong, and the distributions of a model that is right in 19 of 20 cases."""
    rng = np.random.default_rng(seed)
    true_N = rng.integers(0, 3, rows)
    given_N = np.where(np.arange(rows) % 10 == 0, (true_N + 1) % 3, true_N)
    said_N = np.where(np.arange(rows) % 20 == 7, (true_N + 2) % 3, true_N)
    logits_NK = rng.normal(0, 0.5, (rows, 3)) + 3.0 * np.eye(3)[said_N]
    shares_NK = np.exp(logits_NK)
    return true_N, given_N, shares_NK / shares_NK.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("method", ["prune_by_class", "prune_by_noise_rate", "both", "confident_learning"])
def test_planted_mistakes_are_found(method: Any) -> None:
    true_N, given_N, shares_NK = planted()
    taken_N, severity_N = label_issues(given_N, shares_NK, method)
    wrong_N = given_N != true_N
    assert (taken_N & wrong_N).sum() / wrong_N.sum() >= 0.7
    assert (taken_N & wrong_N).sum() / taken_N.sum() >= 0.6
    assert not (taken_N & (shares_NK.argmax(axis=1) == given_N)).any()
    own_N = shares_NK[np.arange(300), given_N]
    others_NK = np.where(np.eye(3, dtype=bool)[given_N], -1, shares_NK)
    np.testing.assert_allclose(severity_N, (1 - own_N + others_NK.max(axis=1)) / 2, atol=1e-12)


def test_prune_by_class_counts_as_the_paper_says() -> None:
    _, given_N, shares_NK = planted(seed=3)
    thresholds_K = np.array([shares_NK[given_N == k, k].mean() for k in range(3)])
    over_NK = np.where(shares_NK >= thresholds_K - 1e-6, shares_NK, 0)
    joint_KK = np.zeros((3, 3))
    for given, row_K in zip(given_N, over_NK):
        if row_K.any():
            joint_KK[given, row_K.argmax()] += 1
    joint_KK *= (np.bincount(given_N) / joint_KK.sum(axis=1))[:, None]
    expected: set[int] = set()
    for label in range(3):
        members = np.flatnonzero(given_N == label)
        wrong = round(joint_KK[label].sum() - joint_KK[label, label])
        expected |= set(members[np.argsort(shares_NK[members, label], kind="stable")[:wrong]].tolist())
    expected = {row for row in expected if shares_NK[row].argmax() != given_N[row]}
    taken_N, _ = label_issues(given_N, shares_NK, "prune_by_class")
    # cleanlab rounds the counts of a class so that they add up
    assert len(set(np.flatnonzero(taken_N).tolist()) ^ expected) <= 3
    assert len(expected) > 20


def test_a_task_with_one_label_or_without_predictions_has_no_model_issues() -> None:
    rows = [judged(f"r{n}", "质量", dict.fromkeys(LABELS, 1 / 3)) for n in range(6)]
    assert find_issues(rows, {"topic": LABELS}, "prune_by_class") == []
    assert find_issues([judged("r", "价格", {})], {"topic": LABELS}, "prune_by_class") == []


def judged(id: str, label: str, probabilities: dict[str, float], same: Sequence[str] = (), **more: Any) -> Judged:
    """A row, and the labels of others that show the same."""
    twins = Twins.of([(id, label), *((f"{id}{n}", other) for n, other in enumerate(same))]) if same else None
    return Judged(id, 1, more.pop("task", "topic"), label, "h0", probabilities, twins, **more)


def test_rows_that_show_the_same_under_other_labels() -> None:
    two = [judged("a", "质量", {}, ["价格"]), judged("b", "价格", {}, ["质量"])]
    issues = find_issues(two, {"topic": LABELS}, "prune_by_class")
    assert [(one.judged.id, one.kinds, one.suggested, one.severity, one.confidence) for one in issues] == [
        ("a", ("duplicate",), "价格", 0.5, 0.5),
        ("b", ("duplicate",), "质量", 0.5, 0.5),
    ]
    alone = judged("c", "质量", {}, ["价格", "价格", "物流（慢）"])
    (issue,) = find_issues([alone], {"topic": LABELS}, "prune_by_class")
    assert (issue.suggested, issue.severity, issue.confidence) == ("价格", 0.75, 0.5)
    agreed = judged("g", "质量", {}, ["质量"])
    assert find_issues([agreed], {"topic": LABELS}, "prune_by_class") == []


def test_a_model_decides_between_equal_rows() -> None:
    shares = {"质量": 0.7, "价格": 0.1, "物流（慢）": 0.2}
    row = judged("a", "质量", shares, ["价格", "物流（慢）"])
    (issue,) = find_issues([row], {"topic": LABELS}, "prune_by_class")
    assert (issue.kinds, issue.suggested, issue.confidence) == (("duplicate",), "物流（慢）", 0.2)


def test_each_task_is_judged_for_itself() -> None:
    _, given_N, shares_NK = planted()
    names = {"topic": LABELS, "other": tuple(f"o{k}" for k in range(3))}

    def rows(task: str) -> list[Judged]:
        return [
            judged(f"{task}{n}", names[task][given], dict(zip(names[task], row.tolist())), task=task)
            for n, (given, row) in enumerate(zip(given_N, shares_NK))
        ]

    alone = find_issues(rows("topic"), names, "prune_by_class")
    both = find_issues([*rows("other"), *rows("topic")], names, "prune_by_class")
    assert [one.judged.id for one in both if one.judged.task == "topic"] == [one.judged.id for one in alone]
    assert len(both) == 2 * len(alone)
    assert [one.severity for one in both] == sorted((one.severity for one in both), reverse=True)
    best = {f"topic{n}": LABELS[k] for n, k in enumerate(shares_NK.argmax(axis=1))}
    assert all(one.suggested == best[one.judged.id] for one in alone)


def data(folder: Path, count: int = 60) -> Path:
    """Two tasks in turn, with an unlabelled row, an open one, a label with one row, and a text under two labels."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for n in range(count):
        label = LABELS[n % 2] if n % 4 < 2 else ("good", "bad")[n % 2]
        rows.append(
            {"id": f"r{n}", "text": f"row {n} </script> <b>", "label": label, "task": ("topic", "mood")[n % 4 // 2]}
        )
    rows[0] |= {"text": "Same， TEXT!", "label": LABELS[0]}
    rows[1] |= {"text": "same text", "label": LABELS[1]}
    rows.append({"id": "none", "text": "?", "label": "", "task": "topic"})
    rows.append({"id": "open", "text": "?", "label": "anything", "task": "talk"})
    rows.append({"id": "rare", "text": "slow", "label": "物流(慢)", "task": "topic"})
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return file


def predictions(file: Path, source: Path, wrong: Sequence[str] = ("r4", "r6"), *, bare: bool = False) -> Path:
    """Out-of-sample predictions that agree with all labels but those of some rows."""
    lines = []
    for row in read(source):
        if row.label is None or row.task == "talk":
            continue
        task = TASKS[str(row.task)]
        assert task.labels is not None
        names, label = task.labels.names, task.labels.canonical(row.label)
        said = names[(names.index(label) + 1) % len(names)] if row.id in wrong else label
        shares = {name: 0.9 if name == said else 0.1 / (len(names) - 1) for name in names}
        lines.append(Prediction(row.id, task.name, said, {} if bare else shares, {} if bare else shares).to_json())
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    run = {"model": "somewhere/else", "tasks": TASKS.model_dump(mode="json")}
    file.with_name(file.name + ".run.json").write_text(json.dumps(run), encoding="utf-8")
    return file


def run(tmp_path: Path, **more: Any) -> AuditSummary:
    source = data(tmp_path / "in")
    return audit(source, tmp_path / "out", predictions=predictions(tmp_path / "p.jsonl", source), **more)


def test_the_folder_of_an_audit(tmp_path: Path) -> None:
    done = run(tmp_path)
    found = {one.judged.id: one for one in done.issues}
    assert {id for id, one in found.items() if "model" in one.kinds} == {"r4", "r6"}
    assert {id for id, one in found.items() if "duplicate" in one.kinds} == {"r0", "r1"}
    assert (found["r6"].judged.label, found["r6"].suggested) == ("good", "bad")
    topic, mood = done.tasks["topic"], done.tasks["mood"]
    assert (topic.rows, topic.judged, mood.rows, done.unlabelled) == (31, 31, 30, 2)
    assert topic.agreement == pytest.approx(30 / 31)
    assert dict(topic.rare) == {"物流（慢）": 1}
    assert mood.pairs == {("good", "bad"): 1}
    lines = [json.loads(line) for line in (tmp_path / "out" / "issues.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["rank"] for line in lines] == [1, 2, 3, 4]
    by_id = {line["id"]: line for line in lines}
    assert by_id["r4"]["probabilities"] == {"价格": 0.9, "质量": 0.05, "物流（慢）": 0.05}
    assert by_id["r0"]["twins"] == [{"id": "r1", "label": "价格"}]
    raw = (tmp_path / "out" / "corrections.csv").read_bytes()
    assert raw.startswith(b"\xef\xbb\xbf")
    assert [line.id for line in read_corrections(tmp_path / "out" / "corrections.csv")] == [
        line["id"] for line in lines
    ]
    record = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    assert record["found"]["tasks"]["mood"]["pairs"] == [["good", "bad", 1]]


def page_data(out: Path) -> tuple[str, Any]:
    html = (out / "audit.html").read_text(encoding="utf-8")
    (inside,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    return html, json.loads(inside)


def test_the_page_holds_every_issue_and_fetches_nothing(tmp_path: Path) -> None:
    run(tmp_path)
    html, held = page_data(tmp_path / "out")
    assert held["labels"]["topic"] == list(LABELS)
    assert [line[0] for line in held["lines"]] == [
        line.id for line in read_corrections(tmp_path / "out" / "corrections.csv")
    ]
    texts = [piece["text"] for card in held["cards"] for said in card["said"] for piece in said["pieces"]]
    assert "row 4 </script> <b>" in texts
    assert html.count("</script>") == 2
    assert not re.search(r'(src|href)="(http|//|file)', html)
    assert "4 of 61 labels look wrong" in html
    assert "物流（慢） (1)" in html


def test_pictures_beyond_the_size_are_named_not_embedded(tmp_path: Path, picture: Any) -> None:
    folder = tmp_path / "in"
    for n in range(30):
        label = "good" if n % 2 else "bad"
        (folder / label).mkdir(parents=True, exist_ok=True)
        (folder / label / f"{n:02d}.png").write_bytes(picture(300, 300, seed=n).source)
    mood = TASKS.model_copy(update={"name": "mood", "tasks": (TASKS["mood"],)})
    shares = {"good": 0.9, "bad": 0.1}
    lines = [Prediction(row.id, "mood", "good", shares, shares).to_json() for row in read(folder)]
    (tmp_path / "p.jsonl").write_text("\n".join(lines), encoding="utf-8")
    few = audit_settings(overrides=["page_megabytes=0.005", "page_rows=4", "method=confident_learning"])
    done = audit(folder, tmp_path / "out", task=mood, predictions=tmp_path / "p.jsonl", settings=few)
    html, held = page_data(tmp_path / "out")
    assert len(done.issues) == 15
    assert len(held["lines"]) == 15
    assert len(held["cards"]) == 4
    kinds = [sorted(piece) for card in held["cards"] for said in card["said"] for piece in said["pieces"]]
    assert kinds[0] == ["name", "uri"]
    assert kinds[-1] == ["text"]
    assert "The page shows the 4 worst of 15 issues" in html
    assert "Pictures are embedded up to 0.005 MB, which is the first" in html


def test_a_folder_goes_on_with_its_own_audit_only(tmp_path: Path) -> None:
    run(tmp_path)
    file = tmp_path / "out" / "corrections.csv"
    assert not run(tmp_path).corrections_kept
    edited = file.read_text(encoding="utf-8-sig").replace(",,,,h", ",keep,,fine,h")
    file.write_text(edited, encoding="utf-8-sig")
    assert run(tmp_path).corrections_kept
    assert file.read_text(encoding="utf-8-sig") == edited
    with pytest.raises(OutputError, match="holds another audit: its settings is another"):
        run(tmp_path, settings=audit_settings(overrides=["seed=5"]))
    source = data(tmp_path / "in", count=64)
    with pytest.raises(OutputError, match="holds another audit: the rows are others now"):
        audit(source, tmp_path / "out", predictions=predictions(tmp_path / "p.jsonl", source))
    with pytest.raises(OutputError, match="has something in it that is no audit"):
        audit(source, tmp_path / "in", predictions=tmp_path / "p.jsonl")


def assert_refused(tmp_path: Path, error: type[TuyiError], text: str, **more: Any) -> None:
    source = data(tmp_path / "in")
    given = {"predictions": predictions(tmp_path / "p.jsonl", source), **more}
    with pytest.raises(error, match=text):
        audit(source, tmp_path / "out", **given)
    left = {file.name for file in (tmp_path / "out").glob("*")}
    assert left <= {"audit.json"}, "what was asked may be there, nothing that was found"


def test_predictions_that_cannot_be_used(tmp_path: Path) -> None:
    source = data(tmp_path / "in")
    bare = predictions(tmp_path / "bare.jsonl", source, bare=True)
    assert_refused(tmp_path, DataError, "31 predictions of task topic carry no probabilities", predictions=bare)
    few = predictions(tmp_path / "few.jsonl", source)
    few.write_text("\n".join(few.read_text(encoding="utf-8").splitlines()[:50]), encoding="utf-8")
    assert_refused(
        tmp_path / "again", DataError, r"each of the 61 labelled rows, 11 have none \(first: r50\)", predictions=few
    )
    few.with_name("few.jsonl.run.json").unlink()
    assert_refused(tmp_path / "more", TaskError, "says which tasks were asked; name them with --task", predictions=few)


def test_a_model_that_has_seen_the_rows(tmp_path: Path) -> None:
    source = data(tmp_path / "in")
    model = tmp_path / "model"
    model.mkdir()
    (model / "run.json").write_text(json.dumps({"data": str(source)}))
    file = predictions(tmp_path / "p.jsonl", source)
    value = {"model": str(model), "tasks": TASKS.model_dump(mode="json")}
    file.with_name("p.jsonl.run.json").write_text(json.dumps(value))
    with pytest.raises(ModelError, match=r"was trained on .* and would repeat the labels that it learned"):
        audit(source, tmp_path / "out", predictions=file)


def test_an_open_task_has_no_labels(tmp_path: Path) -> None:
    talk = TaskSet(name="talk", tasks=(TASKS["talk"],))
    assert_refused(tmp_path, TaskError, "task talk is open: it has no labels", task=talk)


def test_a_base_model_is_asked_for_the_label_alone() -> None:
    value = TASKS.model_dump(mode="json")
    value["tasks"][0]["answer"] = "reason"
    asked = tasks_to_ask(TaskSet.model_validate(value), "builtin:tiny", None)
    assert asked == TASKS


def test_without_cleanlab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    assert_refused(tmp_path, ConfigError, r"needs the package cleanlab: pip install 'tuyi\[audit\]'")


def test_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    assert_refused(tmp_path, ConfigError, "runs as one process", predictions=None, task=TASKS)


def test_fold_models_learn_from_scratch_or_as_training_does() -> None:
    assert audit_settings().train.epochs == 6
    assert audit_settings("org/name").train.epochs == 3
    assert audit_settings(overrides=["train.epochs=2", "folds=4"]).train.epochs == 2
    with pytest.raises(ConfigError, match="folds"):
        audit_settings(overrides=["folds=1"])


def test_the_command(tmp_path: Path) -> None:
    source = data(tmp_path / "in")
    file = predictions(tmp_path / "p.jsonl", source, wrong=[f"r{n}" for n in range(2, 40)])
    said = CliRunner().invoke(app, ["audit", str(source), "--out", str(tmp_path / "out"), "--predictions", str(file)])
    assert said.exit_code == 0, said.exception
    assert "issues in 31 rows, the models agree with" in said.stdout
    assert "most issues may be the models' own mistakes" in said.stdout
    assert "fewer rows than folds, judged with care: 物流（慢） (1)" in said.stdout
    assert "2 rows without a label of a closed set were passed over" in said.stdout
    assert (tmp_path / "out" / "audit.html").exists()


@pytest.mark.slow
def test_models_are_trained_on_the_other_folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way with a real model of a few steps; killed once, it goes on and comes to the same."""
    source = data(tmp_path / "in", count=24)
    quick = audit_settings(
        overrides=["folds=2", "train.max_steps=2", "train.workers=1", "predict.workers=1", "train.batch_rows=4"]
    )

    def start() -> AuditSummary:
        return audit(source, tmp_path / "out", task=TASKS, settings=quick)

    module = importlib.import_module("tuyi.predict.run")
    real, calls = module.predict, []

    def dies(*given: Any, **more: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given, **more)

    monkeypatch.setattr(module, "predict", dies)
    with pytest.raises(KeyboardInterrupt):
        start()
    done = start()
    assert [Path(given[0]).name for given in calls] == ["1-model", "2-model", "2-model"]
    topic = done.tasks["topic"]
    assert (topic.rows, topic.judged, dict(topic.unjudged)) == (13, 12, {"物流（慢）": 1})
    assert not list((tmp_path / "out" / "folds").glob("*-model"))
    again = start()
    assert len(calls) == 3
    assert [issue_key(one) for one in again.issues] == [issue_key(one) for one in done.issues]


def issue_key(issue: Issue) -> tuple[str, str, float]:
    return issue.judged.id, issue.suggested, issue.severity
