"""The prefix layout: all that is fixed stands in front of the row, and the row is still found where it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from tuyi.data import convert, read
from tuyi.data.example import Example, Image, Part, Text
from tuyi.errors import TaskError
from tuyi.model.folder import FolderInfo, read_info, write_info
from tuyi.task import Task, TaskSet, load_tasks
from tuyi.task.catalog import parse_tasks
from tuyi.task.new import write_task

SCENE = (
    "Picture 1: <image>\n你是一个电商领域识图专家,可以理解消费者上传的软件截图或实物拍摄图。"
    '现在,请你对消费者上传的图片进行分类。你只需要回答图片分类结果,不需要其他多余的话。以下是可以参考的分类标签,分类标签:["商品头图","支付页面"]。'
)
INTENT = (
    "你是一个电商客服专家，请根据用户与客服的多轮对话判断用户的意图分类标签。\n<用户与客服的对话 START>\n"
    "用户: <image>\n用户: {said}\n客服: 您好\n<用户与客服的对话 END>\n"
    '请直接只输出分类标签结果，不需要其他多余的话。以下是可以参考的分类标签为：["是否好用","气泡"]\n'
)
NAMES = ("www2025-intent", "www2025-scene")


@pytest.fixture(scope="module")
def prefix() -> TaskSet:
    return load_tasks("www2025-prefix")


def rows(folder: Path, picture: Any) -> Path:
    """The challenge's own rows: two dialogues and two pictures."""
    (folder / "images").mkdir()
    for number in range(4):
        (folder / "images" / f"{number}.png").write_bytes(picture(56, 56, seed=number).source)
    texts = [INTENT.replace("{said}", "好用吗"), INTENT.replace("{said}", "有气泡怎么办"), SCENE, SCENE]
    labels = ["是否好用", "气泡", "商品头图", "支付页面"]
    value = [
        {"id": str(n), "instruction": text, "input": "", "output": label, "image": [f"{n}.png"]}
        for n, (text, label) in enumerate(zip(texts, labels))
    ]
    file = folder / "train.json"
    file.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return file


def spelled(parts: tuple[Part, ...]) -> str:
    return "".join(part.text if isinstance(part, Text) else "<media>" for part in parts)


def common(one: Sequence[Any], two: Sequence[Any]) -> list[Any]:
    """What both begin with."""
    return [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, two))]


def fixed(task: Task) -> str:
    """Every label with its definition."""
    assert task.labels is not None
    return "\n".join(f"{label.name}：{label.definition}" for label in task.labels.labels)


def test_the_tasks_are_those_of_www2025_but_for_the_prompt(prefix: TaskSet):
    plain = load_tasks("www2025")
    assert [task.name for task in prefix] == [task.name for task in plain] == list(NAMES)
    for one, other in zip(prefix, plain):
        changed = {key for key, value in one.model_dump().items() if value != other.model_dump()[key]}
        assert changed == {"about", "prompt"}


@pytest.mark.parametrize("name", NAMES)
def test_rows_share_all_that_is_fixed(prefix: TaskSet, tmp_path: Path, picture: Any, name: str):
    one, two = (row for row in read(rows(tmp_path, picture)) if prefix.of(row).name == name)
    shared = common(*(spelled(prefix[name].ask(row).parts()) for row in (one, two)))
    head, tail = prefix[name].wording
    assert "".join(shared).startswith(head)
    assert fixed(prefix[name]) in head
    assert tail.splitlines()[-1] == "分类标签："
    assert len(tail) < 24, "no more than a closing line behind the row"


@pytest.mark.parametrize("name", NAMES)
def test_the_tokens_are_shared_too(prefix: TaskSet, tmp_path: Path, picture: Any, name: str):
    from tuyi.encode.encoder import Encoder
    from tuyi.model.load import load_frontend

    frontend = load_frontend("builtin:tiny", [SCENE, INTENT, *(task.wording[0] for task in prefix)])
    encoder = Encoder(frontend.tokenizer, frontend.spec, prefix)
    found = [row for row in read(rows(tmp_path, picture)) if prefix.of(row).name == name]
    one, two = (encoder.encode(row, labelled=False).ids.tolist() for row in found)
    shared = common(one, two)
    assert frontend.tokenizer.decode(shared).partition("<|im_start|>user\n")[2].startswith(prefix[name].wording[0])
    assert len(one) < 2 * len(shared), "a short row is mostly prefix"


@pytest.mark.parametrize("format", [None, "competition", "sharegpt", "messages"])
def test_the_content_is_found_in_the_challenges_own_wording(prefix: TaskSet, tmp_path: Path, picture: Any, format: Any):
    file = rows(tmp_path, picture)
    if format is not None:
        file = convert(file, tmp_path / ("out.jsonl" if format == "messages" else "out.json"), format).out
    found = list(read(file))
    assert [prefix.of(row).name for row in found] == [NAMES[0], NAMES[0], NAMES[1], NAMES[1]]
    dialogue, _, scene, _ = (prefix.of(row).ask(row) for row in found)
    assert [spelled(turn) for turn in dialogue.turns] == ["用户: <media>\n", "用户: 好用吗\n", "客服: 您好"]
    assert spelled(scene.turns[0]) == "<media>"
    for row in found:
        plain, asked = load_tasks("www2025").of(row).ask(row), prefix.of(row).ask(row)
        assert (asked.turns, asked.history) == (plain.turns, plain.history)
        assert spelled(asked.parts()).count("你是一个电商") == 1
        assert prefix.of(row).target(row) == row.label


def test_a_bare_row_is_asked_alike(prefix: TaskSet):
    bare = Example(id="1", content=(Image(b"1", "a.jpg"),), task="www2025-scene")
    assert spelled(prefix.of(bare).ask(bare).parts()).endswith("\nPicture 1: <media>\n分类标签：")


def test_a_model_folder_keeps_the_layout(prefix: TaskSet, tmp_path: Path):
    assert parse_tasks(prefix.model_dump(mode="json"), "dump") == prefix
    write_info(tmp_path, FolderInfo(tasks=prefix, base_model="b"))
    info = read_info(tmp_path)
    assert info is not None
    assert info.tasks == prefix
    assert [task.wording for task in info.tasks] == [task.wording for task in prefix]


def test_settings_and_single_tasks_reach_an_extended_set():
    (task,) = load_tasks("www2025-prefix/www2025-scene", ["budget.max_pixels=200704"])
    assert (task.name, task.budget.max_pixels, task.budget.max_tokens) == ("www2025-scene", 200_704, 8192)


def test_a_file_can_extend_a_built_in_task(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nextends: www2025/www2025-scene\ndefine: true\n", encoding="utf-8")
    plain, mine = load_tasks("www2025")["www2025-scene"], load_tasks(file)["mine"]
    assert mine == plain.model_copy(update={"name": "mine", "define": True})
    file.write_text("name: two\nextends: www2025\ntasks: [{name: www2025-scene, labels: [甲, 乙]}]\n", encoding="utf-8")
    (task,) = load_tasks(file)
    assert task.labels is not None
    assert (task.labels.names, task.prompt) == (("甲", "乙"), plain.prompt)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "extends: other",
            r"expected a built-in set \(chat, www2025, www2025-prefix\) or .*, found 'other'",
        ),
        ("extends: mine.yaml", r"expected a built-in set .*, found 'mine.yaml'"),
        ("extends: [www2025]", r"expected a built-in set .*, found \['www2025'\]"),
        ("extends: www2025/x", r"www2025 has no task 'x'"),
        ("extends: www2025\ndefine: true", r"has the tasks www2025-intent, www2025-scene; name one .* www2025/NAME"),
        ("extends: www2025\ntasks: [{name: x}]", r"extends: www2025 has the tasks .*-scene, found 'x'"),
        ("extends: www2025\ntasks: [{define: true}]", r"extends: www2025 has the tasks .*-scene, found None"),
        (
            "name: x\ntasks: [{name: y, extends: www2025/y}]",
            r"extends: expected once, at the top .* task 'y': 'www2025/y'",
        ),
        ("extends: www2025\ntasks: nothing", r"tasks: .*found 'nothing'"),
        ("extends: www2025\ntasks: [{name: www2025-scene, lables: 1}]", r"tasks.0.lables: unknown .*did you mean 'lab"),
    ],
)
def test_wrong_extensions(tmp_path: Path, text: str, message: str):
    file = tmp_path / "mine.yaml"
    file.write_text(f"name: mine\n{text}\n", encoding="utf-8")
    with pytest.raises(TaskError, match=message):
        load_tasks(file)


def test_a_new_task_file_with_the_prefix_first(tmp_path: Path):
    assert write_task(tmp_path / "t.yaml", layout="prefix") == 2
    task = load_tasks(tmp_path / "t.yaml")["t"]
    head, tail = task.wording
    assert head.endswith("\nfirst label\nsecond label\n\n")
    assert tail == "\nLabel:"
