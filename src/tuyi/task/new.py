"""A task file to start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, TypeAlias

import yaml

from tuyi.errors import DataError, OutputError
from tuyi.task.catalog import load_tasks

__all__ = ["Layout", "write_task"]

Layout: TypeAlias = Literal["content", "prefix"]

_TEMPLATE = """\
# A task for tuyi: which question is asked, and which answers there are.
name: {name}
about: ""

# The possible answers, in the order in which the prompt lists them. The text after a label says what it means.
labels:
{labels}
# {{content}} is the row (its text and pictures in order), {{labels}} the list above, {{definitions}} a line per label.
{prompt}

# label: the label alone. reason: a reason, then the label, as JSON.
answer: label

# How much of a row the model may see.
budget:
  max_tokens: 8192
  max_pixels: 1003520
"""

_PROMPTS: dict[Layout, str] = {
    "content": """\
prompt: |
  {content}
  Choose the one label that fits. Answer with the label alone. The labels are: {labels}

# Whether {labels} also brings what each label means.
define: false""",
    "prefix": """\
# Keep all that is fixed in front of {content}: rows share it, and it is computed once for many of them.
prompt: |-
  Choose the one label that fits what follows. Answer with the label alone. The labels are:
  {definitions}

  {content}
  Label:""",
}


def write_task(file: Path, data: Path | None = None, layout: Layout = "content") -> int:
    """Write a task file to start from.

    Args:
        file: The YAML file.
        data: Labelled rows whose labels it lists, sorted; without them it lists two examples.
        layout: What its prompt puts first: the row's ``content``, or as a ``prefix`` that all rows share the
            instruction and the labels with their definitions.

    Returns:
        How many labels it lists.

    Raises:
        OutputError: ``file`` exists.
        DataError: ``data`` has fewer than two labels.
    """
    if file.exists():
        raise OutputError(f"{file} exists; choose another name or remove it")
    labels = ["first label", "second label"]
    if data is not None:
        from tuyi.data import read

        labels = sorted({row.label.strip() for row in read(data) if row.label})
        if len(labels) < 2:
            raise DataError(f"{data} has {len(labels)} different labels; a task needs at least 2")
    listed = "".join(f"  {_key(label)}: ''\n" for label in labels)
    name = "".join(character if character.isalnum() or character in "_.-" else "-" for character in file.stem)
    file.write_text(_TEMPLATE.format(name=name, labels=listed, prompt=_PROMPTS[layout]), encoding="utf-8")
    load_tasks(file)
    return len(labels)


def _key(label: str) -> str:
    """A label as a YAML key on one line."""
    plain = yaml.safe_dump(label, allow_unicode=True, width=1 << 20).removesuffix("...\n").strip("\n")
    return json.dumps(label, ensure_ascii=False) if "\n" in plain else plain
