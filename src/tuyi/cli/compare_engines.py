"""``tuyi compare-engines``: the same rows through several engines, and how far they agree."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuyi.cli.options import Read, Set, overrides

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tuyi.predict.compare import Agreement
    from tuyi.predict.run import PredictSummary

__all__ = ["compare_engines"]


def compare_engines(
    model: Annotated[str, typer.Argument(help="A model folder, hub id or built-in name.")],
    data: Annotated[Path, typer.Argument(help="Rows to label: a data file, or a folder.")],
    engine: Annotated[
        list[str], typer.Option(help="local, ray, vllm or api; give it twice or more, the first counts.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the predictions, one file an engine.")] = Path("engines"),
    limit: Annotated[int | None, typer.Option(help="Only the first rows.", min=1)] = None,
    at_least: Annotated[float, typer.Option(help="Label agreement that is asked for.", min=0, max=1)] = 0.995,
    task: Annotated[str | None, typer.Option(help="Built-in task or YAML file; default: the model's own.")] = None,
    set_: Set = None,
    read: Read = None,
) -> None:
    """Label the same rows with several engines and compare. Exits with 1 where they agree too little."""
    from rich.console import Console

    from tuyi.config import load_settings
    from tuyi.data.options import ReadOptions
    from tuyi.predict.compare import compare_predictions
    from tuyi.predict.prediction import read_predictions
    from tuyi.predict.run import PredictRun, predict

    if len(engine) < 2 or len(set(engine)) < len(engine):
        raise typer.BadParameter("name two engines or more, each once", param_hint="--engine")
    console = Console(highlight=False)

    def say(line: str, style: str | None = None) -> None:
        console.print(line, style=style, markup=False, soft_wrap=True)

    given = overrides(set_, read)
    if limit is not None:
        rows = _first_rows(data, load_settings(PredictRun, None, given).read, out, limit)
    done: dict[str, PredictSummary] = {}
    for name in engine:
        run = load_settings(PredictRun, None, [*given, f"predict.engine={name}"])
        done[name] = predict(
            model,
            data if limit is None else rows,
            out / f"{name}.jsonl",
            task=task,
            settings=run.predict,
            budget=run.budget,
            options=run.read if limit is None else ReadOptions(),
            tell=lambda line: say(line, "dim"),
        )
        say(f"{name}: {_what(done[name])}")
    equal = _say_budgets(done, say)
    first, *others = engine
    enough = True
    for name in others:
        found = compare_predictions(read_predictions(done[first].out), read_predictions(done[name].out))
        _say_agreement(found, first, name, say)
        enough &= found.share >= at_least
    if not (enough and equal):
        say(f"the engines do not agree: expected {at_least:.1%} of the labels and equal budgets", "red")
        raise typer.Exit(1)


def _first_rows(data: Path, options: Any, out: Path, limit: int) -> Path:
    """The first rows of a data set as a file of their own."""
    from itertools import islice

    from tuyi.data.source import read
    from tuyi.data.write import ExampleWriter

    file = out / "rows.jsonl"
    with ExampleWriter(file, "messages", force=True) as writer:
        for row in islice(read(data, options), limit):
            writer.write(row)
    return file


def _what(summary: PredictSummary) -> str:
    made = summary.rows - summary.resumed
    if not made:
        return f"{summary.rows} rows, all from an earlier run"
    return f"{summary.rows} rows, {made / summary.seconds:.2f} rows/s without the start"


def _say_budgets(done: Mapping[str, PredictSummary], say: Callable[..., None]) -> bool:
    """Say pixel cap and token budget of each engine's run, as its record has them; whether they are equal."""
    from tuyi.predict.prediction import read_run

    seen: list[Sequence[Any]] = []
    for name, summary in done.items():
        tasks = read_run(summary.out)["tasks"]["tasks"]
        limits = [(task["name"], task["budget"]["max_pixels"], task["budget"]["max_tokens"]) for task in tasks]
        seen.append([task["budget"] for task in tasks])
        told = "; ".join(f"{task}: max_pixels {pixels}, max_tokens {tokens}" for task, pixels, tokens in limits)
        say(f"{name}: {told}")
    equal = all(budgets == seen[0] for budgets in seen)
    if not equal:
        say("the engines' budgets differ; predict into a fresh folder", "red")
    return equal


def _say_agreement(found: Agreement, first: str, other: str, say: Callable[..., None]) -> None:
    say(f"{other} against {first}: {found.agreeing} of {found.rows} labels agree ({found.share:.2%})")
    for row in found.disagreements:
        (ours, theirs), chances = row.labels, ["–" if one is None else f"{one:.4f}" for one in row.probabilities]
        say(f"  id {row.id}: {first} {ours} ({chances[0]}), {other} {theirs} ({chances[1]})")
    if found.largest_difference is None:
        say("  no row has probabilities from both")
    else:
        say(
            f"  probabilities of {found.compared} rows differ by {found.largest_difference:.4f} at most, "
            f"{found.mean_difference:.4f} in the mean"
        )
    if found.other_tokens:
        say(
            f"  {found.other_tokens} rows had other prompt tokens; are pixel caps and chat template the same?", "yellow"
        )
