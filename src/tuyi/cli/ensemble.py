"""``tuyi ensemble``: several predictions files or models as one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuyi.cli.options import BadRow, Form, FormOption, OnBadRowOption, Read, Set, overrides

if TYPE_CHECKING:
    from tuyi.evaluate.combine import How

__all__ = ["ensemble", "numbers"]


def ensemble(
    members: Annotated[list[str], typer.Argument(help="Predictions files on the same rows, or models.")],
    out: Annotated[Path, typer.Option(help="Predictions to write, one JSON object a line.")],
    vote: Annotated[bool, typer.Option("--vote", help="Majority vote, ties by mean probability.")] = False,
    geometric: Annotated[bool, typer.Option("--geometric", help="Mean of the logarithms of probabilities.")] = False,
    weights: Annotated[str | None, typer.Option(help="Of each member, such as 2,1,1; equal where not given.")] = None,
    data: Annotated[Path | None, typer.Option(help="Rows for models among the members; default: AGAINST.")] = None,
    against: Annotated[Path | None, typer.Option(help="The same rows with labels, to compare by.")] = None,
    submission: Annotated[Path | None, typer.Option(help="Also write the challenge's CSV; needs --data.")] = None,
    form: FormOption = Form.full,
    set_: Set = None,
    read: Read = None,
    on_bad_row: OnBadRowOption = BadRow.stop,
) -> None:
    """Average the label probabilities of several predictions files or models, or let them vote."""
    from rich.console import Console

    from tuyi.cli.console import teller
    from tuyi.cli.progress import bar
    from tuyi.cli.tables import print_tables
    from tuyi.config import load_settings
    from tuyi.errors import ConfigError
    from tuyi.evaluate.ensemble import EnsembleSettings
    from tuyi.evaluate.ensemble import ensemble as combine
    from tuyi.predict.submission import write_submission

    if vote and geometric:
        raise ConfigError("--vote and --geometric are two ways to combine; leave one of them out")
    if submission is not None and data is None:
        raise ConfigError("--submission repeats the columns of the test rows; name them with --data")
    settings = load_settings(EnsembleSettings, None, overrides(set_, read))
    how: How = "vote" if vote else "geometric" if geometric else "arithmetic"
    console = Console(highlight=False)
    with bar(console, "predicting") as progress:
        done = combine(
            members,
            out,
            how=how,
            weights=numbers(weights) if weights is not None else None,
            data=data,
            against=against,
            settings=settings,
            on_bad_row=on_bad_row.value,
            progress=progress,
            tell=teller(console),
        )
    print_tables(console, done.tables)
    console.print(f"{done.out}: {done.rows} predictions of {len(done.members)} members", markup=False, soft_wrap=True)
    if submission is not None and data is not None:
        if done.tasks is None:
            raise ConfigError("no member's .run.json says which task was asked, and a submission is checked by it")
        rows = write_submission(submission, data, done.out, done.tasks, form.value, settings.read)
        console.print(f"{submission}: {rows} rows, validated", markup=False, soft_wrap=True)
    console.print(f"Report: {done.report}", markup=False, soft_wrap=True)


def numbers(text: str) -> list[float]:
    """Numbers with commas between.

    Raises:
        ConfigError: Something among them is no number.
    """
    from tuyi.errors import ConfigError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--weights: expected numbers with commas between, such as 2,1; found {text!r}") from error
