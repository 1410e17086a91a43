"""Settings: read from a YAML run file, changed by ``--set key=value``, checked all at once."""

from __future__ import annotations

import difflib
import reprlib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from tuyi.errors import ConfigError

__all__ = ["Settings", "apply_overrides", "explain_errors", "load_settings"]


class Settings(BaseModel):
    """Base of every group of settings: frozen, unknown keys refused, defaults checked too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


S = TypeVar("S", bound=BaseModel)


def load_settings(cls: type[S], file: Path | None = None, overrides: list[str] | None = None, **given: Any) -> S:
    """Build settings of type ``cls``.

    Args:
        cls: A :class:`Settings` class.
        file: YAML run file; missing keys take their defaults.
        overrides: ``KEY=VALUE`` strings with dotted keys; values are YAML. They win over the file.
        given: Values set by command-line options of their own; None means not given. They win over everything.

    Raises:
        ConfigError: Every problem, each with its dotted path.
    """
    value: Any = {}
    if file is not None:
        try:
            value = yaml.safe_load(file.read_text(encoding="utf-8-sig")) or {}
        except FileNotFoundError as error:
            raise ConfigError(f"run file {file} does not exist") from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"run file {file} cannot be read as YAML: {error}") from error
        if not isinstance(value, dict):
            raise ConfigError(f"run file {file}: expected a mapping of settings, found {type(value).__name__}")
    apply_overrides(value, overrides or [])
    value.update({key: item for key, item in given.items() if item is not None})
    try:
        return cls.model_validate(value)
    except ValidationError as error:
        raise ConfigError(explain_errors(error, str(file or "settings"), cls)) from error


def apply_overrides(value: dict[str, Any], overrides: list[str]) -> None:
    """Set dotted keys in nested data, in place: ``train.lr=1e-5``."""
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"--set: expected KEY=VALUE, found {override!r}")
        *path, last = key.strip().split(".")
        at = value
        for name in path:
            at = at.setdefault(name, {})
            if not isinstance(at, dict):
                raise ConfigError(f"--set {override}: {name} is not a group of settings")
        at[last] = _scalar(text)


def _scalar(text: str) -> Any:
    """YAML's reading of a value, with ``1e-5`` read as the number that everybody means."""
    value = yaml.safe_load(text)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def explain_errors(error: ValidationError, source: str, cls: type[BaseModel]) -> str:
    """Every problem of a validation on its own line, with its dotted path."""
    problems = error.errors()
    lines = [f"{source}: {len(problems)} problem{'s' if len(problems) > 1 else ''}"]
    for problem in problems:
        path = ".".join(str(item) for item in problem["loc"]) or cls.__name__
        lines.append(f"  {path}: {_reason(problem, cls)}")
    return "\n".join(lines)


def _reason(problem: Any, cls: type[BaseModel]) -> str:
    if problem["type"] == "extra_forbidden":
        known = _keys_beside(problem["loc"], cls)
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
        return f"unknown setting; {hint}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("value_error", "missing"):
        return str(message)
    return f"{message}; found {reprlib.repr(problem['input'])}"


def _keys_beside(path: tuple[Any, ...], cls: type[BaseModel]) -> list[str]:
    """The keys that the group of settings at ``path`` knows."""
    group: Any = cls
    for name in path[:-1]:
        if isinstance(name, int):
            continue
        field = group.model_fields.get(name) if hasattr(group, "model_fields") else None
        group = _model_in(field.annotation) if field is not None else None
    return sorted(group.model_fields) if group is not None else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if (found := _model_in(inner)) is not None:
            return found
    return None
