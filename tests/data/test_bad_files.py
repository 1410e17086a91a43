"""Files that are broken, row by row of what users hand in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tuyi.data import Example, Problem, read, scan
from tuyi.errors import DataError, FormatError

ROW = {"id": "a", "instruction": "<image>", "input": "", "output": "x", "image": ["a.jpg"]}


def test_broken_json_names_line_and_column(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text(
        '[\n{"id": "1", "instruction": "q", "image": []},\n{"id": "2" "instruction": "q"}\n]', encoding="utf-8"
    )
    message = r"t\.json: line 3, column 12: broken JSON .*expected a list of rows"
    with pytest.raises(FormatError, match=message):
        list(read(file))
    rows = scan(file)
    assert isinstance(next(rows), Example)
    with pytest.raises(FormatError, match=message):
        next(rows)


def test_cut_off_json(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text(json.dumps([ROW, ROW])[:-20], encoding="utf-8")
    with pytest.raises(FormatError, match=r"line 1, column \d+: broken JSON"):
        list(read(file))


def test_broken_line_is_one_bad_row(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text('{"text": "a"}\n\n{"text": }\n[1]\n{"text": "b"}\n', encoding="utf-8")
    good, broken, wrong, also_good = scan(file)
    assert isinstance(good, Example)
    assert isinstance(also_good, Example)
    assert isinstance(broken, Problem)
    assert isinstance(wrong, Problem)
    assert (broken.kind, broken.place.row) == ("syntax", 2)
    assert "line 3, column 10: broken JSON" in broken.message
    assert wrong.message == "expected an object `{…}`, found list"
    with pytest.raises(FormatError, match="line 3, column 10"):
        list(read(file))


@pytest.mark.parametrize("name", ["t.json", "t.jsonl", "t.csv"])
def test_wrong_encoding(tmp_path: Path, name: str) -> None:
    text = "text,label\n中文,退款\n" if name == "t.csv" else json.dumps([{"text": "中文退款"}], ensure_ascii=False)
    line = 2 if name == "t.csv" else 1
    (tmp_path / name).write_bytes(text.encode("gbk"))
    message = (
        rf"line {line}, column \d+: byte 0x\w\w is not UTF-8 \(the line reads as GBK / GB18030\); save the file as"
    )
    with pytest.raises(FormatError, match=message):
        list(read(tmp_path / name))
    (tmp_path / name).write_text(text, encoding="utf-16")
    with pytest.raises(FormatError, match="the file is UTF-16, expected UTF-8"):
        list(read(tmp_path / name))


@pytest.mark.parametrize("name", ["t.json", "t.jsonl", "t.csv"])
def test_byte_order_mark_is_accepted(tmp_path: Path, name: str) -> None:
    text = "text,label\n一,二\n" if name == "t.csv" else json.dumps({"text": "一", "label": "二"})
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    (example,) = read(tmp_path / name)
    assert (example.text, example.label) == ("一", "二")


@pytest.mark.parametrize("name", ["t.json", "t.jsonl", "t.csv", "t.parquet"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(FormatError, match=rf"{name}: the file is empty, expected"):
        list(read(tmp_path / name))


@pytest.mark.parametrize(("name", "text"), [("t.json", "[]"), ("t.jsonl", "\n\n"), ("t.csv", "text,label\n")])
def test_file_without_rows(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(FormatError, match="the file has no rows"):
        list(read(tmp_path / name))


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="there is no such file or folder"):
        list(read(tmp_path / "none.json"))
    (tmp_path / "t.json").write_text('"hello"')
    with pytest.raises(FormatError, match=r"line 1, column 1: expected a list of rows `\[\{…\}, …\]`, found '\"'"):
        list(read(tmp_path / "t.json"))
    (tmp_path / "t.json").write_text('{\n"data": []\n}')
    with pytest.raises(FormatError, match=r"line 1, column 2: broken JSON .* expected one object a line"):
        list(read(tmp_path / "t.json"))
    (tmp_path / "t.parquet").write_text("not parquet")
    with pytest.raises(FormatError, match="not a readable Parquet file"):
        list(read(tmp_path / "t.parquet"))
    (tmp_path / "t.csv").write_text("text,text\na,b\n")
    with pytest.raises(FormatError, match="the column 'text' stands there twice"):
        list(read(tmp_path / "t.csv"))
    (tmp_path / "t.csv").write_text('text\n"a\n')
    with pytest.raises(FormatError, match=r"line 2: broken table \(unexpected end of data\)"):
        list(read(tmp_path / "t.csv"))
    (tmp_path / "t.json").write_text('[{"text": NaN}]')
    with pytest.raises(FormatError, match="NaN and numbers beyond 64 bits"):
        list(read(tmp_path / "t.json"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": []}, "1 <image> in the text but 0 pictures"),
        ({"image": ["a.jpg", "b.jpg"]}, "1 <image> in the text but 2 pictures"),
        ({"instruction": "q<image>", "image": None}, "1 <image> in the text but 0 pictures"),
        ({"instruction": "<image><image>"}, "2 <image> in the text but 1 picture; expected one mark for each"),
        ({"instruction": 5}, r"column 'instruction': expected text, found a number \(5\)"),
        ({"output": ["x"]}, r"column 'output': expected text, found a list"),
        ({"image": [3]}, "column 'image': expected names of files, found a number"),
        ({"id": 1.5}, "column 'id': expected text or a whole number, found a number"),
        ({"instruction": "", "image": []}, "the last user message is empty, expected text or media"),
    ],
)
def test_rows_of_the_wrong_shape(tmp_path: Path, change: dict[str, object], message: str) -> None:
    file = tmp_path / "t.json"
    file.write_text(json.dumps([ROW, ROW | {"id": "bad"} | change, ROW]))
    items = list(scan(file))
    assert [type(item) for item in items] == [Example, Problem, Example]
    with pytest.raises(DataError, match=message) as raised:
        list(read(file))
    assert raised.value.place.row == 2
    assert raised.value.place.id == (None if "id" in change else "bad")


def test_missing_column(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text(json.dumps([ROW, {"id": "b", "prompt": "q"}]))
    with pytest.raises(DataError, match="row 2, id b: expected the column 'instruction', found only id, prompt"):
        list(read(file))
