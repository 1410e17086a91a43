"""`tuyi serve`: a model behind HTTP, until it is told to stop."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import math
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuyi.errors import ConfigError, EngineError, first_line
from tuyi.serve.port import bound, reached
from tuyi.serve.settings import ServeRun, ServeSettings
from tuyi.serve.several import Asked, serve_several
from tuyi.serve.signals import told_to_end
from tuyi.task.catalog import TaskSet

if TYPE_CHECKING:
    from tuyi.data.options import ReadOptions
    from tuyi.serve.web.page import PageExtras

__all__ = ["PageData", "ServeRun", "ServeSettings", "serve", "serve_alone"]

_GRADIO = (6, 31)
"""The page uses its routes and its scripts as they are from then on."""


@dataclass(frozen=True, slots=True)
class PageData:
    """What the web page shows beside the model.

    Args:
        report: Folder of an evaluation; the model's own where None.
        label: Data to label.
        audit: Folder of an audit of this data; its suspicious rows come first.
        corrections: File that the page's decisions are written to.
        read: How to read ``label``.
    """

    report: Path | None = None
    label: str | None = None
    audit: Path | None = None
    corrections: Path | None = None
    read: ReadOptions | None = None

    @property
    def is_asked(self) -> bool:
        """Whether there is anything that only a page can show."""
        return self.report is not None or self.label is not None


_NO_DATA = PageData()


def serve(
    model: str | Path,
    *,
    task: str | TaskSet | None = None,
    settings: ServeSettings | None = None,
    budget: Mapping[str, Any] | None = None,
    data: PageData | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Answer requests over HTTP; returns once a SIGTERM or Ctrl-C came and what ran is finished.

    Args:
        model: A model folder, hub id or built-in name.
        task: Needed where the model has no task of its own.
        settings: Where, for whom, how much.
        budget: Budget settings to use instead of the model's, such as ``max_pixels``.
        data: What the web page shows beside the model.
        tell: Called with lines that say what was chosen, and where the server listens.

    Raises:
        ModelError: The model cannot be loaded.
        TaskError: The model has another task, or none and none is given.
        DataError: The data to label cannot be used.
        ConfigError: The address, the evaluation or the file of tokens cannot be used, or a package is missing.
        EngineError: The engine ended by an error.
    """
    settings, data = settings or ServeSettings(), data or PageData()
    if data.label is None and (data.audit or data.corrections):
        raise ConfigError("--audit and --corrections go with --label: give the data whose rows they are of")
    asked = Asked(str(model), task, settings, budget)
    if settings.processes == 1:
        serve_alone(asked, data, tell=tell, listening=tell)
        return
    if settings.page or data.is_asked:
        raise ConfigError("serve.processes: the page needs a single process; open it with another `tuyi serve`")
    serve_several(asked, tell)


def serve_alone(
    asked: Asked, data: PageData = _NO_DATA, *, tell: Callable[[str], None], listening: Callable[[str], None],
    is_shared: bool = False,
) -> None:  # fmt: skip
    """Answer requests in this process; returns and raises as :func:`serve`.

    Args:
        asked: What to serve.
        data: What the web page shows beside the model.
        tell: Called with lines that say what was chosen.
        listening: Called with the line that says where, once the model is loaded.
        is_shared: Whether other processes listen on the same port.
    """
    try:
        import uvicorn

        from tuyi.serve.app import create_app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "tuyi":
            raise
        raise ConfigError(f"tuyi serve needs {error.name}: pip install 'tuyi[serve]'") from error
    from tuyi.serve.connections import impatient
    from tuyi.serve.guard import read_tokens
    from tuyi.serve.opening import open_model

    settings = asked.settings
    read_tokens(settings.token_file)  # a model may take minutes to load: what is wrong is said before
    broken: list[BaseException] = []
    has_page = _has_page(settings, data)
    with bound(settings, is_shared=is_shared) as taken:
        extras = _extras(asked, data) if has_page else None
        served = open_model(asked.model, settings, task=asked.task, budget=asked.budget, tell=tell)

        def failed(error: BaseException) -> None:
            broken.append(error)
            server.should_exit = True

        app = create_app(served, settings, failed=failed, extras=extras, is_stopping=lambda: server.should_exit)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=int(settings.drain_s) or 1,
            server_header=False, http=impatient(settings.read_s), ws="none",
            # longer than clients keep a connection that they may use again (httpx 5 s, aiohttp 15 s), or some of their
            # requests meet one that is just being closed
            timeout_keep_alive=math.ceil(settings.read_s),
        )  # fmt: skip
        host, port = taken.getsockname()[:2]

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                if not self.started:
                    return
                listening(f"{served.name}: listening on http://{host}:{port}")
                if has_page:
                    with_token = ", with a token" if settings.token_file else ""
                    tell(f"open http://{reached(host)}:{port}/ in a browser{with_token}")

        server = Server(config)
        # uvicorn finishes what runs on a signal, and then raises it again, which would be our end with a bad status
        with told_to_end(lambda: None), _kept_out_of_collections():
            server.run(sockets=[taken])
    if broken:
        raise EngineError(f"the engine ended by an error: {first_line(broken[0])}") from broken[0]


def _gradio() -> tuple[int, ...]:
    """The first two numbers of Gradio's version; empty where it is not installed."""
    try:
        version = importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError:
        return ()
    return tuple(int(one) for one in re.findall(r"\d+", version)[:2])


def _has_page(settings: ServeSettings, data: PageData) -> bool:
    """Whether there is to be a page; it is looked for without being imported, which takes seconds."""
    found = _gradio()
    is_there = found >= _GRADIO
    if data.is_asked and settings.page is False:
        raise ConfigError("--report and --label are shown on the page: leave --no-page out")
    if not is_there and (settings.page or data.is_asked):
        needed, has = (".".join(map(str, one)) for one in (_GRADIO, found))
        raise ConfigError(
            f"the page needs gradio {needed} or newer, found {has or 'none'}: pip install 'tuyi[web]', "
            "or leave it out with --no-page"
        )
    return is_there if settings.page is None else settings.page


def _extras(asked: Asked, data: PageData) -> PageExtras:
    """What the page shows beside the model, read before the model is loaded."""
    from tuyi.model.load import peek
    from tuyi.model.tasks import choose_tasks, with_budget
    from tuyi.serve.web.labelling import Labelling
    from tuyi.serve.web.page import PageExtras
    from tuyi.serve.web.report_source import own_report, read_report

    tasks = with_budget(choose_tasks(asked.model, peek(asked.model), asked.task), asked.budget)
    report = read_report(data.report, tasks) if data.report is not None else own_report(asked.model, tasks)
    labelling = None
    if data.label is not None:
        labelling = Labelling.open(data.label, tasks, audit=data.audit, corrections=data.corrections, options=data.read)
    return PageExtras(report, labelling)


@contextlib.contextmanager
def _kept_out_of_collections() -> Iterator[None]:
    """What there is now stays: a collection that looks through all of it would hold requests up for half a second."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
