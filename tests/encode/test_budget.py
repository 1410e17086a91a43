"""The over-length policy: what is given up, in which order, and that it always suffices."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuyi.data.example import Example, Image, Part, Text, Turn, Video
from tuyi.encode.budget import fit
from tuyi.encode.encoder import Encoder
from tuyi.errors import BudgetError
from tuyi.task.catalog import parse_tasks
from tuyi.task.prompt import Prompt
from tuyi.task.task import Budget

PICTURE = Image(b"p", "p")
SMALLEST = 100


def tokens(parts: tuple[Part, ...], pixels: int) -> int:
    """A character is a token, a picture one for each 100 pixels."""
    return sum(len(part.text) if isinstance(part, Text) else pixels // 100 for part in parts)


def prompt(*turns: str, history: tuple[Turn, ...] = ()) -> Prompt:
    """Turns of text in which P stands for a picture."""
    return Prompt(history, "HEAD", tuple(_parts(turn) for turn in turns), "TAIL")


def _parts(turn: str) -> tuple[Part, ...]:
    out: list[Part] = []
    for index, text in enumerate(turn.split("P")):
        out += [PICTURE] if index else []
        out += [Text(text)] if text else []
    return tuple(out)


def spelled(parts: tuple[Part, ...]) -> str:
    return "".join(part.text if isinstance(part, Text) else "P" for part in parts)


def budget(max_tokens: int, max_pixels: int = 4000) -> Budget:
    return Budget(max_tokens=max_tokens, max_pixels=max_pixels, min_pixels=1)


def test_a_row_that_fits_gives_up_nothing():
    found = fit(prompt("u: aP\n", "v: b"), budget(8 + 5 + 40 + 4), tokens, SMALLEST)
    assert (spelled(found.parts), found.max_pixels, found.notes) == ("HEADu: aP\nv: bTAIL", 4000, {})


@pytest.mark.parametrize(("room", "dropped"), [(114, 0), (113, 1), (103, 1), (102, 2), (57, 2), (56, 3), (12, 3)])
def test_the_oldest_turns_go_first_and_no_more_than_needed(room: int, dropped: int):
    turns = ["0000000000\n", "123P45\n", "6789P\n", "v: b"]
    found = fit(prompt(*turns), budget(room), tokens, SMALLEST)
    assert spelled(found.parts) == f"HEAD{''.join(turns[dropped:])}TAIL"
    assert found.max_pixels == 4000
    assert found.notes == ({"dropped_turns": dropped} if dropped else {})


def test_then_the_newest_turns_pictures_shrink_together():
    found = fit(prompt("old\n", "u: PaP"), budget(12 + 30), tokens, SMALLEST)
    assert spelled(found.parts) == "HEADu: PaPTAIL"
    assert found.notes == {"dropped_turns": 1, "shrunk_images": found.max_pixels}
    assert 1500 <= found.max_pixels < 1600, "15 tokens each, as large as fits to 1 %"


def test_last_the_text_is_cut_at_its_front_behind_the_speaker():
    found = fit(prompt("用户: abcPdefgh"), budget(8 + 4 + 1 + 3), tokens, SMALLEST)
    assert spelled(found.parts) == "HEAD用户: PfghTAIL"
    assert found.notes == {"shrunk_images": 100, "cut_characters": 5}
    plain = fit(prompt("abcdefgh"), budget(8 + 3), tokens, SMALLEST)
    assert (spelled(plain.parts), plain.notes) == ("HEADfghTAIL", {"cut_characters": 5})


def test_pictures_of_earlier_messages_shrink_too():
    history = (Turn("user", (PICTURE,)),)
    found = fit(
        prompt("u: a", history=history),
        budget(8 + 4 + 20),
        lambda parts, pixels: tokens((*history[0].parts, *parts), pixels),
        SMALLEST,
    )
    assert spelled(found.parts) == "HEADu: aTAIL"
    assert found.notes == {"shrunk_images": found.max_pixels}
    assert 2000 <= found.max_pixels < 2100


def test_wording_that_does_not_fit_by_itself():
    with pytest.raises(
        BudgetError,
        match=r"^the fixed wording, the labels and the pictures of the newest turn alone exceed max_tokens 8; "
        r"raise budget.max_tokens or lower budget.max_pixels$",
    ):
        fit(prompt("aP"), budget(8), tokens, SMALLEST)
    with pytest.raises(BudgetError, match="exceed max_tokens 7"):
        fit(prompt(), budget(7), tokens, SMALLEST)


turns = st.lists(st.text("uv: abcP\n", min_size=1, max_size=30), max_size=6)


@given(turns, st.integers(1, 150), st.integers(SMALLEST, 4000))
@settings(max_examples=300)
def test_whatever_the_row_the_result_fits(content: list[str], room: int, max_pixels: int):
    asked = prompt(*content)
    newest = content[-1] if content else ""
    limit = budget(room, max_pixels)
    try:
        found = fit(asked, limit, tokens, SMALLEST)
    except BudgetError:
        pictures, speaker = newest.count("P"), _speaker(newest)
        assert 8 + pictures + len(speaker) > room, "only what must stay may be too long"
        return
    text = spelled(found.parts)
    assert tokens(found.parts, found.max_pixels) <= room
    assert SMALLEST <= found.max_pixels <= max_pixels
    assert text.startswith("HEAD")
    assert text.endswith("TAIL")
    inner = text[4:-4]
    first = found.notes.get("dropped_turns", 0)
    if "cut_characters" not in found.notes:
        assert inner == "".join(content[first:])
        assert ("shrunk_images" in found.notes) == (found.max_pixels < max_pixels) or found.max_pixels == max_pixels
    else:
        assert first == max(0, len(content) - 1)
        assert inner.count("P") == newest.count("P"), "a picture of the newest turn is never dropped"
        assert len(newest) - len(inner) == found.notes["cut_characters"]
        assert inner.replace("P", "").startswith(_speaker(newest))
        rest = inner.replace("P", "").removeprefix(_speaker(newest))
        assert newest.replace("P", "").endswith(rest)
    if first:
        without = prompt(*content[first - 1 :]).parts()
        assert tokens(without, max_pixels) > room, "one turn more would not have fitted"


def _speaker(turn: str) -> str:
    found = re.match(r"[^\n:：]{1,12}[:：] *", turn.replace("P", ""))
    return found[0] if found else ""


# --- with the real encoder --------------------------------------------------------------------------------------------


def encoder(twin: Any, **limits: int) -> Encoder:
    value = twin.encoder.tasks.model_dump(mode="json")
    for one in value["tasks"]:
        one["budget"].update(limits)
    return Encoder(twin.processor.tokenizer, twin.model.spec, parse_tasks(value, "small"))


@pytest.fixture(scope="module")
def long_row(picture: Callable[..., Image]) -> Example:
    content: list[Part] = []
    for number in range(6):
        content += [Text(f"用户: 第{number}个问题 <picture {number}> "), picture(120, 150, seed=number), Text("\n")]
        content += [Text(f"客服: 第{number}个回答，亲，这个红色的能用\n")]
    content += [Text("用户: 最后"), picture(150, 120, seed=9), Text("的问题，这是什么颜色，你好，可以的吗")]
    return Example("long", tuple(content), "colour", "红色（深）")


@pytest.mark.parametrize("max_tokens", [2048, 400, 260, 180, 130, 110])
def test_encoded_rows_stay_inside_the_budget(twin: Any, long_row: Example, max_tokens: int):
    limited = encoder(twin, max_tokens=max_tokens)
    tokenizer = twin.processor.tokenizer
    for labelled in (True, False):
        encoded = limited.encode(long_row, labelled=labelled)
        longest = max(map(len, limited.labels(limited.tasks["colour"]).ids))
        assert len(encoded) + (0 if labelled else longest) <= max_tokens
        assert len(encoded) == limited.length(long_row, labelled=labelled).tokens
        text = tokenizer.decode(encoded.ids)
        head, tail = limited.tasks["colour"].wording
        assert head in text
        assert tail in text, "instruction and labels stay"
        assert "用户: " in text
        assert text.split(tail)[0].endswith("可以的吗"), "the end of the newest turn stays"
        shown = (encoded.ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).sum()
        spans = [end - begin for item in encoded.media for begin, end in item.spans]
        assert shown == sum(spans), "never cut inside visual tokens"
        assert spans == [item.patches.grid[1] * item.patches.grid[2] // 4 for item in encoded.media]
        if labelled:
            assert tokenizer.decode(encoded.ids[encoded.supervised]) == "红色（深）<|im_end|>"


def test_the_order_of_giving_up_with_real_rows(twin: Any, long_row: Example):
    notes = [
        dict(encoder(twin, max_tokens=size).encode(long_row, labelled=True).notes)
        for size in (2048, *range(400, 90, -6))
    ]
    assert notes[0] == {}
    assert all(set(one) <= {"dropped_turns", "shrunk_images", "cut_characters"} for one in notes)
    dropped = [one.get("dropped_turns", 0) for one in notes]
    assert dropped == sorted(dropped)
    assert 0 < dropped[1] < 12
    for one in notes:
        if "shrunk_images" in one:
            assert one["dropped_turns"] == 12, "pictures shrink only when the newest turn stands alone"
        if "cut_characters" in one:
            assert "shrunk_images" in one, "text is cut only when pictures cannot shrink further"
    assert any("cut_characters" in one for one in notes)
    assert any("shrunk_images" in one and "cut_characters" not in one for one in notes)


def test_a_row_that_cannot_fit_is_named(twin: Any, long_row: Example):
    with pytest.raises(BudgetError, match="id long: the fixed wording, the labels and the pictures of the newest turn"):
        encoder(twin, max_tokens=40).encode(long_row, labelled=False)
    with pytest.raises(BudgetError, match="id long"):
        encoder(twin, max_tokens=40).length(long_row)


def test_lengths_are_known_before_pixels_are_read(twin: Any, rows: dict[str, Example]):
    for example in rows.values():
        for labelled in (True, False):
            encoded = twin.encoder.encode(example, labelled=labelled)
            length = twin.encoder.length(example, labelled=labelled)
            if twin.model.spec.family == "qwen3_vl" and example.videos:
                assert len(encoded) <= length.tokens <= len(encoded) + 3 * 3 * len(example.videos)
            else:
                assert length.tokens == len(encoded), example.id
            assert length.patches == sum(len(item.patches.values) for item in encoded.media)
            assert length.supervised == encoded.supervised.sum()
            assert encoded.notes == {}


def test_videos_shrink_as_well(twin: Any, clip: Video):
    example = Example("film", (Text("用户: 看"), clip), "colour", "A")
    whole = len(encoder(twin, video_max_pixels=65536).encode(example, labelled=True))
    small = encoder(twin, video_max_pixels=65536, max_tokens=whole - 1).encode(example, labelled=True)
    assert len(small) < whole
    assert small.notes.keys() == {"shrunk_images"}


def test_pictures_keep_to_the_pixel_budget(twin: Any, picture: Callable[..., Image]):
    example = Example("big", (picture(900, 700),), "colour", "A")
    spec = twin.model.spec
    for max_pixels in (4096, 16384, 100_000):
        (media,) = encoder(twin, max_pixels=max_pixels).encode(example, labelled=False).media
        _, h, w = media.patches.grid
        assert 0.4 * max_pixels < h * w * spec.patch_size**2 <= max_pixels
