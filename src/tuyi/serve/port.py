"""The address that a server listens on."""

from __future__ import annotations

import socket

from tuyi.errors import ConfigError
from tuyi.serve.settings import ServeSettings

__all__ = ["bound", "reached"]


def bound(settings: ServeSettings, *, is_shared: bool = False) -> socket.socket:
    """A socket of the address, not listening yet.

    Args:
        settings: With the address.
        is_shared: Whether other processes of ours listen there, too.

    Raises:
        ConfigError: It cannot be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio sends small parts at once only where the protocol is named; else the second one of an answer waits 40 ms
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        found.bind((settings.host, settings.port))
        if is_shared:  # with those that share only: what else would bind there is told that it is taken
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError as error:
        found.close()
        raise ConfigError(
            f"serve.host, serve.port: cannot listen on {settings.host}:{settings.port} ({error.strerror}); "
            "is another server there? Choose another --port"
        ) from error
    return found


def reached(host: str) -> str:
    """A host as this machine reaches it."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{name}]" if ":" in name else name
