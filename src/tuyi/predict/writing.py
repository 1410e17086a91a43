"""Free text as it is decoded: which tokens may come next, and where it ends.

Inside JSON the text is held, token by token, to what may stand in a JSON string (RFC 8259, section 7), so that an
answer is valid JSON whatever the model writes. Everywhere it is held to whole UTF-8 characters: byte-level tokens may
end inside one.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tuyi.encode.answer import Written
from tuyi.predict.asked import TokenBytes

__all__ = ["FreeText", "Vocabulary", "Writing", "take_likeliest"]

_TRIED = 16
"""Likeliest tokens that are looked at first; the others only where none of these may stand."""

# surrogates are left out: a lone one is valid JSON and no text, and a pair can as well be written as its character
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u(?:[0-9a-cA-CefEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}))')
_BEGUN = re.compile(r"\\(?:u(?:[0-9a-cA-CefEF][0-9a-fA-F]{0,2}|[dD](?:[0-7][0-9a-fA-F]?)?)?)?")
_VISUAL = tuple(f"<|{name}|>" for name in ("image_pad", "video_pad", "vision_pad", "vision_start", "vision_end"))


class Vocabulary:
    """What the tokens of a model are as text.

    Args:
        tokenizer: The model's fast tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._bytes = TokenBytes(tokenizer)
        self.special = frozenset(id for id, token in tokenizer.added_tokens_decoder.items() if token.special)
        """Tokens that are no text."""
        added = tokenizer.get_added_vocab()
        self.ends = frozenset(added[name] for name in ("<|im_end|>", "<|endoftext|>") if name in added)
        """Tokens that end a turn."""
        self.visual = frozenset(id for name, id in added.items() if name in _VISUAL)
        """Tokens that stand for pictures, which no answer has."""

    def __getitem__(self, token: int) -> bytes:
        return b"" if token in self.special else self._bytes[token]


@dataclass(frozen=True, slots=True)
class FreeText:
    """Free text that has ended.

    Args:
        text: What was written; inside JSON with its escapes undone.
        kept: How many of its tokens stand as they were decoded.
        rest: Tokens of what is left of the text behind these, where a token reached beyond its end.
        is_cut: Whether it was ended by its number of tokens.
    """

    text: str
    kept: int
    rest: tuple[int, ...]
    is_cut: bool


class Writing:
    """Free text under way.

    It ends with a token that ends the turn; inside JSON with a quotation mark that is not escaped, elsewhere where
    what follows it in the answer has been written; or after its number of tokens.

    Args:
        written: Which text.
        vocabulary: The model's.
        encode: Token ids of plain text.
    """

    def __init__(self, written: Written, vocabulary: Vocabulary, encode: Callable[[str], tuple[int, ...]]) -> None:
        self._free, self._stop = written.free, written.stop
        self._vocabulary, self._encode = vocabulary, encode
        self.tokens: list[int] = []
        self.is_over = False
        self._text = ""
        self._pending = b""  # of a character
        self._escape = ""  # of an escape sequence
        self._marks: list[int | None] = [0]  # length of the text after so many tokens; None inside a sign
        self._end: int | None = None
        self._is_cut = False

    def take(self, tokens: Iterable[int]) -> bool:
        """Go on with the first of these tokens that may stand here; False where none may."""
        return any(self._take(token) for token in tokens)

    def _take(self, token: int) -> bool:
        if token in self._vocabulary.ends:
            self.is_over = True
            return True
        if token in self._vocabulary.visual:
            return False
        data = self._vocabulary[token]
        if not data and (self._free.in_json or self._stop or token not in self._vocabulary.special):
            return False
        data = self._pending + data
        signs, rest, is_text = _characters(data)
        if not self._add(signs, rest, is_text):
            return False
        self._pending = b"" if self.is_over else rest
        self.tokens.append(token)
        self._marks.append(None if self._pending or self._escape else len(self._text))
        if not self.is_over and len(self.tokens) == self._free.max_tokens:
            self.is_over = self._is_cut = True
        return True

    def _add(self, signs: str, rest: bytes, is_text: bool) -> bool:
        """Add whole characters; False, and nothing added, where they, or what comes after them, may not stand here."""
        begin = len(self._text)
        if not self._free.in_json:
            at = (self._text + signs).find(self._stop, max(0, begin - len(self._stop))) if self._stop else -1
            if at < 0 and not is_text:
                return False
            self._text += signs
            self._end = at if at >= 0 else None
            self.is_over = at >= 0
            return True
        escape = self._escape
        for at, sign in enumerate(signs):
            if escape:
                escape += sign
                if _ESCAPE.fullmatch(escape):
                    escape = ""
                elif not _BEGUN.fullmatch(escape):
                    return False
            elif sign == '"':
                self._end, self.is_over = begin + at, True
                break
            elif sign == "\\":
                escape = sign
            elif sign < " ":
                return False
        if not self.is_over and (not is_text or (rest and escape)):
            return False
        self._text, self._escape = self._text + signs, escape
        return True

    def result(self) -> FreeText:
        """The text and its tokens, once it is over: back to the last whole sign, as late as its tokens allow."""
        whole = len(self._text) - len(self._escape) if self._end is None else self._end
        kept = max(at for at, mark in enumerate(self._marks) if mark is not None and mark <= whole)
        begin = self._marks[kept]
        assert begin is not None, "a mark that was just looked at"
        rest = self._encode(self._text[begin:whole])
        if kept + len(rest) > self._free.max_tokens:
            rest, whole = (), begin
        text = self._text[:whole]
        return FreeText(json.loads(f'"{text}"') if self._free.in_json else text, kept, rest, self._is_cut)


def take_likeliest(writings: Sequence[Writing], scores_RV: Tensor) -> list[int | None]:
    """Let texts go on, each with the first token that may stand there.

    Args:
        writings: One for each row.
        scores_RV: Of the tokens behind each, the one to try first highest.

    Returns:
        The token that each took; None where its turn has ended instead.
    """
    if not writings:
        return []
    first = scores_RV.topk(min(_TRIED, scores_RV.shape[1])).indices.tolist()
    taken: list[int | None] = []
    for writing, tokens, scores_V in zip(writings, first, scores_RV):
        before = len(writing.tokens)
        if not writing.take(tokens):
            writing.take(scores_V.argsort(descending=True).tolist())
        taken.append(writing.tokens[-1] if len(writing.tokens) > before else None)
    return taken


def _characters(data: bytes) -> tuple[str, bytes, bool]:
    """The whole characters at the beginning, the rest, and whether the rest can still become one."""
    try:
        signs, used = codecs.utf_8_decode(data, "strict", False)
    except UnicodeDecodeError as error:
        return data[: error.start].decode(), data[error.start :], False
    rest = data[used:]
    return signs, rest, not (rest[:1] == b"\xed" and rest[1:2] > b"\x9f")  # a surrogate, which Python sees later
