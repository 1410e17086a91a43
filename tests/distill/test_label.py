"""``tuyi label``: what is written, resuming, bad input, the check; teachers are fakes but for one real run."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tuyi.cli import app
from tuyi.config import load_settings
from tuyi.data import read
from tuyi.distill.label import LabelSettings, label
from tuyi.distill.teachers import find_teachers
from tuyi.distill.trust import AVERAGE
from tuyi.distill.views import smaller, write_shorter
from tuyi.errors import ConfigError, DataError, OutputError, TaskError
from tuyi.evaluate.calibration import fit_temperature
from tuyi.model.folder import FolderInfo, write_info
from tuyi.predict.calibrated import normalise
from tuyi.predict.prediction import Prediction, run_file
from tuyi.task.catalog import parse_tasks

LABELS = ["red", "green", "blue"]
TASKS = parse_tasks({"name": "c", "tasks": [{"name": "c", "labels": LABELS, "turn": "(A|B):"}]}, "c")


class FakeTeachers:
    """Stands for ``predict``: answers from a row's number, each teacher with errors of its own; notes what is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, list[str]]] = []
        self.die_after: int | None = None
        self.silent: set[str] = set()  # teachers without probabilities

    def __call__(self, model, data, out, *, task, settings, options, on_bad_row, progress, tell):
        from tuyi.data.source import scan

        out.parent.mkdir(parents=True, exist_ok=True)
        before = [json.loads(line)["id"] for line in out.read_text().splitlines()] if out.exists() else []
        ids: list[str] = []
        self.asked.append((model, out.name, ids))
        with out.open("a", encoding="utf-8") as file:
            for row in scan(data, options):
                if row.id in before:
                    continue
                if self.die_after is not None and len(ids) == self.die_after:
                    raise KeyboardInterrupt
                ids.append(row.id)
                file.write(self.answer(Path(model).name, row.id, task, row.text).to_json() + "\n")

    def answer(self, teacher, id, tasks, text) -> Prediction:
        number = int(id.removeprefix("r"))
        rng = np.random.default_rng([number, len(teacher), tasks.tasks[0].budget.max_pixels])
        logits = rng.normal(size=3) * 1.5
        logits[(number + ("old" in text)) % 3] += 2.5
        logs = dict(zip(LABELS, map(float, np.log(normalise(logits.astype(np.float32))))))
        chances = {name: float(np.exp(value)) for name, value in logs.items()}
        best = max(logs, key=logs.__getitem__)
        if teacher in self.silent:
            return Prediction(id, "c", best, {}, {}, notes={"tokens": 5})
        return Prediction(id, "c", best, logs, chances, notes={"tokens": 5}, rationale=f"{teacher} sees {best}")


@pytest.fixture
def fake(monkeypatch) -> FakeTeachers:
    teachers = FakeTeachers()
    monkeypatch.setattr(import_module("tuyi.predict.run"), "predict", teachers)
    return teachers


@pytest.fixture
def one(tmp_path) -> str:
    return teacher(tmp_path / "one")


@pytest.fixture
def second(tmp_path) -> str:
    return teacher(tmp_path / "second")


def teacher(folder: Path, tasks=TASKS) -> str:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    write_info(folder, FolderInfo(tasks=tasks, base_model="b"))
    return str(folder)


def table(file: Path, count: int, labelled: bool = False, text: str = "row {}") -> Path:
    lines = [f"r{n},{text.format(n)},{LABELS[n % 3] if labelled else ''},{n}" for n in range(count)]
    file.write_text("id,text,label,note\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture
def pool(tmp_path) -> Path:
    return table(tmp_path / "pool.csv", 40)


def with_(*changes: str) -> LabelSettings:
    return load_settings(LabelSettings, None, list(changes))


def left_out(done) -> dict[str, dict]:
    return {row["id"]: row for row in map(json.loads, done.left_out.read_text(encoding="utf-8").splitlines())}


def test_kept_rows_become_a_data_set_with_soft_labels(fake, one, pool, tmp_path):
    done = label(pool, tmp_path / "out" / "l.jsonl", [one], settings=with_("select.confidence=0.75"))
    source = {row.id: row for row in read(pool)}
    kept = list(read(done.out))
    assert 0 < done.kept == len(kept) < done.rows == 40
    for row in kept:
        said = fake.answer("one", row.id, TASKS, "")
        assert row.label == said.label
        assert dict(row.soft) == pytest.approx(dict(said.probabilities), abs=1e-7)
        assert row.soft[row.label] >= 0.75
        assert row.weight == 1
        assert row.rationale == f"one sees {row.label}"
        assert (row.text, row.extra) == (source[row.id].text, source[row.id].extra)
    left = left_out(done)
    assert left.keys() == source.keys() - {row.id for row in kept}
    assert {one["kind"] for one in left.values()} == {"not confident"}
    assert done.labels == {id: fake.answer("one", id, TASKS, "").label for id in source}
    record = json.loads((tmp_path / "out" / "l.jsonl.run.json").read_text())
    assert (record["teachers"], record["lowest_confidence"]) == ([one], {"c": 0.75})
    page = done.report.read_text(encoding="utf-8")
    assert f"{done.kept} of 40 rows kept" in page


def test_pictures_are_still_found_from_the_new_place(fake, one, tmp_path):
    from PIL import Image

    (tmp_path / "data" / "pictures").mkdir(parents=True)
    for n in range(6):
        Image.new("RGB", (30, 30), (n, 0, 0)).save(tmp_path / "data" / "pictures" / f"{n}.png")
    rows = [
        {"id": f"r{n}", "instruction": "<image>what?", "output": "", "image": [f"pictures/{n}.png"]} for n in range(6)
    ]
    (tmp_path / "data" / "rows.json").write_text(json.dumps(rows))
    for name in ("deep/er/l.jsonl", "other/l.json"):
        done = label(tmp_path / "data" / "rows.json", tmp_path / name, [one], settings=with_("select.confidence=0"))
        found = list(read(done.out))
        assert len(found) == 6
        for row, expected in zip(found, range(6)):
            (picture,) = row.images
            assert Image.open(picture.source).getpixel((0, 0)) == (expected, 0, 0)
            assert row.soft is not None


def test_weights_by_confidence(fake, one, pool, tmp_path):
    done = label(pool, tmp_path / "l.jsonl", [one], settings=with_("select.weight=confidence", "select.confidence=0"))
    for row in read(done.out):
        assert row.weight == pytest.approx(row.soft[row.label], abs=1e-6)


def test_several_teachers_are_averaged(fake, one, second, pool, tmp_path):
    settings = with_("select.confidence=0", "select.unanimous=true")
    done = label(pool, tmp_path / "l.jsonl", [one, second], weights=[3, 1], settings=settings)
    kept = {row.id: row for row in read(done.out)}
    disagree = 0
    for id, said in done.labels.items():
        a, b = (fake.answer(name, id, TASKS, "") for name in ("one", "second"))
        mean = {name: 0.75 * a.probabilities[name] + 0.25 * b.probabilities[name] for name in LABELS}
        assert said == max(mean, key=mean.__getitem__)
        if a.label == b.label:
            assert dict(kept[id].soft) == pytest.approx(mean, abs=1e-6)
        else:
            disagree += 1
            assert left_out(done)[id] == {"id": id, "kind": "teachers disagree", "why": f"{a.label} / {b.label}"}
    assert 0 < disagree < 40


def test_started_again_it_asks_nothing_twice_and_another_filter_asks_nothing(fake, one, second, pool, tmp_path):
    out = tmp_path / "l.jsonl"
    fake.die_after = 15
    with pytest.raises(KeyboardInterrupt):
        label(pool, out, [one, second])
    assert not out.exists()
    fake.die_after = None
    label(pool, out, [one, second])
    asked = [(Path(model).name, id) for model, _, ids in fake.asked for id in ids]
    assert len(asked) == len(set(asked)) == 80
    first = out.read_text()
    fake.asked.clear()
    done = label(pool, out, [one, second], settings=with_("select.confidence=0.99"))
    assert [ids for _, _, ids in fake.asked] == [[], []]
    assert len(out.read_text()) < len(first)
    assert done.kept == sum(1 for line in out.read_text().splitlines() if line)


def test_a_teacher_without_probabilities_counts_as_certain(fake, one, second, pool, tmp_path):
    told: list[str] = []
    fake.silent = {"one"}
    done = label(pool, tmp_path / "l.jsonl", [one], tell=told.append)
    assert f"{one} gives no probabilities for 40 of 40 rows: it counts as certain of its label" in told
    assert [row.soft for row in read(done.out)] == [None] * 40
    both = label(pool, tmp_path / "m.jsonl", [one, second], settings=with_("select.confidence=0"))
    row = next(iter(read(both.out)))
    b = fake.answer("second", row.id, TASKS, "").probabilities
    vote = fake.answer("one", row.id, TASKS, "").label
    assert dict(row.soft) == pytest.approx({name: (b[name] + (name == vote)) / 2 for name in LABELS}, abs=1e-6)


def test_a_filter_that_keeps_nothing_says_so(fake, one, pool, tmp_path):
    told: list[str] = []
    done = label(pool, tmp_path / "l.jsonl", [one], settings=with_("select.confidence=1"), tell=told.append)
    assert done.kept == 0
    assert told[-1] == f"the filter keeps no row, {done.out} is empty; the report says why rows were left out"


def test_views_that_change_the_label_leave_the_row_out(fake, one, tmp_path):
    texts = {f"r{n}": ("A: alone", "A: old\nB: new", "A: fine\nB: new")[n % 3] for n in range(30)}
    pool = tmp_path / "two.csv"
    pool.write_text("id,text,label\n" + "".join(f'{id},"{text}",\n' for id, text in texts.items()))
    settings = with_("select.confidence=0", "views.turns=0.5", "views.pixels=0.25")
    done = label(pool, tmp_path / "l.jsonl", [one], settings=settings)
    assert [(name, len(ids)) for _, name, ids in fake.asked] == [
        ("1.jsonl", 30),
        ("1-pixels-0.25.jsonl", 30),
        ("1-turns-0.5.jsonl", 20),  # rows of one turn are not asked again
    ]

    def said(id: str, tasks=TASKS, text: str | None = None) -> str:
        return fake.answer("one", id, tasks, texts[id] if text is None else text).label

    by_pixels = {id for id in texts if said(id, smaller(TASKS, 0.25)) != said(id)}
    by_turns = {id for id, text in texts.items() if said(id, text=text.rpartition("\n")[2]) != said(id)}
    found = {id: why for id, why in left_out(done).items() if why["kind"] == "views disagree"}
    assert found.keys() == by_pixels | by_turns
    assert by_pixels - by_turns
    assert by_turns - by_pixels
    assert all(why["why"].endswith(("seen with pixels", "seen with turns")) for why in found.values())
    asked = len(fake.asked)
    label(pool, tmp_path / "l.jsonl", [one], settings=with_("views.turns=0.4"))
    assert [(name, len(ids)) for _, name, ids in fake.asked[asked:]] == [("1.jsonl", 0), ("1-turns-0.4.jsonl", 20)]


def test_labels_that_no_teacher_names_are_told(fake, tmp_path):
    more = parse_tasks({"name": "c", "tasks": [{"name": "c", "labels": [*LABELS, "grey"]}]}, "c")
    fake.silent = {"fourth"}
    done = label(table(tmp_path / "p.csv", 9), tmp_path / "l.jsonl", [teacher(tmp_path / "fourth", more)])
    (labels, *_) = done.tables
    assert labels.note == "Lowest confidence 0.800. No row of: grey."
    assert [row[:3] for row in labels.rows if row[0] == "all"] == [("all", "9", "9")]


def test_shorter_dialogues_keep_the_newest_turns(tmp_path):
    file = tmp_path / "d.csv"
    file.write_text('id,text,label\n1,"A: one\nB: two\nA: three\nA: four\nB: five\n",\n2,A: alone,\n')
    assert write_shorter(file, TASKS, 0.5, tmp_path / "s.jsonl", None) == 1
    (row,) = read(tmp_path / "s.jsonl")
    assert (row.id, row.task, row.text) == ("1", "c", "A: three\nA: four\nB: five\n")


def test_smaller_pictures_keep_the_lowest_size():
    task = TASKS.tasks[0]
    budget = smaller(TASKS, 0.5).tasks[0].budget
    assert budget.max_pixels == task.budget.max_pixels // 2
    assert smaller(TASKS, 1e-6).tasks[0].budget.max_pixels == task.budget.min_pixels


def test_check_rows_judge_teachers_fit_temperatures_and_pick_the_confidence(fake, one, second, pool, tmp_path):
    check = table(tmp_path / "check.csv", 60, labelled=True)
    settings = with_("select.precision=0.9")
    done = label(pool, tmp_path / "l.jsonl", [one, second], check=check, settings=settings)
    trust = done.trust
    assert [judged.teacher for judged in trust.judged] == [one, second, AVERAGE]
    gold = np.arange(60) % 3
    mean = 0
    for judged, name in zip(trust.judged, ("one", "second")):
        said = [fake.answer(name, f"r{n}", TASKS, "") for n in range(60)]
        accuracy = np.mean([LABELS.index(answer.label) == k for answer, k in zip(said, gold)])
        assert judged.scores.metrics["accuracy"].value == pytest.approx(accuracy)
        logs = np.array([[answer.logprobs[key] for key in LABELS] for answer in said])
        temperature = fit_temperature(logs, gold)
        assert trust.temperatures[judged.teacher]["c"] == pytest.approx(temperature, rel=1e-4)
        mean = mean + np.array([normalise(row.astype(np.float32), temperature) for row in logs]) / 2
    right, confidence = mean.argmax(1) == gold, mean.max(1)
    least = min(least for least in confidence if right[confidence >= least].mean() >= 0.9)
    assert trust.lowest["c"] == pytest.approx(least, abs=1e-6)
    (filtered,) = trust.filtered
    kept = confidence >= least
    assert (filtered.rows, filtered.kept) == (60, kept.sum())
    assert filtered.precision.value == pytest.approx(right[kept].mean())
    assert filtered.precision.low < filtered.precision.value
    for row in read(done.out):
        assert row.soft[row.label] >= trust.lowest["c"] - 1e-7
    page = done.report.read_text(encoding="utf-8")
    assert "Teachers on the labelled rows" in page
    assert f"Right among the kept, on labelled rows: c {filtered.precision.value:.1%}." in page


def test_bad_input_is_told_before_a_teacher_is_asked(fake, one, second, pool, tmp_path):
    out = tmp_path / "l.jsonl"
    labelled = table(tmp_path / "labelled.csv", 9, labelled=True)
    with pytest.raises(
        DataError, match=r"expected rows without a label, 9 of 9 have one \(.*labelled.csv, row 1, id r0;.*--check"
    ):
        label(labelled, out, [one])
    with pytest.raises(
        DataError, match=r"pool.csv, row 1, id r0: expected labelled rows to check by, 40 have no label"
    ):
        label(pool, out, [one], check=pool)
    with pytest.raises(
        ConfigError, match=r"select.precision=0.9 picks the lowest confidence on labelled rows; name them"
    ):
        label(pool, out, [one], settings=with_("select.precision=0.9"))
    with pytest.raises(ConfigError, match="is named twice"):
        label(pool, out, [one, one])
    with pytest.raises(ConfigError, match="labels need a teacher"):
        label(pool, out, [])
    with pytest.raises(OutputError, match=r"expected a name ending in .jsonl, or in .json"):
        label(pool, tmp_path / "l.csv", [one])
    (tmp_path / "mine.jsonl").write_text("{}")
    with pytest.raises(OutputError, match="`tuyi label` did not write it"):
        label(pool, tmp_path / "mine.jsonl", [one])
    more = parse_tasks({"name": "c", "tasks": [{"name": "c", "labels": [*LABELS, "grey"]}]}, "c")
    with pytest.raises(TaskError, match=r"knows other labels of c: 'grey' is not in both"):
        label(pool, out, [one, teacher(tmp_path / "third", more)])
    other = parse_tasks({"name": "d", "tasks": [{"name": "d", "labels": LABELS}]}, "d")
    with pytest.raises(TaskError, match="knows the tasks d, expected c"):
        label(pool, out, [one, teacher(tmp_path / "fourth", other)])
    open_task = parse_tasks({"name": "o", "tasks": [{"name": "o", "answer": "open"}]}, "o")
    with pytest.raises(TaskError, match="task o is open"):
        label(pool, out, [teacher(tmp_path / "fifth", open_task)])
    assert fake.asked == []
    with pytest.raises(ConfigError, match=r"weight above 0 for each of the 2 members"):
        label(pool, out, [one, second], weights=[1])


def test_predictions_files_are_teachers_that_have_answered(fake, one, pool, tmp_path):
    made = label(pool, tmp_path / "l.jsonl", [one], settings=with_("select.confidence=0"))
    file = tmp_path / "answers.jsonl"
    file.write_text((tmp_path / "l.teachers" / "1.jsonl").read_text())
    fake.asked.clear()
    with pytest.raises(TaskError, match=r"does not say which task was asked, .* name it with --task"):
        label(pool, tmp_path / "m.jsonl", [str(file)])
    done = label(pool, tmp_path / "m.jsonl", [str(file)], task=TASKS, settings=with_("select.confidence=0"))
    run_file(file).write_text(json.dumps({"tasks": TASKS.model_dump(mode="json")}))
    again = label(pool, tmp_path / "n.jsonl", [str(file)], settings=with_("select.confidence=0"))
    assert done.labels == again.labels == made.labels
    assert [row.soft for row in read(done.out)] == [row.soft for row in read(made.out)]
    few = label(table(tmp_path / "few.csv", 5), tmp_path / "f.jsonl", [str(file)])
    assert (few.rows, few.labels.keys()) == (5, {f"r{n}" for n in range(5)})
    (tmp_path / "other.csv").write_text("id,text,label\nx,y,\n")
    with pytest.raises(DataError, match=r"answers.jsonl has no prediction of any row of .*other.csv; is it of other"):
        label(tmp_path / "other.csv", tmp_path / "f.jsonl", [str(file)])
    assert fake.asked == []
    with pytest.raises(ConfigError, match=r"answers.jsonl holds predictions and cannot be asked about views or check"):
        label(pool, tmp_path / "o.jsonl", [str(file)], settings=with_("views.pixels=0.5"))
    with pytest.raises(ConfigError, match="engine api asks one server, which cannot be several teachers"):
        label(pool, tmp_path / "o.jsonl", [one, teacher(tmp_path / "x")], settings=with_("predict.engine=api"))


def test_a_teacher_of_more_tasks_is_asked_only_what_is_wanted(fake, tmp_path):
    both = [{"name": name, "labels": LABELS, "recognise": [name]} for name in ("c", "other")]
    knowing = teacher(tmp_path / "both", parse_tasks({"name": "both", "tasks": both}, "both"))
    tasks, (found,) = find_teachers([knowing], TASKS)
    assert [task.name for task in found.tasks] == [task.name for task in tasks] == ["c"]
    assert found.tasks["c"].recognise == ("c",), "in its own words"
    assert [task.name for task in find_teachers([knowing], None)[0]] == ["c", "other"]


def test_a_precision_out_of_reach_is_said(fake, one, pool, tmp_path):
    check = table(tmp_path / "check.csv", 60, labelled=True)
    text = check.read_text().replace(",red,", ",?,").replace(",green,", ",red,").replace(",?,", ",green,")
    check.write_text(text.replace(",blue,", ",red,"))
    with pytest.raises(
        ConfigError, match=r"no confidence reaches it on the check rows of c \(0.\d+ of all 60 are right"
    ):
        label(pool, tmp_path / "l.jsonl", [one], check=check, settings=with_("select.precision=0.99"))


def test_rows_that_a_teacher_cannot_use_are_named(fake, one, pool, tmp_path, monkeypatch):
    answer = fake.__call__

    def some(model, data, out, **more):
        answer(model, data, out, **more)
        lines = out.read_text().splitlines(keepends=True)
        out.write_text("".join(lines[1:]))

    monkeypatch.setattr(import_module("tuyi.predict.run"), "predict", some)
    done = label(pool, tmp_path / "l.jsonl", [one], on_bad_row="skip", settings=with_("select.confidence=0"))
    assert left_out(done) == {"r0": {"id": "r0", "kind": "not answered", "why": "not every teacher could use the row"}}
    assert (done.rows, done.kept) == (40, 39)


def test_the_command(fake, one, second, pool, tmp_path):
    out = tmp_path / "l.jsonl"
    check = table(tmp_path / "check.csv", 30, labelled=True)
    given = ["label", str(pool), "--out", str(out), "--teacher", one, "--teacher", second, "--weights", "2,1"]
    run = CliRunner().invoke(app, [*given, "--check", str(check), "--set", "select.at_most=4"])
    assert run.exit_code == 0, run.output
    assert "c: rows of each label" in run.output
    assert len(list(read(out))) <= 12
    assert "of 40 rows" in run.output


@pytest.mark.slow
def test_a_real_teacher(tmp_path, monkeypatch):
    import tuyi
    from tuyi.train.settings import TrainSettings

    (tmp_path / "rows").mkdir()
    rng = np.random.default_rng(0)
    from PIL import Image

    colours = parse_tasks(
        {"name": "c", "tasks": [{"name": "c", "labels": LABELS, "budget": {"max_pixels": 3136, "max_tokens": 64}}]}, "c"
    )
    rows = []
    for n in range(24):
        pixels = rng.integers(0, 90, (56, 56, 3))
        pixels[..., n % 3] += 160
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "rows" / f"{n}.png")
        rows.append({"id": str(n), "instruction": "<image>", "output": LABELS[n % 3], "image": [f"rows/{n}.png"]})
    labelled, pool = tmp_path / "labelled.json", tmp_path / "pool.json"
    labelled.write_text(json.dumps(rows[:12]))
    pool.write_text(json.dumps([{**row, "output": ""} for row in rows[12:]]))
    settings = TrainSettings(max_steps=6, epochs=9, batch_rows=12, lr=2e-3, tensorboard=False)
    tuyi.train(labelled, tmp_path / "model", task=colours, settings=settings)
    done = label(
        pool, tmp_path / "l.jsonl", [str(tmp_path / "model")], check=labelled, settings=with_("select.confidence=0")
    )
    kept = list(read(done.out))
    assert [row.id for row in kept] == [str(n) for n in range(12, 24)]
    assert all(sum(row.soft.values()) == pytest.approx(1, abs=1e-6) for row in kept)
    again = label(
        pool, tmp_path / "l.jsonl", [str(tmp_path / "model")], check=labelled, settings=with_("select.confidence=0")
    )
    assert [replace(row, place=None) for row in read(again.out)] == [replace(row, place=None) for row in kept]
