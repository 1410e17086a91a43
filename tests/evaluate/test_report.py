"""The report: self-contained, escaped, and saying what it should."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as Pillow

from tuyi.data.example import Image, Text, Turn, Video
from tuyi.errors import OutputError
from tuyi.evaluate.charts import heat_map
from tuyi.evaluate.judge import EvaluateSettings, evaluate
from tuyi.evaluate.mistakes import Picture, film_strip, thumbnail, view
from tuyi.evaluate.rows import Mistake
from tuyi.evaluate.scores import Sampling, score


def report(case, **options) -> str:
    settings = options.pop("settings", EvaluateSettings(resamples=100))
    found = evaluate(case.write(), case.examples, case.folder / "out", settings=settings, **options)
    return found.report.read_text(encoding="utf-8")


def test_nothing_is_fetched_from_elsewhere(case):
    html = report(case, compare_with=case.write(name="other.jsonl"))
    assert not re.search(r"https?:|//[a-z]|@import|<script|<link|<iframe", html)
    references = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert len(references) >= 8
    assert all(item.startswith(("#", "data:image/")) for item in references)
    assert "url(" not in html


def test_text_of_rows_is_escaped(case):
    evil = "<script>alert('x')</script>&amp;"
    case.examples[20] = replace(case.examples[20], content=(Text(f"用户: {evil}"),))
    case.predictions[20] = replace(case.predictions[20], rationale=evil)
    html = report(case)
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;amp;") == 2


def test_headline_verdict_and_baselines(case):
    baselines = {"colour": {"text only": 0.31}, "mood": {"text only": 0.5}}
    html = report(case, baselines=baselines)
    assert "24 of 30 rows answered correctly" in html
    assert "It is clearly better than its best baseline, text only (0.405)." in html
    assert html.count("text only") == 4
    assert "most frequent label" in html


def test_a_model_that_is_no_better_than_the_majority_is_told_so(case, predict):
    case.predictions = [
        predict(one.id, one.task, tuple(one.probabilities), next(iter(one.probabilities)), 0.9)
        for one in case.predictions
    ]
    assert "It is no better than always answering the most frequent label" in report(case)


def test_a_model_without_mistakes(case, predict):
    case.predictions = [
        predict(one.id, one.task, tuple(one.probabilities), example.label, 0.9)
        for one, example in zip(case.predictions, case.examples, strict=True)
    ]
    html = report(case)
    assert "It makes no mistake on these rows." in html
    assert "none is proposed" in html
    assert "Most confident mistakes" not in html


def test_shortened_rows_are_counted_and_noted(case):
    notes = {"dropped_turns": 3, "shrunk_images": 50176, "cut_characters": 12, "calls": 1}
    case.predictions = [replace(one, notes=notes if one.id == "20" else {"calls": 1}) for one in case.predictions]
    html = report(case)
    assert "1 of 10 rows was shortened (oldest turns left out)" in html
    assert "token budget (at most 50,176 pixels each)" in html
    assert "text was cut to fit the token budget (12 characters)" in html
    assert "the oldest turns were left out to fit the token budget (3 of them)" in html
    assert "A row took 1 model call." in html


def test_missing_and_broken_pictures_show_their_name_and_the_reason(case):
    (case.folder / "0.png").unlink()
    (case.folder / "5.png").write_bytes(b"")
    html = report(case)
    assert html.count('class="missing"') == 2
    assert "<b>0.png</b>picture" in html
    assert "found an empty file" in html


def test_the_training_curve_is_embedded(case):
    file = case.folder / "loss.png"
    Pillow.new("RGB", (4, 4)).save(file)
    html = report(case, settings=EvaluateSettings(resamples=100, loss=file))
    assert f'src="data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"' in html
    with pytest.raises(OutputError, match=r"loss picture .*loss\.txt: expected \.png, \.jpg"):
        report(case, settings=EvaluateSettings(resamples=100, loss=file.with_suffix(".txt")))


def test_thumbnails_are_small_jpegs(tmp_path):
    Pillow.new("RGB", (900, 1800), "red").save(tmp_path / "big.png")
    head, _, body = thumbnail(Image(tmp_path / "big.png"), 360).partition(",")
    assert head == "data:image/jpeg;base64"
    assert Pillow.open(io.BytesIO(base64.b64decode(body))).size == (180, 360)


def test_a_dialogue_becomes_bubbles_with_pictures_at_their_place(case):
    example = replace(
        case.examples[20],
        content=(
            Text("用户: 你好\n客服: 在的\n用户: "),
            Image(case.folder / "20.png", "20.png"),
            Text("\n这个呢"),
            Video(case.folder / "v.mp4", "v.mp4"),
        ),
        history=(Turn("system", (Text("你是"),)), Turn("user", (Text("早"),)), Turn("assistant", (Text("早上好"),))),
    )
    found = view(Mistake(example, None, "喜欢", case.predictions[20], 0.9), 64)
    assert [(item.speaker, item.side) for item in found.bubbles] == [
        ("user", "customer"),
        ("assistant", "agent"),
        ("用户", "customer"),
        ("客服", "agent"),
        ("用户", "customer"),
    ]
    picture, text, video = found.bubbles[-1].pieces
    assert isinstance(picture, Picture)
    assert picture.uri
    assert text == "这个呢"
    assert isinstance(video, Picture)
    assert video.uri is None


def test_the_true_label_is_shown_with_its_rank_even_when_it_is_unlikely(case, predict):
    labels = tuple("abcdefgh")
    prediction = predict("0", "colour", labels, "a", 0.9)
    found = view(Mistake(case.examples[0], None, "h", prediction, 0.9), 64).near
    assert [(item.label, item.rank) for item in found] == [*zip("abcde", range(1, 6)), ("h", 8)]
    assert (found[0].kind, found[-1].kind) == ("wrong", "gold")


def test_heat_map_shows_the_labels_that_occur_and_says_what_it_leaves_out():
    names = [str(k) for k in range(60)]
    gold = np.arange(58)
    found = heat_map(score(gold, np.where(gold < 10, gold + 1, gold), names, Sampling(resamples=100)))
    assert (len(found.rows), found.hidden, found.unused) == (40, 18, ("58", "59"))
    assert [str(k) for k in range(11)] == list(found.labels[:11])
    wrong = found.rows[0].cells[1]
    assert (wrong.count, wrong.right, wrong.strength, wrong.title) == (1, False, 1.0, "0 → 1: 1 of 1")


def test_a_video_is_shown_as_a_strip_of_its_frames(clip: Video):
    head, _, body = film_strip(clip, 48).partition(",")
    with Pillow.open(io.BytesIO(base64.b64decode(body))) as strip:
        assert (head, strip.size) == ("data:image/jpeg;base64", (4 * 48 + 3 * 4, 32))
        frames = [strip.crop((52 * k, 0, 52 * k + 48, 32)).tobytes() for k in range(4)]
    assert len(set(frames)) == 4
