"""The tab *Label*: rows that need a person's eye, one after another, by keyboard."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tuyi.errors import DataError, FormatError, LabelError, MediaError, OutputError, TuyiError
from tuyi.serve.web.labelling import Labelling
from tuyi.serve.web.row_states import Decision, Row
from tuyi.serve.web.shown import said_in
from tuyi.serve.web.suggesting import Suggester
from tuyi.serve.web.words import Words

if TYPE_CHECKING:
    from tuyi.serve.service import Service

__all__ = ["LABEL_WORDS", "add_label"]

_SIDE = 1000
"""Longer side of a picture, in pixels: screenshots must be readable."""
_ACTIONS = ("keep", "change", "drop")
_PROBLEMS = {OutputError: "write", MediaError: "media", LabelError: "label", FormatError: "file"}
"""What is said of an error; its own text, which may tell paths of the server, goes into the log."""

_log = logging.getLogger(__name__)

LABEL_WORDS = {
    "label.none": ("Nothing to label yet", "还没有要标注的数据"),
    "label.how": (
        "Start the server with data, and with the folder of its audit if there is one:",
        "启动服务时指定数据；做过标签审查的，再指定审查的文件夹：",
    ),
    "label.why.changed": ("Changed since it was decided", "上次决定之后内容有变"),
    "label.why.audit": ("Suspected by the audit", "审查认为可疑"),
    "label.why.unlabelled": ("No label yet", "还没有标签"),
    "label.why.disagrees": ("The model says otherwise", "模型看法不同"),
    "label.why.unread": ("No label yet", "还没有标签"),
    "label.progress": ("{done} of {total} decided", "已定 {done} / {total} 条"),
    "label.rate": ("about {rate} rows a minute", "每分钟约 {rate} 条"),
    "label.skipped": ("{count} put off", "暂缓 {count} 条"),
    "label.read": ("the model has read {read} of {rows}", "模型已读 {read} / {rows} 条"),
    "label.file": ("Kept in {file}", "保存在 {file}"),
    "label.labels": ("Labels", "标签"),
    "label.given": ("Given label", "现有标签"),
    "label.unlabelled": ("none", "无"),
    "label.suspected": ("The audit suggests", "审查建议"),
    "label.decided": ("Decided", "已决定"),
    "label.did.keep": ("keep", "保留"),
    "label.did.drop": ("drop the row", "删除此条"),
    "label.tag.given": ("given", "现有"),
    "label.tag.audit": ("audit", "审查"),
    "label.filter": ("Find a label", "查找标签"),
    "label.no_such": ("No label like this.", "没有这样的标签。"),
    "label.reading": ("The model is reading this row…", "模型正在读这一条…"),
    "label.unreadable": ("The model cannot read this row. Choose a label yourself.", "模型读不了这一条，请自行选择。"),
    "label.no_suggestion": ("There is no suggestion to take.", "还没有可采纳的建议。"),
    "label.told.undone": ("Taken back.", "已撤销。"),
    "label.told.nothing": ("Nothing of yours to take back.", "没有可撤销的操作。"),
    "label.told.conflict": (
        "Somebody else decided about this row meanwhile. Look at it again.",
        "刚才有人已对这一条做了决定，请再看一下。",
    ),
    "label.wait": ("The model is reading the rows", "模型正在读数据"),
    "label.wait_more": ("The first one that needs a look appears here.", "第一条需要看的数据会出现在这里。"),
    "label.end": ("Done: no row is left that needs a look", "完成：没有需要看的数据了"),
    "label.end_more": ("{file}.", "{file}。"),
    "label.end_skipped": ("Only rows that you put off are left", "只剩下你暂缓的数据"),
    "label.end_skipped_more": ("{count} of them.", "共 {count} 条。"),
    "label.again": ("Show them again", "再看一遍"),
    "label.key.first": ("take the first", "采纳第一个"),
    "label.key.digit": ("choose", "选择"),
    "label.key.keep": ("keep", "保留"),
    "label.key.drop": ("drop", "删除"),
    "label.key.skip": ("put off", "暂缓"),
    "label.key.back": ("back", "上一条"),
    "label.key.undo": ("undo", "撤销"),
    "label.key.find": ("find", "查找"),
    "label.problem.write": (
        "The corrections file cannot be written, so nothing was decided. The server's log says why.",
        "无法写入更正文件，决定未保存。原因见服务日志。",
    ),
    "label.problem.file": (
        "Somebody changed the corrections file to something that cannot be read. It was left alone, and nothing was "
        "decided. Mend it, and go on.",
        "更正文件被改成了无法读取的内容。文件未被改动，决定也未保存。修好后即可继续。",
    ),
    "label.problem.media": (
        "A picture or video of this row cannot be read any more, so nothing was decided.",
        "这一条的图片或视频已无法读取，决定未保存。",
    ),
    "label.problem.label": ("This is no label of the task.", "任务里没有这个标签。"),
    "label.problem.other": ("This did not work. The server's log says why.", "操作没有成功。原因见服务日志。"),
    "label.problem.lost": ("The server cannot be reached. Trying again…", "无法连接服务器，正在重试…"),
}
"""By key: English, 中文."""


def add_label(labelling: Labelling | None, service: Service, words: Words) -> None:
    """Add the tab's content to the block that is being made.

    Args:
        labelling: The rows; None: how to have some.
        service: Who makes suggestions.
        words: The page's texts.
    """
    import gradio as gr

    desk = _Desk(labelling, service) if labelling is not None else None

    async def label_row(asked: Any) -> dict[str, Any]:
        return {"none": True} if desk is None else await desk.answer(asked)

    gr.HTML(
        html_template='<div class="tuyi-desk"></div>',
        js_on_load="tuyi.label.begin(element, server)",
        apply_default_css=False,
        server_functions=[label_row],
    )


class _Desk:
    """What the page's script asks, and what it is told.

    Args:
        labelling: The rows.
        service: Who makes suggestions.
    """

    def __init__(self, labelling: Labelling, service: Service) -> None:
        self._labelling = labelling
        self._suggester = Suggester(labelling, service)
        self._acts: Mapping[str, Callable[[str, Mapping[str, Any]], str]] = {
            "look": lambda walk, asked: "",
            "decide": self._decide,
            "skip": self._skip,
            "back": self._back,
            "undo": self._undo,
            "again": self._again,
        }
        self._said = lru_cache(maxsize=16)(self._said_now)

    async def answer(self, asked: Any) -> dict[str, Any]:
        """Do what was asked, and tell what stands before the person then."""
        self._suggester.wake()
        if not isinstance(asked, Mapping):
            return {"problem": "other"}
        act = self._acts.get(str(asked.get("act")))
        walk = str(asked.get("walk") or "")[:64]
        if act is None or not walk:
            return {"problem": "other"}
        try:
            return await asyncio.to_thread(self._done, act, walk, asked)
        except TuyiError as error:
            _log.warning("labelling: %s", error)
            return {"problem": next((key for kind, key in _PROBLEMS.items() if isinstance(error, kind)), "other")}

    def _done(
        self, act: Callable[[str, Mapping[str, Any]], str], walk: str, asked: Mapping[str, Any]
    ) -> dict[str, Any]:
        told = act(walk, asked)
        row = self._labelling.row(walk)
        progress = self._labelling.progress(walk)
        return {
            "told": told,
            "row": None if row is None else self._shown(row, str(asked.get("seen") or "")),
            "progress": {name: getattr(progress, name) for name in progress.__slots__},
            "file": self._labelling.file.path.name,
        }

    def _decide(self, walk: str, asked: Mapping[str, Any]) -> str:
        action = str(asked.get("action"))
        if action not in _ACTIONS:
            raise DataError(f"action: expected one of {', '.join(_ACTIONS)}, found {action[:40]!r}")
        decision = Decision(action, str(asked.get("label") or ""))  # type: ignore[arg-type]
        revision = asked.get("revision")
        seen = revision if isinstance(revision, int) else -1
        is_taken = self._labelling.decide(walk, str(asked.get("id")), decision, seen)
        return "" if is_taken else "conflict"

    def _skip(self, walk: str, asked: Mapping[str, Any]) -> str:
        self._labelling.skip(walk, str(asked.get("id")))
        return ""

    def _back(self, walk: str, asked: Mapping[str, Any]) -> str:
        self._labelling.back(walk)
        return ""

    def _undo(self, walk: str, asked: Mapping[str, Any]) -> str:
        return "undone" if self._labelling.undo(walk) else "nothing"

    def _again(self, walk: str, asked: Mapping[str, Any]) -> str:
        self._labelling.again(walk)
        return ""

    def _shown(self, row: Row, seen: str) -> dict[str, Any]:
        """A row as the script shows it; without its content where the script has it already."""
        labels = row.task.labels
        assert labels is not None, "rows of open tasks are passed over"
        found, decided = row.suggestion, row.decision
        return {
            "id": row.example.id,
            "row": row.example.place.row,
            "task": row.task.name,
            "given": row.given,
            "why": row.why,
            "labels": [{"name": one.name, "about": one.definition} for one in labels.labels],
            "shares": None if found is None else dict(found.probabilities),
            "rationale": None if found is None else found.rationale,
            "unread": "" if found is None else found.problem,
            "suspected": row.suspected,
            "decided": None if decided is None else {"action": decided.action, "label": decided.label},
            "revision": row.revision,
            "said": None if seen == row.example.id else self._said(row.example.id),
        }

    def _said_now(self, id: str) -> list[dict[str, Any]]:
        example = self._labelling.example(id)
        return said_in(example, self._labelling.task_of(example), _SIDE)
