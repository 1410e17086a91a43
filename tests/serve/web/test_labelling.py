"""Going through rows, and the file of decisions."""

from __future__ import annotations

import csv
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tuyi.data.example import Example, Image, Text
from tuyi.data.source import read
from tuyi.distill.corrected import apply_corrections
from tuyi.distill.corrections import COLUMNS, fingerprint
from tuyi.errors import DataError, FormatError, LabelError, OutputError
from tuyi.serve.web import walks
from tuyi.serve.web.labelling import Labelling
from tuyi.serve.web.row_states import Decision, Suggestion
from tuyi.task.catalog import TaskSet, parse_tasks

TASKS = {"name": "t", "tasks": [{"name": "colour", "labels": ["red", "green", "blue"]}]}
KEEP, DROP = Decision("keep"), Decision("drop")


@pytest.fixture
def tasks() -> TaskSet:
    return parse_tasks(TASKS, "t")


def rows_file(folder: Path, labels: Mapping[str, str | None]) -> Path:
    file = folder / "rows.jsonl"
    lines = [
        {
            "id": id,
            "messages": [
                {"role": "user", "content": f"what is {id}?"},
                *([{"role": "assistant", "content": label}] if label is not None else []),
            ],
        }
        for id, label in labels.items()
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def change(label: str) -> Decision:
    return Decision("change", label)


def shares(**found: float) -> Suggestion:
    return Suggestion(found)


def told(file: Path) -> dict[str, dict[str, str]]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        return {row["id"]: row for row in csv.DictReader(stream)}


def audit_of(folder: Path, data: Path, suspected: Mapping[str, str], header: tuple[str, ...] = COLUMNS) -> Path:
    """The folder of an audit that suspects these rows, in this order."""
    examples = {one.id: one for one in read(data)}
    folder.mkdir()
    with (folder / "corrections.csv").open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\r\n")
        writer.writerow(header)
        for id, label in suspected.items():
            seen = fingerprint(examples[id], _digests())
            writer.writerow([id, "colour", examples[id].label, label, "0.9", "model", "", "", "", seen])
    return folder


def _digests() -> Any:
    from tuyi.data.fingerprint import MediaDigests

    return MediaDigests()


def walked(labelling: Labelling, walk: str = "w") -> list[str]:
    """Ids in the order in which they are shown, each of them put off."""
    ids = []
    while (row := labelling.row(walk)) is not None:
        ids.append(row.example.id)
        labelling.skip(walk, row.example.id)
    return ids


def decide(labelling: Labelling, decision: Decision, walk: str = "w") -> str:
    row = labelling.row(walk)
    assert row is not None
    assert labelling.decide(walk, row.example.id, decision, row.revision)
    return row.example.id


def test_the_least_certain_unlabelled_rows_come_first_and_then_what_the_model_contradicts_most(tmp_path, tasks):
    given = {"a": "red", "b": None, "c": "green", "d": None, "e": "blue", "f": None, "g": "red"}
    labelling = Labelling.open(rows_file(tmp_path, given), tasks)
    assert labelling.row("w") is None
    assert [one.id for one in labelling.wanted(4)] == ["b", "d", "f", "a"]
    said = {
        "a": shares(green=0.6, red=0.4), "b": shares(red=0.9, blue=0.1), "c": shares(green=0.9, red=0.1),
        "d": shares(red=0.4, blue=0.6), "e": shares(red=0.8, blue=0.2), "f": Suggestion(problem="too long"),
    }  # fmt: skip
    for id, one in said.items():
        labelling.suggest(id, one)
    assert [one.id for one in labelling.wanted(4)] == ["g"]
    now = labelling.progress("w")
    assert (now.done, now.total, now.read, now.rows) == (0, 5, 6, 7)
    row = labelling.row("w")
    assert row is not None
    assert row.suggestion is not None
    assert list(row.suggestion.probabilities) == ["blue", "red"]
    assert (row.why, row.given) == ("unlabelled", "")
    assert walked(labelling) == ["d", "b", "e", "a", "f"]
    assert labelling.progress("w").skipped == 5
    labelling.again("w")
    assert walked(labelling) == ["d", "b", "e", "a", "f"]


def test_what_an_audit_suspects_comes_before_everything_else_and_keeps_its_words(tmp_path, tasks):
    data = rows_file(tmp_path, {"a": "red", "b": None, "c": "green", "d": "blue"})
    audit = audit_of(tmp_path / "audit", data, {"d": "red", "a": "green"})
    labelling = Labelling.open(data, tasks, audit=audit)
    assert [one.id for one in labelling.wanted(3)] == ["d", "a", "b"]
    labelling.suggest("b", shares(red=0.5, blue=0.5))
    row = labelling.row("w")
    assert row is not None
    assert (row.example.id, row.why, row.suspected) == ("d", "audit", ("red", "0.9"))
    assert decide(labelling, change("green")) == "d"
    assert decide(labelling, change("red")) == "a"  # the label that it has
    assert decide(labelling, DROP) == "b"
    lines = told(audit / "corrections.csv")
    assert list(lines) == ["d", "a", "b"]
    assert {id: (line["action"], line["new_label"]) for id, line in lines.items()} == {
        "d": ("change", "green"), "a": ("keep", ""), "b": ("drop", ""),
    }  # fmt: skip
    assert (lines["d"]["suggested_label"], lines["d"]["confidence"], lines["d"]["why"]) == ("red", "0.9", "model")
    assert (lines["b"]["given_label"], lines["b"]["suggested_label"], lines["b"]["why"]) == ("", "red", "unlabelled")


def test_every_decision_is_on_the_disk_and_goes_on_where_it_stopped(tmp_path, tasks):
    data = rows_file(tmp_path, dict.fromkeys("abcd"))
    labelling = _read_all(Labelling.open(data, tasks))
    file = tmp_path / "rows.jsonl.corrections.csv"
    assert labelling.file.path == file
    assert not file.exists()
    decide(labelling, change("red"))
    assert told(file)["a"]["new_label"] == "red"
    decide(labelling, DROP)
    resumed = _read_all(Labelling.open(data, tasks))
    assert (resumed.progress("w").done, resumed.progress("w").total) == (2, 4)
    assert walked(resumed) == ["c", "d"]


def test_going_back_shows_what_was_decided_and_undo_takes_it_away(tmp_path, tasks):
    data = rows_file(tmp_path, {"a": None, "b": None, "c": "red"})
    audit = audit_of(tmp_path / "audit", data, {"c": "blue"})
    labelling = _read_all(Labelling.open(data, tasks, audit=audit))
    file = audit / "corrections.csv"
    assert decide(labelling, change("blue")) == "c"
    assert decide(labelling, change("green")) == "a"
    labelling.back("w")
    row = labelling.row("w")
    assert row is not None
    assert (row.example.id, row.decision, row.revision) == ("a", change("green"), 1)
    assert labelling.decide("w", "a", change("red"), row.revision)
    assert told(file)["a"]["new_label"] == "red"
    assert labelling.row("w").example.id == "b"  # type: ignore[union-attr]
    assert labelling.undo("w")
    assert labelling.row("w").example.id == "a"  # type: ignore[union-attr]
    assert "a" not in told(file)
    assert labelling.undo("w")
    assert labelling.row("w").example.id == "c"  # type: ignore[union-attr]
    assert (told(file)["c"]["action"], told(file)["c"]["suggested_label"]) == ("", "blue")
    assert not labelling.undo("w")
    assert not labelling.undo("another")


def test_two_people_get_different_rows_and_never_overwrite_each_other(tmp_path, tasks):
    labelling = _read_all(Labelling.open(rows_file(tmp_path, dict.fromkeys("abc")), tasks))
    first, second = labelling.row("one"), labelling.row("two")
    assert first is not None
    assert second is not None
    assert (first.example.id, second.example.id) == ("a", "b")
    assert labelling.decide("one", "a", KEEP, first.revision)
    assert labelling.row("one").example.id == "c"  # type: ignore[union-attr]
    assert not labelling.decide("two", "a", change("red"), first.revision)
    assert told(labelling.file.path)["a"]["action"] == "keep"


def test_undo_takes_back_nothing_of_others(tmp_path, tasks):
    labelling = _read_all(Labelling.open(rows_file(tmp_path, dict.fromkeys("ab")), tasks))
    assert decide(labelling, KEEP, "one") == "a"
    row = labelling.row("one")
    assert row is not None
    assert labelling.decide("two", "a", change("blue"), 1)
    assert not labelling.undo("one")
    assert told(labelling.file.path)["a"]["new_label"] == "blue"
    assert labelling.undo("two")
    assert not told(labelling.file.path)


def test_the_row_of_somebody_who_left_is_given_to_others(tmp_path, tasks, monkeypatch):
    labelling = _read_all(Labelling.open(rows_file(tmp_path, dict.fromkeys("ab")), tasks))
    assert labelling.row("one").example.id == "a"  # type: ignore[union-attr]
    now = walks.time.monotonic()
    monkeypatch.setattr(walks.time, "monotonic", lambda: now + 3600)
    assert labelling.row("two").example.id == "a"  # type: ignore[union-attr]


def test_many_at_once_lose_nothing(tmp_path, tasks):
    ids = [f"r{number}" for number in range(48)]
    labelling = _read_all(Labelling.open(rows_file(tmp_path, dict.fromkeys(ids)), tasks))
    taken: list[str] = []

    def work(walk: str) -> None:
        while (row := labelling.row(walk)) is not None:
            if labelling.decide(walk, row.example.id, change("blue"), row.revision):
                taken.append(row.example.id)

    threads = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(taken) == sorted(ids)
    assert told(labelling.file.path).keys() == set(ids)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("id,label\na,red\n", "expected the columns"),
        ("id,given_label,suggested_label,action,seen\na,,red,perhaps,h0\n", "expected keep, change, drop or nothing"),
        ("id,given_label,suggested_label,action,seen\na,,red,keep,h0\na,,red,keep,h0\n", "in the corrections twice"),
        ("id,given_label,suggested_label,action,seen,id\na,,red,keep,h0,b\n", "column 'id' stands there twice"),
        ("id,given_label,suggested_label,action,seen\na,,red,keep,h0,more\n", "expected 5 columns, found 6"),
    ],
)  # fmt: skip
def test_a_broken_corrections_file_is_refused_and_stays_as_it_is(tmp_path, tasks, text, error):
    data, file = rows_file(tmp_path, dict.fromkeys("ab")), tmp_path / "mine.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(FormatError, match=error):
        Labelling.open(data, tasks, corrections=file)
    file.unlink()
    labelling = _read_all(Labelling.open(data, tasks, corrections=file))
    decide(labelling, KEEP)
    file.write_text(text, encoding="utf-8")
    row = labelling.row("w")
    assert row is not None
    with pytest.raises(FormatError, match=error):
        labelling.decide("w", row.example.id, DROP, row.revision)
    assert file.read_text(encoding="utf-8") == text
    assert labelling.row("w").example.id == row.example.id  # type: ignore[union-attr]


def test_what_others_write_into_the_file_meanwhile_stays(tmp_path, tasks):
    data = rows_file(tmp_path, dict.fromkeys("abc"))
    labelling = _read_all(Labelling.open(data, tasks))
    file = labelling.file.path
    decide(labelling, KEEP)
    row = labelling.row("w")
    assert row is not None
    # a spreadsheet, with the separator of its country, further columns and a note
    seen = told(file)["a"]["seen"]
    file.write_text(
        f"id;task;given_label;suggested_label;confidence;why;action;new_label;note;seen;who\r\n"
        f"a;colour;;red;0,5;unlabelled;keep;;look again;{seen};Li\r\n"
        "b;colour;;red;0,5;unlabelled;change;green;;h1;Li\r\n",
        encoding="utf-8-sig",
        newline="",
    )
    assert not labelling.decide("w", row.example.id, DROP, row.revision)
    again = labelling.row("w")
    assert again is not None
    assert again.decision == change("green")
    labelling.skip("w", "b")
    assert decide(labelling, DROP) == "c"
    lines = told(file)
    assert [(lines[id]["action"], lines[id]["who"]) for id in "abc"] == [("keep", "Li"), ("change", "Li"), ("drop", "")]
    assert lines["a"]["note"] == "look again"
    file.unlink()
    labelling.undo("w")
    assert list(told(file)) == ["a", "b"]


def test_a_decision_that_cannot_be_written_is_not_taken(tmp_path, tasks):
    labelling = _read_all(Labelling.open(rows_file(tmp_path, dict.fromkeys("ab")), tasks))
    labelling.file.path = tmp_path / "rows.jsonl" / "inside a file.csv"
    with pytest.raises(OutputError, match="cannot be written"):
        labelling.decide("w", "a", KEEP, 0)
    assert labelling.progress("w").done == 0
    assert len(labelling.file) == 0
    with pytest.raises(LabelError, match="'purple' is not one of the task's 3 labels"):
        labelling.decide("w", "a", change("purple"), 0)
    with pytest.raises(DataError, match="no row 'z'"):
        labelling.decide("w", "z", KEEP, 0)


def test_a_row_that_changed_since_it_was_decided_is_shown_again(tmp_path, tasks, picture):
    data = rows_file(tmp_path, {"a": None, "b": "red"})
    labelling = _read_all(Labelling.open(data, tasks))
    decide(labelling, change("red"))
    rows_file(tmp_path, {"a": "blue", "b": "red"})
    again = Labelling.open(data, tasks)
    row = again.row("w")
    assert row is not None
    assert (row.example.id, row.why, row.decision, again.progress("w").done) == ("a", "changed", None, 0)
    decide(again, change("green"))
    applied = apply_corrections(data, again.file.path, tmp_path / "new.jsonl", tasks=tasks)
    assert applied.changed == 1
    assert [one.label for one in read(tmp_path / "new.jsonl")] == ["green", "red"]


def test_the_existing_way_applies_what_was_decided_about_labelled_and_unlabelled_rows(tmp_path, tasks):
    data = rows_file(tmp_path, {"a": None, "b": "red", "c": None, "d": "green", "e": None})
    labelling = _read_all(Labelling.open(data, tasks), first="blue")
    assert decide(labelling, change("green")) == "a"
    assert decide(labelling, DROP) == "c"
    assert decide(labelling, KEEP) == "e"
    assert decide(labelling, change("blue")) == "b"
    assert decide(labelling, KEEP) == "d"
    done = apply_corrections(data, labelling.file.path, tmp_path / "new.jsonl", tasks=tasks)
    assert (done.rows, done.changed, done.dropped, done.kept, done.open) == (4, 2, 1, 2, 0)
    assert {one.id: one.label for one in read(done.out)} == {"a": "green", "b": "blue", "d": "green", "e": None}
    rows_file(tmp_path, {"a": "blue", "b": "red", "c": None, "d": "green", "e": None})
    with pytest.raises(DataError, match="its label was '' and is 'blue' now"):
        apply_corrections(data, labelling.file.path, tmp_path / "newer.jsonl", tasks=tasks)


def test_another_file_begins_with_the_audits_lines(tmp_path, tasks):
    data = rows_file(tmp_path, {"a": "red", "b": "green"})
    audit = audit_of(tmp_path / "audit", data, {"b": "red"})
    before = (audit / "corrections.csv").read_bytes()
    labelling = Labelling.open(data, tasks, audit=audit, corrections=tmp_path / "mine.csv")
    assert decide(labelling, KEEP) == "b"
    assert told(tmp_path / "mine.csv")["b"]["suggested_label"] == "red"
    assert (audit / "corrections.csv").read_bytes() == before


def test_data_that_cannot_be_labelled_is_refused(tmp_path, tasks):
    data = rows_file(tmp_path, dict.fromkeys("ab"))
    data.write_text(data.read_text().replace('"b"', '"a"'))
    with pytest.raises(DataError, match="duplicate id 'a'"):
        Labelling.open(data, tasks)
    open_task = parse_tasks({"name": "o", "tasks": [{"name": "talk", "answer": "open"}]}, "o")
    with pytest.raises(DataError, match="no row of a task with labels"):
        Labelling.open(rows_file(tmp_path, dict.fromkeys("ab")), open_task)
    with pytest.raises(DataError, match=r"has no corrections\.csv"):
        Labelling.open(data, tasks, audit=tmp_path)


def test_a_label_that_is_none_of_the_tasks_is_contradicted(tmp_path, tasks):
    labelling = _read_all(Labelling.open(rows_file(tmp_path, {"a": "purple", "b": "RED"}), tasks))
    row = labelling.row("w")
    assert row is not None
    assert (row.example.id, row.given, row.why) == ("a", "purple", "disagrees")
    assert labelling.progress("w").total == 1


def test_a_picture_that_is_gone_keeps_a_decision_from_being_made(tmp_path, tasks, picture: Callable[..., Image]):
    shown = picture(32, 32, seed=1)
    (tmp_path / "a.png").write_bytes(shown.source)  # type: ignore[arg-type]
    from tuyi.encode.store import RowStore
    from tuyi.serve.web.corrections_file import CorrectionsFile

    store = RowStore()
    store.append(Example("a", (Image(tmp_path / "a.png", "a.png"), Text("what?"))))
    labelling = _read_all(Labelling(store, tasks, CorrectionsFile(tmp_path / "c.csv")))
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match="does not exist"):
        decide(labelling, KEEP)
    assert not (tmp_path / "c.csv").exists()


def _read_all(labelling: Labelling, first: str = "red") -> Labelling:
    """The model says the same of every row."""
    for one in labelling.wanted(1000):
        labelling.suggest(one.id, Suggestion({first: 0.5, "green" if first != "green" else "red": 0.3}))
    return labelling


def test_the_command_applies_decisions_with_the_labels_of_the_model(tmp_path, tasks):
    from typer.testing import CliRunner

    from tuyi.cli import app
    from tuyi.model.folder import FolderInfo, write_info

    data = rows_file(tmp_path, {"a": None, "b": "red"})
    labelling = _read_all(Labelling.open(data, tasks))
    decide(labelling, change("blue"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    write_info(tmp_path / "model", FolderInfo(tasks=tasks, base_model="builtin:tiny"))
    file, out = labelling.file.path, tmp_path / "new.jsonl"
    command = ["audit", str(data), "--apply", str(file), "--out", str(out), "--model", str(tmp_path / "model")]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0, said.exception
    assert "2 rows; 1 labels changed" in said.stdout
    assert [one.label for one in read(out)] == ["blue", "red"]
