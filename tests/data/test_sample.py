from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Picture

from tuyi.data.example import Example, Image, Text
from tuyi.data.sample import SampleInfo, leak_check, write_sample
from tuyi.data.sample.canvas import THEMES
from tuyi.data.sample.dialogues import goods, intents, small_talk, wordings, write_dialogue
from tuyi.data.sample.evidence import EVIDENCE, GROUNDS
from tuyi.data.sample.leak import core
from tuyi.data.sample.pictures import Recipe, make_recipe
from tuyi.data.sample.products import PRODUCTS
from tuyi.data.sample.scenes import SCENES
from tuyi.errors import ConfigError, FormatError, OutputError
from tuyi.task import load_tasks

ROWS, TEST_ROWS = 240, 72


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> SampleInfo:
    return write_sample(tmp_path_factory.mktemp("sample"), seed=3, train_rows=ROWS, test_rows=TEST_ROWS)


@pytest.fixture
def copy(written: SampleInfo, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written.train.parent, tmp_path / "copy"))


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return rows


def as_example(row: dict[str, Any], images: Path) -> Example:
    """The row as a reader of the competition's files gives it."""
    parts: list[Text | Image] = []
    pieces = row["instruction"].split("<image>")
    for at, piece in enumerate(pieces):
        parts += [Text(piece)] * bool(piece)
        if at + 1 < len(pieces):
            parts.append(Image(images / row["image"][at], row["image"][at]))
    return Example(row["id"], tuple(parts), label=row["output"] or None)


def plant(path: Path, change: Any) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


# the files


def test_rows_have_the_reference_layout(written: SampleInfo) -> None:
    train, test, labelled = (rows_of(path) for path in (written.train, written.test, written.labelled))
    assert (len(train), len(test), len(labelled)) == (ROWS, TEST_ROWS, TEST_ROWS) == (written.train_rows, 72, 72)
    for row in (*train, *labelled):
        assert list(row) == ["id", "instruction", "input", "output", "image"]
        assert row["instruction"].count("<image>") == len(row["image"]) <= 3
    assert [{**row, "output": ""} for row in labelled] == test
    assert len({row["id"] for row in (*train, *test)}) == ROWS + TEST_ROWS
    files = sorted(path.name for path in written.images.iterdir())
    assert files == sorted(name for row in (*train, *test) for name in row["image"])
    assert len(files) == written.pictures
    assert not any(label in name for name in files for label in (*SCENES, *intents()))


def test_every_row_is_asked_in_the_words_of_its_own_task(written: SampleInfo) -> None:
    tasks = load_tasks("www2025")
    found: Counter[tuple[str, str]] = Counter()
    for row in rows_of(written.train):
        assert row["input"] == ""
        example = as_example(row, written.images)
        task = tasks.of(example)
        prompt = task.ask(example)
        content = "".join(
            part.text if isinstance(part, Text) else "<image>" for turn in prompt.turns for part in turn
        )  # fmt: skip
        assert prompt.head + content + prompt.tail == row["instruction"]
        assert task.target(example) == row["output"]
        found[task.name, row["output"]] += 1
    assert len(found) == 24
    assert set(found.values()) == {ROWS // 24}
    assert {task for task, _ in found} == set(written.labels)


def test_pictures_open_as_jpeg_of_many_sizes(written: SampleInfo) -> None:
    sizes = set()
    for path in written.images.iterdir():
        with Picture.open(path) as picture:
            picture.load()
            assert (picture.format, picture.mode) == ("JPEG", "RGB")
            sizes.add(picture.size)
    assert len(sizes) > 100


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    first, same, other = (
        write_sample(tmp_path / name, seed=seed, train_rows=24, test_rows=24)
        for name, seed in (("first", 1), ("same", 1), ("other", 2))
    )
    names = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*") if path.is_file())
    assert len(names) == first.pictures + 4
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "same" / name).read_bytes(), name
    assert same.pictures == first.pictures
    assert first.train.read_bytes() != other.train.read_bytes()


# what is in them


def test_dialogues_have_turns_and_pictures_of_many_shapes() -> None:
    rng = random.Random(0)
    turns: Counter[int] = Counter()
    pictures: Counter[int] = Counter()
    for label in intents():
        for at in range(60):
            dialogue = write_dialogue(label, "train", at % 2 == 0, rng)
            lines = dialogue.text.split("\n")
            assert all(line.startswith(("用户: ", "客服: ")) for line in lines)
            assert dialogue.text.count("<image>") == len(dialogue.shows)
            assert not dialogue.wording.ambiguous or label in dialogue.shows
            turns[len(lines)] += 1
            pictures[len(dialogue.shows)] += 1
    assert set(turns) == set(range(2, 9))
    assert set(pictures) == {0, 1, 2, 3}


def test_an_ambiguous_sentence_belongs_to_several_labels(written: SampleInfo) -> None:
    owners = Counter(wording.id for label in intents() for wording in wordings(label, "test", True))
    assert len(owners) >= 5 * 6
    assert set(owners.values()) == {2, 3}
    rows = json.loads(written.manifest.read_text(encoding="utf-8"))["rows"].values()
    asked = [row["ambiguous"] for row in rows if row["task"] == "www2025-intent"]
    assert 0.35 < sum(asked) / len(asked) < 0.55


def test_text_alone_tells_the_plain_rows_and_not_the_ambiguous_ones() -> None:
    text = pytest.importorskip("sklearn.feature_extraction.text")
    svm = pytest.importorskip("sklearn.svm")
    rng = random.Random(0)

    def draw(part: Any, ambiguous: bool, count: int) -> tuple[list[str], list[str]]:
        labels = [label for label in intents() for _ in range(count)]
        return [write_dialogue(label, part, ambiguous, rng).text for label in labels], labels

    plain, mixed = draw("train", False, 30), draw("train", True, 22)
    grams = text.TfidfVectorizer(analyzer="char", ngram_range=(1, 2), sublinear_tf=True)
    model = svm.LinearSVC(C=1.0)
    model.fit(grams.fit_transform(plain[0] + mixed[0]), plain[1] + mixed[1])
    scores = {}
    for ambiguous in (False, True):
        texts, labels = draw("test", ambiguous, 12)
        scores[ambiguous] = model.score(grams.transform(texts), labels)
    assert scores[False] > 0.9
    assert scores[True] < 0.6


# training never saw the test


def test_no_wording_of_the_test_is_one_of_training() -> None:
    sides: dict[Any, set[str]] = {}
    for part, least in (("train", 14), ("test", 6)):
        texts = []
        for label in intents():
            for ambiguous in (False, True):
                found = wordings(label, part, ambiguous)
                assert len(found) >= least, (label, part)
                texts += [wording.text for wording in found]
        sides[part] = {core(each.replace("{p}", "")) for each in texts}
    assert len(sides["test"]) >= 100
    heard = "\n".join(sorted(sides["train"]))
    assert [each for each in sorted(sides["test"]) if each in heard] == []
    assert not {core(talk) for talk in small_talk()} & (sides["train"] | sides["test"])


def test_layouts_themes_and_things_of_the_test_are_its_own() -> None:
    assert len(SCENES) == len(EVIDENCE) == len(intents()) == 12
    assert set(EVIDENCE) == set(intents())
    for label, drawn in {**SCENES, **EVIDENCE}.items():
        assert len(drawn.train) >= 4, label
        assert len(drawn.test) >= 2, label
        assert [each for each in drawn.test if each in drawn.train] == [], label
    assert not {theme.accent for theme in THEMES["train"]} & {theme.accent for theme in THEMES["test"]}
    assert not set(PRODUCTS["train"]) & set(PRODUCTS["test"])
    assert not set(GROUNDS["train"]) & set(GROUNDS["test"])


def test_a_recipe_always_draws_the_same_picture() -> None:
    rng = random.Random(5)
    seen = set()
    for label in SCENES:
        recipe = make_recipe("scene", label, "test", rng)
        assert recipe.part == "test"
        assert recipe.draw().tobytes() == recipe.draw().tobytes()
        other = Recipe(recipe.layout, recipe.theme, "another seed")
        seen.add(recipe.draw().tobytes() == other.draw().tobytes())
    assert seen == {False}


def test_core_keeps_only_what_decides() -> None:
    assert core(" 亲,请问保温杯会漏水吗？？") == core("会漏水呀") == "会漏水"
    assert core("<image>") == ""
    assert len(goods()) > 60


def test_a_written_sample_is_clean(written: SampleInfo) -> None:
    report = leak_check(written.train.parent)
    assert report.clean, str(report)
    assert (report.train_rows, report.test_rows, report.pictures) == (ROWS, TEST_ROWS, written.pictures)
    assert report.sentences >= 25
    assert report.redrawn > TEST_ROWS
    assert str(report).endswith("no leak")


def test_a_planted_picture_is_found(copy: Path) -> None:
    train, test = rows_of(copy / "train.json")[0], rows_of(copy / "test.json")[0]
    shutil.copy(copy / "images" / test["image"][0], copy / "images" / train["image"][0])
    report = leak_check(copy)
    assert not report.clean
    assert f"picture {test['image'][0]} of the test is {train['image'][0]} of training" in report.leaks


def test_a_planted_sentence_is_found_though_goods_and_manners_differ(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    names = [row["wording"] for row in manifest["rows"].values() if row["part"] == "test" and row["wording"]]
    label, _, number = next(name for name in sorted(names) if "+" not in name).split("/")
    said = wordings(label, "test", False)[int(number)].text.replace("{p}", goods()[-1])

    def say(rows: list[dict[str, Any]]) -> None:
        row = next(row for row in rows if "START>" in row["instruction"])
        row["instruction"] = row["instruction"].replace("START>\n", f"START>\n用户: 老板，{said}呢！\n")

    plant(copy / "train.json", say)
    leaks = leak_check(copy).leaks
    assert len(leaks) == 1
    assert "sentence" in leaks[0]
    assert leaks[0].endswith("is in training")


def test_a_manifest_that_lies_is_found(copy: Path) -> None:
    def relabel(manifest: dict[str, Any]) -> None:
        rows = manifest["rows"]
        picture = next(name for name in manifest["pictures"] if rows[name[:6]]["part"] == "test")
        manifest["pictures"][picture]["seed"] = "0"
        row = next(row for row in rows.values() if row["part"] == "test" and row["wording"])
        row["wording"] = wordings("气泡" if "气泡" not in row["wording"] else "商品规格", "test", False)[0].id

    plant(copy / "manifest.json", relabel)
    leaks = leak_check(copy).leaks
    assert len(leaks) == 2
    assert "the dialogue does not say it" in leaks[0]
    assert "is not the drawing of" in leaks[1]


def test_a_layout_of_the_test_in_training_is_found(copy: Path) -> None:
    rows = rows_of(copy / "train.json")
    recipe = make_recipe("scene", "购物车页面", "test", random.Random(0))
    recipe.draw().save(copy / "images" / rows[0]["image"][0])
    plant(
        copy / "manifest.json",
        lambda manifest: manifest["pictures"][rows[0]["image"][0]].update(
            layout=recipe.layout, theme=recipe.theme, seed=recipe.seed
        ),
    )
    leaks = leak_check(copy).leaks
    assert f"theme {recipe.theme} is on both sides" in leaks
    assert all("is on both sides" in leak for leak in leaks)


def test_a_test_row_that_asks_nothing_is_found(copy: Path) -> None:
    head, tail = load_tasks("www2025")["www2025-intent"].wording

    def silence(rows: list[dict[str, Any]]) -> None:
        row = next(row for row in rows if row["instruction"].startswith(head))
        row["instruction"] = f"{head}用户: 在吗\n客服: 在的{tail}"

    plant(copy / "test.json", silence)
    assert any("no customer turn but small talk" in leak for leak in leak_check(copy).leaks)


# what cannot be written or checked


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="expected a new or empty folder for the sample; remove it or choose another"):
        write_sample(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("keep")
    with pytest.raises(OutputError, match="taken: the sample cannot be written"):
        write_sample(tmp_path / "taken")


@pytest.mark.parametrize("name", ["train_rows", "test_rows"])
def test_fewer_rows_than_labels_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: expected at least 24, one a label, found 23"):
        write_sample(tmp_path / "out", **{name: 23})
    assert not (tmp_path / "out").exists()


def test_a_sample_without_its_files_cannot_be_checked(copy: Path) -> None:
    (copy / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(FormatError, match=r"manifest\.json: expected JSON as the sample is written"):
        leak_check(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(FormatError, match=r"manifest\.json: expected a file of the sample, found none"):
        leak_check(copy)


def test_a_sample_with_parts_missing_cannot_be_checked(copy: Path) -> None:
    row = rows_of(copy / "test.json")[0]
    (copy / "images" / row["image"][0]).unlink()
    with pytest.raises(FormatError, match=f"{row['image'][0]}: expected a picture of the sample, found none"):
        leak_check(copy)
    plant(copy / "manifest.json", lambda manifest: manifest["pictures"].pop(row["image"][0]))
    with pytest.raises(FormatError, match=f"expected every picture of the sample, found no {row['image'][0]}"):
        leak_check(copy)
    plant(copy / "manifest.json", lambda manifest: manifest["rows"].pop(row["id"]))
    with pytest.raises(FormatError, match=f"expected every row of the sample, found none with id {row['id']}"):
        leak_check(copy)
