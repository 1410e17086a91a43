"""The page's words: whole in both languages, and all there that the scripts say."""

from __future__ import annotations

import re
from importlib.resources import files
from types import SimpleNamespace
from typing import Any

import pytest

from tuyi.serve.web.document import ASSETS, rewritten
from tuyi.serve.web.label_tab import LABEL_WORDS
from tuyi.serve.web.report_tab import REPORT_WORDS
from tuyi.serve.web.words import Words

WORDS = Words(REPORT_WORDS, LABEL_WORDS)


def test_both_languages_have_the_same_fields():
    assert len(WORDS.table) > 100
    for key, texts in WORDS.table.items():
        english, chinese = (sorted(re.findall(r"\{(\w+)\}", text)) for text in texts)
        assert english == chinese, key
        assert all(texts), key


def test_the_scripts_say_what_there_is():
    found: set[str] = set()
    for name in ASSETS:
        text = (files("tuyi.serve.web") / "assets" / name).read_text(encoding="utf-8")
        found |= set(re.findall(r'\bword\("([a-z]+\.[\w.]+)"', text))
        found |= set(re.findall(r'"(refusal\.\w+)"', text))
    assert len(found) > 60
    assert not found - WORDS.table.keys()


@pytest.mark.parametrize(
    ("cookie", "header", "language"),
    [("zh", "en", "zh"), ("en", "zh-CN", "en"), (None, "zh-TW,zh;q=0.9", "zh"), (None, "fr", "en"), (None, "", "en")],
)
def test_the_language_of_a_tab(cookie: str | None, header: str, language: str):
    cookies = {} if cookie is None else {"tuyi_language": cookie}
    request: Any = SimpleNamespace(cookies=cookies, headers={"accept-language": header})
    assert WORDS.language(request) == language


def test_what_the_scripts_are_told_cannot_end_them():
    document = '<head>\n<meta property="og:url" content="https://gradio.app/" /><title>x</title></head>'
    found = rewritten(document, {"a": ("</script><b>", "<!--")}, {"model": "</script>"})
    assert "og:url" not in found
    assert "</script><b>" not in found
    assert "<!--" not in found.partition("window.tuyiWords")[2].partition("\n")[0]
