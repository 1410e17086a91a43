from __future__ import annotations

import re
from pathlib import Path

import pytest

from tuyi.data.example import Example, Image, Text
from tuyi.distill.drafts import RationalizeSettings
from tuyi.distill.reason_checks import CHECKS
from tuyi.distill.reasons import reason_row, reason_task, reason_templates, support_row, support_task
from tuyi.errors import ConfigError, TaskError
from tuyi.task import load_tasks
from tuyi.task.catalog import TaskSet, parse_tasks
from tuyi.task.task import Task

INTENT = "你是一个电商客服专家…\n<用户与客服的对话 START>\n用户: {0}\n客服: 亲\n用户: 漏水\n<用户与客服的对话 END>\n请…"
PICTURE = Image(Path("a.jpg"))


def text_of(task: Task, row: Example) -> str:
    return "".join(part.text if isinstance(part, Text) else "[picture]" for part in task.ask(row).parts())


def test_a_dialogue_is_asked_for_its_reason_and_checked_without_its_label():
    tasks = load_tasks("www2025")
    task, template = tasks["www2025-intent"], reason_templates(tasks)["www2025-intent"]
    row = Example("x", (Text(INTENT.format("你好")), PICTURE, Text("")), label="反馈密封性不好")
    asked, one = reason_task(task, template), reason_row(task, template, row, "反馈密封性不好")
    said = text_of(asked, one)
    assert "用户: 你好\n客服: 亲\n用户: 漏水" in said
    assert "反馈密封性不好：买家反馈商品密封性差会漏" in said
    assert "标签是「反馈密封性不好」" in said
    assert "不超过50个字" in said
    assert (asked.labels, asked.budget, asked.turn) == (None, task.budget, task.turn)
    assert [len(turn) for turn in asked.ask(one).turns] == [1, 1, 1], "turns are cut as in the task"
    checked = support_task(task, template)
    said = text_of(checked, support_row(task, template, row, "<image> {x} 「漏」"))
    assert "的分析：<image> {x} 「漏」" in said
    assert "标签是「" not in said
    assert checked.labels == task.labels
    assert checked.answer.is_plain


def test_a_picture_stands_in_its_place():
    tasks = load_tasks("www2025")
    task, template = tasks["www2025-scene"], reason_templates(tasks)["www2025-scene"]
    content = (Text("Picture 1: "), PICTURE, Text("\n你是一个电商领域识图专家,…分类标签:[…]。"))
    one = reason_row(task, template, Example("x", content, label="支付页面"), "支付页面")
    assert "Picture 1: [picture]\n这张图片的分类标签是「支付页面」" in text_of(reason_task(task, template), one)
    assert one.images == (PICTURE,)


def two(prompt: str = "{content}") -> Task:
    one = {"name": "mine", "prompt": prompt, "labels": {"a": "first {", "b": ""}}
    (task,) = parse_tasks({"name": "mine", "tasks": [one]}, "test")
    return task


def alone(task: Task) -> TaskSet:
    return TaskSet(name="mine", tasks=(task,))


def test_other_tasks_have_a_template_in_their_language():
    for prompt, expected in (("{content} which?", "Its label is"), ("{content} 哪个", "它的分类标签是")):
        task = two(prompt)
        template = reason_templates(alone(task))["mine"]
        said = text_of(reason_task(task, template), reason_row(task, template, Example("x", (Text("hi"),)), "a"))
        assert expected in said
        assert "a：first {\nb\n" in said


def test_own_templates(tmp_path: Path):
    file = tmp_path / "reasons.yaml"
    task = two()
    file.write_text("mine:\n  max_characters: 9\n  ask: 'See {content} is {label} ({definition}), {max_characters}.'\n")
    template = reason_templates(alone(task), file)["mine"]
    row = Example("x", (Text("hi"),))
    assert text_of(reason_task(task, template), reason_row(task, template, row, "a")) == "See hi is a (first {), 9."
    assert "Somebody said of it: why" in text_of(support_task(task, template), support_row(task, template, row, "why"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("other:\n  ask: x", r"expected templates for mine; found one for 'other'"),
        (
            "mine:\n  ask: '{label} {content}'",
            r"mine: 1 problem\n  ReasonTemplate: ask: expected \{label\} behind \{content\}",
        ),
        ("mine:\n  ask: '{content}'", r"ask: expected \{label\} once, found it 0 times"),
        ("mine:\n  check: '{content} {label} {reason}'", r"check: unknown field \{label\}, expected \{content\}"),
        ("mine:\n  check: '{content} {reason} {'", r"check: .*write a literal brace twice"),
        ("mine:\n  max_character: 3", r"max_character: unknown setting; did you mean 'max_characters'\?"),
        ("- 1", "expected a mapping of task names to templates"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_templates_that_are_wrong(tmp_path: Path, text: str, found: str):
    file = tmp_path / "reasons.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=found):
        reason_templates(alone(two()), file)


def test_what_cannot_have_reasons(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nothing\.yaml do not exist"):
        reason_templates(alone(two()), tmp_path / "nothing.yaml")
    with pytest.raises(TaskError, match="task chat answers with open text"):
        reason_templates(load_tasks("chat"))


@pytest.mark.parametrize("page", ["docs/distillation.md", "docs/zh/distillation.md"])
def test_the_template_in_the_documentation_is_one(tmp_path: Path, page: str):
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    (example,) = re.findall(r"```text\n(returns:\n.*?)```", text, re.DOTALL)
    file = tmp_path / "reasons.yaml"
    file.write_text(example)
    one = {"name": "returns", "prompt": "{content}", "labels": {"broken": "does not work", "other": ""}}
    tasks = parse_tasks({"name": "returns", "tasks": [one]}, "test")
    assert reason_templates(tasks, file)["returns"].max_characters == 120


@pytest.mark.parametrize("page", ["docs/distillation.md", "docs/zh/distillation.md"])
def test_the_documentation_says_every_check_and_setting(page: str):
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    settings = RationalizeSettings()
    for name in (*RationalizeSettings.model_fields, *CHECKS):
        assert f"`{name}`" in text
    for said in (f"alike_kept` = {settings.checks.alike_kept}", f"{settings.checks.alike_at:.0%}".replace("%", " %")):
        assert said in text
    assert settings.checks.repeats_at == 0.75, "three quarters"
