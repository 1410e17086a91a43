"""Templates of pages and texts, read from a package's ``templates`` folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["templates"]


def templates(*packages: str, is_html: bool = True) -> Environment:
    """The templates of packages; what one of them names and nobody gives is an error.

    Args:
        packages: Such as ``tuyi.evaluate``; of templates of one name the first package's counts.
        is_html: Whether values are escaped for HTML.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=ChoiceLoader([PackageLoader(package, "templates") for package in packages]),
        autoescape=is_html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
