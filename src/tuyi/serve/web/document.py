"""The HTML document of the page: Gradio's, with our look and words put in, and nothing of other hosts."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files

from tuyi.serve.web.words import Table

__all__ = ["ASSETS", "HEADERS", "rewritten"]

ASSETS = (
    "page.css", "classify.css", "chat.css", "report_tab.css", "label_tab.css",
    "page.js", "pictures.js", "classify.js", "chat.js", "report_tab.js", "label_tab.js",
)  # fmt: skip
"""Files beside this one that every page brings along, in order."""

HEADERS = {
    # Gradio's scripts are inline and its templates are compiled in the browser; nothing is fetched from elsewhere, and
    # nothing can be sent there
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
        "worker-src 'self' blob:; object-src 'none'; frame-src 'none'; frame-ancestors 'none'; base-uri 'self'; "
        "form-action 'self'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
"""Of every answer of the page."""

_FOREIGN = re.compile(r"\s*<meta\s[^>]*?(?:property=\"og:|name=\"twitter:)[^>]*?/>|\s*<link rel=\"manifest\"[^>]*/>")


def rewritten(document: str, table: Table, facts: dict[str, object]) -> str:
    """Gradio's document with ours in it.

    Args:
        document: What Gradio answers at ``/``.
        table: All texts.
        facts: What the scripts know of the server, such as its limits.
    """
    told = f"<script>window.tuyiFacts = {_script(facts)}; window.tuyiWords = {_script(dict(table))};</script>"
    head = '<head><meta charset="utf-8">'
    return _FOREIGN.sub("", document).replace("<head>", head + told + _assets(), 1)


@cache
def _assets() -> str:
    room = files("tuyi.serve.web") / "assets"
    return "".join(_element(name, (room / name).read_text(encoding="utf-8")) for name in ASSETS)


def _element(name: str, text: str) -> str:
    tag = "style" if name.endswith(".css") else "script"
    if tag == "style" and name != "page.css":
        text = f":is(html, #tuyi) {{\n{text}}}\n"  # before what Gradio says of buttons and the like
    assert f"</{tag}" not in text.lower(), name
    return f"<{tag}>\n{text}</{tag}>"


def _script(value: object) -> str:
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")
