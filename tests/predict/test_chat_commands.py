"""`tuyi chat` and `tuyi describe`, as a person uses them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tuyi.cli import app
from tuyi.data.example import Image, Video
from tuyi.errors import ConfigError, DataError, MediaError, OutputError
from tuyi.predict import conversation, opening
from tuyi.predict.conversation import Conversation

SMALL = ["--max-tokens", "6", "--set", "budget.max_pixels=20000", "--set", "budget.video_max_pixels=20000"]


def run(*arguments: str | Path, typed: str = "") -> Any:
    found = CliRunner().invoke(app, [str(argument) for argument in arguments], input=typed)
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


@pytest.fixture
def files(tmp_path: Path, picture: Callable[..., Image], clip: Video) -> Path:
    """A folder with two pictures, a video and a picture that is none."""
    folder = tmp_path / "my files"
    folder.mkdir()
    for number in (1, 2):
        source = picture(60, 60, seed=number).source
        assert isinstance(source, bytes)
        (folder / f"{number}.png").write_bytes(source)
    assert isinstance(clip.source, Path)
    (folder / "3.mp4").write_bytes(clip.source.read_bytes())
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def test_a_question(files: Path):
    asked = ["chat", "builtin:tiny", "--image", files / "1.png", "--video", files / "3.mp4", *SMALL, "what is it?"]
    found = run(*asked)
    assert found.exit_code == 0
    assert found.stdout.endswith("\n")
    assert f"image {files / '1.png'}: 4 tokens\nvideo {files / '3.mp4'}: " in found.stderr
    assert run(*asked).stdout == found.stdout
    drawn = run(*asked, "--temperature", "3", "--set", "chat.seed=1")
    assert drawn.stdout != found.stdout


def test_a_talk_goes_on_after_mistakes(files: Path):
    lines = [
        "hello",
        "",
        f"/image {files / 'nothing.png'}",
        f"/image {files / 'broken.jpg'}",
        f"/video '{files / '3.mp4'}'",
        f"/image {str(files / '1.png').replace(' ', chr(92) + ' ')}",
        "/imagine",
        "/image",
        "and these?",
        "/reset",
        "again",
        "/quit",
        "never asked",
    ]
    found = run("chat", "builtin:tiny", *SMALL, typed="\n".join(lines) + "\n")
    assert found.exit_code == 0
    told = [line for line in found.stderr.splitlines() if "was cut at" not in line]
    expected = [
        "nothing.png: expected a file, found none there; check the name and folder",
        "broken.jpg: expected a picture",
        "3.mp4: ",
        "1.png: 4 tokens",
        "error: expected /image PATH, /video PATH, /reset, /quit, found '/imagine'",
        "error: expected /image PATH, /video PATH, /reset, /quit, found '/image'",
        "a new talk",
    ]
    assert len(told) == len(expected)
    for line, part in zip(told, expected, strict=True):
        assert part in line
    assert found.stderr.count("was cut at") == 3


def test_stopping_an_answer_does_not_end_the_talk(monkeypatch: pytest.MonkeyPatch):
    def ask(self: Conversation, question: str) -> Iterator[str]:
        yield question
        if question == "stop":
            raise KeyboardInterrupt

    monkeypatch.setattr(Conversation, "ask", ask)
    found = run("chat", "builtin:tiny", typed="stop\ngo on\n")  # and the input ends without /quit
    assert found.exit_code == 0
    assert found.stdout == "stop\ngo on\n"
    assert found.stderr == "stopped\n"


def test_mistakes_are_told_before_a_model_is_loaded(files: Path, monkeypatch: pytest.MonkeyPatch):
    def load(*arguments: Any, **options: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(conversation, "open_conversation", load)
    monkeypatch.setattr(opening, "open_engine", load)
    with pytest.raises(MediaError, match=r"broken.jpg: expected a picture"):
        run("chat", "builtin:tiny", "--image", files / "broken.jpg", "what?")
    with pytest.raises(ConfigError, match=r"expected a question, found an empty one"):
        run("chat", "builtin:tiny", " ")
    with pytest.raises(ConfigError, match=r"temperature"):
        run("chat", "builtin:tiny", "--temperature", "-1", "what?")
    for command, found in [
        (["--ask", " ", files / "1.png"], "expected a question, found an empty one"),
        (["--ask", "what?", files / "broken.jpg"], "1 row cannot be used:\n.*broken.jpg"),
        (["--ask", "what?", files / "a.txt"], "expected a picture or video .* found .*a.txt; rename it"),
    ]:
        with pytest.raises((ConfigError, DataError), match=found):
            run("describe", "builtin:tiny", *command, "--out", files / "out.jsonl")


def test_describe_goes_on_where_it_was(files: Path):
    out = files.parent / "answers.jsonl"
    asked = ["describe", "builtin:tiny", "--ask", "what is {this}?", "--out", out, *SMALL]
    first = run(*asked, files / "2.png")
    assert first.stdout.endswith("answers.jsonl: 1 answers, 1 cut at 6 tokens (--max-tokens allows more)\n")
    found = run(*asked, files, "--on-bad-row", "skip")
    assert "skipped row 4, id " in found.stdout
    assert "answers.jsonl: 3 answers, 1 of them from an earlier run" in found.stdout
    lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert {line["id"]: line["task"] for line in lines} == {
        str(files / name): "describe" for name in ("1.png", "2.png", "3.mp4")
    }
    assert all(line["notes"]["output_tokens"] <= 6 for line in lines)
    with pytest.raises(OutputError, match="holds predictions of another run"):
        run("describe", "builtin:tiny", "--ask", "how many?", "--out", out, *SMALL, files / "1.png")


def test_describe_says_what_chat_says(files: Path):
    out = files.parent / "one.jsonl"
    run("describe", "builtin:tiny", files / "1.png", "--ask", "colour?", "--out", out, *SMALL)
    said = run("chat", "builtin:tiny", "--image", files / "1.png", *SMALL, "colour?").stdout
    assert said.removesuffix("\n") == json.loads(out.read_text("utf-8"))["label"]
