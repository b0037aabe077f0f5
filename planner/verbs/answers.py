"""The verbs as functions: `planner.can`, `planner.plan` and `planner.estimate`.

The command line, the HTTP API and the MCP server ask through them.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field

from planner.asking.question import (
    FULL_ACCESS,
    Access,
    card_or_cpu,
    find_card,
    following,
    names_file,
    own_card,
    request_for,
)
from planner.asking.subject import configuration
from planner.asking.wishes import (
    BatchSize,
    Cards,
    DataFile,
    Exactly,
    GpuName,
    Knobs,
    Length,
    MethodName,
    ModelName,
    Nodes,
    ObjectiveName,
    OptionalModelName,
    Rank,
    RecipeName,
    Rows,
    TrainerName,
    Wishes,
)
from planner.config.run_config import RunConfig
from planner.predict.prediction import OWN_TRAINER, Prediction, predict, predict_either_way, untold
from planner.search.common_cards import COMMON_CARDS, ask_common_cards, cheapest
from planner.search.planning import Plan, make_plan
from planner.search.request import Request
from profiles.errors import ConfigError, UnsupportedError

ANY = "any"
"""In place of a card: whichever of the common ones."""


def can(
    model: ModelName,
    gpu: GpuName = None,
    *,
    method: MethodName = "auto",
    objective: ObjectiveName = None,
    max_length: Length = None,
    lora_r: Rank = None,
    batch_size: BatchSize = None,
    data: DataFile = None,
    rows: Rows = None,
    num_gpus: Cards = None,
    num_nodes: Nodes = None,
    knobs: Knobs = None,
    access: Access = FULL_ACCESS,
) -> Plan:
    """Whether `model` can be fine-tuned on `gpu`, and how.

    Without a card the answer is for this machine's; without one there, for the common cards: then `cards` has an answer
    for each, and the plan is that of the cheapest that does.

    Examples:
        >>> import planner
        >>> answer = planner.can("7b", "t4")
        >>> answer.verdict, answer.config.method, answer.config.model
        ('fits', 'lora', 'meta-llama/Llama-2-7b-hf')
        >>> planner.can("70b", "t4").verdict
        'no'

    `access` is for servers, which may not read all that their users name.

    Raises:
        profiles.errors.InputError: a name that is not known, or a knob that breaks a rule; its `hint` is the way out.
    """
    wishes = Wishes(
        method=method,
        objective=objective,
        max_length=max_length,
        lora_r=lora_r,
        batch_size=batch_size,
        data=Path(data) if data is not None else None,
        rows=rows,
        num_gpus=num_gpus,
        num_nodes=num_nodes,
        knobs=knobs or {},
    )
    return answer(model, gpu, wishes, access)


def plan(
    model: OptionalModelName = None,
    gpu: GpuName = None,
    *,
    recipe: RecipeName = None,
    method: MethodName = "auto",
    objective: ObjectiveName = None,
    max_length: Length = None,
    lora_r: Rank = None,
    batch_size: BatchSize = None,
    data: DataFile = None,
    rows: Rows = None,
    num_gpus: Cards = None,
    num_nodes: Nodes = None,
    knobs: Knobs = None,
    access: Access = FULL_ACCESS,
) -> Plan:
    """The best configuration of `model` that fits `gpu`, what could be traded, and why the others lost.

    What is given is kept, the rest is searched. Without a card the plan is for this machine's, or its CPU. A `recipe`
    stands for published settings, with its own model and card.

    Examples:
        >>> import planner
        >>> best = planner.plan("mistral-7b", "24GB", max_length=4096, knobs={"optim": "adamw_8bit"})
        >>> best.config.max_length, best.config.optim
        (4096, 'adamw_8bit')
        >>> best.estimate.process_bytes < best.usable_bytes
        True

    `planner.config.run_file.write_run_file(best.config, path)` writes what `fitune launch` trains.

    Raises:
        profiles.errors.InputError: a name that is not known, or a knob that breaks a rule; its `hint` is the way out.
    """
    wishes = Wishes(
        method=method,
        objective=objective,
        max_length=max_length,
        lora_r=lora_r,
        batch_size=batch_size,
        data=Path(data) if data is not None else None,
        rows=rows,
        num_gpus=num_gpus,
        num_nodes=num_nodes,
        knobs=knobs or {},
        recipe=recipe,
    )
    return best_plan(planned_request(model, gpu, wishes, access), access)


def estimate(
    subject: Annotated[
        str | Path | RunConfig,
        Field(description="A model as in `can`, or a run file; from Python also another trainer's file."),
    ],
    gpu: GpuName = None,
    *,
    method: MethodName = "auto",
    objective: ObjectiveName = None,
    max_length: Length = None,
    lora_r: Rank = None,
    num_gpus: Cards = None,
    num_nodes: Nodes = None,
    knobs: Knobs = None,
    trainer: TrainerName = OWN_TRAINER,
    exact: Exactly = False,
    access: Access = FULL_ACCESS,
) -> Prediction:
    """The memory and the speed of one configuration: that of a run file, or the usual one of a model.

    A file of Axolotl, LLaMA-Factory, TRL, Unsloth or plain TrainingArguments (.yaml, .json) is read as that trainer
    would run it; the answer is then a `planner.peers.check.PeerAnswer`, with an account of each of its keys and the
    smallest change that fits. What the closed form does not describe is traced, as with `exact`.

    Examples:
        >>> import planner
        >>> predicted = planner.estimate("7b", "t4", method="qlora")
        >>> predicted.verdict, predicted.estimate.binding_phase
        ('fits', 'backward')
        >>> sum(part.bytes for part in predicted.estimate.components) == predicted.estimate.allocated_bytes
        True
        >>> checked = planner.estimate("axolotl.yml", "t4")
        >>> checked.verdict, checked.target.trainer_name, checked.objections[1]
        ('no', 'axolotl', 'flash_attention_2 has no kernels for T4; use sdpa')
        >>> [change.key for change in checked.fix.changes][:3]
        ['sample_packing', 'micro_batch_size', 'gradient_accumulation_steps']

    Raises:
        profiles.errors.InputError: what cannot be read, or a knob that breaks a rule; its `hint` is the way out.
        profiles.errors.EnvironmentFault: a trace without the packages of the `train` extra.
    """
    wishes = Wishes(
        method=method,
        objective=objective,
        max_length=max_length,
        lora_r=lora_r,
        num_gpus=num_gpus,
        num_nodes=num_nodes,
        knobs=knobs or {},
    )
    if not isinstance(subject, RunConfig) and access.files and names_file(str(subject)):
        # Only here: a model has no use for what reads the files of others.
        from planner.peers.check import check_file, peer_of

        if found := peer_of(Path(subject)):
            if trainer != OWN_TRAINER:
                raise ConfigError(f"trainer is {trainer}, but {subject} says whose step it is", hint="leave it out")
            return check_file(*found, gpu, wishes=wishes, exact=exact, tracing=access.tracing or untold)
    return predicted(subject if isinstance(subject, RunConfig) else str(subject), gpu, wishes, trainer, exact, access)


def answer(
    model: str, gpu: str | None, wishes: Wishes, access: Access = FULL_ACCESS, *, only_best: bool = False
) -> Plan:
    """`can` with its wishes as one object; with `only_best` some alternatives are not looked for."""
    card = None if gpu == ANY else find_card(gpu) if gpu else own_card()
    if card is not None:
        return best_plan(request_for(model, card, wishes, access), access, only_best=only_best)
    request = request_for(model, find_card(COMMON_CARDS[-1]), wishes, access)
    answers = ask_common_cards(request)
    plan = make_plan(replace(request, gpu=cheapest(answers).gpu), only_best=only_best)
    return replace(plan, cards=answers)


def best_plan(request: Request, access: Access = FULL_ACCESS, *, only_best: bool = False) -> Plan:
    """The plan for `request`, with a trace of the choice where an adapter is not described. Raises as `plan` does."""
    try:
        return make_plan(request, only_best=only_best)
    except UnsupportedError as error:
        if access.tracing is None:
            raise
        # Only here: most plans have no use for what starts traces.
        from planner.predict.traced_plan import traced_plan

        return traced_plan(request, error.message, access.tracing)


def planned_request(model: str | None, gpu: str | None, wishes: Wishes, access: Access = FULL_ACCESS) -> Request:
    """The question of a plan, filled up by the recipe that `wishes` name."""
    if wishes.recipe is not None:
        from profiles.recipe import find_recipe

        recipe = find_recipe(wishes.recipe)
        card = card_or_cpu(gpu or recipe.gpu)
        return request_for(model or recipe.model, card, following(recipe, wishes), access)
    if model is None:
        raise ConfigError("a plan is for a MODEL, and none is named", hint="name one, or a --recipe that has one")
    return request_for(model, card_or_cpu(gpu), wishes, access)


def predicted(
    subject: str | RunConfig, gpu: str | None, wishes: Wishes, trainer: str, exact: bool, access: Access = FULL_ACCESS
) -> Prediction:
    """`estimate` with its wishes as one object."""
    config, target = configuration(subject, gpu, wishes, trainer, access)
    if access.tracing is None:
        return predict(config, target)
    return predict_either_way(config, target, exact=exact, tracing=access.tracing)
