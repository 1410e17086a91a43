"""``tuyi serve``: a model behind HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuyi.cli.options import Read, Set, overrides

__all__ = ["serve"]


def serve(
    model: Annotated[str, typer.Argument(help="A model folder, hub id or built-in name.")],
    task: Annotated[str | None, typer.Option(help="Built-in task or YAML file; default: the model's own.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes any that is free; default: 8000.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="File of bearer tokens, one a line.")] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A host from which pictures may be fetched; can be given several times.")
    ] = None,
    page: Annotated[bool | None, typer.Option(help="A web page at /; default: where gradio is installed.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder of an evaluation that the page shows; default: the model's own.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Data whose rows are labelled on the page.")] = None,
    audit: Annotated[Path | None, typer.Option(help="Folder of an audit of that data: suspicious rows first.")] = None,
    corrections: Annotated[Path | None, typer.Option(help="File that the page's labels are written to.")] = None,
    set_: Set = None,
    read: Read = None,
) -> None:
    """Answer requests over HTTP: /v1/classify, OpenAI's /v1/chat/completions, and a web page.

    Many clients share the model's passes. SIGTERM and Ctrl-C finish what runs, and end.
    """
    from rich.console import Console

    from tuyi.config import load_settings
    from tuyi.serve.run import PageData, ServeRun, ServeSettings
    from tuyi.serve.run import serve as serve_model

    given = {"host": host, "port": port, "token_file": token_file, "allow_hosts": tuple(allow_host or ()) or None}
    given |= {"page": page}
    run = load_settings(ServeRun, None, overrides(set_, read))
    told = {key: value for key, value in given.items() if value is not None}
    settings = load_settings(ServeSettings, **{**run.serve.model_dump(), **told})
    console = Console(highlight=False)
    serve_model(
        model,
        task=task,
        settings=settings,
        budget=run.budget,
        data=PageData(report, label, audit, corrections, run.read),
        tell=lambda line: console.print(line, markup=False, soft_wrap=True),
    )
