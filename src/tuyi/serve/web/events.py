"""What a part of the page asks, answered through the service, with refusals as data."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import gradio

from tuyi.serve.refusals import RefusalError
from tuyi.serve.waiting import Gone
from tuyi.serve.web.visitors import gone, owner_of, visitors_of

__all__ = ["Answer", "ask"]

Answer: TypeAlias = Callable[[bytes, Gone, bytes], AsyncIterator[dict[str, Any]]]
"""Answers a body of an owner; each answer takes the place of the one before."""


def ask(name: str, layout: str, answer: Answer) -> None:
    """Add a part of the page whose script asks for answers.

    Its script is ``tuyi.NAME``: ``start(element, trigger)`` once, which triggers ``submit`` with ``ask`` (a number) and
    ``body``, and ``stop`` to give up; ``told(answer)`` with each answer, which brings the number back; ``lost()`` where
    the server did not answer.

    Args:
        name: Of the script.
        layout: Its HTML.
        answer: Who answers.
    """

    async def answered(request: gradio.Request, event: gradio.EventData) -> AsyncIterator[dict[str, Any]]:
        number, body = _asked(event)
        try:
            with visitors_of(request).asking(body):
                async for one in answer(body, gone(request), owner_of(request)):
                    yield {"ask": number, **one}
        except RefusalError as error:
            told = {"status": error.status, "message": error.message, "param": error.param, "code": error.code}
            yield {"ask": number, "refusal": told}

    part = gradio.HTML(
        html_template=layout,
        js_on_load=f"tuyi.{name}.start(element, trigger); /* 'submit' 'stop' */",
        apply_default_css=False,
    )
    heard = gradio.HTML(
        html_template="",
        js_on_load=f"watch('value', () => tuyi.{name}.told(props.value));",
        apply_default_css=False,
        elem_classes="tuyi-heard",
    )
    asked = part.submit(
        answered, None, heard, show_progress="hidden", concurrency_limit=None, trigger_mode="multiple",
        api_visibility="private",
    )  # fmt: skip
    asked.failure(None, js=f"() => {{ tuyi.{name}.lost(); }}", api_visibility="private")
    part.stop(None, cancels=[asked], api_visibility="private")


def _asked(event: gradio.EventData) -> tuple[int, bytes]:
    """The number of what is asked, and its JSON."""
    told = event._data
    number = told.get("ask") if isinstance(told, dict) else None
    body = told.get("body") if isinstance(told, dict) else None
    return number if isinstance(number, int) else 0, body.encode(errors="replace") if isinstance(body, str) else b""
