"""Packages that not everybody needs."""

from __future__ import annotations

from importlib import import_module

from tuyi.errors import ConfigError

__all__ = ["need"]


def need(module: str, who: str, extra: str) -> None:
    """Make sure that a package is installed.

    Args:
        module: What is imported of it.
        who: What does not go without it, as a sentence begins.
        extra: The extra of tuyi that brings it.

    Raises:
        ConfigError: It is not.
    """
    try:
        import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ConfigError(f"{who} the package {package}: pip install 'tuyi[{extra}]'") from error
