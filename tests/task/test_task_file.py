"""Task files: everything that is wrong at once, where it is wrong, and what was meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tuyi.data.example import Example, Text, Turn
from tuyi.errors import OutputError, TaskError
from tuyi.task import TaskSet, builtin_names, load_tasks
from tuyi.task.new import write_task

GOOD = """
name: fruit
labels: {apple: round, banana: long}
prompt: "{{braces}} {content}? {labels}"
recognise: [fruit stall]
budget: {max_tokens: 99}
"""


def task_file(folder: Path, text: str, name: str = "fruit.yaml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_a_single_task_is_a_set_of_one(tmp_path: Path):
    tasks = load_tasks(task_file(tmp_path, "\ufeff" + GOOD))
    assert tasks.name == "fruit"
    task = tasks["fruit"]
    assert task.wording == ("{braces} ", '? ["apple","banana"]')
    assert task.budget.max_tokens == 99
    assert task.budget.max_pixels == 1_003_520
    assert tasks.of(Example(id="1", content=(Text("whatever"),))) is task, "a lone task takes every row"
    assert TaskSet.model_validate_json(tasks.model_dump_json()) == tasks


def test_definitions_have_a_place_of_their_own(tmp_path: Path):
    text = GOOD.replace("{labels}", "{definitions}")
    assert load_tasks(task_file(tmp_path, text))["fruit"].wording[1] == "? apple：round\nbanana：long"
    text = text.replace("round", "''")
    assert load_tasks(task_file(tmp_path, text))["fruit"].wording[1] == "? apple\nbanana：long", "nothing to define"


def test_every_problem_is_told_with_its_path(tmp_path: Path):
    text = """
    name: set
    tasks:
      - name: a b
        lables: [x, y]
        labels: [x]
        budget: {max_token: 5, min_pixels: 0}
      - name: ok
        labels: [x, y]
        prompt: no content
    """
    with pytest.raises(TaskError) as caught:
        load_tasks(task_file(tmp_path, text))
    message = str(caught.value)
    assert message.splitlines()[0].endswith("fruit.yaml: 6 problems")
    for line in (
        "tasks.0.name: String should match pattern",
        "tasks.0.lables: unknown setting; did you mean 'labels'?",
        "tasks.0.labels: a task needs at least 2 labels, found 1",
        "tasks.0.budget.max_token: unknown setting; did you mean 'max_tokens'?",
        "tasks.0.budget.min_pixels: Input should be greater than 0; found 0",
        "tasks.1: prompt: expected {content} once, found it 0 times",
    ):
        assert f"  {line}" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("{content}?", "{content} {row}"), r"prompt: unknown field \{row\}, expected \{content\}, \{labels\}"),
        (("{content}?", "{content} {content}"), r"expected \{content\} once, found it 2 times"),
        (("{{braces}}", "{"), r"prompt: .*write a literal brace twice"),
        (("recognise:", "turn: '('\nrecognise:"), r"turn: not a regular expression: missing \)"),
        (("max_tokens: 99", "min_pixels: 9999999"), r"min_pixels 9999999 is larger than max_pixels 1003520"),
        (("name: fruit", "name: ''"), r"tasks.0.name: String should have at least 1 character"),
        (("labels: {", "labels: {2: two, two words: '', '2': twice, "), r"are the same label"),
        ((GOOD, "- a\n- b"), r"expected a mapping with name, labels, prompt, …; found list"),
        ((GOOD, "name: [unclosed"), r"fruit.yaml: not YAML"),
        ((GOOD, ""), r"expected a mapping with name, labels, prompt, …; found NoneType"),
        ((GOOD, "name: x\ntasks: []"), r"a task set needs at least one task"),
        ((GOOD, "name: x\ntasks: nothing"), r"tasks: .*found 'nothing'"),
        ((GOOD, "name: x\ntasks: [nothing]"), r"tasks.0: .*found 'nothing'"),
    ],
)
def test_wrong_task_files(tmp_path: Path, change: tuple[str, str], message: str):
    assert change[0] in GOOD
    with pytest.raises(TaskError, match=message):
        load_tasks(task_file(tmp_path, GOOD.replace(*change)))


def test_two_tasks_of_one_name(tmp_path: Path):
    one = "{name: a, labels: [x, y]}"
    with pytest.raises(TaskError, match="two tasks have the same name: a, a"):
        load_tasks(task_file(tmp_path, f"name: s\ntasks: [{one}, {one}]"))


def test_files_that_are_not_there(tmp_path: Path):
    with pytest.raises(TaskError, match=r"task file .*no.yaml does not exist; `tuyi task new .*no.yaml` writes one"):
        load_tasks(tmp_path / "no.yaml")
    with pytest.raises(TaskError, match=r"task 'nothing' is neither built in \(.*www2025-prefix\) nor a .yaml file"):
        load_tasks("nothing")
    (tmp_path / "latin.yaml").write_bytes("name: caf\xe9".encode("latin-1"))
    with pytest.raises(TaskError, match=r"latin.yaml cannot be read as UTF-8"):
        load_tasks(tmp_path / "latin.yaml")


def test_overrides_reach_every_task():
    tasks = load_tasks("www2025", ["budget.max_pixels=200704", "define=true"])
    assert [(task.budget.max_pixels, task.define) for task in tasks] == [(200_704, True)] * 2
    with pytest.raises(TaskError, match=r"tasks.1.budget.max_pixel: unknown setting; did you mean 'max_pixels'"):
        load_tasks("www2025", ["budget.max_pixel=1"])


def test_a_row_finds_its_task(tasks: TaskSet):
    one = Example(id="7", content=(Text("x"),), task="shape")
    assert tasks.of(one).name == "shape"
    with pytest.raises(TaskError, match="id 7: the row names task 'shap', expected one of colour, shape, talk"):
        tasks.of(Example(id="7", content=(Text("x"),), task="shap"))
    with pytest.raises(
        TaskError, match=r"id 7: the row matches none of the tasks .*add one, name the task in a `task`"
    ):
        tasks.of(Example(id="7", content=(Text("x"),)))
    with pytest.raises(TaskError, match="expected one of the tasks colour, shape, talk, found 'x'"):
        tasks["x"]


def test_a_row_that_fits_two_tasks(tmp_path: Path):
    one = "{{name: {}, labels: [x, y], recognise: [{}]}}"
    text = f"name: s\ntasks: [{one.format('a', 'colour')}, {one.format('b', 'our')}]"
    tasks = load_tasks(task_file(tmp_path, text))
    assert tasks.of(Example(id="1", content=(Text("your"),))).name == "b"
    with pytest.raises(TaskError, match=r"matches several tasks \(a, b\); make their `recognise` texts distinct"):
        tasks.of(Example(id="1", content=(Text("which colour"),)))


def test_the_system_prompt_yields_to_the_rows_own(tmp_path: Path):
    task = load_tasks(task_file(tmp_path, GOOD + "system: be brief\n"))["fruit"]
    plain = Example(id="1", content=(Text("x"),), history=(Turn("user", (Text("earlier"),)),))
    assert [turn.role for turn in task.ask(plain).history] == ["system", "user"]
    assert task.ask(plain).history[0].parts == (Text("be brief"),)
    own = Example(id="1", content=(Text("x"),), history=(Turn("system", (Text("mine"),)),))
    assert task.ask(own).history == own.history


def test_built_in_tasks_are_sound():
    assert builtin_names() == ["chat", "www2025", "www2025-prefix"]
    for name in builtin_names():
        assert load_tasks(name).tasks


def test_a_new_task_file_is_sound(tmp_path: Path):
    file = tmp_path / "my task.yaml"
    assert write_task(file) == 2
    task = load_tasks(file)["my-task"]
    assert task.labels is not None
    assert task.labels.names == ("first label", "second label")
    with pytest.raises(OutputError, match=r"my task.yaml exists; choose another name or remove it"):
        write_task(file)


def test_a_new_task_file_lists_the_labels_of_the_data(tmp_path: Path):
    awkward = ["是", "no", "a: b", "'quoted'", "# hash", "{brace}", "null", "1.0", "two\nlines", "very " * 40 + "long"]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": "x", "label": label}) + "\n" for label in awkward), encoding="utf-8")
    assert write_task(tmp_path / "t.yaml", data) == len(awkward)
    labels = load_tasks(tmp_path / "t.yaml")["t"].labels
    assert labels is not None
    assert sorted(labels.names) == sorted(label.strip() for label in awkward)
