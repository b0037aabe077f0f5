"""What can be asked for: each parameter of the verbs with its type, its limits and its words, once.

The functions of `planner.verbs.answers` take these; the HTTP API and the MCP server are derived from the functions, and
the command line and the page have their words and limits from here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from planner.config.run_config import Objective
from planner.search.request import RequestedMethod
from profiles.errors import ConfigError

MOST_CARDS, MOST_ROWS = 1024, 1 << 16
"""What is answered for: numbers beyond are slips of the finger, and would keep other users of a server waiting."""

ModelName = Annotated[
    str, Field(description="A Hub id, an alias (llama2-7b), a size (7b) or a folder with a config.json.")
]
OptionalModelName = Annotated[str | None, Field(description="As in `can`; with a recipe, in place of the recipe's.")]
GpuName = Annotated[
    str | None,
    Field(
        description="A card (t4, a100-80gb), a size (16GB), a machine (p4d.24xlarge), auto (the cards here, with what "
        "is free now) or cpu; for can also any: the common cards compared."
    ),
]
MethodName = Annotated[
    RequestedMethod, Field(description="full, lora, qlora, peft, or auto: LoRA on the least lossy base that fits.")
]
ObjectiveName = Annotated[
    Objective | None,
    Field(description="sft learns answers, dpo, ipo and orpo preferences, kto judged answers, reward a score."),
]
Length = Annotated[int | None, Field(gt=0, description="Tokens a row is cut to.")]
Rank = Annotated[int | None, Field(gt=0, description="Rank of the adapter.")]
BatchSize = Annotated[int | None, Field(gt=0, le=MOST_ROWS, description="Examples of one optimizer step.")]
RecipeName = Annotated[
    str | None, Field(description="Begin with published settings (`fitune recipes`); the others change them.")
]
TrainerName = Annotated[str, Field(description="Whose training step: fitune, trl, transformers, axolotl, ...")]
DataFile = Annotated[
    str | Path | None, Field(description="Training data; the lengths of its rows decide max_length, time and padding.")
]
Rows = Annotated[int | None, Field(gt=0, description="Rows of the data, for time and cost where there is no file yet.")]
Cards = Annotated[
    int | None, Field(gt=0, le=MOST_CARDS, description="Cards in each machine; one, or all that a machine has.")
]
Nodes = Annotated[int | None, Field(gt=0, le=MOST_CARDS, description="Machines.")]
Knobs = Annotated[
    Mapping[str, Any] | None, Field(description='Any knobs of the run file, nested as there: {"lora": {"r": 8}}.')
]
Exactly = Annotated[
    bool,
    Field(
        description="Trace the trainer's own step on fake tensors, operator by operator: about ten seconds, and needs "
        "the `train` extra, but no GPU and no weights."
    ),
]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a user says about the run; `knobs` are named and nested as in a run file, `rows` those of the data.

    Raises ConfigError for a number beyond its limits.
    """

    method: MethodName = "auto"
    objective: ObjectiveName = None
    max_length: Length = None
    lora_r: Rank = None
    batch_size: BatchSize = None
    data: Path | None = None
    rows: Rows = None
    num_gpus: Cards = None
    num_nodes: Nodes = None
    knobs: Mapping[str, Any] = field(default_factory=dict)
    recipe: RecipeName = None

    def __post_init__(self) -> None:
        for name, parameter in NUMBERS.items():
            checked_number(parameter, getattr(self, name), name, "leave it out for the default")


NUMBERS: dict[str, object] = {
    "num_gpus": Cards,
    "num_nodes": Nodes,
    "max_length": Length,
    "batch_size": BatchSize,
    "lora_r": Rank,
    "rows": Rows,
}
"""The wishes that are whole numbers, within limits."""


def words(parameter: object) -> str:
    """What is said of a parameter wherever it is asked for."""
    return next(one.description or "" for one in get_args(parameter) if isinstance(one, FieldInfo))


def checked_number(
    parameter: Any,  # noqa: ANN401  # one of the types above
    value: int | None,
    called: str,
    hint: str,
) -> int | None:
    """`value` if the limits of `parameter` hold it. Raises ConfigError, which calls it as the user does."""
    if value is None:
        return None
    adapter: TypeAdapter[object] = TypeAdapter(parameter)
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        broken = error.errors()[0]
        most = broken.get("ctx", {}).get("le")
        rule = "it must be at least 1" if most is None else f"the most that is answered for is {most:,}"
        raise ConfigError(f"{called} is {value}, but {rule}", hint=hint) from None
    return value
