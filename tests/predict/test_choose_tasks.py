"""Which tasks a prediction run asks, and with which budgets."""

from __future__ import annotations

import pytest

from tuyi.errors import TaskError
from tuyi.model.folder import FolderInfo
from tuyi.model.tasks import choose_tasks, with_budget
from tuyi.task.catalog import TaskSet, load_tasks, parse_tasks


@pytest.fixture
def info(tasks: TaskSet) -> FolderInfo:
    return FolderInfo(tasks=tasks, base_model="b")


def changed(tasks: TaskSet, **values: object) -> TaskSet:
    value = tasks.model_dump(mode="json")
    value["tasks"][0].update(values)
    return parse_tasks(value, "changed")


def test_the_models_own_task_is_asked(tasks: TaskSet, info: FolderInfo):
    assert choose_tasks("m", info, None) is tasks
    some = TaskSet(name="one", tasks=(tasks["shape"],))
    assert choose_tasks("m", info, some) == some


def test_a_model_without_a_task_needs_one(tasks: TaskSet):
    with pytest.raises(TaskError, match=r"m has no task of its own \(no tuyi.json in it\); say which labels .* --task"):
        choose_tasks("m", None, None)
    assert choose_tasks("m", None, tasks) is tasks
    assert choose_tasks("m", None, "www2025") == load_tasks("www2025")


def test_another_task_than_taught(tasks: TaskSet, info: FolderInfo):
    with pytest.raises(
        TaskError, match="m was taught colour, shape, talk, --task says www2025-intent; leave --task out"
    ):
        choose_tasks("m", info, "www2025")
    with pytest.raises(
        TaskError, match="m was taught colour with other labels or another answer format than --task says"
    ):
        choose_tasks("m", info, changed(tasks, labels=["A", "B"]))
    with pytest.raises(TaskError, match="another answer format"):
        choose_tasks("m", info, changed(tasks, answer="reason"))
    reworded = changed(tasks, prompt="other words {content}", budget={"max_tokens": 77})
    assert choose_tasks("m", info, reworded) is reworded, "wording and budgets may differ"


def test_budgets_can_be_replaced(tasks: TaskSet):
    assert with_budget(tasks, None) is tasks
    assert with_budget(tasks, {}) is tasks
    smaller = with_budget(tasks, {"max_pixels": 2048, "max_tokens": 99})
    assert [(one.budget.max_pixels, one.budget.max_tokens) for one in smaller] == [(2048, 99)] * 3
    assert [one.budget.video_fps for one in smaller] == [5.0] * 3, "the others stay"
    assert [one.labels for one in smaller] == [one.labels for one in tasks]
    with pytest.raises(
        TaskError, match=r"budget: 6 problems\n  tasks.0.budget.max_tokens: .*greater than 0; found 0"
    ) as caught:
        with_budget(tasks, {"max_pixel": 5, "max_tokens": 0})
    assert "tasks.2.budget.max_pixel: unknown setting; did you mean 'max_pixels'?" in str(caught.value)
