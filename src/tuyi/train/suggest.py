"""What to try next: first points spread evenly over the space, then what Optuna makes of those that were tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tuyi.train.space import Choices, Range, Space

__all__ = ["suggest"]

_SPREAD = 6
_ATTEMPTS = 30


def suggest(
    space: Space, tried: Sequence[tuple[Mapping[str, Any], float]], start: Mapping[str, Any], seed: int
) -> dict[str, Any] | None:
    """The values to try next.

    They depend on the arguments alone, so a search that was killed goes on as the unbroken one would have.

    Args:
        space: What may be tried.
        tried: Values and score of each trial so far, in order.
        start: What to try first; settings that it leaves out are drawn.
        seed: Another seed, another search.

    Returns:
        A value for each setting; None where nothing untried was found.
    """
    for attempt in range(_ATTEMPTS):
        drawn = _spread(space, len(tried), attempt, seed) if len(tried) < _SPREAD else _ask(space, tried, attempt, seed)
        found = {key: _rounded(what, drawn[key]) for key, what in space.items()} | ({} if tried else dict(start))
        if all(found != values for values, _ in tried):
            return found
    return None


def _spread(space: Space, number: int, attempt: int, seed: int) -> dict[str, Any]:
    """A point of a scrambled Halton sequence, which leaves smaller gaps than random draws (arXiv 1706.03200)."""
    from scipy.stats.qmc import Halton

    shares = Halton(len(space), rng=seed).random(_SPREAD + _ATTEMPTS)[number + attempt]
    return {key: what.at(float(share)) for (key, what), share in zip(space.items(), shares)}


def _ask(space: Space, tried: Sequence[tuple[Mapping[str, Any], float]], attempt: int, seed: int) -> dict[str, Any]:
    """A suggestion of the tree-structured Parzen estimator (arXiv 2304.11127)."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    known = {key: _distribution(what) for key, what in space.items()}
    state = np.random.SeedSequence([seed, len(tried), attempt]).generate_state(1)
    sampler = optuna.samplers.TPESampler(seed=int(state[0]), n_startup_trials=_SPREAD)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for values, score in tried:
        study.add_trial(optuna.trial.create_trial(params=dict(values), distributions=known, value=score))
    return study.ask(known).params


def _distribution(what: Range | Choices) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(what, Choices):
        return CategoricalDistribution(what.values)
    if what.whole:
        return IntDistribution(int(what.low), int(what.high), log=what.log)
    return FloatDistribution(what.low, what.high, log=what.log)


def _rounded(what: Range | Choices, value: Any) -> Any:
    """Three digits of a drawn number: what people can read and type again."""
    if isinstance(what, Choices) or what.whole:
        return value
    return min(max(float(f"{value:.3g}"), float(what.low)), float(what.high))
