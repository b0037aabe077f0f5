"""What a `model_type` means: `architectures.toml`, read and checked.

A table may start from another one (`like`) and change for models with certain config values (`variants`); both merge
table into table, and `without` names the fields that a merge removes.
"""

import tomllib
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from profiles.architecture import AttentionCode, DropoutPlace, EagerScores, NamedToTheEnd, NormKind, Scaled
from profiles.errors import UnsupportedError
from profiles.model import LayerType, ModelProfile

TRAITS_FILE = Path(__file__).parent / "architectures.toml"

Table = dict[str, Any]


class _Traits(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NormTraits(_Traits):
    """How the norms of the model compute; the fields are those of `architecture.Norm`."""

    kind: NormKind
    weight: bool = True
    bias: bool = False
    upcast: bool = False
    float32_scale: bool = False
    scales_input: bool = False
    adds_one: bool = False


class NormNames(_Traits):
    """Module names of the norms by their place; None where there is none."""

    embedding: str | None = None
    before_attention: str | None = None
    after_attention: str | None = None
    before_cross_attention: str | None = None
    before_mlp: str | None = None
    after_mlp: str | None = None
    final: str | None = None
    query: str | None = None
    key: str | None = None
    query_latent: str | None = None
    key_value_latent: str | None = None


class AttentionTraits(_Traits):
    """Projections and positions of attention.

    `inputs` are three names, or one if q, k and v are one matrix. `low_rank_query` are the two names that replace the
    first one when the config has a `q_lora_rank`. `rotary_factor` is the rotated part of a head unless the config has
    its own. `qk_norm` says whether q and k norms see one head or all of them.
    `relative_buckets` are the rows of a table of distances, one for each stack. `buffers` are what a class keeps for
    all positions: one causal mask, a causal mask for each layer, or a float32 table of rotations for each layer.
    """

    name: str
    inputs: tuple[str, ...]
    output: str
    low_rank_query: tuple[str, str] | None = None
    cross: str | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    positions: Literal["rotary", "learned", "alibi", "relative"] = "rotary"
    rotary_factor: float = 1.0
    relative_buckets: PositiveInt | None = None
    qk_norm: Literal["head", "projection"] | None = None
    sinks: bool = False
    eager_scores: EagerScores = "float32_softmax"
    broadcasts_kv: bool = False
    rotates_apart: bool = False
    scales_query: bool = False
    buffers: Literal["mask", "mask_per_layer", "positions_per_layer"] | None = None


class MlpTraits(_Traits):
    """Projections of the feed-forward part; a gated one has two inputs, or one of twice the width.

    One that is `inline` is no module but part of the layer. `intermediate_divisor` is what `intermediate_size` of the
    config is divided by to get the real width.
    """

    name: str
    inputs: tuple[str, ...]
    output: str
    gated: bool
    bias: bool = False
    activation: str
    inline: bool = False
    intermediate_divisor: PositiveInt = 1


class ExpertTraits(_Traits):
    """Names of a mixture of experts, whether its matrices have biases, whether the router's weights stay float32."""

    name: str = "experts"
    router: str
    shared: str | None = None
    bias: bool = False
    float32_weights: bool = False
    activation: str | None = None


class EmbeddingTraits(_Traits):
    """Names of the token and position tables, and of the projections in and out of the residual stream.

    `extra_positions` are rows of the position table beyond `max_position_embeddings`.
    """

    tokens: str
    positions: str | None = None
    extra_positions: int = 0
    projections: tuple[str, str] | None = None


class HeadTraits(_Traits):
    """The output projection."""

    name: str = "lm_head"
    bias: bool = False


class ArchitectureTraits(_Traits):
    """Everything that follows from a `model_type` and is not a number in the config.

    `layer_pattern` repeats over the layers of a model that has a sliding window. `remote` says that the class is not
    part of Transformers but of the repository on the Hub. `isolates_documents` says whether documents that are joined
    to one row do not see each other, if their positions begin anew and there is no attention mask. `dropout` is
    where published models have it. `named_to_the_end` is what a layer's code keeps alive without need. A class that
    has a loss of its own may take logits as they are, where Transformers' loss upcasts them (`upcasts_logits`).
    `scales` is what a class multiplies by a number that its config has.
    """

    source: str
    remote: bool = False
    linear_class: str = "Linear"
    float32_modules: tuple[str, ...] = ()
    attention_codes: tuple[AttentionCode, ...] = ("eager", "sdpa", "flash_attention_2")
    isolates_documents: bool = True
    dropout: tuple[DropoutPlace, ...] = ()
    named_to_the_end: tuple[NamedToTheEnd, ...] = ()
    parallel: bool = False
    norms_after_residual: bool = False
    upcasts_logits: bool = True
    scales: tuple[Scaled, ...] = ()
    layer_pattern: tuple[LayerType, ...] = ("full_attention",)
    embedding: EmbeddingTraits
    head: HeadTraits = HeadTraits()
    norm: NormTraits
    norms: NormNames
    attention: AttentionTraits
    mlp: MlpTraits
    experts: ExpertTraits | None = None
    config: "ConfigTraits" = Field(default_factory=lambda: ConfigTraits())


class ConfigTraits(_Traits):
    """How a `config.json` of this type is read.

    `names` are the fields that it calls otherwise. `defaults` are the values of fields that it leaves out. `assumes`
    are settings that the description depends on: a file that says otherwise is refused. `intermediate_factor` times
    hidden_size is the intermediate_size of a file without one.
    """

    names: dict[str, str] = {}
    defaults: dict[str, Any] = {}
    assumes: dict[str, Any] = {}
    intermediate_factor: PositiveInt | None = None


def known_model_types() -> tuple[str, ...]:
    """Every described `model_type`, in alphabetical order."""
    return tuple(sorted(_tables()))


def traits_of_type(model_type: str) -> ArchitectureTraits:
    """The traits that all models of a `model_type` share. Raises UnsupportedError for a type nobody described."""
    table = _table(model_type)
    return ArchitectureTraits.model_validate({key: value for key, value in table.items() if key != "variants"})


@cache
def traits_of_model(model: ModelProfile) -> ArchitectureTraits:
    """The traits of one model, its variants applied. Raises UnsupportedError for a type nobody described."""
    table = _table(model.model_type)
    variants = table.pop("variants", [])
    for variant in variants:
        if all(getattr(model, field) == value for field, value in variant["when"].items()):
            table = _merged(table, {key: value for key, value in variant.items() if key != "when"})
    return ArchitectureTraits.model_validate(table)


@cache
def _tables() -> dict[str, Table]:
    return tomllib.loads(TRAITS_FILE.read_text())


def _table(model_type: str) -> Table:
    tables = _tables()
    if model_type not in tables:
        raise UnsupportedError(
            f"model_type is {model_type!r}, an architecture that fitune has no description of",
            hint="described are " + ", ".join(known_model_types()),
        )
    table = dict(tables[model_type])
    like = table.pop("like", None)
    return _merged(_table(like), table) if like else table


def _merged(base: Table, change: Table) -> Table:
    removed = change.get("without", ())
    merged = {key: value for key, value in base.items() if key not in removed}
    for key, value in change.items():
        if key == "without":
            continue
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
