"""The sections of a run file: groups of knobs that belong together."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    model_validator,
)

from profiles.peft_method import find_method

LoraInit = Literal[True, False, "gaussian", "olora", "orthogonal", "pissa", "pissa_niter_4", "pissa_niter_16", "mica"]
Objective = Literal["sft", "dpo", "ipo", "orpo", "kto", "reward"]
OneAlone = BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
"""A list of names may be given as the only one."""

DataFormat = Literal["auto", "text", "prompt-completion", "messages", "alpaca", "sharegpt", "preference", "kto"]

DATA_COLUMNS: dict[DataFormat, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "preference": ("chosen", "rejected"),
    "kto": ("prompt", "completion", "label"),
    "prompt-completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
"""The columns that each format is known by; where those of several are there, the first one is meant."""

REFERRING: frozenset[Objective] = frozenset({"dpo", "ipo", "kto"})
"""Objectives that compare the model with a frozen reference: what it was before."""


class Knobs(BaseModel):
    """A frozen group of knobs that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LoraKnobs(Knobs):
    """A low-rank adapter, in PEFT's own names."""

    r: PositiveInt = Field(16, description="Rank of the two matrices of each adapter.")
    lora_alpha: PositiveInt = Field(32, description="Scale of the adapter's output, over r.")
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="Share of the adapter's input that is dropped in training; any costs a mask a layer. "
        "Without effect with other objectives than sft, which drop nothing.",
    )
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear",
        description="Names of the Linear modules that get an adapter; `all-linear` is each one but the head.",
    )
    use_rslora: bool = Field(
        False, description="rsLoRA: the adapter's output is scaled by lora_alpha over the square root of r."
    )
    use_dora: bool = Field(
        False, description="DoRA: the length of each row of a weight learns apart from its direction; costs memory."
    )
    init_lora_weights: LoraInit = Field(
        True,
        description="How the matrices begin; true is PEFT's usual way. pissa, olora and mica change the base as well.",
    )

    @property
    def is_variant(self) -> bool:
        """Whether this is more than plain LoRA."""
        return self.use_rslora or self.use_dora or self.init_lora_weights is not True

    @model_validator(mode="after")
    def _some_target(self) -> Self:
        if not self.target_modules:
            raise ValueError("target_modules is empty; name at least one module, or write all-linear")
        return self


class PreferenceKnobs(Knobs):
    """How strongly a preference counts, in TRL's own names.

    An option that the objective does not read keeps its default.
    """

    beta: PositiveFloat = Field(
        0.1,
        description="dpo, ipo, kto: how far the model may leave the reference, less with more; "
        "orpo: weight of the odds ratio beside the likelihood.",
    )
    precompute_ref_log_probs: bool = Field(
        False,
        description="dpo, ipo, kto: ask the reference once before training instead of in each step. Saves its memory "
        "and time in the step.",
    )
    desirable_weight: PositiveFloat = Field(1.0, description="kto: weight of the examples that are labelled good.")
    undesirable_weight: PositiveFloat = Field(1.0, description="kto: weight of the examples that are labelled bad.")
    center_rewards_coefficient: PositiveFloat | None = Field(
        None, description="reward: pull towards rewards around zero, None for no pull; 0.01 is usual."
    )


READ_BY: dict[str, frozenset[Objective]] = {
    "beta": frozenset({"dpo", "ipo", "kto", "orpo"}),
    "precompute_ref_log_probs": REFERRING,
    "desirable_weight": frozenset({"kto"}),
    "undesirable_weight": frozenset({"kto"}),
    "center_rewards_coefficient": frozenset({"reward"}),
}
"""The objectives that read each option of `PreferenceKnobs`."""


class PeftKnobs(Knobs):
    """Another method of PEFT: its name, and its options in PEFT's own names, which differ from method to method."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: Annotated[str, StringConstraints(to_upper=True, min_length=1)] = Field(
        description="PEFT's name of the method, in any case; `fitune methods` lists them with their options."
    )

    @property
    def options(self) -> dict[str, Any]:
        """The options that were given, by name."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _known_to_peft(self) -> Self:
        find_method(self.type).check_options(self.options)
        return self


class SampleKnobs(Knobs):
    """What the model says while it learns: answers to a few prompts, now and then."""

    prompts: Annotated[tuple[str, ...], OneAlone, Field(min_length=1)] = Field(
        description="What the model is asked; in its chat template, if it has one."
    )
    steps: PositiveInt = Field(100, description="Steps between two rounds of answers.")
    max_new_tokens: PositiveInt = Field(64, description="Tokens an answer is cut to.")


class DataKnobs(Knobs):
    """Where the examples come from."""

    path: str = Field(
        description="A .jsonl, .json, .csv or .parquet file, or a folder written by `datasets`' save_to_disk."
    )
    format: DataFormat = Field("auto", description="How a row reads; auto looks at the columns.")
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of the rows that is held out for evaluation."
    )
