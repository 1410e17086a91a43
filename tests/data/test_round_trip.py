"""Read, convert, read: nothing is lost, whatever a row holds."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuyi.data import Example, ExampleWriter, Image, Text, Turn, Video, convert, read
from tuyi.data.example import Part
from tuyi.data.write import WRITABLE, WriteFormat
from tuyi.errors import DataError, MediaError, OutputError

SUFFIX = {"messages": ".jsonl"}


def write(examples: list[Example], out: Path, format: Any, **how: Any) -> Path:
    with ExampleWriter(out, format, **how) as writer:
        for example in examples:
            writer.write(example)
    return out


def shown(part: Part) -> Any:
    """A part by what it shows: a picture by its bytes, wherever they lie."""
    if isinstance(part, Text):
        return part.text
    source = part.source
    return type(part).__name__, source if isinstance(source, bytes) else source.read_bytes()


def facts(example: Example) -> Any:
    return (
        example.id,
        [shown(part) for part in example.content],
        [(turn.role, [shown(part) for part in turn.parts]) for turn in example.history],
        example.task,
        example.label,
        example.rationale,
        example.weight,
        example.soft,
        dict(example.extra),
    )


def has_mark(text: str) -> bool:
    return "<image>" in text or "<video>" in text


ODD = [
    'two\nlines "quoted"',
    "表情😀👩‍👩‍👧",
    "\u2028",
    "tab\tnull\0",
    "\\n",
    "a,b;c|d",
    " lead and trail \r\n",
    "<img>",
]
WORDS = (st.text(min_size=1, max_size=20) | st.sampled_from(ODD)).filter(lambda text: not has_mark(text))
TURNS = st.builds(Turn, st.sampled_from(["system", "user", "assistant"]), st.deferred(lambda: parts(0)))
SPOKEN = WORDS.filter(lambda text: bool(text.strip()))
MEDIA = st.one_of(
    st.builds(Image, st.binary(min_size=1, max_size=8)), st.builds(Video, st.binary(min_size=1, max_size=8))
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=4,
)

SOFT = st.dictionaries(SPOKEN, st.floats(0.01, 1), min_size=1, max_size=4).map(
    lambda shares: {label: share / sum(shares.values()) for label, share in shares.items()}
)


@st.composite
def parts(draw: st.DrawFn, least: int) -> tuple[Part, ...]:
    """Texts and media in any order, no two texts side by side, as a reader gives them."""
    found: list[Part] = []
    for part in draw(st.lists(st.one_of(WORDS.map(Text), MEDIA), min_size=least, max_size=4)):
        if not (found and isinstance(part, Text) and isinstance(found[-1], Text)):
            found.append(part)
    return tuple(found)


EXAMPLES = st.lists(
    st.builds(
        Example,
        id=SPOKEN,
        content=parts(1),
        task=st.none() | SPOKEN,
        label=st.none() | SPOKEN,
        rationale=st.none() | SPOKEN,
        weight=st.floats(0, 1e6, allow_subnormal=False),
        soft=st.none() | SOFT,
        history=st.lists(TURNS, max_size=3).map(tuple),
        extra=st.dictionaries(WORDS.map(lambda name: f"x-{name}"), JSON, max_size=2),
    ),
    min_size=1,
    max_size=3,
)


@given(EXAMPLES, st.sampled_from(WRITABLE), st.sampled_from(WRITABLE))
@settings(max_examples=60, deadline=None)
def test_nothing_is_lost(examples: list[Example], first: WriteFormat, second: WriteFormat) -> None:
    with tempfile.TemporaryDirectory() as folder:
        one = write(examples, Path(folder) / "one" / f"data{SUFFIX.get(first, '.json')}", first)
        expected = [facts(example) for example in examples]
        assert [facts(example) for example in read(one)] == expected
        two = Path(folder) / "two" / f"data{SUFFIX.get(second, '.json')}"
        done = convert(one, two, second, copy_media=len(examples) > 1)
        assert done.rows == len(examples)
        assert done.unlabelled == sum(example.label is None for example in examples)
        assert [facts(example) for example in read(two)] == expected


def picture(folder: Path, name: str, content: bytes) -> Image:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return Image(folder / name)


@pytest.mark.parametrize("format", WRITABLE)
def test_media_are_named_relative_or_copied(tmp_path: Path, format: WriteFormat) -> None:
    example = Example("1", (picture(tmp_path / "a", "x.png", b"A"), picture(tmp_path / "b", "x.png", b"B")), label="l")
    suffix = SUFFIX.get(format, ".json")
    named = write([example], tmp_path / "named" / f"d{suffix}", format)
    assert "../a/x.png" in named.read_text()
    assert [image.source.resolve() for image in next(read(named)).images] == [  # type: ignore[union-attr]
        tmp_path / "a" / "x.png",
        tmp_path / "b" / "x.png",
    ]
    copied = write([example, example], tmp_path / "copied" / f"d{suffix}", format, copy_media=True)
    images = sorted((tmp_path / "copied" / "images").iterdir())
    assert len(images) == 2
    assert images[1].name == "x.png"
    assert images[0].name.startswith("x-")
    assert [shown(image) for image in next(read(copied)).images] == [("Image", b"A"), ("Image", b"B")]


def test_competition_keeps_bare_names(tmp_path: Path) -> None:
    picture(tmp_path, "images/a.jpg", b"inside")
    picture(tmp_path, "b.jpg", b"beside")
    rows = [{"id": "1", "instruction": "<image><image>", "input": "", "output": "", "image": ["a.jpg", "b.jpg"]}]
    (tmp_path / "in.json").write_text(json.dumps(rows))
    convert(tmp_path / "in.json", tmp_path / "out.json", "competition")
    assert json.loads((tmp_path / "out.json").read_text()) == rows
    beside = Example("1", (Image(tmp_path / "b.jpg"),))
    picture(tmp_path, "images/b.jpg", b"another of that name")
    file = write([beside], tmp_path / "tricky.json", "competition")
    assert [shown(image) for image in next(read(file)).images] == [("Image", b"beside")]


def test_tool_roles_survive(tmp_path: Path) -> None:
    said = [("human", "q"), ("function_call", "f()"), ("observation", "r"), ("gpt", "a")]
    row = {"id": "7", "conversations": [{"from": f, "value": v} for f, v in said], "images": []}
    (tmp_path / "in.json").write_text(json.dumps([row]))
    for number, format in enumerate(["messages", "competition", "sharegpt"]):
        source = tmp_path / ("in.json" if number == 0 else f"{number - 1}{'.jsonl' if number == 1 else '.json'}")
        convert(source, tmp_path / f"{number}{SUFFIX.get(format, '.json')}", format)  # type: ignore[arg-type]
    assert json.loads((tmp_path / "2.json").read_text()) == [row]


def test_dataset_info_is_added_to(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text('{"other": {"file_name": "o.json"}}')
    write([Example("1", (Text("q"),), label="a")], tmp_path / "mine.json", "sharegpt")
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    assert info["other"] == {"file_name": "o.json"}
    assert info["mine"] == {
        "file_name": "mine.json",
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "images": "images"},
    }
    (tmp_path / "dataset_info.json").write_text('{"next": {"file_name": "o.json"}}')
    with pytest.raises(OutputError, match="already has a data set 'next' of another file"):
        write([Example("1", (Text("q"),))], tmp_path / "next.json", "sharegpt")


def test_marks_in_the_text_itself(tmp_path: Path) -> None:
    example = Example("1", (Text("write <image> here"), Image(b"x")), label="say <image>")
    with pytest.raises(DataError, match=r"the text itself contains <image>.*write the messages format"):
        write([example], tmp_path / "c.json", "competition")
    assert not list(tmp_path.glob("*.json"))
    file = write([example], tmp_path / "m.jsonl", "messages")
    assert [facts(back) for back in read(file)] == [facts(example)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"extra": {"conversations": 1}},
            "the extra column 'conversations' is called like a column",
        ),
        ({"extra": {"x": float("nan")}}, "a number is NaN or infinite"),
        ({"extra": {"x": b"raw"}}, "column x: Object of type bytes is not JSON serializable"),
        ({"content": (Text("\ud83d"),)}, "half of a surrogate pair"),
        ({"content": ()}, "the content is empty"),
    ],
)
def test_rows_that_cannot_be_written(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        write([replace(Example("1", (Text("q"),)), **change)], tmp_path / "s.json", "sharegpt")


def test_nothing_is_overwritten_and_no_half_file_is_left(tmp_path: Path) -> None:
    good = Example("1", (Text("q"),))
    file = write([good], tmp_path / "m.jsonl", "messages")
    before = file.read_text()
    with pytest.raises(OutputError, match=r"m\.jsonl is already there; choose another name or replace it with --force"):
        write([good, good], file, "messages")
    missing = Example("2", (Image(tmp_path / "none.png"),))
    with pytest.raises(MediaError, match="is not there, so it cannot be copied"):
        write([good, missing], file, "messages", force=True, copy_media=True)
    assert file.read_text() == before
    assert sorted(item.name for item in tmp_path.iterdir()) == ["m.jsonl"]
    with pytest.raises(OutputError, match=r"expected a name ending in \.jsonl"):
        write([good], tmp_path / "m.json", "messages")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write([good], tmp_path / "file" / "m.jsonl", "messages")
