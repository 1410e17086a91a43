"""Content cut into dialogue turns: nothing lost, nothing moved."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuyi.data.example import Image, Part, Text
from tuyi.task.prompt import Prompt, between, join_texts, split_turns

START = re.compile("(用户|客服) *[:：]")
PICTURE = Image(b"p", "p")

texts = st.text(st.sampled_from("用户客服:： \nab<>"), max_size=12) | st.sampled_from(
    ["用户: ", "\n客服：", "\n", "好"]
)
contents = st.lists(texts.map(Text) | st.just(PICTURE), max_size=8)


@given(contents)
def test_joined_turns_are_the_content(content: list[Part]):
    parts = join_texts(content)
    for start in (START, None):
        turns = split_turns(parts, start)
        assert join_texts([part for turn in turns for part in turn]) == parts
        assert all(turn for turn in turns)
        assert Prompt((), "", turns, "").parts() == parts


@given(contents)
def test_every_turn_but_the_first_begins_with_a_speaker_at_a_line_start(content: list[Part]):
    turns = split_turns(join_texts(content), START)
    before = ""
    for number, turn in enumerate(turns):
        if number:
            assert isinstance(turn[0], Text)
            assert START.match(turn[0].text)
            assert before.endswith("\n")
        before = turn[-1].text if isinstance(turn[-1], Text) else "picture"


def test_a_dialogue():
    parts = (Text("用户: 你好\n客服 ： 在的，用户: 您说\n用户:"), PICTURE, Text("这个\n客服: 好\n"))
    turns = split_turns(parts, START)
    assert [[part.text if isinstance(part, Text) else "P" for part in turn] for turn in turns] == [
        ["用户: 你好\n"],
        ["客服 ： 在的，用户: 您说\n"],
        ["用户:", "P", "这个\n"],
        ["客服: 好\n"],
    ]


def test_what_stands_before_the_first_speaker_is_a_turn_of_its_own():
    turns = split_turns((PICTURE, Text("\n用户: 你好")), START)
    assert turns == ((PICTURE, Text("\n")), (Text("用户: 你好"),))
    assert split_turns((), START) == ()
    assert split_turns((), None) == ()


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((Text("a<S>x<E>b"),), (Text("x"),)),
        ((Text("a<S>x<E>y<E>b"),), (Text("x<E>y"),)),
        ((Text("a<S>x"), PICTURE, Text("y<E>")), (Text("x"), PICTURE, Text("y"))),
        ((Text("<S>"), PICTURE, Text("<E>")), (PICTURE,)),
        ((Text("<S><E>"),), (Text(""),)),
        ((Text("no marks"),), None),
        ((Text("<E>x<S>"),), None),
        ((Text("<E>"), Text("<S>")), None),
        ((PICTURE,), None),
    ],
)
def test_what_stands_between_two_marks(parts: tuple[Part, ...], expected: tuple[Part, ...] | None):
    assert between(parts, "<S>", "<E>") == expected
