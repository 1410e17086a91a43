"""Pictures from hosts that are allowed by name."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from urllib.parse import SplitResult, urljoin, urlsplit

from tuyi.serve.refusals import RefusalError

__all__ = ["fetch"]

_HOPS = 4
_CHUNK = 1 << 16
_MOVED = (301, 302, 303, 307, 308)
_WITH_IPV4 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96"))
"""Networks whose last 32 bits are an address of version 4."""


def fetch(url: str, name: str, hosts: Sequence[str], *, most_bytes: int, seconds: float) -> bytes:
    """The file behind a URL.

    Its host, and that of every redirect, must be allowed by name and have public addresses only. The address that was
    looked at is the one that is connected to, so that a name cannot change its address in between. Port 80 for http,
    443 for https, no other.

    Args:
        url: Of the picture.
        name: Where in the request it stands.
        hosts: Allowed names; none with a port.
        most_bytes: Most bytes of the file.
        seconds: For all of it.

    Raises:
        RefusalError: It is not allowed, cannot be had in that time, or is larger.
    """
    until = time.monotonic() + seconds
    for _ in range(_HOPS):
        parts = _allowed(url, name, hosts)
        try:
            found = _get(parts, _address(parts, name), most_bytes, until)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _refuse(name, f"cannot be fetched from {parts.hostname}") from error
        if isinstance(found, bytes):
            return found
        try:
            url = urljoin(url, found)
        except ValueError as error:
            raise _refuse(name, "is redirected to what is no URL") from error
    raise _refuse(name, f"is redirected more than {_HOPS} times")


def _allowed(url: str, name: str, hosts: Sequence[str]) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _refuse(name, "is no URL") from error
    if parts.scheme not in ("http", "https"):
        raise _refuse(name, f"expected a data URL, http or https, found {parts.scheme[:20] or 'none'!r}")
    if parts.hostname is None or parts.hostname.lower() not in {host.lower() for host in hosts}:
        raise _refuse(name, "expected a data URL: pictures are not fetched from there")
    if parts.username is not None or port not in (None, 443 if parts.scheme == "https" else 80):
        raise _refuse(name, "expected a URL without user and port")
    return parts


def _address(parts: SplitResult, name: str) -> str:
    """A public address of the host."""
    assert parts.hostname is not None, "looked at before"
    found = {info[4][0] for info in socket.getaddrinfo(parts.hostname, None, type=socket.SOCK_STREAM)}
    addresses = [str(one) for one in found]
    if not all(_is_public(ipaddress.ip_address(one.partition("%")[0])) for one in addresses):
        raise _refuse(name, f"{parts.hostname} has an internal address")
    return addresses[0]


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address leads out, and not by way of a gateway back in."""
    inner: ipaddress.IPv4Address | None = None
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if any(address in network for network in _WITH_IPV4):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.is_global and not address.is_multicast and (inner is None or _is_public(inner))


def _get(parts: SplitResult, address: str, most: int, until: float) -> bytes | str:
    """The file, or where it has gone."""
    assert parts.hostname is not None, "looked at before"
    left = max(0.001, until - time.monotonic())
    port = 443 if parts.scheme == "https" else 80
    connection = http.client.HTTPConnection(parts.hostname, port, timeout=left)
    connected = socket.create_connection((address, port), timeout=left)
    if parts.scheme == "https":
        connected = ssl.create_default_context().wrap_socket(
            connected, server_hostname=parts.hostname, do_handshake_on_connect=False
        )
    connection.sock = connected
    ends = threading.Timer(max(0.0, until - time.monotonic()), _cut, [connected])
    ends.daemon = True
    ends.start()
    try:
        if isinstance(connected, ssl.SSLSocket):
            connected.do_handshake()
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"Accept": "image/*", "User-Agent": "tuyi"})
        answer = connection.getresponse()
        if answer.status in _MOVED and (place := answer.getheader("Location")):
            return place
        if answer.status != 200:
            raise OSError(f"status {answer.status}")
        data = bytearray()
        while chunk := answer.read(_CHUNK):
            data += chunk
            if len(data) > most:
                raise OSError(f"more than {most} bytes")
        if time.monotonic() > until:
            raise TimeoutError
        return bytes(data)
    finally:
        ends.cancel()
        connection.close()


def _cut(connected: socket.socket) -> None:
    """End a connection for whoever reads from it: a socket's own timeout begins anew with each byte."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connected, socket.SHUT_RDWR)  # that of TLS would wait for the other side


def _refuse(name: str, told: str) -> RefusalError:
    return RefusalError(400, f"{name}: {told}", param=name, code="invalid_image_url")
