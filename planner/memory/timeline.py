"""The timeline of one step: what activations and gradients hold in each phase, on top of what is always there."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from planner.config.run_config import DTYPE_BYTES
from planner.memory.attention import shared_biases
from planner.memory.embedding import embedding_memory, gives_input_gradients, stream_itemsize
from planner.memory.layer import LayerMemory, decoder_step, encoder_end_memory, layer_memory
from planner.memory.loss import OUTSIDE_OF_THE_MODEL, loss_tape
from planner.memory.operators import FLOAT32
from planner.memory.parameters import trainable_itemsize
from planner.memory.sharding import Engine, as_shared, at_work, engine_of, layer_unit
from planner.memory.tape import Moment, Tape, rounded
from planner.step.step_spec import Adapter, StepSpec
from profiles.architecture import Architecture

NO_TARGETS = Adapter(1, (), 0.0, "float32")
"""An adapter of nothing: the base is frozen, and no module is adapted."""


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """`count` layers that are alike.

    `carried` are bytes of gradients that add up over the backward passes of all of them, such as that of an encoder's
    output. `named` are position biases that the forward passes of their stack share.
    `unit` are bytes of the weights of one layer where cards share them out and gather them to work on, `reduced` those
    of its gradients while they are reduced.
    """

    memory: LayerMemory
    count: int
    checkpointed: bool
    offloaded: bool
    carried: int = 0
    named: int = 0
    unit: int = 0
    reduced: int = 0

    @property
    def stored(self) -> int:
        """Bytes that one layer keeps on the card from its forward to its backward pass."""
        if not self.checkpointed:
            return self.memory.saved_bytes
        return self.memory.unhooked_bytes + (0 if self.offloaded else self.memory.input_bytes)

    @property
    def cached(self) -> int:
        """Bytes of a layer's weight copies that autocast keeps although nothing else does."""
        return self.memory.cached_bytes if self.checkpointed else 0

    @property
    def forward(self) -> Moment:
        """The peak of one layer's forward pass, its input included."""
        return self.memory.checkpointed_peak if self.checkpointed else self.memory.forward_peak

    @property
    def backward(self) -> Moment:
        """The peak of one layer's backward pass, with its recomputation where it is checkpointed."""
        backward = self.memory.backward_peak
        if not self.checkpointed:
            return backward
        unhooked = self.memory.unhooked_bytes
        kept = unhooked + (0 if self.memory.input_saved or self.offloaded else self.memory.input_bytes)
        backward = Moment(backward.bytes + kept, backward.op, backward.tensors)
        recompute = self.memory.recompute_peak
        again = Moment(recompute.bytes + unhooked, f"recomputed {recompute.op}", recompute.tensors)
        return max(again, backward, key=lambda moment: moment.bytes)


@dataclass(frozen=True, slots=True)
class Peak:
    """The most that activations and gradients hold in one phase, in bytes.

    `stored` is kept for layers whose backward pass is still to come, `working` is the layer or loss at work at
    `moment`, `gradients` are those of weights, `copies` the 16-bit weights of autocast, `gathered` the weights and
    buffers that an engine holds for a moment where cards share the weights.
    """

    place: str
    moment: Moment
    stored: int = 0
    working: int = 0
    gradients: int = 0
    copies: int = 0
    gathered: int = 0

    @property
    def bytes(self) -> int:
        """All of it."""
        return self.stored + self.working + self.gradients + self.copies + self.gathered


@dataclass(frozen=True, slots=True)
class Timeline:
    """The peaks of the phases that have activations; a reference is asked between loss and backward pass.

    The loss has two: the last of the forward pass, and the first of the backward pass. `transients` are the bytes that
    the forward pass of one layer makes beyond its input, at most.
    """

    forward: Peak
    loss_forward: Peak
    loss_backward: Peak
    reference: Peak | None
    backward: Peak
    transients: int


def timeline(architecture: Architecture, step: StepSpec) -> Timeline:
    """The activations and gradients of one step over time; they are the same on every card that runs this step."""
    return _timeline(architecture, replace(step, optimizer="", eval_batch=None))


@lru_cache(maxsize=4096)
def _timeline(architecture: Architecture, step: StepSpec) -> Timeline:
    groups, engine = tuple(layer_groups(architecture, step)), engine_of(architecture, as_shared(step))
    worked = at_work(step)
    embedding = embedding_memory(architecture, worked, groups[0].offloaded)
    beside = embedding.saved + _biases_kept(architecture, worked)
    stored = beside + sum(group.stored * group.count for group in groups)
    copies = sum(group.cached * group.count for group in groups)
    loss = _loss_memory(architecture, _loss_key(_last_step(architecture, worked)), groups[-1].memory.output_itemsize)
    units = sum(group.unit * group.count for group in groups)
    last, fused = groups[-1].unit, step.loss == "fused"
    first = engine.in_loss(units, last, forward=True, apart=fused and step.adapter is not None)
    then = engine.in_loss(units, last, forward=False) + (engine.ahead_of_loss(last) if fused else 0)
    return Timeline(
        forward=_forward(groups, beside + embedding.named, engine),
        loss_forward=_loss_forward(loss, stored, 0 if step.loss in OUTSIDE_OF_THE_MODEL else copies, first),
        loss_backward=Peak("loss", loss.backward, stored, loss.backward.bytes, gathered=then),
        transients=max(group.forward.bytes - group.memory.input_bytes for group in groups),
        reference=_reference_peak(architecture, step, stored + loss.saved_bytes) if step.reference != "none" else None,
        backward=_backward(
            groups, stored, loss, _embedding_peak(architecture, worked), not step.gradients_stay, engine
        ),
    )


def _loss_forward(loss: "LossMemory", stored: int, copies: int, gathered: int) -> Peak:
    """The end of the forward pass: the loss, or the model's output as it is handed on without autocast's `copies`."""
    computed = Peak("loss", loss.forward, stored, loss.forward.bytes, copies=copies, gathered=gathered)
    handed_on = Peak("loss", loss.handed_on, stored, loss.handed_on.bytes, gathered=gathered)
    return max(computed, handed_on, key=lambda peak: peak.bytes)


def evaluation_peak(architecture: Architecture, step: StepSpec) -> Peak:
    """The peak of a forward pass that keeps nothing, up to the loss."""
    groups, engine = tuple(layer_groups(architecture, step)), engine_of(architecture, as_shared(step))
    layers = [
        Peak(
            "layer",
            group.memory.inference_peak,
            working=group.memory.inference_peak.bytes + group.named,
            gathered=engine.in_forward(group.unit, group.unit * (group.count - 1)),
        )
        for group in groups
    ]
    stream = groups[-1].memory.output_itemsize
    inference = _loss_memory(architecture, _loss_key(_last_step(architecture, at_work(step))), stream).inference
    gathered = engine.in_loss(sum(group.unit * group.count for group in groups), groups[-1].unit, forward=True)
    loss = Peak("loss", inference, working=inference.bytes, gathered=gathered)
    return max(*layers, loss, key=lambda peak: peak.bytes)


def _reference_peak(architecture: Architecture, step: StepSpec, stored: int) -> Peak:
    """The forward pass of the reference, without gradients, while all is stored that the model's own pass keeps.

    Source: TRL 1.16 `DPOTrainer._compute_loss`, `KTOTrainer._compute_loss`. KTO's passes for the divergence are of the
    same size, and no later than this one.
    """
    frozen = replace(step, adapter=NO_TARGETS, reference="none")
    return replace(evaluation_peak(architecture, frozen), stored=stored)


def layer_groups(architecture: Architecture, step: StepSpec) -> Iterator[LayerGroup]:
    """The layers in order: the first unit of `checkpoint_every` layers, the last, and in between all that are alike.

    Of the stored tensors the last layers see the most, of the gradients the first. The residual stream is what the
    layers make it: operators in float32 widen it.
    """
    hidden_size = architecture.embeddings[0].columns if not architecture.embedding_projections else None
    shared, step = as_shared(step), at_work(step)
    key = _layer_key(step if architecture.quantizable else replace(step, quantization=None))
    stream = stream_itemsize(architecture, key)
    zeros = sum(shared_biases(block, step).zeros for block in architecture.blocks) if step.checkpointing else 0
    first = 0
    for block in architecture.blocks:
        width = hidden_size or block.attention.output.out_features
        biases = shared_biases(block, step)
        encoded = rounded(step.num_tokens * width * DTYPE_BYTES[step.base_dtype]) if block.cross_attention else 0
        carried = encoded + biases.gradient + zeros
        begins = block is architecture.blocks[0] or block.cross_attention is not None
        input_gradients = gives_input_gradients(step) or not begins
        if block.cross_attention:
            yield LayerGroup(encoder_end_memory(architecture, key), 1, False, False, zeros)
            first = 0
        for count, checkpointed in _runs(first, block.count, step.checkpoint_every if step.checkpointing else None):
            memory = layer_memory(block, key, width, stream, input_gradients)
            input_gradients = True
            offloaded = checkpointed and step.checkpoint_offload
            unit = layer_unit(block, architecture, shared)
            yield LayerGroup(memory, count, checkpointed, offloaded, carried, biases.own, unit.gathered, unit.reduced)
            stream = memory.output_itemsize
        first += block.count


def _runs(first: int, count: int, every: int | None) -> Iterator[tuple[int, bool]]:
    """Layers that are alike, from the one with the number `first` on, and whether they are checkpointed: the first of
    each `every`, or none.
    """
    unit = every or 1
    last = (count - 1) // unit * unit
    for start, end in ((0, unit), (unit, last), (max(last, unit), count)):
        layers = min(end, count) - start
        if layers <= 0:
            continue
        checkpoints = -(-(first + start + layers) // unit) + (-(first + start) // unit) if every else 0
        if checkpoints:
            yield checkpoints, True
        if layers > checkpoints:
            yield layers - checkpoints, False


def _last_step(architecture: Architecture, step: StepSpec) -> StepSpec:
    """The step as the last layers see it: a decoder behind an encoder passes the answers only."""
    return decoder_step(step) if architecture.blocks[-1].cross_attention else step


def _biases_kept(architecture: Architecture, step: StepSpec) -> int:
    """Bytes of shared position biases that stay for the backward pass: checkpointed layers keep them as inputs."""
    biases = [shared_biases(block, step) for block in architecture.blocks]
    return sum(each.zeros + (each.own if step.checkpointing else each.buckets) for each in biases)


def _forward(groups: tuple[LayerGroup, ...], stored: int, engine: Engine) -> Peak:
    """The largest of the layers' forward peaks; what is `stored` only grows, so the last of a group has it."""
    peaks = []
    copies = units = 0
    checkpointing = any(group.checkpointed for group in groups)
    for group in groups:
        stored += group.stored * (group.count - 1)
        copies += group.cached * (group.count - 1)
        units += group.unit * (group.count - 1)
        gathered = engine.in_forward(group.unit, units)
        working = group.forward.bytes + group.named * (not checkpointing)
        peaks.append(Peak("layer", group.forward, stored, working, copies=copies, gathered=gathered))
        entering = Moment(group.memory.input_bytes, "gathering of the weights", ())
        gathered = engine.before_forward(group.unit, units)
        peaks.append(Peak("layer", entering, stored, entering.bytes, copies=copies, gathered=gathered))
        stored += group.stored
        copies += group.cached
        units += group.unit
    return max(peaks, key=lambda peak: peak.bytes)


def _backward(
    groups: tuple[LayerGroup, ...], stored: int, loss: "LossMemory", embedding: Peak, keeps: bool, engine: Engine
) -> Peak:
    """The largest of the layers' backward peaks.

    From the last layer to the first what is stored falls and the gradients of weights rise, both evenly within a group,
    so one of the two ends of a group has its peak. The embedding's gradient comes last. Where gradients of an earlier
    micro-batch are there already, new ones are added to them and freed: then nothing `keeps`. Gradients that are shared
    out shrink as soon as a layer is done.
    """
    peaks = []
    gradients = engine.kept(loss.parameter_gradient_bytes, of_tail=True) * keeps
    to_come, passed = sum(group.unit * group.count for group in groups), 0
    reduced = loss.parameter_gradient_bytes
    for group in reversed(groups):
        own, backward = group.memory.parameter_gradient_bytes, group.backward
        kept = engine.kept(own) * keeps
        working = backward.bytes - own + loss.kept_bytes + group.carried
        for done in (0, group.count - 1):
            before = stored - group.stored * (done + 1) + _retained(group, passed, done, engine)
            gathered = engine.in_backward(
                group.unit, to_come - group.unit * (done + 1), group.reduced if done else reduced
            )
            peaks.append(Peak("layer", backward, before, working, gradients + kept * done + own, gathered=gathered))
        stored -= group.stored * group.count
        to_come -= group.unit * group.count
        gradients += kept * group.count
        passed, reduced = passed + group.count, group.reduced
    gathered = engine.at_embedding(reduced)
    peaks.append(replace(embedding, gradients=embedding.gradients + gradients, gathered=gathered))
    return max(peaks, key=lambda peak: peak.bytes)


def _retained(group: LayerGroup, passed: int, done: int, engine: Engine) -> int:
    """Bytes of inputs that layers keep although they are done, and of all their gradients but the one at work."""
    layers = passed + done
    if not engine.retains_inputs or not group.checkpointed:
        return 0
    return layers * group.stored + max(0, layers - 1) * group.memory.input_bytes


def _embedding_peak(architecture: Architecture, step: StepSpec) -> Peak:
    """The end of the backward pass: the embedding's gradient, on top of the head's where both share their weights.

    Where gradients are not added in place, their sum is a third.
    """
    stream = rounded(step.num_tokens * architecture.embeddings[0].columns * DTYPE_BYTES[step.base_dtype])
    moment = Moment(stream, "gradient of the embedding", ())
    if step.adapter:
        return Peak("embedding", moment, working=stream)
    itemsize = trainable_itemsize(step)
    tables = sum(rounded(table.num_parameters * itemsize) for table in architecture.embeddings)
    if architecture.tied and step.device == "cpu":
        tables += rounded(architecture.embeddings[0].num_parameters * itemsize)
    return Peak("embedding", moment, working=stream, gradients=tables)


@dataclass(frozen=True, slots=True)
class LossMemory:
    """The peaks of final norm, head and loss; `kept_bytes` is the output that the caller keeps through the backward.

    `handed_on` is when accelerate makes float32 of the output, after the autocast region.
    """

    forward: Moment
    handed_on: Moment
    backward: Moment
    inference: Moment
    saved_bytes: int
    parameter_gradient_bytes: int
    kept_bytes: int


@lru_cache(maxsize=4096)
def _loss_memory(architecture: Architecture, step: StepSpec, itemsize: int) -> LossMemory:
    tape = loss_tape(architecture, step, itemsize)
    itemsize_of_logits = FLOAT32 if step.upcast_in_model else DTYPE_BYTES[step.autocast or step.base_dtype]
    logits = step.num_tokens * architecture.head.out_features * itemsize_of_logits
    return LossMemory(
        forward=tape.forward_peak(tape.saved()),
        handed_on=_handed_on(architecture, step, tape),
        backward=tape.backward_peak(),
        inference=tape.forward_peak(),
        saved_bytes=tape.saved_bytes(),
        parameter_gradient_bytes=tape.parameter_gradient_bytes(),
        kept_bytes=rounded(logits) if step.output_alive else 0,
    )


def _handed_on(architecture: Architecture, step: StepSpec, tape: Tape) -> Moment:
    """What the loss keeps, the logits, and their float32 copy (accelerate, `convert_outputs_to_fp32`).

    The other ways to the loss return no logits, or have had more of them at once.
    """
    if step.loss != "full_inplace" or not step.autocast or step.upcast_in_model:
        return Moment(0, "", ())
    saved = tape.saved()
    elements = step.num_tokens * architecture.head.out_features
    kept = any(tensor.name == architecture.head.name for tensor in saved)
    logits = 0 if kept else rounded(elements * DTYPE_BYTES[step.autocast])
    return Moment(tape.saved_bytes() + logits + rounded(elements * FLOAT32), "logits in float32", saved)


@lru_cache(maxsize=4096)
def _layer_key(step: StepSpec) -> StepSpec:
    """`step` without what a layer does not depend on, so that equal layers are replayed once."""
    return replace(_loss_key(step), loss="full", output_alive=False, experts_quantized=step.experts_quantized)


@lru_cache(maxsize=4096)
def _loss_key(step: StepSpec) -> StepSpec:
    return replace(
        step,
        checkpointing=True,
        checkpoint_every=1,
        checkpoint_offload=False,
        optimizer="",
        gradients_persist=False,
        eval_batch=None,
        objective="sft",
        reference="none",
        experts_quantized=False,
        double_quant=False,
    )
