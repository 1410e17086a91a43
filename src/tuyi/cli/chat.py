"""``tuyi chat``: ask a model about pictures and video, once or in a talk."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuyi.cli.options import Set
from tuyi.errors import ConfigError, TuyiError

if TYPE_CHECKING:
    from tuyi.predict.conversation import Conversation

__all__ = ["chat"]

_COMMANDS = "/image PATH, /video PATH, /reset, /quit"
_CONTROLS = {code: f"^{chr(code ^ 64)}" for code in (*range(32), 127) if chr(code) not in "\n\t"}
_CONTROLS |= {code: f"\\x{code:02x}" for code in range(128, 160)}
"""How a terminal is shown what would otherwise command it."""


def chat(
    model: Annotated[str, typer.Argument(help="A model folder, hub id or built-in name.")],
    question: Annotated[str | None, typer.Argument(help="Asked once; without it, an interactive talk.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="A picture to show; may be given several times.")] = None,
    video: Annotated[list[Path] | None, typer.Option(help="A video to show; may be given several times.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0, the default, takes the likeliest token; higher is more even.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of one answer; 512 where not given.")] = None,
    set_: Set = None,
) -> None:
    """Ask a model about pictures and video; the answer appears as it is written.

    In a talk: /image PATH and /video PATH show another one, /reset begins anew, /quit or Ctrl-D ends, Ctrl-C stops
    an answer. Pictures, video and answers are remembered and not read again.
    """
    from tuyi.config import load_settings
    from tuyi.predict.conversation import open_conversation
    from tuyi.predict.talk import ChatRun

    overrides = [
        *(set_ or ()),
        *([f"chat.temperature={temperature}"] if temperature is not None else ()),
        *([f"chat.max_tokens={max_tokens}"] if max_tokens is not None else ()),
    ]
    if question is not None and not question.strip():
        raise ConfigError("expected a question, found an empty one; leave it out for an interactive talk")
    run = load_settings(ChatRun, None, overrides)
    media = [("image", path) for path in image or ()] + [("video", path) for path in video or ()]
    for kind, path in media:
        _checked(kind, path)
    talk = open_conversation(model, run.chat, budget=run.budget, tell=_tell)
    for kind, path in media:
        _show(talk, kind, path)
    if question is not None:
        _answer(talk, question)
    else:
        _talk(talk)


def _checked(kind: str, path: Path) -> None:
    """Say that a file cannot be used before a model is loaded for it."""
    from tuyi.data.example import Image, Video
    from tuyi.vision import probe_image, probe_video

    if kind == "image":
        probe_image(Image(path))
    else:
        probe_video(Video(path))


def _talk(talk: Conversation) -> None:
    """Questions and commands, line by line, until the end of input."""
    is_typed = sys.stdin.isatty()
    if is_typed:
        import readline  # noqa: F401  gives input() line editing and a history

        _tell(f"ask, or {_COMMANDS}")
    while True:
        try:
            line = input("> " if is_typed else "").strip()
        except (EOFError, KeyboardInterrupt):
            if is_typed:
                print()
            return
        except UnicodeDecodeError:
            _tell("expected UTF-8 text, found other bytes; the line was not asked")
            continue
        if line == "/quit":
            return
        try:
            _take(talk, line)
        except TuyiError as error:
            _tell(f"error: {error}")
        except KeyboardInterrupt:
            print()
            _tell("stopped")


def _take(talk: Conversation, line: str) -> None:
    """One line of a talk."""
    command, _, rest = line.partition(" ")
    if not line:
        return
    if not line.startswith("/"):
        if not line.isprintable() and any("\ud800" <= sign <= "\udfff" for sign in line):
            raise ConfigError("expected UTF-8 text, found other bytes; the line was not asked")
        _answer(talk, line)
    elif command == "/reset":
        talk.reset()
        _tell("a new talk")
    elif command in ("/image", "/video") and rest.strip():
        _show(talk, command[1:], _path(rest.strip()))
    else:
        raise ConfigError(f"expected {_COMMANDS}, found {line[:80]!r}")


def _path(text: str) -> Path:
    """A path as people type it, or as a terminal writes it for a file that is dropped on it."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    path = Path(text)
    return path if path.exists() else Path(text.replace("\\ ", " ")).expanduser()


def _show(talk: Conversation, kind: str, path: Path) -> None:
    from tuyi.data.example import Image, Video

    tokens = talk.show(Image(path, path.name) if kind == "image" else Video(path, path.name))
    _tell(f"{kind} {path}: {tokens} tokens")


def _answer(talk: Conversation, question: str) -> None:
    """Print an answer as it is written."""
    is_terminal = sys.stdout.isatty()
    for piece in talk.ask(question):
        sys.stdout.write(piece.translate(_CONTROLS) if is_terminal else piece)
        sys.stdout.flush()
    print(flush=True)
    if talk.was_cut:
        _tell(f"the answer was cut at {talk.settings.max_tokens} tokens; --max-tokens allows more")


def _tell(line: str) -> None:
    """A line beside the talk, on standard error."""
    print(f"\033[2m{line}\033[0m" if sys.stderr.isatty() else line, file=sys.stderr, flush=True)
