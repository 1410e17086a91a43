"""Ensembles: means and votes against plain numpy and scipy, rows that do not belong together, the comparison."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import gmean
from typer.testing import CliRunner

from tuyi.cli import app
from tuyi.errors import ConfigError, DataError, OutputError
from tuyi.evaluate.combine import agreement, combine
from tuyi.evaluate.compare import compare
from tuyi.evaluate.ensemble import EnsembleSettings, ensemble
from tuyi.evaluate.judge import EvaluateSettings, evaluate
from tuyi.evaluate.rows import join
from tuyi.evaluate.scores import Sampling
from tuyi.predict.prediction import Prediction, read_predictions, read_run, run_file
from tuyi.predict.submission import write_submission
from tuyi.task.catalog import parse_tasks

LABELS = ("red", "green", "blue", "grey")


def random_member(seed: int, rows: int = 40) -> dict[str, Prediction]:
    rng = np.random.default_rng(seed)
    found = {}
    for n in range(rows):
        chances = dict(zip(LABELS, map(float, rng.dirichlet(np.ones(len(LABELS))))))
        logs = {label: float(np.log(chance)) for label, chance in chances.items()}
        label = max(chances, key=chances.__getitem__)
        found[f"r{n}"] = Prediction(f"r{n}", "t", label, logs, chances, notes={"calls": 1, "tokens": 10 + n})
    return found


def table(predictions: dict[str, Prediction]) -> np.ndarray:
    return np.array([[one.probabilities[label] for label in LABELS] for one in predictions.values()])


def hard(labels: dict[str, str]) -> dict[str, Prediction]:
    return {id: Prediction(id, "t", label, {}, {}) for id, label in labels.items()}


def write(file: Path, predictions: dict[str, Prediction]) -> Path:
    file.write_text("".join(one.to_json() + "\n" for one in predictions.values()), encoding="utf-8")
    return file


def write_run(file: Path, **more: object) -> None:
    tasks = {"name": "t", "tasks": [{"name": "t", "labels": list(LABELS)}]}
    run_file(file).write_text(json.dumps({"data": "d.csv", "tasks": tasks, **more}), encoding="utf-8")


def gold_file(folder: Path, labels: dict[str, str]) -> Path:
    file = folder / "gold.csv"
    file.write_text("id,text,label\n" + "".join(f"{id},text {id},{label}\n" for id, label in labels.items()))
    return file


MEMBERS = {name: random_member(seed) for seed, name in enumerate("abc")}


@pytest.mark.parametrize("weights", [None, [3.0, 1.0, 0.5]])
def test_the_arithmetic_mean_is_numpy_s_average(weights):
    found = combine(MEMBERS, weights=weights)
    expected = np.average([table(one) for one in MEMBERS.values()], axis=0, weights=weights)
    assert table(found) == pytest.approx(expected, abs=1e-12)
    assert [one.label for one in found.values()] == [LABELS[k] for k in expected.argmax(axis=1)]
    for one in found.values():
        assert dict(one.logprobs) == pytest.approx({name: np.log(p) for name, p in one.probabilities.items()})
        assert one.notes["calls"] == 3
        assert one.notes["tokens"] == 3 * (10 + int(one.id[1:]))
        assert one.notes["votes"] == [member[one.id].label for member in MEMBERS.values()]


@pytest.mark.parametrize("weights", [None, [3.0, 1.0, 0.5]])
def test_the_geometric_mean_is_scipy_s_normalised(weights):
    found = combine(MEMBERS, "geometric", weights)
    chances_MNK = np.stack([table(one) for one in MEMBERS.values()])
    wide = None if weights is None else np.broadcast_to(np.array(weights)[:, None, None], chances_MNK.shape)
    expected = gmean(chances_MNK, axis=0, weights=wide)
    assert table(found) == pytest.approx(expected / expected.sum(axis=1, keepdims=True), abs=1e-12)


def test_a_zero_of_one_member_leaves_a_usable_prediction():
    nothing = {"blue": 0.0, "grey": 0.0}
    sure = Prediction("r", "t", "red", dict.fromkeys(LABELS, -100.0), {"red": 1.0, "green": 0.0, **nothing})
    other = Prediction("r", "t", "green", dict.fromkeys(LABELS, -1.0), {"red": 0.2, "green": 0.8, **nothing})
    for how in ("arithmetic", "geometric", "vote"):
        (found,) = combine({"a": {"r": sure}, "b": {"r": other}}, how).values()
        assert Prediction.from_json(found.to_json()).label == "red"
        assert found.logprobs["blue"] == pytest.approx(-100, abs=1)


def test_most_votes_win_and_ties_go_to_the_higher_mean_probability():
    found = combine(MEMBERS, "vote")
    tied = 0
    for id, one in found.items():
        said = [member[id].label for member in MEMBERS.values()]
        counts = {label: said.count(label) for label in said}
        most = [label for label in counts if counts[label] == max(counts.values())]
        mean = {label: np.mean([member[id].probabilities[label] for member in MEMBERS.values()]) for label in most}
        assert one.label == max(most, key=mean.__getitem__)
        assert one.probabilities == pytest.approx({label: said.count(label) / 3 for label in LABELS})
        tied += len(most) > 1
    assert 0 < tied < len(found), "both cases have to occur"


def test_votes_need_no_probabilities_and_weights_decide():
    members = {"a": hard({"1": "red"}), "b": hard({"1": "green"}), "c": hard({"1": "green"})}
    assert combine(members, "vote")["1"].label == "green"
    heavy = combine(members, "vote", [3, 1, 1])["1"]
    assert heavy.label == "red"
    assert heavy.probabilities == {}
    assert combine({"a": members["a"], "b": members["b"]}, "vote")["1"].label == "red", "of equals the earlier"
    with pytest.raises(DataError, match="id 1: a gives no probabilities to average; put it to the vote instead"):
        combine(members)


def test_members_that_do_not_belong_together_are_refused():
    short = {id: one for id, one in MEMBERS["b"].items() if id not in ("r3", "r7")}
    expected = r"b: expected predictions for the 40 rows of a, 2 are missing \(first: r3, r7\)"
    with pytest.raises(DataError, match=expected):
        combine({"a": MEMBERS["a"], "b": short})
    with pytest.raises(
        DataError, match=r"a: expected .* 2 are not among them \(first: r3, r7\); predict the same data"
    ):
        combine({"b": short, "a": MEMBERS["a"]})
    with pytest.raises(ConfigError, match="two members or more, found 1"):
        combine({"a": MEMBERS["a"]})
    for weights in ([1.0], [1.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(ConfigError, match=r"a weight above 0 for each of the 2 members \(a, b\), found"):
            combine({"a": MEMBERS["a"], "b": MEMBERS["b"]}, weights=weights)
    one = hard({"1": "red"})
    other = {"1": Prediction("1", "u", "red", {}, {})}
    with pytest.raises(DataError, match="id 1: b answers task 'u', a answers 't'"):
        combine({"a": one, "b": other}, "vote")
    fewer = {"r0": Prediction("r0", "t", "red", {"red": -1.0, "green": -1.0}, {"red": 0.5, "green": 0.5})}
    with pytest.raises(DataError, match="'blue' is not among those of all; was b asked another version"):
        combine({"a": {"r0": MEMBERS["a"]["r0"]}, "b": fewer})
    with pytest.raises(DataError, match="'brown' is not among"):
        combine({"a": {"r0": MEMBERS["a"]["r0"]}, "b": hard({"r0": "brown"})}, "vote")


def test_agreement_is_the_share_of_equal_labels():
    found = agreement(MEMBERS)
    labels = [[one.label for one in member.values()] for member in MEMBERS.values()]
    for i in range(3):
        for j in range(3):
            assert found[i, j] == pytest.approx(np.mean(np.array(labels[i]) == np.array(labels[j])))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    made = {name: write(tmp_path / f"{name}.jsonl", member) for name, member in MEMBERS.items()}
    for file in made.values():
        write_run(file)
    return made


@pytest.fixture
def gold(tmp_path: Path) -> Path:
    mean = combine(MEMBERS)
    return gold_file(tmp_path, {id: one.label if n % 4 else LABELS[n % 3] for n, (id, one) in enumerate(mean.items())})


def test_the_result_is_an_ordinary_predictions_file(files, gold, tmp_path):
    done = ensemble(list(files.values()), tmp_path / "all.jsonl", weights=[2, 1, 1])
    assert {one.id: one.label for one in read_predictions(done.out)} == {
        id: one.label for id, one in combine(MEMBERS, weights=[2, 1, 1]).items()
    }
    run = read_run(done.out)
    assert run["ensemble"] == {"how": "arithmetic", "weights": dict(zip(map(str, files.values()), (0.5, 0.25, 0.25)))}
    assert run["data"] == "d.csv"
    judged = evaluate(done.out, gold, tmp_path / "report", settings=EvaluateSettings(resamples=100))
    assert judged.overall["accuracy"].value > 0.5
    assert judged.tasks["t"].calibration is not None
    tasks = parse_tasks(run["tasks"], "run")
    assert write_submission(tmp_path / "s.csv", gold, done.out, tasks, "bare") == 40
    with pytest.raises(OutputError, match=r"all.jsonl is already there; choose another --out or remove it"):
        ensemble(list(files.values()), tmp_path / "all.jsonl")


def test_against_labelled_rows_each_member_is_compared_on_the_same_resamples(files, gold, tmp_path):
    settings = EnsembleSettings(resamples=200, seed=3)
    done = ensemble(list(files.values()), tmp_path / "all.jsonl", against=gold, settings=settings)
    assert list(done.scores) == [*map(str, files.values()), "ensemble"]
    from tuyi.data import read

    tasks = parse_tasks(read_run(done.out)["tasks"], "run")
    combined = join(combine(MEMBERS), done.out, read(gold), tasks, mistakes=0)
    for file in files.values():
        one = done.scores[str(file)]
        expected = compare(combined, file, Sampling(200, 0.95, 3))
        assert one.gain.difference["weighted_f1"] == expected.difference["weighted_f1"]
        difference = done.scores["ensemble"].weighted_f1.value - one.weighted_f1.value
        assert one.gain.difference["weighted_f1"].value == pytest.approx(difference)
    assert done.agreement.shape == (4, 4)
    page = done.report.read_text(encoding="utf-8")
    assert f"{done.scores['ensemble'].weighted_f1.value:.3f} weighted F1 of 3 members together" in page
    assert "<script" not in page


def test_the_command_says_what_it_did_and_what_is_wrong(files, gold, tmp_path):
    run = CliRunner().invoke(
        app,
        ["ensemble", *map(str, files.values()), "--out", str(tmp_path / "v.jsonl"), "--vote", "--against", str(gold)],
    )
    assert run.exit_code == 0, run.output
    assert "Share of rows with the same label" in run.output
    assert "40 predictions of 3 members" in " ".join(run.output.split())
    assert read_run(tmp_path / "v.jsonl")["ensemble"]["how"] == "vote"
    bad = CliRunner().invoke(app, ["ensemble", "a", "b", "--out", str(tmp_path / "w.jsonl"), "--weights", "1,x"])
    assert isinstance(bad.exception, ConfigError)
    assert str(bad.exception) == "--weights: expected numbers with commas between, such as 2,1; found '1,x'"
    with pytest.raises(ConfigError, match="no predictions file; as a model it needs rows to predict"):
        ensemble([files["a"], tmp_path / "nothing"], tmp_path / "w.jsonl")
    with pytest.raises(ConfigError, match="is named twice; to count it more, give it a weight"):
        ensemble([files["a"], files["a"]], tmp_path / "w.jsonl")


def test_a_model_among_the_members_predicts_first(files, tmp_path, monkeypatch):
    asked = []

    def predict(model, data, out, **_):
        asked.append((model, data))
        out.parent.mkdir(parents=True, exist_ok=True)
        write(out, MEMBERS["c"])

    monkeypatch.setattr(import_module("tuyi.predict.run"), "predict", predict)
    done = ensemble([files["a"], "some/model"], tmp_path / "all.jsonl", data="rows.csv")
    assert asked == [("some/model", "rows.csv")]
    assert done.members["some/model"] == tmp_path / "all.members" / "2.jsonl"
    expected = combine({"a": MEMBERS["a"], "c": MEMBERS["c"]})
    assert [one.label for one in read_predictions(done.out)] == [one.label for one in expected.values()]
