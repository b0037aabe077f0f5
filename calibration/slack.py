"""What the allocator holds beside a pass, found on simulated steps: traced, and replayed on the model of the allocator.

`python -m calibration.slack` fits the shares of `profiles/slack.toml` to `simulated_steps.csv` and prints their error;
`--write` writes them, `--simulate` traces and replays the steps again first, which takes some ten minutes. The steps
were drawn over real models and all knobs that matter to reserved memory; none is a published run.
"""

import csv
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median
from typing import Annotated

import typer

from planner.memory.estimate import estimate
from planner.memory.timeline import timeline
from planner.report.progress import progress_bar
from planner.step.network import network
from planner.step.step_spec import Adapter, StepSpec
from planner.units import MIB
from profiles.fitted import fitted as constants
from profiles.gpu_catalog import find_gpu
from profiles.model import ModelProfile
from profiles.model_catalog import find_model
from profiles.slack import SLACK_FILE

STEPS_FILE = Path(__file__).with_name("simulated_steps.csv")
GPU = find_gpu("a100-80gb")
LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes")

TRANSIENTS, CUT_AT_LOSS, CUT = ([step / 20 for step in range(end)] for end in (31, 11, 21))
"""Shares that are tried, in steps of a twentieth: a finer one would fit the noise."""

Shares = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class SimulatedStep:
    """A step and the peak of reserved memory that its simulation had, in bytes; `row` is its line in the file."""

    row: dict[str, str]
    model: ModelProfile
    step: StepSpec
    reserved_bytes: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the closed form says of a step, in bytes: its peaks by phase, and what may be cached beside them."""

    layers: int
    loss: int
    optimizer: int
    transients: int
    cut: int
    reserved: int

    def error(self, shares: Shares) -> float:
        """Predicted less simulated reserved memory, as a share of the simulated one."""
        transients, cut_at_loss, cut = shares
        at_loss = self.loss + transients * self.transients + cut_at_loss * self.cut
        return max(at_loss, self.layers + cut * self.cut, self.optimizer) / self.reserved - 1


def read_steps(path: Path = STEPS_FILE) -> list[SimulatedStep]:
    """All steps of the file."""
    with path.open(encoding="utf-8", newline="") as file:
        return [_read(row) for row in csv.DictReader(file)]


def _read(row: dict[str, str]) -> SimulatedStep:
    model = find_model(row["model"])
    names = row["targets"].split()
    step = StepSpec(
        micro_batch=int(row["micro_batch"]),
        seq_len=int(row["seq_len"]),
        weight_dtype=row["dtype"],  # type: ignore[arg-type]
        adapter=Adapter(int(row["lora_r"]), tuple(names), float(row["lora_dropout"]), "float32") if names else None,
        quantization="nf4" if row["method"] == "qlora" else None,
        double_quant=True,
        kbit_upcast=row["kbit_upcast"] == "yes",
        autocast=row["dtype"] if names else None,  # type: ignore[arg-type]
        attention=row["attention"],  # type: ignore[arg-type]
        expand_kv=row["attention"] == "efficient",
        loss=row["loss"],  # type: ignore[arg-type]
        checkpointing=row["checkpointing"] != "none",
        checkpoint_offload=row["checkpointing"] == "offloaded",
        optimizer=row["optimizer"],
    )
    return SimulatedStep(row, model, step, round(float(row["reserved_mib"]) * MIB))


def simulated_bytes(model: ModelProfile, step: StepSpec) -> int:
    """The peak of reserved memory of two steps behind loading, on a card without limit, segments not expandable."""
    # torch takes seconds to import, and only a simulation needs it.
    from calibration.allocator.caching import Settings
    from calibration.allocator.loading import with_loading
    from calibration.allocator.replay import replay
    from calibration.trace.model_config import transformers_config
    from calibration.trace.step_trace import trace

    stream = trace(transformers_config(model), step, workspace_bytes=GPU.cublas_workspace_bytes)
    return replay(with_loading(stream, step), Settings()).peak.reserved


def sizes(simulated: SimulatedStep) -> Sizes:
    """What the closed form says of a simulated step."""
    predicted = estimate(simulated.model, simulated.step, GPU)
    activity = timeline(network(simulated.model, simulated.step.objective), simulated.step)
    loss = max(activity.loss_forward.working, activity.loss_backward.working)
    idle = round(constants().slack_share("step") * predicted.activation_bytes)
    return Sizes(
        layers=max(predicted.phases["forward"], predicted.phases["backward"]),
        loss=predicted.phases["loss"],
        optimizer=predicted.phases["step"] + (idle if predicted.binding_phase == "step" else 0),
        transients=activity.transients,
        cut=loss if simulated.step.checkpointing else 0,
        reserved=simulated.reserved_bytes,
    )


def fitted(steps: Sequence[Sizes]) -> Shares:
    """The shares with the least mean error."""
    tried = itertools.product(TRANSIENTS, CUT_AT_LOSS, CUT)
    return min(tried, key=lambda shares: (mean(abs(step.error(shares)) for step in steps), shares))


def left_out_errors(steps: Sequence[SimulatedStep], measured: Sequence[Sizes]) -> list[float]:
    """The error of each step with shares that were fitted without the steps of its model, in absolute value."""
    errors = []
    for model in sorted({step.row["model"] for step in steps}):
        pairs = list(zip(steps, measured, strict=True))
        shares = fitted([size for step, size in pairs if step.row["model"] != model])
        errors += [abs(size.error(shares)) for step, size in pairs if step.row["model"] == model]
    return errors


def as_toml(steps: Sequence[Sizes], shares: Shares, left_out: Sequence[float], versions: str) -> str:
    """The text of `profiles/slack.toml`."""
    errors = sorted(abs(step.error(shares)) for step in steps)
    names = ("transients", "cut_at_loss", "cut")
    lines = [
        "# Made by `python -m calibration.slack --write`; nothing here is written by hand.",
        *(f"{name} = {share}" for name, share in zip(names, shares, strict=True)),
        f"median_error = {median(errors):.4f}",
        f"p95_error = {errors[round(0.95 * (len(errors) - 1))]:.4f}",
        f"left_out_error = {median(left_out):.4f}",
        f"steps = {len(errors)}",
        f'versions = "{versions}"',
        'source = "calibration/simulated_steps.csv: traced steps, replayed on the model of torch\'s allocator"',
    ]
    return "\n".join(lines) + "\n"


def _simulated_again(steps: Sequence[SimulatedStep]) -> Iterator[dict[str, str]]:
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    with progress_bar("simulating steps") as progress:
        for done, each in enumerate(steps, 1):
            reserved = simulated_bytes(each.model, each.step)
            progress(done / len(steps))
            yield each.row | {"reserved_mib": f"{reserved / MIB:.0f}", "versions": versions}


def main(
    write: Annotated[bool, typer.Option("--write", help="Write the shares to profiles/slack.toml.")] = False,
    simulate: Annotated[bool, typer.Option("--simulate", help="Trace and replay all steps again, in minutes.")] = False,
) -> None:
    """Fit what the allocator holds beside a pass to simulated steps."""
    if simulate:
        rows = list(_simulated_again(read_steps()))
        with STEPS_FILE.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    steps = read_steps()
    measured = [sizes(step) for step in steps]
    text = as_toml(measured, fitted(measured), left_out_errors(steps, measured), steps[0].row["versions"])
    if write:
        SLACK_FILE.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


application = typer.Typer(add_completion=False)
application.command()(main)

if __name__ == "__main__":
    application()
