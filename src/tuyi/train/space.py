"""What a search tries: ranges and choices of settings, by their dotted names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic import BaseModel, ValidationError

from tuyi.config import Settings, explain_errors
from tuyi.errors import ConfigError
from tuyi.task.catalog import TaskSet
from tuyi.task.task import Budget
from tuyi.train.arguments import resolve
from tuyi.train.settings import TrainSettings

__all__ = ["Choices", "Range", "Space", "check_space", "default_space", "parse_space", "placed", "starting_values"]


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from ``low`` to ``high``, both included; whole ones where both bounds are."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ValueError(f"expected LOW..HIGH with LOW below HIGH, found {self}")
        if self.log and self.low <= 0:
            raise ValueError(f"a range in log scale begins above 0, found {self}")

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def probes(self) -> tuple[float, ...]:
        """Values that must be valid settings for all to be; a fraction tells that a setting wants whole numbers."""
        between = () if self.whole else (self.low + (self.high - self.low) / math.e,)
        return (self.low, self.high, *between)

    def at(self, share: float) -> float:
        """The number at a share of the way from ``low`` to ``high``, from 0 to below 1."""
        if self.log:
            value = self.low * math.pow(self.high / self.low, share)
            return round(value) if self.whole else value
        span = self.high - self.low
        return int(self.low + share * (span + 1)) if self.whole else self.low + share * span

    def __contains__(self, value: Any) -> bool:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.low <= value <= self.high and (not self.whole or value == int(value))

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}{',log' if self.log else ''}"


@dataclass(frozen=True, slots=True)
class Choices:
    """One of several values."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if wrong := [value for value in self.values if not isinstance(value, str | int | float | None)]:
            raise ValueError(f"expected plain values to choose from, found {wrong[0]!r}")
        if len(set(self.values)) < max(2, len(self.values)):
            raise ValueError(f"expected two different values or more, found {str(self) or 'none'}")

    @property
    def probes(self) -> tuple[Any, ...]:
        """Values that must be valid settings for all to be."""
        return self.values

    def at(self, share: float) -> Any:
        """The value at a share of the way from the first to the last, from 0 to below 1."""
        return self.values[int(share * len(self.values))]

    def __contains__(self, value: Any) -> bool:
        return value in self.values

    def __str__(self) -> str:
        return ",".join(str(value) for value in self.values)


Space: TypeAlias = dict[str, Range | Choices]


def parse_space(given: Mapping[str, Any]) -> Space:
    """Read a search space.

    Args:
        given: Dotted or nested names of settings, each with ``LOW..HIGH``, ``LOW..HIGH,log``, ``A,B,C`` or a list.

    Raises:
        ConfigError: Every problem, each with its dotted path.
    """
    space: Space = {}
    problems = []
    for key, what in _flat(given, "").items():
        if key.partition(".")[0] not in ("train", "budget"):
            problems.append(f"{key}: expected the name of a setting, {_full_name(key) or 'train.… or budget.…'}")
            continue
        try:
            space[key] = _parse(what)
        except ValueError as error:
            problems.append(f"{key}: {error}")
    _raise(problems)
    return space


def _full_name(key: str) -> str | None:
    groups: dict[str, type[BaseModel]] = {"train": TrainSettings, "budget": Budget}
    return next((f"{group}.{key}" for group, cls in groups.items() if key in cls.model_fields), None)


def _flat(given: Mapping[str, Any], before: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, what in given.items():
        flat.update(_flat(what, f"{before}{key}.") if isinstance(what, Mapping) else {f"{before}{key}": what})
    return flat


def _parse(what: Any) -> Range | Choices:
    if isinstance(what, list | tuple):
        return Choices(tuple(_value(one) if isinstance(one, str) else one for one in what))
    if not isinstance(what, str):
        raise ValueError(f"expected LOW..HIGH, LOW..HIGH,log or values to choose from, found {what!r}")
    first, *others = (part.strip() for part in what.split(","))
    if ".." not in first:
        return Choices(tuple(_value(part) for part in (first, *others)))
    low, high = (_value(end.strip()) for end in first.split("..", 1))
    numbers = all(isinstance(end, int | float) and math.isfinite(end) for end in (low, high))
    if not numbers or others not in ([], ["log"]):
        raise ValueError(f"expected two numbers as LOW..HIGH or LOW..HIGH,log, found {what!r}")
    return Range(low, high, log=bool(others))


def _value(text: str) -> Any:
    """A whole number, another number, true, false, null, or the text itself."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "null": None}.get(text.lower(), text)


def default_space(settings: TrainSettings, tasks: TaskSet, *, builtin: bool) -> Space:
    """What is tried where nothing is said: a decade of learning rates, epochs, and up to two halvings of the pixels.

    Args:
        settings: What to search around.
        tasks: With the budget to search down from.
        builtin: Whether the model is trained from random weights.
    """
    rate = resolve(settings, builtin=builtin, gpu=False).lr
    assert rate is not None, "settings are resolved"
    space: Space = {"train.lr": Range(_short(rate / math.sqrt(10), 2), _short(rate * math.sqrt(10), 2), log=True)}
    if settings.max_steps is None:
        low = max(1, int(settings.epochs / 2))
        space["train.epochs"] = Range(low, max(low + 1, math.ceil(settings.epochs * 1.5)))
    budgets = [task.budget for task in tasks]
    if len({budget.max_pixels for budget in budgets}) == 1:  # one setting speaks for all tasks
        most = budgets[0].max_pixels
        sizes = [most // part for part in (1, 2, 4) if all(most // part >= budget.min_pixels for budget in budgets)]
        if len(sizes) > 1:
            space["budget.max_pixels"] = Choices(tuple(sizes))
    return space


def starting_values(space: Space, settings: TrainSettings, tasks: TaskSet, *, builtin: bool) -> dict[str, Any]:
    """The settings as they are without a search, as far as the space holds them."""
    given = resolve(settings, builtin=builtin, gpu=False).model_dump(mode="json")
    budgets = [task.budget.model_dump(mode="json") for task in tasks]
    values = {}
    for key, what in space.items():
        group, *path = key.split(".")
        found = [_at(root, path) for root in ([given] if group == "train" else budgets)]
        if all(one == found[0] for one in found) and found[0] in what:
            values[key] = int(found[0]) if isinstance(what, Range) and what.whole else found[0]
    return values


def _at(value: Any, path: list[str]) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


class _Searched(Settings):
    """The two groups of settings that a search may touch."""

    train: TrainSettings
    budget: Budget


def check_space(space: Space, settings: TrainSettings, tasks: TaskSet) -> None:
    """Make sure that every setting of a space exists and takes such values.

    Raises:
        ConfigError: Every problem, each with its dotted path.
    """
    problems = []
    for key, what in space.items():
        for value in what.probes:
            for task in tasks:
                run = {"train": settings.model_dump(), "budget": task.budget.model_dump()}
                try:
                    _Searched.model_validate(_set(run, key, value))
                except ValidationError as error:
                    problems += explain_errors(error, "", _Searched).splitlines()[1:]
    _raise([problem.strip() for problem in dict.fromkeys(problems)])


def placed(
    values: Mapping[str, Any], settings: TrainSettings, budget: Mapping[str, Any]
) -> tuple[TrainSettings, dict[str, Any]]:
    """Training and budget settings with a trial's values in their places.

    Raises:
        ConfigError: Values that do not go together.
    """
    run: dict[str, Any] = {"train": settings.model_dump(), "budget": dict(budget)}
    for key, value in values.items():
        _set(run, key, value)
    try:
        return TrainSettings.model_validate(run["train"]), run["budget"]
    except ValidationError as error:
        raise ConfigError(explain_errors(error, "settings of the trial", TrainSettings)) from error


def _set(run: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    *path, last = key.split(".")
    at: Any = run
    for name in path:
        if not isinstance(at.get(name), dict):
            at[name] = {}
        at = at[name]
    at[last] = value
    return run


def _short(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def _raise(problems: list[str]) -> None:
    if problems:
        header = f"search: {len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise ConfigError("\n".join([header, *(f"  {problem}" for problem in problems)]))
