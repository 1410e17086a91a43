"""Talks against transformers: its token ids for every turn, its logits of the whole talk without a cache."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tuyi.data.example import Example, Image, Text, Turn, Video
from tuyi.errors import ConfigError, MediaError, ModelError, TaskError
from tuyi.predict import conversation
from tuyi.predict.conversation import Conversation, open_conversation
from tuyi.predict.talk import ChatSettings
from tuyi.task.task import Budget

BUDGET = Budget(
    max_pixels=16 * 1024, min_pixels=1024, max_tokens=2048, video_fps=5, video_max_pixels=8192
)  # as that of the twins' tasks
SHORT = ChatSettings(max_tokens=12)


def talk_with(twin: Any, settings: ChatSettings = SHORT, budget: Budget = BUDGET) -> tuple[Conversation, list[str]]:
    told: list[str] = []
    return Conversation(twin.model, budget, settings, told.append), told


def ask(talk: Conversation, question: str) -> str:
    return "".join(talk.ask(question))


@contextmanager
def watched(twin: Any) -> Iterator[tuple[list[int], list[int]]]:
    """Tokens of each pass of the language model, and patches of each pass of the vision tower."""
    tokens: list[int] = []
    patches: list[int] = []
    hooks = [
        twin.model.hf.register_forward_pre_hook(
            lambda module, args, kwargs: tokens.append(len(kwargs["batch"].ids)), with_kwargs=True
        ),
        twin.model.hf.model.visual.register_forward_pre_hook(lambda module, args: patches.append(len(args[0]))),
    ]
    yield tokens, patches
    for hook in hooks:
        hook.remove()


def say(monkeypatch: pytest.MonkeyPatch, tokens: Sequence[int]) -> None:
    """Let the model say these tokens, whatever it thinks."""
    left = list(tokens)

    def ranked(logits_RV: torch.Tensor, samplers: Any) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor([left.pop(0)]), logits_RV.shape[1]).float()

    monkeypatch.setattr(conversation, "ranked", ranked)


def recomputed(
    twin: Any, turns: tuple[Turn, ...], question: str, shown: Image | None = None, budget: Budget = BUDGET
) -> str:
    """The answer of a talk that begins with all of that."""
    fresh, _ = talk_with(twin, budget=budget)
    fresh.turns = turns
    if shown is not None:
        fresh.show(shown)
    return ask(fresh, question)


def test_tokens_and_logits_of_every_turn_are_those_of_transformers(
    twin: Any, picture: Callable[..., Image], clip: Video, monkeypatch: pytest.MonkeyPatch
):
    talk, _ = talk_with(twin)
    seen: list[torch.Tensor] = []
    write = Conversation._write
    monkeypatch.setattr(Conversation, "_write", lambda self, logits: seen.append(logits[0]) or write(self, logits))
    shown: list[list[Image | Video]] = [[picture(seed=1)], [], [clip, picture(33, 150, seed=3)], []]
    questions = ["看：这是什么颜色？", "真的吗？", "and these two?", "哪个"]
    for media, question in zip(shown, questions, strict=True):
        before = talk.turns
        for part in media:
            assert talk.show(part) > 0
        answer = ask(talk, question)
        assert talk.turns == (*before, *talk.turns[-2:])
        assert talk.turns[-1] == Turn("assistant", (Text(answer),))
        inputs = twin.inputs(Example("x", talk.turns[-2].parts, "talk", history=before))
        theirs = inputs["input_ids"][0].tolist()
        assert talk._row.ids[: len(theirs)] == theirs
        with torch.inference_mode():
            logits = twin.reference(**inputs).logits[0, -1]
        torch.testing.assert_close(seen[-1], logits, atol=1e-5, rtol=1e-5)


def test_a_follow_up_passes_only_its_own_tokens(
    twin: Any, picture: Callable[..., Image], clip: Video, monkeypatch: pytest.MonkeyPatch
):
    talk, _ = talk_with(twin)
    talk.show(picture(seed=1))
    talk.show(clip)
    tokens = twin.encoder.tokens
    said = [*tokens("The colour is red."), twin.encoder._template.end_id]
    say(monkeypatch, said)
    assert ask(talk, "which?") == "The colour is red."
    monkeypatch.undo()
    talk.settings = SHORT
    cached = len(talk._row)
    with watched(twin) as (passed, patches):
        second = ask(talk, "and this?")
    template = twin.processor.tokenizer
    own = template.encode("<|im_end|>\n<|im_start|>user\nand this?<|im_end|>\n<|im_start|>assistant\n")
    assert passed[0] == len(own)
    assert passed[1:] == [1] * (len(passed) - 1)
    assert not patches
    assert talk._row.ids[cached : cached + len(own)] == own
    assert second == recomputed(twin, talk.turns[:2], "and this?")
    new = picture(50, 60, seed=4)
    talk.show(new)
    with watched(twin) as (_, patches):
        third = ask(talk, "last")
    assert len(patches) == 1
    assert patches[0] < 100, "the new picture alone"
    assert third == recomputed(twin, talk.turns[:4], "last", new)


def test_special_tokens_that_a_user_types_are_text(twins: Callable[[str], Any]):
    twin = twins("qwen2_vl")
    talk, _ = talk_with(twin)
    ask(talk, "a <|im_end|> <|image_pad|>")
    ends = [token for token in talk._row.ids if token in talk._vocabulary.special]
    assert twin.processor.tokenizer.decode(ends[:3]) == "<|im_start|><|im_end|><|im_start|>"


def test_only_whole_characters_appear(twins: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch):
    twin = twins("qwen2_vl")
    text = "好😀é"
    tokens = twin.encoder.tokens(text)
    assert len(tokens) > len(text) + 3, "characters of several tokens"
    talk, _ = talk_with(twin, ChatSettings(max_tokens=len(tokens) + 1))
    say(monkeypatch, [*tokens, twin.encoder._template.end_id])
    assert list(talk.ask("?")) == list(text)
    assert not talk.was_cut
    talk, _ = talk_with(twin, ChatSettings(max_tokens=len(tokens) - 1))
    say(monkeypatch, tokens)
    assert list(talk.ask("?")) == list(text[:-1])
    assert talk.was_cut
    assert talk.turns[-1].parts == (Text(text[:-1]),)


def test_an_answer_that_was_stopped_is_remembered(twins: Callable[[str], Any], picture: Callable[..., Image]):
    twin = twins("qwen2_vl")
    talk, _ = talk_with(twin)
    talk.show(picture(seed=1))
    pieces = talk.ask("what?")
    begun = next(pieces)
    with closing(pieces):  # type: ignore[type-var]
        pass
    assert talk.turns[-1].parts == (Text(begun),)
    assert ask(talk, "and now?") == recomputed(twin, talk.turns[:2], "and now?")


def test_a_talk_that_is_too_long_forgets_its_beginning(twins: Callable[[str], Any], picture: Callable[..., Image]):
    twin = twins("qwen2_vl")
    budget = BUDGET.model_copy(update={"max_tokens": 150})
    talk, told = talk_with(twin, budget=budget)
    for number in range(4):
        talk.show(picture(60, 60, seed=number))
        ask(talk, f"number {number}?")
        assert len(talk._row.ids) <= 150
    kept = len(talk.turns) // 2
    assert 1 < kept < 4
    assert len(told) == 4 - kept
    for line in told:
        assert re.fullmatch(r"the oldest . questions and answers were forgotten to stay within .*max_tokens 150", line)
    first = talk.turns[0].parts[0]
    assert isinstance(first, Image)
    assert first.source == picture(60, 60, seed=4 - kept).source
    last = talk.turns[-2].parts[0]
    assert isinstance(last, Image)
    again = recomputed(twin, talk.turns[:-2], "number 3?", last, budget)
    assert talk.turns[-1].parts == (Text(again),)


def test_a_picture_too_large_for_the_talk_shrinks_and_stays(twins: Callable[[str], Any], picture: Callable[..., Image]):
    twin = twins("qwen2_vl")
    budget = BUDGET.model_copy(update={"max_tokens": 120, "max_pixels": 300 * 300})
    talk, told = talk_with(twin, ChatSettings(max_tokens=8), budget)
    assert talk.show(picture(290, 290)) == 100
    ask(talk, "what?")
    assert len(told) == 1
    assert told[0].startswith("pictures and frames are shown at ")
    assert told[0].endswith("% of their pixels, to stay within budget.max_tokens 120")
    with watched(twin) as (_, patches):
        ask(talk, "more?")
    assert not patches, "the picture is still there, at the size that it was shown"
    assert len(talk.turns) == 4


def test_what_cannot_be_shown_leaves_the_talk_as_it_was(
    twins: Callable[[str], Any], damaged_picture: Image, tmp_path: Path
):
    twin = twins("qwen2_vl")
    talk, _ = talk_with(twin)
    ask(talk, "hello")
    turns = talk.turns
    for part, found in [
        (Image(tmp_path / "none.png"), "found none there"),
        (damaged_picture, "picture broken.jpg.*damaged"),
        (Video(b"no video", "x.mp4"), "video x.mp4.*found something else"),
    ]:
        with pytest.raises(MediaError, match=found):
            talk.show(part)
    assert talk.turns == turns
    assert ask(talk, "again") == recomputed(twin, turns, "again")


def test_a_file_that_changed_is_another_picture(
    twins: Callable[[str], Any], picture: Callable[..., Image], tmp_path: Path
):
    talk, _ = talk_with(twins("qwen2_vl"))
    path = tmp_path / "a.png"
    for size in (60, 120):
        made = picture(size, size).source
        assert isinstance(made, bytes)
        path.write_bytes(made)
        assert talk.show(Image(path)) == (size // 28) ** 2
        path.unlink()
        ask(talk, "?")
    assert ask(talk, "and both?")  # neither file is there any more


def test_sampling(twins: Callable[[str], Any]):
    twin = twins("qwen2_vl")

    def said(seed: int) -> str:
        return ask(talk_with(twin, ChatSettings(max_tokens=12, temperature=1.0, seed=seed))[0], "hello")

    assert said(0) == said(0)
    assert len({said(seed) for seed in range(4)}) > 1


def test_reset(twins: Callable[[str], Any], picture: Callable[..., Image]):
    talk, _ = talk_with(twins("qwen2_vl"))
    first = ask(talk, "hello")
    talk.show(picture())
    ask(talk, "what?")
    talk.show(picture(seed=2))
    talk.reset()
    assert talk.turns == ()
    assert ask(talk, "hello") == first


def test_opening(tmp_path: Path):
    told: list[str] = []
    talk = open_conversation("builtin:tiny", SHORT, budget={"max_pixels": 50_000}, tell=told.append)
    assert (talk.budget.max_tokens, talk.budget.max_pixels) == (32_768, 50_000)
    with pytest.raises(ConfigError, match=r"at most 512 tokens does not fit budget.max_tokens 300.*lower --max-tokens"):
        open_conversation("builtin:tiny", budget={"max_tokens": 300})
    with pytest.raises(TaskError, match="max_pixel: unknown"):
        open_conversation("builtin:tiny", budget={"max_pixel": 300})
    with pytest.raises(ModelError, match="does not exist"):
        open_conversation(tmp_path / "nothing")
