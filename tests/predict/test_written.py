"""Answers as models write them: what is asked for, what is read, where too long a text is cut."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuyi.predict.decoded import END, Step
from tuyi.predict.written import AnswerForm, WrongAnswerError, label_object
from tuyi.task.answer import ANSWERS, AnswerFormat
from tuyi.task.labels import LabelSet

LABELS = LabelSet.model_validate(["退款", "退款（部分）", 'a "quoted" (x|y)', "其他"])
REASON = AnswerForm(AnswerFormat.model_validate({"segments": ANSWERS["reason"]}), LABELS)
PLAIN = AnswerForm(AnswerFormat.model_validate({"segments": ANSWERS["label"]}), LABELS)
OPEN = AnswerForm(AnswerFormat.model_validate({"segments": ANSWERS["open"]}), None)
LINES = AnswerForm(
    AnswerFormat.model_validate(
        {"segments": [{"free": "rationale", "max_tokens": 9}, {"literal": "\n标签: "}, {"choice": "label"}]}
    ),
    LABELS,
)
REASONS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(reason=REASONS, label=st.sampled_from(LABELS.names))
def test_what_training_teaches_is_read_back(reason: str, label: str):
    text = REASON.answer.render(label, reason)
    said = REASON.read(text)
    assert (said.label, said.rationale) == (label, reason)
    assert said.before is not None
    assert said.after is not None
    assert said.before.startswith('{"理由": "')
    assert PLAIN.read(label).label == label


@given(reason=REASONS, label=st.sampled_from(LABELS.names))
def test_what_is_asked_for_is_json_and_read_back(reason: str, label: str):
    kept = "".join(sign for sign in reason if sign >= " ")  # control signs are escapes that are not asked for
    text = REASON.answer.render(label, kept)
    assert re.fullmatch(REASON.regex, text)
    assert re.fullmatch(PLAIN.regex, label)
    assert re.fullmatch(LINES.regex, f"{kept}\n标签: {label}")


@pytest.mark.parametrize(
    "text",
    [
        '{"理由": "a", "所属类别": "退货"}',
        '{"理由": "a" b", "所属类别": "退款"}',
        '{"理由": "a\\", "所属类别": "退款"}',
        '{"理由": "a\nb", "所属类别": "退款"}',
        '{"理由":"a","所属类别":"退款"}',
    ],
)
def test_other_answers_are_not_of_the_form(text: str):
    assert not re.fullmatch(REASON.regex, text)


@pytest.mark.parametrize(
    "text",
    [
        '{"理由":"a \\"b\\" \\u597d","所属类别":"退款(部分)"}',
        '```json\n{\n  "理由": "a \\"b\\" 好",\n  "所属类别": "退款（部分）"\n}\n```',
        ' {"理由": "a \\"b\\" 好", "所属类别": "退款（部分）"} \n',
        '{"所属类别": "退款（部分）", "理由": "a \\"b\\" 好", "more": 1}',
    ],
)
def test_json_is_read_however_it_is_spaced(text: str):
    said = REASON.read(text)
    assert (said.label, said.rationale) == ("退款（部分）", 'a "b" 好')
    assert said.before is not None
    assert said.after is not None
    assert text == said.before + text[len(said.before) : len(text) - len(said.after)] + said.after


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", """expected {"理由": "…", "所属类别": "…"}, found ''"""),
        ('{"理由": "a", "所属', """found '{"理由": "a", "所属'"""),
        ('{"理由": "a"}', "expected {"),
        ('["理由"]', "expected {"),
        ('{"理由": 3, "所属类别": "退款"}', "expected {"),
        ('{"理由": "a", "所属类别": "退货"}', "expected one of 4 labels, found '{"),
        ('{"理由": "a", "所属类别": ""}', "expected one of 4 labels"),
        ('{"理由": "\\ud83d", "所属类别": "退款"}', "half of a surrogate pair"),
    ],
)
def test_an_answer_of_another_form_is_wrong(text: str, found: str):
    with pytest.raises(WrongAnswerError) as raised:
        REASON.read(text)
    assert found in str(raised.value)


def test_lines_and_open_answers():
    said = LINES.read("钱没到\n第二行\n标签: 其他")
    assert (said.label, said.rationale, said.before) == ("其他", "钱没到\n第二行", "钱没到\n第二行\n标签: ")
    assert LINES.schema is None
    with pytest.raises(WrongAnswerError, match="expected …\n标签: …, found '其他'"):
        LINES.read("其他")
    assert OPEN.read(' <image>\n"x"').label == ' <image>\n"x"'
    with pytest.raises(WrongAnswerError, match="expected text, found ' '"):
        OPEN.read(" ")
    assert OPEN.is_open
    assert not REASON.is_open


def test_the_schema_of_a_json_form():
    assert REASON.schema is not None
    inner = REASON.schema["json_schema"]["schema"]
    assert list(inner["properties"]) == ["理由", "所属类别"] == inner["required"]
    assert inner["properties"]["所属类别"]["enum"] == list(LABELS.names)
    assert "enum" not in inner["properties"]["理由"]
    assert label_object(LABELS).schema is not None
    assert label_object(LABELS).read('{"label": "其他"}').label == "其他"
    assert PLAIN.schema is None


def steps(*tokens: str) -> list[Step]:
    return [*(Step(token.encode(), {}) for token in tokens), Step(END, {})]


def form(most: int) -> AnswerForm:
    segments = json.loads(json.dumps(ANSWERS["reason"]))
    segments[1]["max_tokens"] = most
    return AnswerForm(AnswerFormat.model_validate({"segments": segments}), LABELS)


def test_a_reason_is_cut_at_its_last_token():
    tokens = ['{"理由', '": "', "一", "二", "三", '四"', ', "所属类别": "', "退款", '"}']
    text = "".join(tokens)
    assert form(4).cut(text, steps(*tokens), is_cut=False) is None
    cut = form(3).cut(text, steps(*tokens), is_cut=False)
    assert cut is not None
    assert cut.start == '{"理由": "一二三'
    assert cut.rest is not None
    assert cut.rest.shown == '", "所属类别": "…"}'
    assert cut.rest.fixed is None
    assert re.fullmatch(cut.rest.regex, '", "所属类别": "退款"}')


def test_a_cut_falls_neither_into_an_escape_nor_into_a_sign():
    tokens = ['{"理由": "', "一\\", '"', "\\u59", "7d"]
    for most, start in ((1, "一"), (2, '一\\"'), (3, '一\\"'), (4, '一\\"\\u597d')):
        cut = form(most).cut("".join(tokens), steps(*tokens), is_cut=True)
        assert cut is not None
        assert cut.start == '{"理由": "' + start
    raw = "😀".encode()
    halves = [Step('{"理由": "a'.encode(), {}), Step(raw[:2], {}), Step(raw[2:], {}), Step(b"b", {})]
    cut = form(2).cut('{"理由": "a😀b', halves, is_cut=True)
    assert cut is not None
    assert cut.start in ('{"理由": "a', '{"理由": "a😀')


def test_without_tokens_a_text_is_cut_only_where_the_engine_says_so():
    half = '{"理由": "一二三'
    assert form(2).cut(half, [], is_cut=False) is None
    cut = form(2).cut(half, [], is_cut=True)
    assert cut is not None
    assert cut.start == half
    after = '{"理由": "一", "所属'
    cut = form(2).cut(after, [], is_cut=True)
    assert cut is not None
    assert (cut.start, cut.is_free) == ('{"理由": "一', False), "the reason is whole, the rest has no room"
    assert cut.rest is not None
    assert cut.rest.spelled['a "quoted" (x|y)'] == 'a \\"quoted\\" (x|y)'
    whole = '{"理由": "一", "所属类别": "退款"}'
    assert form(2).cut(whole, [], is_cut=True) is None
    cut = LINES.cut("一\n标签: 退款", [], is_cut=True)
    assert cut is not None, "the label may have an end that is missing"
    assert (cut.start, cut.is_free) == ("一", False)
    cut = OPEN.cut("一二三", [], is_cut=True)
    assert cut is not None
    assert (cut.start, cut.rest, cut.is_free) == ("一二三", None, True)
    assert OPEN.cut("一二三", [], is_cut=False) is None


def test_room():
    assert PLAIN.room == PLAIN.first_room(list) == len("退款（部分）".encode()) + 1
    assert OPEN.first_room(list) == 1024
    assert form(12).first_room(list) == len('{"理由": "') + 12, "as many as the list has signs"
    assert form(12).room > 12 + len('{"理由": "", "所属类别": "退款（部分）"}'.encode())
