"""Runs to give away and to take in: records without what is private, and checks before a foreign one is believed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from planner.config.run_config import DataKnobs, RunConfig
from planner.records.experience import MOST_MEMORY_FACTOR, MOST_SPEED_FACTOR, ratios
from planner.records.run_record import CPU, RunRecord, StoredRun
from planner.units import format_bytes
from profiles.errors import ConfigError, DataError, InputError, UnknownModelError
from profiles.gpu import GpuProfile
from profiles.gpu_catalog import find_gpu
from profiles.model import ModelProfile
from profiles.model_catalog import find_model

PRIVATE = "private"
"""Stands in place of names that are nobody's business."""

AHEAD = timedelta(days=1)
"""How far the clock of another machine may go ahead."""


class Contribution(BaseModel):
    """One run as it is given away: a line of JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    card: str = Field(description="name in the catalogue, the driver's name of a card that is not in it, or CPU")
    shape: ModelProfile = Field(description="the shape of the model; its name only if the catalogue has it too")
    record: RunRecord

    @property
    def run(self) -> StoredRun:
        """The same as the store keeps it."""
        return StoredRun(self.record, self.shape, self.card, "imported")


@dataclass(frozen=True, slots=True)
class Refused:
    """A line that is not believed, by its number, and why."""

    line: int
    why: str


def to_give_away(run: StoredRun) -> Contribution:
    """`run` without paths, host, prompts, losses and the name of a private model.

    Raises UnknownModelError for a run whose model has no known shape, ConfigError where an option may be a path.
    """
    if run.shape is None:
        raise UnknownModelError(f"the shape of {run.record.config.model} is not known")
    shape, record = _public(run.shape), run.record
    return Contribution(
        card=run.card,
        shape=shape,
        record=record.model_copy(
            update={
                "config": _bare(record.config, shape),
                "environment": record.environment.model_copy(
                    update={
                        "platform": record.environment.platform.partition("-")[0],
                        "gpu": None if run.card == CPU else run.card,
                    }
                ),
                "result": record.result.model_copy(update={"loss": None, "eval_loss": None}),
                "recoveries": (),
            }
        ),
    )


def read_contributions(path: Path) -> tuple[list[StoredRun], list[Refused]]:
    """The runs of a file that can be believed, and the lines that cannot. Raises DataError for an unreadable file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    found, refused = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(_checked(line))
        except InputError as error:
            refused.append(Refused(number, error.message))
    return found, refused


def _public(shape: ModelProfile) -> ModelProfile:
    """`shape` without its name, unless the catalogue has the very same."""
    try:
        if find_model(shape.hf_id) == shape:
            return shape
    except UnknownModelError:
        # A folder, or a model of the Hub that the catalogue does not have.
        pass
    name = f"{PRIVATE}/{shape.model_type}"
    sources = (f"its {shape.model_type} configuration",)
    return shape.model_copy(update={"hf_id": name, "aliases": (), "sources": sources, "notes": None})


def _bare(config: RunConfig, shape: ModelProfile) -> RunConfig:
    """`config` with what a step depends on; all that names a place or a text is left out."""
    unknown = {name for name, value in (config.peft.options if config.peft else {}).items() if _may_be_path(value)}
    if unknown:
        raise ConfigError(f"peft.{min(unknown)} may be a path")
    data = config.data and DataKnobs(path=PRIVATE, format=config.data.format, eval_fraction=config.data.eval_fraction)
    usual = RunConfig.model_fields["output_dir"].default
    private = {"model": shape.hf_id, "data": data, "output_dir": usual, "samples": None, "report_to": ()}
    return config.model_copy(update=private)


def _may_be_path(value: object) -> bool:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return any(_may_be_path(one) for one in value)
    return isinstance(value, str) and ("/" in value or "\\" in value)


def _checked(line: str) -> StoredRun:
    """The run in `line`, with nothing of what no run needs to be given away: the names and texts in it are not ours.

    Raises InputError for the first thing that cannot be.
    """
    try:
        run = Contribution.model_validate_json(line).run
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"{place + ': ' if place else ''}{first['msg']}") from error
    gpu = None if run.card == CPU else find_gpu(run.card)
    for why in _objections(run, gpu):
        raise DataError(why)
    return to_give_away(replace(run, card=gpu.name if gpu else CPU)).run


def _objections(run: StoredRun, gpu: GpuProfile | None) -> Iterator[str]:
    """What of a run cannot be, or cannot be judged."""
    record = run.record
    yield from _time_objections(record)
    if (record.config.gpu is None) != (gpu is None):
        yield f"it was planned for {record.config.gpu or CPU}, but ran on {run.card}"
    measured = record.measured
    sizes = [
        size for size in (measured.allocated_bytes, measured.reserved_bytes, measured.process_bytes) if size is not None
    ]
    if not sizes or min(sizes) <= 0:
        yield "no memory was measured"
    if sizes != sorted(sizes):
        yield "allocated, reserved and process memory are not in this order"
    if gpu is not None and sizes[-1] > gpu.memory_total_bytes:
        yield f"it took {format_bytes(sizes[-1])}, but {gpu.name} has {format_bytes(gpu.memory_total_bytes)}"
    yield from _error_objections(run, gpu)


def _time_objections(record: RunRecord) -> Iterator[str]:
    try:
        ended = datetime.fromisoformat(record.time)
    except ValueError:
        yield f"its time is {record.time!r}, which is no ISO 8601"
        return
    if ended.tzinfo is None or ended > datetime.now(UTC) + AHEAD:
        yield f"its time is {record.time}, which is not one of the past in a time zone"


def _error_objections(run: StoredRun, gpu: GpuProfile | None) -> Iterator[str]:
    compared = ratios(run, gpu)
    if compared is None:
        yield "it failed, ran on several cards, or is nothing that the closed form describes, so it cannot be judged"
        return
    for what, ratio, most in zip(("memory", "speed"), compared, (MOST_MEMORY_FACTOR, MOST_SPEED_FACTOR), strict=True):
        if ratio is not None and not 1 / most <= ratio <= most:
            yield f"its {what} is {ratio:.2g} times what is predicted, so one of the two is of something else"
