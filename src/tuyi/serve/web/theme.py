"""How Gradio's own parts of the page look."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import gradio

__all__ = ["theme"]

_TEXT = ("system-ui", "-apple-system", "Segoe UI", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def theme() -> gradio.themes.Base:
    """A quiet theme with the fonts of the system; its colours are the page's own variables."""
    import gradio

    own = gradio.themes.Base(font=_TEXT, font_mono=_MONO, radius_size="md", text_size="md")
    colours = {
        "body_background_fill": "var(--paper)",
        "body_text_color": "var(--ink)",
        "body_text_color_subdued": "var(--ink-soft)",
        "background_fill_primary": "var(--panel)",
        "background_fill_secondary": "var(--paper)",
        "block_background_fill": "var(--panel)",
        "block_border_color": "var(--line)",
        "border_color_primary": "var(--line)",
        "border_color_accent": "var(--accent)",
        "block_label_text_color": "var(--ink-soft)",
        "block_title_text_color": "var(--ink)",
        "block_info_text_color": "var(--ink-soft)",
        "input_background_fill": "var(--panel)",
        "input_border_color": "var(--line)",
        "input_border_color_focus": "var(--accent)",
        "input_placeholder_color": "var(--ink-soft)",
        "button_primary_background_fill": "var(--accent)",
        "button_primary_background_fill_hover": "var(--accent-deep)",
        "button_primary_text_color": "var(--on-accent)",
        "button_secondary_background_fill": "var(--panel)",
        "button_secondary_background_fill_hover": "var(--accent-soft)",
        "button_secondary_border_color": "var(--line)",
        "button_secondary_text_color": "var(--ink)",
        "color_accent": "var(--accent)",
        "color_accent_soft": "var(--accent-soft)",
        "link_text_color": "var(--accent)",
        "slider_color": "var(--accent)",
        "error_background_fill": "var(--bad-soft)",
        "error_border_color": "var(--bad)",
        "error_text_color": "var(--bad)",
        "table_border_color": "var(--line)",
        "table_even_background_fill": "var(--panel)",
        "table_odd_background_fill": "var(--paper)",
    }
    both = dict(colours)
    for name, value in colours.items():
        if hasattr(own, f"{name}_dark"):
            both[f"{name}_dark"] = value
    return own.set(**both, block_shadow="none", button_primary_shadow="none", block_border_width="0px")
