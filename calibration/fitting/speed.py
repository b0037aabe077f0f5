"""What share of its rates a card reaches in training, fitted on steps whose speed was measured.

Five shares stand between the counted work of a step and its time. They are those that make the measured speeds most
likely, given what was known of them before (`[expected]` in speed.toml): a share that the runs say nothing about stays
where it was, with its spread.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from calibration.fitting.timed_steps import TimedStep
from planner.speed.rates import Expectation, speed_facts
from profiles.fitted import ANY, Constant, Efficiencies

Vector = NDArray[np.float64]

NAMES = ("product", "attention", "bandwidth", "dequantization", "launch_seconds")
SHARES = len(NAMES) - 1
"""The first of the names are shares, which cannot be above 1."""

FEWEST = 12
"""Runs in a dtype on a card from which it gets shares of its own."""

OWN_SPREAD = 0.15
"""How far the shares of one card are expected to lie from those of all: what the data of many cards would tell."""

LEAST_SCATTER = 0.03
"""Tokens/s of the same step differ by that much from run to run; a fit that comes closer has met the noise."""

LARGEST_STEP = 0.5
ROUNDS = 40
NUDGE = 1e-4
ENOUGH = 1e-4
CEILING = np.array([0.0] * SHARES + [np.inf])
DIGITS = 4


def fit_efficiencies(steps: Sequence[TimedStep]) -> tuple[Efficiencies, ...]:
    """The shares of all cards together, then those of each card and dtype with enough runs."""
    expected = speed_facts().expected
    of_all = _fitted(steps, ANY, ANY, [getattr(expected, name) for name in NAMES])
    beliefs = [Expectation(value=getattr(of_all, name).value, spread=OWN_SPREAD) for name in NAMES]
    places = sorted({(one.gpu.name, one.dtype) for one in steps})
    found = [of_all]
    # On a single card those of all are its own.
    for gpu, dtype in places if len(places) > 1 else []:
        own = [one for one in steps if (one.gpu.name, one.dtype) == (gpu, dtype)]
        if len(own) >= FEWEST:
            found.append(_fitted(own, gpu, dtype, beliefs))
    return tuple(found)


def left_out_errors(steps: Sequence[TimedStep], beliefs: Sequence[Expectation]) -> dict[TimedStep, float]:
    """log(predicted / measured) of each step by a fit without its group; the fit itself where there is but one."""
    scatter, start, _ = _most_likely(steps, beliefs)
    errors: dict[TimedStep, float] = {}
    for group in sorted({one.group for one in steps}):
        others = [one for one in steps if one.group != group] or list(steps)
        own = [one for one in steps if one.group == group]
        values, _ = _solve(others, beliefs, scatter, start)
        errors.update(zip(own, map(float, _errors(own, values)), strict=True))
    return errors


def expectations() -> list[Expectation]:
    """What was known before, in the order of NAMES."""
    return [getattr(speed_facts().expected, name) for name in NAMES]


def unfitted() -> Efficiencies:
    """The shares that were expected before any run was looked at."""
    return _efficiencies(np.log([belief.value for belief in expectations()]))


def _fitted(steps: Sequence[TimedStep], gpu: str, dtype: str, beliefs: Sequence[Expectation]) -> Efficiencies:
    _, values, curvature = _most_likely(steps, beliefs)
    spreads = [float(spread) for spread in np.sqrt(np.diag(np.linalg.inv(curvature)))]
    left_out = list(left_out_errors(steps, beliefs).values())
    constants = {
        name: Constant(value=float(f"{value:.{DIGITS}g}"), spread=round(spread, DIGITS))
        for name, value, spread in zip(NAMES, np.exp(values), spreads, strict=True)
    }
    return Efficiencies(
        gpu=gpu,
        dtype=dtype,
        error=round(_rms(_errors(steps, values)), DIGITS),
        error_left_out=round(_rms(left_out), DIGITS),
        runs=len(steps),
        records=tuple(sorted({one.record for one in steps})),
        **constants,
    )


def _most_likely(steps: Sequence[TimedStep], beliefs: Sequence[Expectation]) -> tuple[float, Vector, Vector]:
    """How far runs scatter around the fit, the logarithms of the shares, and the curvature there."""
    start = np.log([belief.value for belief in beliefs])
    rough, _ = _solve(steps, beliefs, 0.1, start)
    scatter = max(LEAST_SCATTER, _rms(_errors(steps, rough)))
    return scatter, *_solve(steps, beliefs, scatter, rough)


def _solve(
    steps: Sequence[TimedStep], beliefs: Sequence[Expectation], scatter: float, start: Vector
) -> tuple[Vector, Vector]:
    """Values and the curvature of minus the logarithm of their likelihood there, by Gauss, Newton and Levenberg."""
    centre = np.log([belief.value for belief in beliefs])
    weights = np.array([belief.spread for belief in beliefs])

    def residuals(values: Vector) -> Vector:
        return np.concatenate([_errors(steps, values) / scatter, (values - centre) / weights])

    values, damping = np.minimum(start, CEILING), 1e-3
    now = residuals(values)
    slopes = _slopes(residuals, values, now)
    for _ in range(ROUNDS):
        tried = np.minimum(values + _move(slopes, now, damping, values >= CEILING), CEILING)
        then = residuals(tried)
        gain = float(now @ now - then @ then)
        if gain < ENOUGH and damping > 1:
            break
        if gain <= 0:
            damping *= 10
            continue
        values, now, damping = tried, then, damping / 10
        slopes = _slopes(residuals, values, now)
        if gain < ENOUGH:
            break
    return values, slopes.T @ slopes


def _move(slopes: Vector, now: Vector, damping: float, at_ceiling: NDArray[np.bool_]) -> Vector:
    """The next step; a share that is 1 already and would grow stays, and the others move as if it were known."""
    downhill = -slopes.T @ now
    free = ~(at_ceiling & (downhill > 0))
    curvature = (slopes.T @ slopes)[np.ix_(free, free)]
    move = np.zeros(len(downhill))
    move[free] = np.linalg.solve(curvature + damping * np.diag(np.diag(curvature)), downhill[free])
    return np.clip(move, -LARGEST_STEP, LARGEST_STEP)


def _slopes(residuals: Callable[[Vector], Vector], values: Vector, now: Vector) -> Vector:
    nudges = NUDGE * np.eye(len(values))
    return np.stack([(residuals(values - nudge) - now) / -NUDGE for nudge in nudges], axis=1)


def _errors(steps: Sequence[TimedStep], values: Vector) -> Vector:
    reached = _efficiencies(values)
    return np.array([math.log(one.predicted(reached) / one.tokens_per_second) for one in steps])


def _efficiencies(values: Vector) -> Efficiencies:
    constants = {name: Constant(value=float(v), spread=0) for name, v in zip(NAMES, np.exp(values), strict=True)}
    return Efficiencies(gpu=ANY, dtype=ANY, error=0, error_left_out=0, runs=1, records=(), **constants)


def _rms(errors: Sequence[float] | Vector) -> float:
    return float(np.sqrt(np.mean(np.square(errors))))
