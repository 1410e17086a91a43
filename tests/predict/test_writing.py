"""Free text token by token: valid JSON whatever is tried, whole characters, an end where the answer goes on."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest

from tuyi.encode.answer import Written
from tuyi.predict.writing import FreeText, Vocabulary, Writing
from tuyi.task.answer import Free

END, SPECIAL, EMPTY, PICTURE = 0, 1, 2, 3


class Tokens:
    """A vocabulary made by a test: every byte, and what is named."""

    ends = frozenset({END})
    special = frozenset({SPECIAL, PICTURE})
    visual = frozenset({PICTURE})

    def __init__(self, *merged: bytes) -> None:
        self.named = {data: 1000 + number for number, data in enumerate(merged)}
        self._data = {number: data for data, number in self.named.items()}

    def __getitem__(self, token: int) -> bytes:
        if token in (SPECIAL, EMPTY, PICTURE):
            return b""
        return self._data[token] if token >= 1000 else bytes([token - 100])

    def ids(self, *pieces: bytes) -> list[int]:
        return [self.named.get(piece, 100 + piece[0]) for piece in pieces]


def encode(text: str) -> tuple[int, ...]:
    return tuple(100 + byte for byte in text.encode())


def writing(
    tokens: Tokens, *, in_json: bool = True, most: int = 50, stop: str = '", "label": "', last: bool = False
) -> Writing:
    free = Free(free="rationale", max_tokens=most, in_json=in_json)
    return Writing(Written(free, stop, last), tokens, encode)  # type: ignore[arg-type]


def written(tokens: Tokens, *pieces: bytes, **options: Any) -> FreeText:
    """The text after these tokens, which all may stand, and the end of the turn where it is not over."""
    one = writing(tokens, **options)
    for token in tokens.ids(*pieces):
        assert not one.is_over
        assert one.take([token])
    if not one.is_over:
        one.take([END])
    assert one.is_over
    return one.result()


def test_a_quotation_mark_ends_it_alone_or_inside_a_token():
    tokens = Tokens(b"red", b'",', b'"}', '。"'.encode(), b' "')
    assert written(tokens, b"red", b'"') == FreeText("red", 1, (), False)
    assert written(tokens, b"red", b'",') == FreeText("red", 1, (), False)
    assert written(tokens, b"red", b'"}') == FreeText("red", 1, (), False)
    assert written(tokens, b"red", '。"'.encode()) == FreeText("red。", 1, encode("。"), False)
    assert written(tokens, b'"') == FreeText("", 0, (), False)
    assert written(tokens, b' "') == FreeText(" ", 0, encode(" "), False)


def test_a_token_that_ends_a_character_and_the_text():
    half, rest = "好".encode()[:2], "好".encode()[2:] + b'",'
    tokens = Tokens(half, rest, b"ab")
    assert written(tokens, b"ab", half, rest) == FreeText("ab好", 1, encode("好"), False)


def test_escapes_are_written_and_undone():
    tokens = Tokens(b"\\n", b'\\"', b"\\u4f", b"60", b'say\\"', b"\\\\")
    assert written(tokens, b'say\\"', b"\\n", b"\\u4f", b"60", b"\\\\", b'"').text == 'say"\n你\\'
    assert written(tokens, b"\\", b"/", b"\\", b"t", b'"').text == "/\t"


@pytest.mark.parametrize(
    ("before", "refused"),
    [
        ([], [b"\n", b"\x00", b"a\nb", b"\x80", b"\xff", b"\xc0"]),
        ([b"\\"], [b"x", b"'", b" ", b"\xe5", b"u00g0", b"\n"]),
        ([b"\\", b"u"], [b"g", b'"', b"D8", b"d83d", b"\\"]),
        ([b"\\", b"u", b"d"], [b"8", b"F", b"c00"]),
        ([b"\xe5"], [b"a", b'"', b"\xe5", b"\\"]),
        ([b"\xed"], [b"\xa0"]),
    ],
    ids=str,
)
def test_what_would_break_the_string_may_not_stand(before: list[bytes], refused: list[bytes]):
    tokens = Tokens(*(piece for piece in refused if len(piece) > 1))
    one = writing(tokens)
    for token in tokens.ids(*before):
        assert one.take([token])
    for token in [*tokens.ids(*refused), SPECIAL, EMPTY, PICTURE]:
        assert not one.take([token])
    assert one.tokens == tokens.ids(*before)
    # the likeliest that may stand is taken
    good = tokens.ids({b"\\": b"n", b"u": b"0", b"d": b"0"}.get(before[-1] if before else b"", b"\x9f"))
    good = good if before else tokens.ids(b"z")
    assert one.take([*tokens.ids(*refused), *good])
    assert one.tokens[-1:] == good


def test_its_tokens_run_out_inside_a_character_or_an_escape():
    half = "好".encode()[:2]
    tokens = Tokens(half, b"ab", b"c\\u4f", b"ok\\")
    assert written(tokens, b"ab", half, most=2) == FreeText("ab", 1, (), True)
    assert written(tokens, b"ab", b"c\\u4f", most=2) == FreeText("abc", 1, encode("c"), True)
    assert written(tokens, b"ok\\", most=1) == FreeText("", 0, (), True), "what is left would need more tokens"
    assert written(tokens, b"ab", b"ab", most=2) == FreeText("abab", 2, (), True)
    assert written(tokens, b"ab", b'"', most=2) == FreeText("ab", 1, (), False)


def test_the_turn_ends_inside_a_character_or_an_escape():
    tokens = Tokens(b"ab")
    assert written(tokens, b"ab", b"\\", b"u") == FreeText("ab", 1, (), False)
    assert written(tokens, b"ab", b"\xe5") == FreeText("ab", 1, (), False)
    assert written(tokens) == FreeText("", 0, (), False)


def test_outside_json_it_ends_where_the_answer_goes_on():
    tokens = Tokens(b"red.\nLab", b"el:", b"el: x", b'"q"')
    options: dict[str, Any] = {"in_json": False, "stop": "\nLabel:"}
    assert written(tokens, b'"q"', b"red.\nLab", b"el: x", **options) == FreeText('"q"red.', 1, encode("red."), False)
    assert written(tokens, b"\n", b"\n", b"L", b"a", b"b", b"el:", **options) == FreeText("\n", 1, (), False)
    assert written(tokens, b"red.\nLab", **options).text == "red.\nLab"


def test_an_open_answer_goes_on_to_the_end_of_the_turn():
    tokens = Tokens(b"a\n\n")
    options: dict[str, Any] = {"in_json": False, "stop": "", "last": True}
    assert written(tokens, b"a\n\n", b'"', b"\\", **options) == FreeText('a\n\n"\\', 3, (), False)
    one = writing(tokens, **options)
    assert one.take([SPECIAL]), "a token that is no text may stand in an open answer"
    assert not one.take([100 + 0x80])
    assert not one.take([PICTURE, EMPTY])
    assert one.take([END])
    assert one.result() == FreeText("", 1, (), False)


def test_any_tokens_whatever_give_a_json_string():
    """A token is taken if and only if the text can still become a valid JSON string."""
    rng = random.Random(0)
    signs = rb'ab"\u0dD8n' + "好é😀".encode() + b"\n\x80"
    pieces = [bytes(rng.choices(signs, k=rng.randint(1, 3))) for _ in range(120)]
    tokens = Tokens(*{piece for piece in pieces if len(piece) > 1})
    taken = refused = 0
    for seed in range(60):
        rng.seed(seed)
        one, before = writing(tokens, most=12), b""
        while not one.is_over:
            (token,) = tokens.ids(rng.choice(pieces))
            expected = can_go_on(before + tokens[token])
            assert one.take([token]) is expected, (before, tokens[token])
            before += tokens[token] if expected else b""
            taken, refused = taken + expected, refused + (not expected)
        found = one.result()
        raw = b"".join(tokens[token] for token in (*one.tokens[: found.kept], *found.rest))
        assert json.loads(b'"' + raw + b'"') == found.text
        assert found.text.encode().decode() == found.text
        assert found.kept + len(found.rest) <= 12
    assert taken > 200
    assert refused > 200


def can_go_on(data: bytes) -> bool:
    """Whether the bytes hold a JSON string with its closing mark, or something makes one of them."""
    signs = (b"", b"\x80", b"\xa0", b"\x90", b"\x80\x80", b"\xa0\x80", b"\x90\x80", b"\x80\x80\x80", b"\x90\x80\x80")
    ends = [b"", b"n", b"0", b"00", b"000", b"0000"]
    closed = [data[: at + 1] for at, byte in enumerate(data) if byte == 0x22]
    return any(is_string(one) for one in closed) or any(
        is_string(data + sign + end + b'"') for sign, end in itertools.product(signs, ends)
    )


def is_string(data: bytes) -> bool:
    try:
        json.loads(b'"' + data).encode()
    except ValueError:
        return False
    return True


def test_the_tokens_of_a_real_tokenizer(twins: Any):
    twin = twins("qwen2_vl")
    vocabulary = Vocabulary(twin.model.frontend.tokenizer)
    tokenizer = twin.model.frontend.tokenizer
    assert vocabulary.ends == {tokenizer.convert_tokens_to_ids(text) for text in ("<|im_end|>", "<|endoftext|>")}
    assert vocabulary[tokenizer.convert_tokens_to_ids("<|image_pad|>")] == b""
    assert len(vocabulary.visual) == 4
    ids = twin.encoder.tokens('红色"😀\n')
    assert b"".join(vocabulary[token] for token in ids).decode() == '红色"😀\n'
    assert vocabulary[len(tokenizer) + 5] == b"", "weights may have more rows than the tokenizer has tokens"
