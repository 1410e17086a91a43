"""The built-in reference task: its rows are recognised, unwrapped and asked again in their own words."""

from __future__ import annotations

import pytest

from tuyi.data.example import Example, Image, Part, Text
from tuyi.errors import TaskError
from tuyi.task import TaskSet, load_tasks

PICTURE, SECOND = Image(b"1", "a.jpg"), Image(b"2", "b.jpg")

# the wording of the competition's train.json, the middle of its label lists left in by the test
SCENE = (
    "Picture 1: ",
    "\n你是一个电商领域识图专家,可以理解消费者上传的软件截图或实物拍摄图。现在,请你对消费者上传的图片进行分类。"
    "你只需要回答图片分类结果,不需要其他多余的话。以下是可以参考的分类标签,分类标签:[{labels}]。",
)
INTENT = (
    "你是一个电商客服专家，请根据用户与客服的多轮对话判断用户的意图分类标签。\n<用户与客服的对话 START>\n",
    "\n<用户与客服的对话 END>\n请直接只输出分类标签结果，不需要其他多余的话。以下是可以参考的分类标签为：[{labels}]\n",
)


@pytest.fixture(scope="module")
def www2025() -> TaskSet:
    return load_tasks("www2025")


def row(wording: tuple[str, str], labels: tuple[str, ...], *content: Part) -> Example:
    listed = ",".join(f'"{name}"' for name in labels)
    head, tail = (text.replace("{labels}", listed) for text in wording)
    parts = [Text(head), *content, Text(tail)]
    return Example(id="1", content=tuple(parts))


def dialogue(www2025: TaskSet) -> Example:
    labels = www2025["www2025-intent"].labels
    assert labels is not None
    return row(
        INTENT,
        labels.names,
        Text("用户: "),
        PICTURE,
        Text("\n用户: 这个好用吗\n客服: 您好 "),
        SECOND,
        Text("\n用户：在吗"),
    )


def test_label_counts_and_definitions(www2025: TaskSet):
    intent, scene = www2025
    assert (intent.name, scene.name) == ("www2025-intent", "www2025-scene")
    assert intent.labels is not None
    assert scene.labels is not None
    assert (len(intent.labels), len(scene.labels)) == (23, 25)
    assert all(label.definition for task in www2025 if task.labels for label in task.labels.labels)
    assert "下单过程中出现异常（显示购买失败浮窗）" in scene.labels.names, "the data write it with full-width brackets"
    assert scene.labels.canonical("下单过程中出现异常(显示购买失败浮窗)") == "下单过程中出现异常（显示购买失败浮窗）"
    assert scene.labels.canonical("实物拍摄（含售后）") == "实物拍摄(含售后)"


def test_rows_are_recognised_by_their_prompts(www2025: TaskSet):
    scene = row(SCENE, ("x",), PICTURE)
    assert www2025.of(scene).name == "www2025-scene"
    assert www2025.of(dialogue(www2025)).name == "www2025-intent"
    assert www2025.of(Example(id="1", content=(PICTURE,), task="www2025-scene")).name == "www2025-scene"


def test_a_scene_row_asked_again_is_the_same(www2025: TaskSet):
    scene = www2025["www2025-scene"]
    assert scene.labels is not None
    example = row(SCENE, scene.labels.names, PICTURE)
    prompt = scene.ask(example)
    assert prompt.turns == ((PICTURE,),)
    assert prompt.parts() == example.content


def test_an_intent_row_asked_again_is_the_same(www2025: TaskSet):
    example = dialogue(www2025)
    intent = www2025["www2025-intent"]
    prompt = intent.ask(example)
    joined = "".join(part.text if isinstance(part, Text) else part.name for part in example.content)
    asked = "".join(part.text if isinstance(part, Text) else part.name for part in prompt.parts())
    assert asked == joined
    assert [part for part in prompt.parts() if isinstance(part, Image)] == [PICTURE, SECOND]
    assert len(prompt.turns) == 4
    assert prompt.turns[-1] == (Text("用户：在吗"),)
    assert prompt.parts(3)[0] == Text(INTENT[0] + "用户：在吗" + prompt.tail)


def test_bare_content_is_taken_whole(www2025: TaskSet):
    bare = Example(id="1", content=(Text("用户: 会生锈吗"),), task="www2025-intent")
    prompt = www2025["www2025-intent"].ask(bare)
    assert prompt.turns == ((Text("用户: 会生锈吗"),),)
    assert "会生锈吗\n<用户与客服的对话 END>" in "".join(part.text for part in prompt.parts() if isinstance(part, Text))


def test_one_task_of_the_set():
    one = load_tasks("www2025/www2025-scene")
    assert [task.name for task in one] == ["www2025-scene"]
    with pytest.raises(TaskError, match="www2025 has no task 'www2025-x'"):
        load_tasks("www2025/www2025-x")


def test_definitions_can_be_added():
    plain, defined = load_tasks("www2025/www2025-intent"), load_tasks("www2025/www2025-intent", ["define=true"])
    (head, tail), (head_defined, tail_defined) = plain.tasks[0].wording, defined.tasks[0].wording
    assert head == head_defined
    assert "咨询商品功效功能" not in tail
    lines = tail_defined.splitlines()
    assert lines.count("功效功能：咨询商品功效功能") == 1
    assert len(lines) == len(tail.splitlines()) + 23
