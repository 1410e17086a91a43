"""Chat messages to token ids, with the model's own chat template.

The template is rendered once for each shape of conversation, with marks where texts go; the texts are put in
afterwards, piece by piece between special tokens. So a customer who types ``<|im_end|>`` or ``<image>`` is read as
having typed just that, and tokens are those of tokenising the rendered conversation whole.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tuyi.data.example import Image, Text, Turn
from tuyi.errors import ModelError

__all__ = ["ChatTemplate", "Piece"]

_MARK = re.compile("\ue000(\\d+)\ue001")
_FEW = 64
"""Turns and parts of a conversation whose shape is kept; longer ones are whatever a client of a server thinks of."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of tokens of a conversation.

    Args:
        ids: The tokens; empty for media.
        media: Index of the picture or video that stands here, counted over the whole conversation.
        answer: Whether an assistant wrote it, end-of-turn token included.
    """

    ids: tuple[int, ...]
    media: int | None = None
    answer: bool = False


class ChatTemplate:
    """Turns conversations into tokens for one tokenizer.

    Args:
        tokenizer: A fast tokenizer with a chat template and the family's special tokens.
        end_token: The token that ends an assistant's turn.
    """

    def __init__(self, tokenizer: Any, end_token: str = "<|im_end|>") -> None:
        if not tokenizer.chat_template:
            raise ModelError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no chat template; "
                "add chat_template.jinja to the folder"
            )
        self._tokenizer = tokenizer
        self._backend = copy.deepcopy(tokenizer.backend_tokenizer)
        self._backend.encode_special_tokens = True
        self.end_token = end_token
        self.end_id: int = tokenizer.convert_tokens_to_ids(end_token)
        specials = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
        self._special = re.compile("(" + "|".join(map(re.escape, specials)) + ")")
        self._shape = lru_cache(maxsize=4096)(self._render)

    def tokens(self, text: str) -> tuple[int, ...]:
        """Token ids of plain text, in which no special token has any power."""
        return tuple(self._backend.encode(text, add_special_tokens=False).ids)

    def pieces(self, turns: Sequence[Turn]) -> list[Piece]:
        """The tokens of a conversation up to where the assistant is to answer."""
        texts = [part.text for turn in turns for part in turn.parts if isinstance(part, Text)]
        shape = tuple((turn.role, tuple(_kind(part) for part in turn.parts)) for turn in turns)
        pieces: list[Piece] = []
        render = self._shape if sum(1 + len(kinds) for _, kinds in shape) <= _FEW else self._render
        for text, special, media, answer in render(shape):
            if media is not None:
                pieces.append(Piece((), media))
            elif special is not None:
                pieces.append(Piece((special,), None, answer))
            else:
                filled = _MARK.sub(lambda match: texts[int(match[1])], text)
                pieces.append(Piece(self.tokens(filled), None, answer))
        return pieces

    def _render(self, shape: tuple[tuple[str, tuple[str, ...]], ...]) -> list[tuple[str, int | None, int | None, bool]]:
        """(text with marks, special id, media index, is an answer) of each stretch of a conversation's shape."""
        messages, count, answers = [], 0, set()
        for role, kinds in shape:
            content: list[dict[str, str]] = []
            for kind in kinds:
                if kind == "text":
                    content.append({"type": "text", "text": f"\ue000{count}\ue001"})
                    if role == "assistant":
                        answers.add(count)
                    count += 1
                else:
                    content.append({"type": kind, kind: ""})
            plain = content[0]["text"] if len(content) == 1 and role != "user" and kinds == ("text",) else content
            messages.append({"role": role, "content": plain})
        rendered = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self._cut(rendered, answers)

    def _cut(self, rendered: str, answers: set[int]) -> list[tuple[str, int | None, int | None, bool]]:
        out: list[tuple[str, int | None, int | None, bool]] = []
        media, after_answer = 0, False
        for stretch in self._special.split(rendered):
            if not stretch:
                continue
            if stretch in ("<|image_pad|>", "<|video_pad|>"):
                out.append(("", None, media, False))
                media += 1
            elif stretch in ("<|vision_start|>", "<|vision_end|>"):
                continue  # the encoder writes them: their places differ between families
            elif self._special.fullmatch(stretch):
                special = self._tokenizer.convert_tokens_to_ids(stretch)
                out.append(("", special, None, after_answer and stretch == self.end_token))
                after_answer = False
            else:
                for text, answer in _split_answers(stretch, answers):
                    out.append((text, None, None, answer))
                    after_answer = answer
        return out


def _kind(part: object) -> str:
    return "text" if isinstance(part, Text) else "image" if isinstance(part, Image) else "video"


def _split_answers(stretch: str, answers: set[int]) -> list[tuple[str, bool]]:
    """A stretch cut so that what an assistant wrote stands alone; its tokens are then those of a generated answer."""
    out, at = [], 0
    for match in _MARK.finditer(stretch):
        if int(match[1]) in answers:
            if match.start() > at:
                out.append((stretch[at : match.start()], False))
            out.append((match[0], True))
            at = match.end()
    if at < len(stretch):
        out.append((stretch[at:], False))
    return out
