"""``tuyi audit``: rows whose label is probably wrong, and the data set without them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuyi.cli.options import Read, Set, overrides

if TYPE_CHECKING:
    from rich.console import Console

    from tuyi.distill.audit_folder import AuditSummary, TaskAudit
    from tuyi.task.catalog import TaskSet

__all__ = ["audit"]

SHOWN_PAIRS = 8


def audit(
    data: Annotated[Path, typer.Argument(help="Labelled rows: a data file, or a folder per label.")],
    out: Annotated[Path, typer.Option(help="Folder for page and corrections file; with --apply the new data file.")],
    task: Annotated[str | None, typer.Option(help="Built-in task or YAML file; default: the model's own.")] = None,
    model: Annotated[
        str,
        typer.Option(help="What each fold's model starts from, not one that learned DATA; with --apply, whose labels."),
    ] = "builtin:tiny",
    predictions: Annotated[
        Path | None, typer.Option(help="Out-of-sample predictions of DATA; nothing is trained then.")
    ] = None,
    apply: Annotated[
        Path | None, typer.Option(help="A corrections file: write DATA with the corrections made to --out.")
    ] = None,
    apply_suggested: Annotated[
        float | None,
        typer.Option(help="With --apply: take suggestions of at least this confidence where nothing was decided."),
    ] = None,
    set_: Set = None,
    read: Read = None,
) -> None:
    """Find rows whose label is probably wrong, by models that have not seen them. Started again, it goes on."""
    from rich.console import Console

    from tuyi.errors import ConfigError

    console = Console(highlight=False)
    given = overrides(set_, read)
    if apply is not None:
        from tuyi.distill.audit_tasks import audited_tasks

        _apply(console, data, apply, out, audited_tasks(apply, task, model), apply_suggested, given)
        return
    if apply_suggested is not None:
        raise ConfigError(
            "--apply-suggested belongs to --apply FILE; look at the audit before you take its suggestions"
        )
    from tuyi.distill.audit import audit as audit_rows
    from tuyi.distill.audit import audit_settings

    settings = audit_settings(model, given)
    done = audit_rows(data, out, task=task, model=model, predictions=predictions, settings=settings, console=console)
    _show(console, done)


def _show(console: Console, done: AuditSummary) -> None:
    from rich.table import Table

    for name, one in done.tasks.items():
        agreement = "" if one.agreement is None else f", the models agree with {one.agreement:.1%} of the labels"
        console.print(f"{name}: {one.issues} issues in {one.rows} rows{agreement}", markup=False, soft_wrap=True)
        if one.is_unsure:
            console.print(
                "  so few that most issues may be the models' own mistakes: train them longer "
                "(--set train.epochs=…) or start from a better --model",
                style="yellow", markup=False, soft_wrap=True,
            )  # fmt: skip
        _show_rare(console, one)
        table = Table("given", "suggested", "issues")
        for (given, suggested), many in list(one.pairs.items())[:SHOWN_PAIRS]:
            table.add_row(given, suggested, str(many))
        if one.pairs:
            console.print(table)
    if done.unlabelled:
        console.print(f"{done.unlabelled} rows without a label of a closed set were passed over", soft_wrap=True)
    if done.corrections_kept:
        console.print("corrections.csv stays as it is: somebody has written in it", style="yellow", soft_wrap=True)
    console.print(f"look: {done.out / 'audit.html'}", markup=False, soft_wrap=True)
    console.print(
        f"then: tuyi audit DATA --apply {done.out / 'corrections.csv'} --out NEW.jsonl", markup=False, soft_wrap=True
    )


def _show_rare(console: Console, one: TaskAudit) -> None:
    rare = {label: rows for label, rows in one.rare.items() if label not in one.unjudged}
    for why, counts in (
        ("not judged, no other fold has the label", one.unjudged),
        ("fewer rows than folds, judged with care", rare),
    ):
        if counts:
            told = ", ".join(f"{label} ({rows})" for label, rows in counts.items())
            console.print(f"  {why}: {told}", style="yellow", markup=False, soft_wrap=True)


def _apply(
    console: Console,
    data: Path,
    corrections: Path,
    out: Path,
    tasks: TaskSet,
    apply_suggested: float | None,
    given: list[str],
) -> None:
    from tuyi.distill.audit import audit_settings
    from tuyi.distill.corrected import apply_corrections

    done = apply_corrections(
        data,
        corrections,
        out,
        tasks=tasks,
        apply_suggested=apply_suggested,
        options=audit_settings(overrides=given).read,
    )
    unseen = f" ({done.automatic} of them as suggested, unseen)" if done.automatic else ""
    console.print(
        f"{done.out}: {done.rows} rows; {done.changed} labels changed{unseen}, {done.dropped} rows dropped, "
        f"{done.kept} kept after a look, {done.open} issues left as they were",
        markup=False,
        soft_wrap=True,
    )
    if done.unproven:
        console.print(
            f"{done.unproven} of the changed rows lost a reason or a teacher's distribution that spoke for the old one",
            style="yellow", markup=False, soft_wrap=True,
        )  # fmt: skip
    console.print(f"what was done to which row: {out.name}.corrections.json", markup=False, soft_wrap=True)
