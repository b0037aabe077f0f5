"""Predicted against measured memory, as a picture on logarithmic axes."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from calibration.truth.error_table import METRICS, Comparison
from planner.units import GIB
from profiles.errors import DataError

BAND = 0.05
"""How far from the measurement the shaded band goes."""

CARDS = {"one GPU": False, "several GPUs": True}

FORMATS = (".svg", ".png")


def draw(compared: Sequence[Comparison], path: Path) -> None:
    """Write the picture to `path`, whose suffix decides its format. Raises DataError where it cannot be written."""
    if path.suffix not in FORMATS:
        raise DataError(f"--picture is {path}, but the picture is written as {' or '.join(FORMATS)}")
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", aspect="equal")
    extent = [0.0, 0.0]
    for (metric, marker), (cards, several) in product(zip(METRICS, "ox", strict=True), CARDS.items()):
        points = [
            (measured / GIB, comparison.predicted_bytes(metric) / GIB)
            for comparison in compared
            if (comparison.run.num_gpus > 1) == several and (measured := comparison.measured_bytes(metric)) is not None
        ]
        if points:
            label = f"{metric}, {cards} ({len(points)})"
            face = "none" if several else None
            axes.plot(*zip(*points, strict=True), marker, markersize=4, alpha=0.7, label=label, markerfacecolor=face)
            extent = [min(min(points)[0], extent[0] or min(points)[0]), max(max(points)[0], extent[1])]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.plot(extent, extent, color="black", linewidth=0.8)
    axes.fill_between(
        extent,
        [x * (1 - BAND) for x in extent],
        [x * (1 + BAND) for x in extent],
        alpha=0.2,
        label=f"within {BAND:.0%}",
    )
    axes.set(xlabel="measured, GiB", ylabel="predicted, GiB")
    axes.legend()
    try:
        figure.savefig(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from error
