"""Programs of our own, run beside us."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Mapping

__all__ = ["start_program"]

_PROGRAM = "import sys; sys.path[:] = {path!r}; from {module} import main; main({fd})"


def start_program(
    module: str, *, stdout: int | None = None, environment: Mapping[str, str] | None = None
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Run the ``main`` of a module in a process of its own, with one end of a socket.

    It is a program rather than a ``multiprocessing`` child: the caller's script needs no ``__main__`` guard and may
    have used CUDA already. It leads a process group, so that Ctrl-C in a terminal reaches the caller alone.

    Args:
        module: Its ``main`` takes the number of a file descriptor, which is the socket's other end.
        stdout: Where its standard output goes, as :class:`subprocess.Popen` takes it; the caller's where None.
        environment: Its environment; the caller's where None.

    Returns:
        The process, and our end.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM.format(path=sys.path, module=module, fd=theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            env=environment,
            process_group=0,
        )
    return process, ours
