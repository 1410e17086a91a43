"""The words of the page: each in English and in Chinese, for the browser and for what is written here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias

from tuyi.serve.web.phrases import PHRASES

if TYPE_CHECKING:
    import gradio
    from gradio.i18n import I18nData

__all__ = ["LANGUAGE_COOKIE", "Language", "Table", "Words"]

Language: TypeAlias = Literal["en", "zh"]
Table: TypeAlias = Mapping[str, tuple[str, str]]
"""By key: English, 中文; with fields in braces."""

LANGUAGE_COOKIE = "tuyi_language"
"""Set by the page itself, from ``?lang=``, its switch, or else the browser's language."""


class Words:
    """All texts of the page.

    Args:
        tables: Those of the parts of the page beside its own.
    """

    def __init__(self, *tables: Table) -> None:
        self.table: dict[str, tuple[str, str]] = dict(PHRASES)
        for table in tables:
            assert not self.table.keys() & table.keys(), "each text has one place"
            self.table |= table

    def __call__(self, key: str) -> I18nData:
        """A text for a component of Gradio, which the browser puts into its language."""
        from gradio.i18n import I18nData

        assert key in self.table, key
        return I18nData(key)

    def said(self, language: Language, key: str, **values: object) -> str:
        """A text with its fields filled."""
        return self.table[key][language == "zh"].format(**values)

    def language(self, request: gradio.Request) -> Language:
        """The language of the tab that sent a request."""
        given: str = request.cookies.get(LANGUAGE_COOKIE) or request.headers.get("accept-language", "")
        return "zh" if given.lower().startswith("zh") else "en"

    def i18n(self) -> gradio.I18n:
        """The same for Gradio."""
        from gradio.i18n import I18n

        english = {key: texts[0] for key, texts in self.table.items()}
        chinese = {key: texts[1] for key, texts in self.table.items()}
        return I18n(**{"en": english, "zh": chinese, "zh-CN": chinese})
