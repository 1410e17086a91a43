"""The page: its tabs, and how it is put before an application."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from tuyi.serve.service import Service
from tuyi.serve.web.chat_tab import add_chat
from tuyi.serve.web.classify_tab import add_classify
from tuyi.serve.web.document import rewritten
from tuyi.serve.web.gate import Gate, is_of_page
from tuyi.serve.web.label_tab import LABEL_WORDS, add_label
from tuyi.serve.web.labelling import Labelling
from tuyi.serve.web.login import Login
from tuyi.serve.web.report_tab import REPORT_WORDS, ReportSource, add_report
from tuyi.serve.web.theme import theme
from tuyi.serve.web.visitors import Visitors
from tuyi.serve.web.words import Words

if TYPE_CHECKING:
    import gradio

__all__ = ["Page", "PageExtras", "create_page"]


@dataclass(frozen=True, eq=False, slots=True)
class PageExtras:
    """What the page shows beside the model.

    Args:
        report: The evaluation of the tab *Report*.
        labelling: The rows of the tab *Label*.
    """

    report: ReportSource | None = None
    labelling: Labelling | None = None


def create_page(service: Service, extras: PageExtras, words: Words) -> gradio.Blocks:
    """The page of a model.

    Args:
        service: Who answers.
        extras: What else is shown.
        words: Its texts.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read by Gradio beside what it is told below
    import gradio as gr

    blocks: gr.Blocks
    with gr.Blocks(analytics_enabled=False, title=service.served.name, fill_width=True) as blocks:
        gr.HTML(
            html_template='<header class="tuyi-head"></header>', js_on_load="tuyi.head(element)",
            apply_default_css=False,
        )  # fmt: skip
        with gr.Tabs(elem_id="tuyi-tabs"):
            with gr.Tab(words("tab.classify"), id="classify"):
                add_classify(service)
            with gr.Tab(words("tab.chat"), id="chat"):
                add_chat(service)
            with gr.Tab(words("tab.report"), id="report"):
                add_report(extras.report, words)
            with gr.Tab(words("tab.label"), id="label"):
                add_label(extras.labelling, service, words)
    blocks.queue(default_concurrency_limit=None, max_size=service.settings.max_queue, api_open=False)
    blocks._queue.ANALYTICS_MAX_EVENTS = 1  # it would make a table of its last 10,000 events after each of them
    blocks._queue.sleep_when_free = 0.02  # it would look for work a thousand times a second
    return blocks


class Page:
    """The page as an application of its own, that stands before another one.

    Args:
        service: Who answers.
        extras: What else is shown.
        accepts: The digest of a token, where it is one of the server's; everybody is let in where None.
        is_stopping: Whether the server is to end.
    """

    def __init__(
        self, service: Service, extras: PageExtras, accepts: Callable[[bytes], bytes | None] | None,
        is_stopping: Callable[[], bool],
    ) -> None:  # fmt: skip
        import gradio as gr
        import gradio.caching  # this and the next else with the first question, which would wait seconds for them
        import matplotlib.pyplot  # noqa: F401

        settings, words = service.settings, Words(REPORT_WORDS, LABEL_WORDS)
        self._words, self._facts = words.table, _facts(service, has_login=accepts is not None)
        self._login = None if accepts is None else Login(accepts)
        self._hosts = settings.page_hosts
        self._visitors = Visitors(settings.max_held_bytes, is_stopping)
        self._shell = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        blocks = create_page(service, extras, words)
        gr.mount_gradio_app(
            self._shell, blocks, path="/", footer_links=[], run_history=False, show_error=False, ssr_mode=False,
            allowed_paths=[], max_file_size=1, enable_monitoring=False, pwa=False, mcp_server=False,
            i18n=words.i18n(), theme=theme(),
            favicon_path=str(files("tuyi.serve.web") / "assets" / "favicon.png"),
        )  # fmt: skip

    @staticmethod
    def has(path: str) -> bool:
        """Whether a path is the page's."""
        return is_of_page(path)

    def add_to(self, app: FastAPI) -> None:
        """Put the page before an application; to be called before anything else is put before it."""
        app.add_middleware(
            Gate, page=self._shell, login=self._login, hosts=self._hosts, write=self._write, visitors=self._visitors
        )  # fmt: skip

    def lifespan(self) -> AbstractAsyncContextManager[Any]:
        """The page is open."""
        return self._shell.router.lifespan_context(self._shell)

    def _write(self, document: str) -> str:
        return rewritten(document, self._words, self._facts)


def _facts(service: Service, *, has_login: bool) -> dict[str, Any]:
    """What the scripts of the page know of the server."""
    settings, served = service.settings, service.served
    return {
        "model": served.name,
        "tasks": [
            {
                "name": task.name,
                "about": task.about,
                "isDialogue": task.turn is not None,
                "labels": [{"name": one.name, "definition": one.definition} for one in task.labels.labels]
                if task.labels
                else [],
            }
            for task in served.tasks
        ],
        "chats": service.chats,
        "login": has_login,
        "limits": {
            "body": settings.max_body_bytes,
            "pictures": settings.max_pictures,
            "videos": settings.max_videos,
            "characters": settings.max_characters,
            "tokens": settings.max_output_tokens,
            "seconds": settings.deadline_s,
        },
    }
