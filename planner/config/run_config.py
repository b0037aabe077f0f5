"""Every knob of a run, once. A `RunConfig` is what is searched, estimated, written as YAML and launched."""

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from planner.config.knob_sections import DATA_COLUMNS as DATA_COLUMNS
from planner.config.knob_sections import READ_BY as READ_BY
from planner.config.knob_sections import REFERRING as REFERRING
from planner.config.knob_sections import DataFormat as DataFormat
from planner.config.knob_sections import DataKnobs as DataKnobs
from planner.config.knob_sections import Knobs as Knobs
from planner.config.knob_sections import LoraInit as LoraInit
from planner.config.knob_sections import LoraKnobs as LoraKnobs
from planner.config.knob_sections import Objective as Objective
from planner.config.knob_sections import OneAlone as OneAlone
from planner.config.knob_sections import PeftKnobs as PeftKnobs
from planner.config.knob_sections import PreferenceKnobs as PreferenceKnobs
from planner.config.knob_sections import SampleKnobs as SampleKnobs
from planner.config.parallel_knobs import Offload as Offload
from planner.config.parallel_knobs import ParallelKnobs as ParallelKnobs
from planner.config.parallel_knobs import Strategy as Strategy
from profiles.errors import ConfigError
from profiles.peft_method import base_of, check_lora, find_method

Method = Literal["full", "lora", "qlora", "peft"]
Dtype = Literal["float32", "float16", "bfloat16"]
Quantization = Literal["nf4", "fp4", "int8"]
MixedPrecision = Literal["no", "fp16", "bf16"]
AttentionImplementation = Literal["eager", "sdpa", "flash_attention_2"]
LossPath = Literal["full", "fused"]
Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]

AUTOCAST: dict[MixedPrecision, Dtype | None] = {"no": None, "fp16": "float16", "bf16": "bfloat16"}
"""The dtype of the forward pass under each kind of mixed precision."""

DTYPE_BYTES: dict[Dtype, int] = {"float32": 4, "float16": 2, "bfloat16": 2}

PAIRED: frozenset[Objective] = frozenset({"dpo", "ipo", "orpo", "reward"})
"""Objectives whose examples are pairs: the chosen and the rejected answer pass the model together, as two rows."""

LOSS_PATHS: dict[Objective, tuple[LossPath, ...]] = {
    "sft": ("fused", "full"),
    "dpo": ("fused",),
    "ipo": ("fused",),
    "kto": ("fused",),
    "orpo": ("full",),
    "reward": ("full",),
}
"""The ways to the loss that TRL 1.16 has for each objective, the usual one first. A reward head has one output a token,
so there is nothing to fuse."""


class RunConfig(Knobs):
    """One fine-tuning run, complete: nothing that matters is left to a library's default."""

    version: Literal[1] = Field(1, description="Version of this file format.")
    model: Annotated[str, Field(min_length=1)] = Field(
        description="Hub id, folder with a checkpoint, or an alias of the catalog."
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that the model's repository ships. Off unless you read that code."
    )
    gpu: str | None = Field(None, description="The card this was planned for; None means a CPU.")
    num_gpus: PositiveInt = Field(1, description="Cards in each machine; on a CPU, processes.")
    num_nodes: PositiveInt = Field(1, description="Machines, each with as many cards.")
    parallel: ParallelKnobs | None = Field(
        None, validate_default=True, description="How the cards share the run; only with more than one."
    )

    objective: Objective = Field(
        "sft",
        description="sft learns answers, also those of an encoder-decoder; dpo, ipo and orpo learn which of two is "
        "better, kto from single good and bad ones; reward trains a model that scores answers.",
    )
    preference: PreferenceKnobs | None = Field(
        None, validate_default=True, description="Options of the objective; only with others than sft."
    )

    method: Method = Field(
        "lora",
        description="full trains every weight; lora trains adapters on a 16-bit base, qlora on a quantized one; "
        "peft any other method of PEFT, on either.",
    )
    quantization: Quantization | None = Field(
        None, description="bitsandbytes format of the base's Linear weights; with qlora and peft."
    )
    double_quant: bool = Field(True, description="Quantize the 4-bit block constants too: 0.37 bit a weight less.")
    dtype: Dtype = Field("bfloat16", description="Dtype of the weights that are not quantized, as loaded.")
    mixed_precision: MixedPrecision = Field(
        "bf16", description="Autocast of the forward pass; fp16 also scales the loss."
    )
    lora: LoraKnobs | None = Field(None, description="The adapter; only with lora and qlora.")
    peft: PeftKnobs | None = Field(None, description="The method of PEFT and its options; only with peft.")

    data: DataKnobs | None = Field(None, description="The training data; a plan may leave it open, a launch may not.")
    max_length: PositiveInt = Field(2048, description="Tokens a row is cut to.")
    max_target_length: PositiveInt | None = Field(
        None,
        description="Tokens the answer is cut to where an encoder reads the prompt; None takes max_length. "
        "Models without an encoder have no use for it.",
    )
    packing: bool = Field(
        False, description="Join short rows up to max_length. Needs a model that keeps documents apart."
    )
    padding_free: bool = Field(
        False,
        description="Lay the rows of a batch end to end instead of padding them to the longest. Worth it with "
        "flash_attention_2; others mask what lies between the rows. Needs a model that keeps documents apart.",
    )

    per_device_train_batch_size: PositiveInt = Field(
        1, description="Examples a card works on at once; a preference pair is one example and two rows."
    )
    per_device_eval_batch_size: PositiveInt = Field(1, description="Examples a card evaluates at once.")
    gradient_accumulation_steps: PositiveInt = Field(1, description="Micro-batches between two optimizer steps.")
    gradient_checkpointing: bool = Field(
        True, description="Keep only the inputs of layers and compute the rest again in the backward pass."
    )
    checkpoint_every_n_layers: PositiveInt = Field(
        1, description="Checkpoint each n-th layer only: less recomputation, more memory."
    )
    checkpoint_offload: bool = Field(False, description="Keep the checkpoints in pinned host memory.")
    attn_implementation: AttentionImplementation = Field(
        "sdpa", description="Transformers' name of the attention code."
    )
    loss: LossPath = Field(
        default_factory=lambda known: LOSS_PATHS[known.get("objective", "sft")][0],
        description="full builds all logits; fused computes the loss tile by tile from hidden states and head.",
    )

    optim: str = Field("adamw_torch_fused", description="Transformers' name of the optimizer.")
    learning_rate: PositiveFloat = Field(2e-4, description="Peak learning rate.")
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine"] = Field(
        "cosine", description="How the learning rate falls."
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="Steps in which the learning rate rises.")
    weight_decay: NonNegativeFloat = Field(0.0, description="Decoupled weight decay.")
    max_grad_norm: PositiveFloat = Field(1.0, description="Gradients are scaled down to this norm.")
    num_train_epochs: PositiveFloat = Field(1.0, description="Passes over the data, unless max_steps is set.")
    max_steps: PositiveInt | None = Field(None, description="Optimizer steps; overrides num_train_epochs.")
    seed: Annotated[int, Field(ge=0)] = Field(42, description="Seed of weights, data order and dropout.")
    probe: bool = Field(
        True, description="Before training, try one step on rows of max_length, and change nothing by it."
    )

    output_dir: Annotated[str, Field(min_length=1)] = Field(
        "runs/fitune", description="Folder of checkpoints, final weights and the record."
    )
    logging_steps: PositiveInt = Field(10, description="Steps between two log lines.")
    save_steps: PositiveInt = Field(200, description="Steps between two checkpoints.")
    save_total_limit: PositiveInt = Field(2, description="Checkpoints kept on disk.")
    eval_steps: PositiveInt | None = Field(
        None, description="Steps between two evaluations; None evaluates at the end only."
    )
    load_best_model_at_end: bool = Field(
        False, description="Keep the checkpoint with the lowest evaluation loss, and end with its weights."
    )
    early_stopping_patience: PositiveInt | None = Field(
        None, description="Stop after this many evaluations without a lower loss; None trains to the end."
    )
    samples: SampleKnobs | None = Field(None, description="Prompts to answer while training; None asks nothing.")
    report_to: Annotated[tuple[Tracker, ...], OneAlone] = Field(
        (), description="Where figures are sent as well, by name; their packages are installed apart."
    )

    @field_validator("preference", mode="after")
    @classmethod
    def _preference_is_stated(cls, preference: PreferenceKnobs | None, known: ValidationInfo) -> PreferenceKnobs | None:
        return preference or (None if known.data.get("objective", "sft") == "sft" else PreferenceKnobs())

    @field_validator("parallel", mode="after")
    @classmethod
    def _parallel_is_stated(cls, parallel: ParallelKnobs | None, known: ValidationInfo) -> ParallelKnobs | None:
        several = known.data.get("num_gpus", 1) * known.data.get("num_nodes", 1) > 1
        return parallel or (ParallelKnobs() if several else None)

    @model_validator(mode="after")
    def _cards_can_share_it(self) -> Self:
        if self.parallel is None:
            return self
        if self.world_size == 1:
            raise ValueError("the parallel section is for several cards, but num_gpus is 1; leave the section out")
        self.parallel.check_cards(self.num_gpus, self.num_nodes)
        self.parallel.check_row(self.max_length, self.attn_implementation, self.joins_rows)
        self.parallel.check_base(self.method, self.quantization, self.dtype, AUTOCAST[self.mixed_precision])
        self.parallel.check_optimizer(self.optim)
        return self

    @model_validator(mode="after")
    def _method_and_base_agree(self) -> Self:
        if self.method != "peft" and (self.method == "qlora") != (self.quantization is not None):
            raise ValueError(
                f"method is {self.method}, but quantization is {self.quantization or 'none'}; "
                "qlora needs nf4, fp4 or int8, the other methods none"
            )
        if (self.method in ("lora", "qlora")) != (self.lora is not None):
            raise ValueError(
                f"method is {self.method}, but the lora section is {'there' if self.lora else 'missing'}; "
                "lora and qlora need it, peft and full must not have it"
            )
        if (self.method == "peft") != (self.peft is not None):
            raise ValueError(
                f"method is {self.method}, but the peft section is {'there' if self.peft else 'missing'}; "
                "peft needs it, the others must not have it"
            )
        return self

    @model_validator(mode="after")
    def _adapter_trains_on_base(self) -> Self:
        base = base_of(self.quantization, self.dtype)
        if self.peft is not None:
            find_method(self.peft.type).check_base(base, vars(self))
        elif self.lora is not None and self.lora.is_variant:
            check_lora(self.lora.model_dump(), base, vars(self))
        return self

    @model_validator(mode="after")
    def _precision_agrees(self) -> Self:
        if self.mixed_precision == "fp16" and self.dtype == "bfloat16":
            raise ValueError("mixed_precision is fp16, but dtype is bfloat16; use float16 or float32")
        if self.mixed_precision == "bf16" and self.dtype == "float16":
            raise ValueError("mixed_precision is bf16, but dtype is float16; use bfloat16 or float32")
        if self.method == "full" and self.dtype == "float16":
            raise ValueError("full fine-tuning in float16 loses its updates; use float32, or bfloat16")
        return self

    @model_validator(mode="after")
    def _objective_agrees(self) -> Self:
        if self.objective == "sft" and self.preference is not None:
            raise ValueError("objective is sft, which has no preferences; leave the preference section out")
        if self.loss not in LOSS_PATHS[self.objective]:
            raise ValueError(
                f"loss is {self.loss}, but {self.objective} has no such way to the loss; "
                f"use {LOSS_PATHS[self.objective][0]}"
            )
        if self.packing and self.objective != "sft":
            raise ValueError(f"packing joins rows, but {self.objective} compares whole answers; set packing to false")
        if self.padding_free and self.objective != "sft":
            raise ValueError(f"padding_free is for sft, but objective is {self.objective}; set it to false")
        if self.objective == "kto" and self.per_device_train_batch_size == 1:
            raise ValueError("per_device_train_batch_size is 1, but kto compares the answers of a batch; use 2 or more")
        return self

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        usual = PreferenceKnobs()
        for name, objectives in READ_BY.items():
            if self.preference is None or self.objective in objectives:
                continue
            if getattr(self.preference, name) != getattr(usual, name):
                raise ValueError(
                    f"preference.{name} has no effect on {self.objective}, only on {', '.join(sorted(objectives))}; "
                    "leave it out"
                )
        return self

    @model_validator(mode="after")
    def _joining_agrees(self) -> Self:
        if self.packing and self.padding_free:
            raise ValueError("padding_free has no effect with packing, which leaves no padding; set it to false")
        if self.joins_rows and self.per_device_eval_batch_size > self.per_device_train_batch_size:
            raise ValueError(
                f"per_device_eval_batch_size is {self.per_device_eval_batch_size}, but the rows of a batch are joined "
                "to one, which must not be longer than in training; "
                f"use {self.per_device_train_batch_size} or less"
            )
        return self

    @model_validator(mode="after")
    def _checkpointing_agrees(self) -> Self:
        if not self.gradient_checkpointing and (self.checkpoint_every_n_layers > 1 or self.checkpoint_offload):
            raise ValueError(
                "checkpoint_every_n_layers and checkpoint_offload have no effect without gradient_checkpointing; "
                "set it to true or leave them out"
            )
        return self

    @model_validator(mode="after")
    def _samples_can_be_taken(self) -> Self:
        if self.samples is not None and self.objective == "reward":
            raise ValueError("samples asks for answers, but a model with objective reward gives scores; leave it out")
        return self

    @model_validator(mode="after")
    def _evaluation_agrees(self) -> Self:
        wants = [name for name in ("load_best_model_at_end", "early_stopping_patience") if getattr(self, name)]
        if not wants:
            return self
        if self.eval_steps is None:
            raise ValueError(f"{wants[0]} needs evaluations; set eval_steps")
        if self.data is not None and self.data.eval_fraction == 0:
            raise ValueError(f"{wants[0]} needs rows to evaluate on; set data.eval_fraction")
        if self.load_best_model_at_end and self.save_steps % self.eval_steps:
            raise ValueError(
                f"load_best_model_at_end needs an evaluation of each checkpoint, but save_steps {self.save_steps} "
                f"is not a multiple of eval_steps {self.eval_steps}"
            )
        return self

    @property
    def joins_rows(self) -> bool:
        """Whether a batch is one long row of several documents."""
        return self.packing or self.padding_free

    @property
    def world_size(self) -> int:
        """Cards of the run, on all machines; on a CPU, processes."""
        return self.num_gpus * self.num_nodes

    @property
    def data_parallel_size(self) -> int:
        """Groups of cards with rows of their own; a group is one card unless it splits products or rows."""
        if self.parallel is None:
            return 1
        return self.world_size // (self.parallel.tensor_parallel_size * self.parallel.context_parallel_size)

    @property
    def quant_storage(self) -> Dtype | None:
        """The dtype that 4-bit weights are packed in so that they can be shared out; None where no one shares them.

        It is `bnb_4bit_quant_storage`; source: PEFT, developer guide on FSDP and QLoRA.
        """
        shared = self.parallel is not None and self.parallel.partitions_weights
        return self.dtype if shared and self.quantization in ("nf4", "fp4") else None

    @property
    def asks_reference_before(self) -> bool:
        """Whether a frozen reference answers once before training instead of in each step."""
        return self.preference is not None and self.preference.precompute_ref_log_probs

    @property
    def effective_batch_size(self) -> int:
        """Examples that one optimizer step sees on all cards together."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.data_parallel_size


def split_batch(effective_batch_size: int, micro_batch: int) -> int:
    """Accumulation steps that make `micro_batch` rows add up to `effective_batch_size`.

    Raises ConfigError if they do not divide.
    """
    if effective_batch_size % micro_batch:
        divisors = [n for n in range(1, effective_batch_size + 1) if effective_batch_size % n == 0]
        below = max(n for n in divisors if n <= micro_batch)
        above = min((n for n in divisors if n >= micro_batch), default=effective_batch_size)
        raise ConfigError(
            f"per_device_train_batch_size is {micro_batch}, but the batch size {effective_batch_size} "
            "is not a multiple of it",
            hint=f"use {below} or {above}",
        )
    return effective_batch_size // micro_batch
