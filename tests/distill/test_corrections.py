"""Corrections: what a person decided becomes a new data set; the old one, and everything else in it, stays."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tuyi.cli import app
from tuyi.data import Example, ExampleWriter, Image, Text, Turn, read
from tuyi.data.fingerprint import MediaDigests
from tuyi.distill.corrected import Applied, apply_corrections
from tuyi.distill.corrections import COLUMNS, corrections_csv, fingerprint, read_corrections
from tuyi.distill.label_issues import Issue, Judged
from tuyi.errors import (
    ConfigError,
    DataError,
    FormatError,
    LabelError,
    OutputError,
    TaskError,
    TuyiError,
)
from tuyi.task import TaskSet

TASKS = TaskSet.model_validate({"name": "shop", "tasks": [{"name": "shop", "labels": ["材质", "尺寸（大）", "价格"]}]})
EDITS = dict[str, dict[str, str]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "in" / "images").mkdir(parents=True)
    (tmp_path / "in" / "images" / "p.png").write_bytes(b"\x89PNG picture")
    image = Image(tmp_path / "in" / "images" / "p.png", "images/p.png")
    shared = {"task": "shop", "weight": 2.0, "extra": {"page": 3, "old": ["a"]}}
    rows = [
        Example("0012", (Text('多少钱，\n"贵"吗 <b>😀</b>'), image), label="材质", **shared),
        Example(
            "b",
            (Text("多大"),),
            label="尺寸(大)",
            history=(Turn("user", (Text("hi"),)), Turn("assistant", (Text("yes"),))),
        ),
        Example("c", (Text("是棉的吗"),), label="价格", rationale="asks the price", soft={"价格": 0.9, "材质": 0.1}),
        Example("d", (Text("随便"),), label="材质"),
        Example("e", (Text("nobody knows"),)),
    ]
    with ExampleWriter(tmp_path / "in" / "data.jsonl", "messages") as writer:
        for row in rows:
            writer.write(row)
    return tmp_path / "in" / "data.jsonl"


def issue(data: Path, id: str, suggested: str, confidence: float = 0.9, *, rare: bool = False) -> Issue:
    row = next(row for row in read(data) if row.id == id)
    label = TASKS.tasks[0].labels.canonical(str(row.label))  # type: ignore[union-attr]
    seen = fingerprint(row, MediaDigests())
    return Issue(Judged(id, row.place.row, "shop", label, seen, {}, rare=rare), ("model",), suggested, 0.9, confidence)


def write(data: Path, edits: EDITS, *, separator: str = ",", encoding: str = "utf-8-sig") -> Path:
    """The corrections of an audit as a spreadsheet would save them after these edits."""
    issues = [
        issue(data, "0012", "价格", 0.95),
        issue(data, "b", "材质", 0.6),
        issue(data, "c", "材质", 0.8),
        issue(data, "d", "价格", 0.99, rare=True),
    ]
    lines = list(csv.DictReader(io.StringIO(corrections_csv(issues))))
    for line in lines:
        line.update(edits.get(line["id"], {}))
    file = data.parent / "corrections.csv"
    with file.open("w", encoding=encoding, newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, delimiter=separator)
        writer.writeheader()
        writer.writerows(lines)
    return file


def apply(data: Path, edits: EDITS, *, above: float | None = None, out: str = "new.jsonl") -> Applied:
    return apply_corrections(data, write(data, edits), data.parent.parent / out, tasks=TASKS, apply_suggested=above)


DECIDED: EDITS = {"0012": {"action": "change"}, "b": {"action": "Keep "}, "d": {"action": "drop", "note": "说不清"}}


def test_change_keep_and_drop(data: Path) -> None:
    before = data.read_bytes()
    done = apply(data, DECIDED)
    assert (done.rows, done.changed, done.dropped, done.kept, done.open, done.automatic) == (4, 1, 1, 1, 1, 0)
    old, new = {row.id: row for row in read(data)}, {row.id: row for row in read(done.out)}
    assert list(new) == ["0012", "b", "c", "e"]
    assert new["0012"].label == "价格"
    (image,) = new["0012"].images
    assert image.source == data.parent / "images" / "p.png" or Path(str(image.source)).samefile(
        data.parent / "images" / "p.png"
    )
    plain = {
        id: replace(row, content=tuple(part for part in row.content if isinstance(part, Text)))
        for id, row in old.items()
    }
    for id, row in new.items():
        told = "价格" if id == "0012" else old[id].label
        assert replace(row, content=plain[id].content) == replace(plain[id], label=told)
    assert data.read_bytes() == before
    record = json.loads((done.out.parent / "new.jsonl.corrections.json").read_text(encoding="utf-8"))
    assert record["changes"][0] == {
        "id": "0012",
        "action": "change",
        "given_label": "材质",
        "label": "价格",
        "automatic": False,
    }
    assert [one["action"] for one in record["changes"]] == ["change", "keep", "drop"]
    assert record["data"] == str(data)


def test_another_label_than_the_suggested_one_in_any_spelling(data: Path) -> None:
    done = apply(data, {"0012": {"action": "change", "new_label": " 尺寸(大)"}})
    assert next(read(done.out)).label == "尺寸（大）"


def test_what_spoke_for_the_old_label_goes_and_is_counted(data: Path) -> None:
    done = apply(data, {"c": {"action": "change"}, "b": {"action": "change"}})
    changed = {row.id: row for row in read(done.out)}["c"]
    assert (changed.label, changed.rationale, changed.soft) == ("材质", None, None)
    assert done.unproven == 1


def test_suggestions_are_taken_above_a_confidence_but_never_from_rare_labels(data: Path) -> None:
    done = apply(data, {"0012": {"action": "keep"}}, above=0.8)
    labels = {row.id: row.label for row in read(done.out)}
    assert labels == {"0012": "材质", "b": "尺寸(大)", "c": "材质", "d": "材质", "e": None}
    assert (done.changed, done.automatic, done.kept, done.open) == (1, 1, 1, 2)


@pytest.mark.parametrize("separator", [";", "\t"])
def test_separators_of_other_countries(data: Path, separator: str) -> None:
    file = write(data, {"0012": {"action": "change", "confidence": "0,95"}}, separator=separator)
    lines = read_corrections(file)
    assert [line.id for line in lines] == ["0012", "b", "c", "d"]
    assert (lines[0].action, lines[0].confidence, lines[3].rare) == ("change", 0.95, True)


def test_the_file_opens_in_a_spreadsheet(data: Path) -> None:
    text = corrections_csv([issue(data, "b", "材质")])
    assert text.splitlines()[0] == ",".join(COLUMNS)
    assert text.endswith("\r\n")
    # long digits without a letter would be rounded to a number
    assert text.rstrip().rpartition(",")[2][0] == "h"


@pytest.mark.parametrize(
    ("edits", "error", "text"),
    [
        ({"0012": {"id": "12", "action": "change"}}, DataError, r"1 of 1 corrected ids are not in .*\(first: '12'\)"),
        ({"0012": {"action": "chnge"}}, FormatError, "action: expected keep, change, drop or nothing, found 'chnge'"),
        (
            {"0012": {"action": "change", "new_label": "价各"}},
            LabelError,
            "row 2, id 0012: label '价各' .* nearest is '价格'",
        ),
        (
            {"0012": {"action": "change", "suggested_label": ""}},
            FormatError,
            "expected a new_label or a suggested_label",
        ),
        ({"0012": {"confidence": "high"}}, FormatError, "confidence: expected a number, found 'high'"),
        ({"0012": {"id": "b"}}, FormatError, "id 'b' stands in the corrections twice"),
    ],
)
def test_corrections_that_cannot_be_made(data: Path, edits: EDITS, error: type[TuyiError], text: str) -> None:
    with pytest.raises(error, match=text):
        apply(data, edits)
    assert sorted(path.name for path in data.parent.parent.iterdir()) == ["in"]


def test_rows_that_changed_since_the_audit(data: Path) -> None:
    file = write(data, DECIDED)
    text = data.read_text(encoding="utf-8")
    out = data.parent.parent / "new.jsonl"
    data.write_text(text.replace("随便", "变了"), encoding="utf-8")
    with pytest.raises(DataError, match="id d: the row has changed since the audit: it shows something else"):
        apply_corrections(data, file, out, tasks=TASKS)
    data.write_text(text.replace('"content": "材质"', '"content": "价格"'), encoding="utf-8")
    with pytest.raises(
        DataError, match="id 0012: the row has changed since the audit: its label was '材质' and is '价格'"
    ):
        apply_corrections(data, file, out, tasks=TASKS)
    data.write_text(text, encoding="utf-8")
    (data.parent / "images" / "p.png").write_bytes(b"\x89PNG another")
    with pytest.raises(DataError, match="id 0012: the row has changed"):
        apply_corrections(data, file, out, tasks=TASKS)
    # rows that nothing is decided about may change
    (data.parent / "images" / "p.png").write_bytes(b"\x89PNG picture")
    data.write_text(text.replace("是棉的吗", "是棉的吗？"), encoding="utf-8")
    assert apply_corrections(data, file, out, tasks=TASKS).changed == 1


def test_nothing_is_overwritten(data: Path) -> None:
    file = write(data, DECIDED)
    with pytest.raises(OutputError, match="already there; the corrected data goes into a new file"):
        apply_corrections(data, file, data, tasks=TASKS)
    with pytest.raises(OutputError, match=r"new.json: expected a name ending in .jsonl"):
        apply_corrections(data, file, data.parent / "new.json", tasks=TASKS)
    with pytest.raises(ConfigError, match="expected a probability from 0 to 1, found 90"):
        apply_corrections(data, file, data.parent / "new.jsonl", tasks=TASKS, apply_suggested=90)


def test_files_that_are_no_corrections(data: Path) -> None:
    file = data.parent / "c.csv"
    with pytest.raises(FormatError, match="does not exist"):
        read_corrections(file)
    file.write_text("id,label\n1,a\n", encoding="utf-8")
    with pytest.raises(FormatError, match=r"found id, label \(given_label is missing\)"):
        read_corrections(file)
    with pytest.raises(FormatError, match="not UTF-8; save it as “CSV UTF-8”"):
        read_corrections(write(data, {}, encoding="gb18030"))


def test_competition_rows_stay_in_their_format(tmp_path: Path) -> None:
    rows = [{"id": n, "instruction": f"q{n}", "input": "", "output": "材质", "image": [], "more": n} for n in range(2)]
    data = tmp_path / "rows.json"
    data.write_text(json.dumps(rows), encoding="utf-8")
    file = tmp_path / "c.csv"
    file.write_text(corrections_csv([issue(data, "1", "价格")]), encoding="utf-8-sig")
    done = apply_corrections(data, file, tmp_path / "new.json", tasks=TASKS, apply_suggested=0.5)
    new = json.loads(done.out.read_text(encoding="utf-8"))
    assert [row["output"] for row in new] == ["材质", "价格"]
    assert [row["more"] for row in new] == [0, 1]


def test_the_command_finds_the_labels_beside_the_corrections(data: Path) -> None:
    file, out = write(data, DECIDED), data.parent.parent / "new.jsonl"
    command = ["audit", str(data), "--apply", str(file), "--out", str(out)]
    said = CliRunner().invoke(app, command)
    assert isinstance(said.exception, TaskError)
    assert "name the task with --task" in str(said.exception)
    record = {"asked": {"tasks": TASKS.model_dump(mode="json")}}
    (file.parent / "audit.json").write_text(json.dumps(record), encoding="utf-8")
    said = CliRunner().invoke(app, [*command, "--apply-suggested", "0.8"])
    assert said.exit_code == 0, said.exception
    assert "4 rows; 2 labels changed (1 of them as suggested, unseen), 1 rows dropped, 1 kept" in said.stdout
    assert "1 of the changed rows lost a reason" in said.stdout
    said = CliRunner().invoke(app, ["audit", str(data), "--out", str(out), "--apply-suggested", "0.8"])
    assert "--apply-suggested belongs to --apply FILE" in str(said.exception)
