"""Every format, in the shapes that people have."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from tuyi.data import Example, Image, Problem, ReadOptions, Text, Turn, Video, read, scan
from tuyi.data.options import Tags
from tuyi.data.source import find_source
from tuyi.errors import ConfigError, DataError, FormatError


def png(shade: int = 0) -> bytes:
    stream = io.BytesIO()
    PIL.Image.new("RGB", (28, 28), (shade, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def put(file: Path, data: Any) -> Path:
    """A JSON list, or JSON lines where the name ends so."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in data] if file.suffix == ".jsonl" else [json.dumps(data)]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def only(file: Path, options: ReadOptions | None = None) -> Example:
    (example,) = read(file, options)
    return example


def problem(file: Path, options: ReadOptions | None = None) -> Problem:
    (item,) = scan(file, options)
    assert isinstance(item, Problem)
    return item


# competition


def test_competition_row(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(png())
    (tmp_path / "b.jpg").write_bytes(png())
    row = {
        "id": "x1",
        "instruction": "<image>用户: 1<image>\n末",
        "input": "",
        "output": "气泡",
        "image": ["a.jpg", "b.jpg"],
    }
    example = only(put(tmp_path / "train.json", [row | {"source": "app"}]))
    assert example.id == "x1"
    assert example.label == "气泡"
    assert example.content == (
        Image(tmp_path / "images" / "a.jpg", "a.jpg"),
        Text("用户: 1"),
        Image(tmp_path / "b.jpg", "b.jpg"),
        Text("\n末"),
    )
    assert dict(example.extra) == {"source": "app"}
    assert (example.place.file, example.place.row, example.place.id) == (tmp_path / "train.json", 1, "x1")


@pytest.mark.parametrize("text", ["<image>end", "start<image>", "<image>", "a<image>b"])
def test_place_of_the_mark_never_matters(tmp_path: Path, text: str) -> None:
    example = only(put(tmp_path / "t.json", [{"id": "1", "instruction": text, "image": ["a.jpg"]}]))
    assert len(example.images) == 1
    assert example.text == text.replace("<image>", "")


def test_unlabelled_rows_and_row_numbers_as_ids(tmp_path: Path) -> None:
    rows = [{"instruction": "q"}, {"instruction": "q", "output": ""}, {"instruction": "q", "output": None}]
    examples = list(read(put(tmp_path / "t.json", rows)))
    assert [example.label for example in examples] == [None, None, None]
    assert [example.id for example in examples] == ["1", "2", "3"]


def test_instruction_and_input_are_joined(tmp_path: Path) -> None:
    assert only(put(tmp_path / "t.json", [{"instruction": "a", "input": "b"}])).text == "a\nb"


# ShareGPT


def test_sharegpt_multi_turn_with_media(tmp_path: Path) -> None:
    row = {
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "<image>Who?"},
            {"from": "gpt", "value": "A."},
            {"from": "human", "value": "<video>And <image>?"},
            {"from": "gpt", "value": "B."},
        ],
        "images": ["1.jpg", "2.jpg"],
        "videos": ["1.mp4"],
    }
    example = only(put(tmp_path / "s.json", [row]))
    assert example.history == (
        Turn("system", (Text("Be brief."),)),
        Turn("user", (Image(tmp_path / "1.jpg", "1.jpg"), Text("Who?"))),
        Turn("assistant", (Text("A."),)),
    )
    assert example.content == (
        Video(tmp_path / "1.mp4", "1.mp4"),
        Text("And "),
        Image(tmp_path / "2.jpg", "2.jpg"),
        Text("?"),
    )
    assert example.label == "B."


def test_sharegpt_tools_keep_their_roles(tmp_path: Path) -> None:
    said = [("human", "q"), ("function_call", "f()"), ("observation", "r"), ("gpt", "a")]
    example = only(put(tmp_path / "s.jsonl", [{"conversations": [{"from": f, "value": v} for f, v in said]}]))
    assert [turn.role for turn in example.history] == ["user", "assistant"]
    assert example.extra["message_roles"] == ["user", "function", "observation", "assistant"]


def test_dataset_info_names_file_columns_and_tags(tmp_path: Path) -> None:
    info = {
        "mine": {
            "file_name": "rows.json",
            "formatting": "sharegpt",
            "columns": {"messages": "chat", "images": "pics", "system": "sys"},
            "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "U", "assistant_tag": "A"},
        },
        "elsewhere": {"hf_hub_url": "a/b"},
    }
    put(tmp_path / "dataset_info.json", info)
    chat = [{"who": "U", "what": "<image>?"}, {"who": "A", "what": "yes"}]
    file = put(tmp_path / "rows.json", [{"chat": chat, "pics": ["a.jpg"], "sys": "S"}])
    for path in (file, tmp_path):
        example = only(path)
        assert example.history == (Turn("system", (Text("S"),)),)
        assert example.images == (Image(tmp_path / "a.jpg", "a.jpg"),)
        assert example.label == "yes"
    with pytest.raises(FormatError, match="no data set 'other'; expected one of mine, elsewhere"):
        list(read(tmp_path, ReadOptions(dataset="other")))
    info["mine"]["tags"] = {"user": "U"}
    put(tmp_path / "dataset_info.json", info)
    with pytest.raises(FormatError, match="user: unknown setting; did you mean 'user_tag'"):
        list(read(file))


def test_tags_as_options(tmp_path: Path) -> None:
    chat = [{"r": "human", "c": "q"}, {"r": "gpt", "c": "a"}]
    file = put(tmp_path / "x.json", [{"conversations": chat}])
    assert only(file, ReadOptions(tags=Tags(role_tag="r", content_tag="c"))).label == "a"


def test_alpaca_with_history_and_system(tmp_path: Path) -> None:
    row = {
        "instruction": "<image>c",
        "input": "d",
        "output": "e",
        "system": "s",
        "history": [["a", "b"]],
        "images": ["i.png"],
    }
    example = only(put(tmp_path / "alpaca.json", [row]))
    assert [(turn.role, turn.parts) for turn in example.history] == [
        ("system", (Text("s"),)),
        ("user", (Text("a"),)),
        ("assistant", (Text("b"),)),
    ]
    assert (example.text, example.label, len(example.images)) == ("c\nd", "e", 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"conversations": []}, "expected a user message.*found no messages"),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, "expected a user message.*found assistant"),
        (
            {"conversations": [{"from": "bot", "value": "a"}]},
            "message 1: expected 'from' as one of human, user, gpt.*'bot'",
        ),
        (
            {"conversations": [{"from": "human", "value": 3}]},
            r"conversations\[1\].value': expected text, found a number",
        ),
        ({"conversations": "hi"}, "expected a list of objects, found text"),
        ({"conversations": [{"from": "human", "value": ""}]}, "last user message is empty"),
        ({"conversations": [{"from": "human", "value": "q"}], "audios": ["a.wav"]}, "has sound"),
        ({"conversations": [{"from": "human", "value": "<video>"}]}, "1 <video> in the text but 0 videos"),
    ],
)
def test_sharegpt_rows_of_the_wrong_shape(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(read(put(tmp_path / "s.json", [row])))


# messages


def test_messages_with_marks_and_with_parts(tmp_path: Path) -> None:
    url = "data:image/png;base64," + base64.b64encode(png(7)).decode()
    rows: list[dict[str, Any]] = [
        {
            "messages": [{"role": "user", "content": "<image>q"}, {"role": "assistant", "content": "a"}],
            "images": ["x.png"],
        },
        {
            "id": "two",
            "messages": [
                {"role": "system", "content": "s"},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "see <image>"},
                        {"type": "image_url", "image_url": {"url": url}},
                        {"type": "image", "image": "y.png"},
                        {"type": "video", "video": "z.mp4"},
                    ],
                },
                {"role": "assistant", "content": [{"type": "text", "text": "b"}], "loss": True},
            ],
        },
    ]
    first, second = read(put(tmp_path / "m.jsonl", rows))
    assert first.content == (Image(tmp_path / "x.png", "x.png"), Text("q"))
    assert second.content == (
        Text("see <image>"),
        Image(png(7)),
        Image(tmp_path / "y.png", "y.png"),
        Video(tmp_path / "z.mp4", "z.mp4"),
    )
    assert (second.id, second.label) == ("two", "b")
    assert second.extra["message_fields"] == [{}, {}, {"loss": True}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected text or a list of parts, found nothing"),
        ([{"type": "audio", "audio": "x"}], "expected a part of type text, image"),
        ([{"type": "image", "image": "https://a/b.png"}], "expected a local file, found https://a/b.png"),
        ([{"type": "image", "image": "data:image/png;base64,###"}], "not base64"),
        ([{"type": "image"}], "expected names of files, found nothing"),
    ],
)
def test_messages_of_the_wrong_shape(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(read(put(tmp_path / "m.jsonl", [{"messages": [{"role": "user", "content": content}]}])))


# tables


def test_csv_with_usual_columns_and_bom(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    with file.open("w", encoding="utf-8-sig", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["id", "text", "image", "label", "weight", "shop"])
        table.writerow(["a", 'two\nlines, "quoted"', "1.png", "yes", "0.5", "s1"])
        table.writerow(["b", "x<image>y<image>", '["1.png", "2.png"]', "", "", ""])
    first, second = read(file)
    assert first.content == (Image(tmp_path / "1.png", "1.png"), Text('two\nlines, "quoted"'))
    assert (first.label, first.weight, dict(first.extra)) == ("yes", 0.5, {"shop": "s1"})
    assert (len(second.images), second.label, second.weight) == (2, None, 1.0)
    assert second.text == "xy"


def test_tsv_with_named_columns(tmp_path: Path) -> None:
    file = tmp_path / "t.tsv"
    file.write_text("say\tpic\tkind\nhello\ta.png\tgreeting\n", encoding="utf-8")
    example = only(file, ReadOptions(text="say", images="pic", label="kind"))
    assert (example.text, len(example.images), example.label) == ("hello", 1, "greeting")


def test_table_names_missing_columns(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("foo,bar\n1,2\n", encoding="utf-8")
    with pytest.raises(
        FormatError, match=r"expected a column with text \(text, .*found only foo, bar; name it with text=COLUMN"
    ):
        list(read(file))
    with pytest.raises(FormatError, match=r"expected the column 'say' \(text\), found only foo, bar"):
        list(read(file, ReadOptions(text="say")))


def test_csv_row_with_too_many_cells(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("text,label\na,b\na,b,c\na,b\n", encoding="utf-8")
    items = list(scan(file))
    assert [type(item) for item in items] == [Example, Problem, Example]
    assert str(items[1]) == f"{file}, row 2: expected 2 columns (text, label), found 3"


def test_parquet_as_hugging_face_writes_it(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    names = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    table = pa.table(
        {
            "image": [{"bytes": png(), "path": "a.png"}, {"bytes": png(9), "path": None}, None],
            "label": [1, 0, -1],
            "text": ["", "x", "y"],
        }
    ).replace_schema_metadata({"huggingface": json.dumps(names)})
    file = tmp_path / "t.parquet"
    pq.write_table(table, file, row_group_size=2)
    examples = list(read(file))
    assert [example.label for example in examples] == ["dog", "cat", None]
    assert examples[0].content == (Image(png(), "a.png"),)
    assert examples[1].content == (Image(png(9)), Text("x"))
    assert examples[2].content == (Text("y"),)


def test_parquet_with_lists_of_images(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    file = tmp_path / "t.parquet"
    pq.write_table(pa.table({"images": [["a.png", "b.png"]], "text": ["<image> or <image>"], "label": ["x"]}), file)
    assert [str(image) for image in only(file).images] == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]


def test_jsonl_columns_with_task_rationale_and_weight(tmp_path: Path) -> None:
    row = {"text": "t", "label": 3, "task": "digits", "rationale": "three strokes", "weight": 2}
    example = only(put(tmp_path / "t.jsonl", [row]))
    assert (example.label, example.task, example.rationale, example.weight) == ("3", "digits", "three strokes", 2.0)
    assert problem(put(tmp_path / "w.jsonl", [row | {"weight": -1}])).message.startswith(
        "column 'weight': expected a weight"
    )
    assert "expected a number, found text" in problem(put(tmp_path / "v.jsonl", [row | {"weight": "much"}])).message


# folders


SOFT = {"气泡": 0.75, "用法": 0.25}


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("a.json", {"instruction": "?", "image": []}),
        ("a.jsonl", {"messages": [{"role": "user", "content": "?"}]}),
        ("b.jsonl", {"conversations": [{"from": "human", "value": "?"}]}),
        ("c.jsonl", {"text": "?"}),
    ],
)
def test_soft_labels_in_every_format(tmp_path: Path, name: str, row: dict[str, Any]) -> None:
    for soft in (SOFT, json.dumps(SOFT), {**SOFT, "none": None}):
        rows = [row | {"soft": soft}]
        example = only(put(tmp_path / name, rows))
        assert (example.soft, example.label, dict(example.extra)) == (SOFT, None, {})
    assert only(put(tmp_path / name, [row | {"soft": None}])).soft is None
    named = only(put(tmp_path / name, [row | {"teacher": SOFT}]), ReadOptions(soft="teacher"))
    assert named.soft == SOFT


def test_soft_labels_in_cells_and_columns(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with (tmp_path / "t.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([["text", "soft"], ["a", json.dumps(SOFT)], ["b", ""]])
    assert [example.soft for example in read(tmp_path / "t.csv")] == [SOFT, None]
    pq.write_table(
        pa.Table.from_pylist([{"text": "a", "soft": SOFT}, {"text": "b", "soft": {"x": 1.0}}]), tmp_path / "t.parquet"
    )
    assert [example.soft for example in read(tmp_path / "t.parquet")] == [SOFT, {"x": 1.0}]


@pytest.mark.parametrize(
    ("soft", "message"),
    [
        ({"a": 0.5, "b": 0.4}, r"row 1, id 7: column 'soft': expected probabilities that make 1 together.*found 0.9"),
        ({"a": 1.5, "b": -0.5}, "column 'soft': expected 0 or more for 'b', found -0.5"),
        ({}, "make 1 together, within 0.001, found 0"),
        ({"a": "1"}, r"column 'soft.a': expected a number, found text \('1'\)"),
        ({"a": True}, "column 'soft.a': expected a number, found true/false"),
        ('{"a": NaN}', "expected 0 or more for 'a', found nan"),
        ("a", "column 'soft': expected an object of labels with their probabilities, as JSON, found text"),
        ([0.5, 0.5], "expected an object of labels with their probabilities, found a list"),
        ("[1]", "expected an object of labels with their probabilities, found a list"),
    ],
)
def test_soft_labels_that_are_no_distribution(tmp_path: Path, soft: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        only(put(tmp_path / "t.jsonl", [{"id": "7", "text": "?", "soft": soft}]))


def test_soft_labels_may_be_rounded(tmp_path: Path) -> None:
    thirds = dict.fromkeys("abc", 0.333)
    assert only(put(tmp_path / "t.jsonl", [{"text": "?", "soft": thirds}])).soft == thirds


def test_folder_per_label(tmp_path: Path) -> None:
    for name in ("train/cat/b.png", "train/cat/a.png", "train/dog/c.jpg", "train/dog/d.mp4", "train/dog/.hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png())
    (tmp_path / "train" / "dog" / "notes.txt").write_text("?")
    items = list(scan(tmp_path / "train"))
    examples = [item for item in items if isinstance(item, Example)]
    assert [(example.id, example.label) for example in examples] == [
        ("cat/a.png", "cat"),
        ("cat/b.png", "cat"),
        ("dog/c.jpg", "dog"),
        ("dog/d.mp4", "dog"),
    ]
    assert isinstance(examples[3].content[0], Video)
    (left_out,) = [item for item in items if isinstance(item, Problem)]
    assert (left_out.severity, left_out.message) == ("warning", "neither a picture nor a video, left out")
    assert len(list(read(tmp_path / "train"))) == 4
    with pytest.raises(FormatError, match=r"expected pictures in train/, found the folder cat/; .*train"):
        list(read(tmp_path))


def test_folder_without_labels(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "c.mp4", "notes.txt"):
        (tmp_path / name).write_bytes(png())
    items = list(scan(tmp_path))
    assert [(item.id, item.label) for item in items if isinstance(item, Example)] == [
        ("a.jpg", None),
        ("b.png", None),
        ("c.mp4", None),
    ]
    (left_out,) = [item for item in items if isinstance(item, Problem)]
    assert left_out.message == "neither a picture nor a video, left out"
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("?")
    with pytest.raises(FormatError, match=r"expected pictures, or a folder per label .* found neither"):
        list(read(tmp_path / "texts"))


# telling formats apart


@pytest.mark.parametrize(
    ("name", "row", "format"),
    [
        ("a.json", {"id": "1", "instruction": "q", "input": "", "output": "a", "image": []}, "competition"),
        ("a.json", {"id": "1", "instruction": "q", "input": ""}, "competition"),
        ("a.json", {"instruction": "q", "output": "a", "images": []}, "sharegpt"),
        ("a.json", {"conversations": [{"from": "human", "value": "q"}]}, "sharegpt"),
        ("a.json", {"messages": [{"role": "user", "content": "q"}]}, "messages"),
        ("a.jsonl", {"messages": [{"role": "user", "content": "q"}]}, "messages"),
        ("a.jsonl", {"text": "q", "label": "a"}, "table"),
    ],
)
def test_format_is_told_from_the_first_row(tmp_path: Path, name: str, row: dict[str, Any], format: str) -> None:
    assert find_source(put(tmp_path / name, [row])).format == format


def test_format_that_cannot_be_told(tmp_path: Path) -> None:
    formats = "competition, sharegpt, messages, table, folder"
    with pytest.raises(FormatError, match=f"cannot tell the format from the columns foo; expected one of {formats}"):
        list(read(put(tmp_path / "a.json", [{"foo": 1}])))
    (tmp_path / "a.xml").write_text("<a/>")
    with pytest.raises(FormatError, match=r"expected a file ending in \.json, .*found \.xml"):
        list(read(tmp_path / "a.xml"))


def test_folder_with_one_data_file_stands_for_it(tmp_path: Path) -> None:
    put(tmp_path / "train.json", [{"instruction": "q", "image": []}])
    assert len(list(read(tmp_path))) == 1
    put(tmp_path / "test.json", [{"instruction": "q", "image": []}])
    with pytest.raises(FormatError, match=r"expected one data file in the folder, found test\.json, train\.json"):
        list(read(tmp_path))


def test_media_root(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "a.jpg").write_bytes(png())
    file = put(tmp_path / "deep" / "t.json", [{"instruction": "<image>", "image": ["a.jpg"]}])
    assert only(file, ReadOptions(media_root=tmp_path / "pics")).images[0].source == tmp_path / "pics" / "a.jpg"


def test_option_without_use_is_an_error(tmp_path: Path) -> None:
    file = put(tmp_path / "t.json", [{"instruction": "q", "image": []}])
    with pytest.raises(ConfigError, match="text=… names a column of a table"):
        list(read(file, ReadOptions(format="competition", text="instruction")))
