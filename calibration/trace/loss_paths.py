"""Ways from the last hidden states to the loss that other trainers take, as torch operators to be traced.

Sources: Transformers 4.45 `LlamaForCausalLM.forward` (logits upcast in the model, and shifted) and 4.48
`loss/loss_utils.py` (upcast in the loss, and shifted); fms-acceleration's and Unsloth's cross entropy, which
writes the gradient over the logits; TRL 1.7-1.14 `chunked_nll`; Liger 0.8.5 `ops/fused_linear_cross_entropy.py`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, TrainerCallback

from planner.step.step_spec import StepSpec

CHUNK_TOKENS = 256
"""Tokens a chunk of TRL's `chunked_nll`."""

Loss = Callable[..., torch.Tensor]


def take_loss_path(trainer: Trainer, step: StepSpec) -> None:
    """Make `trainer` compute the loss of `step` where that is not its own, and keep the output if the step does."""
    model = trainer.model.get_base_model() if isinstance(trainer.model, PeftModel) else trainer.model
    if step.loss in ("chunked", "liger"):
        head = model.get_output_embeddings()
        # What the model takes for logits are the hidden states, of which the loss makes logits in parts.
        head.forward = lambda hidden: hidden
        path = _chunked if step.loss == "chunked" else _liger
        model.loss_function = partial(path, head)
    elif step.loss == "full_inplace" or not step.upcast_logits or step.shift_logits:
        model.loss_function = partial(_full, step)
    if step.upcast_in_model:
        model.get_output_embeddings().register_forward_hook(lambda _head, _inputs, logits: logits.float())
    if step.output_alive:
        _keep_output(trainer)


def _full(step: StepSpec, logits: torch.Tensor, labels: torch.Tensor, vocab_size: int, **_: object) -> torch.Tensor:
    """All logits, upcast and shifted as the version of Transformers did."""
    wide = logits.float() if step.upcast_logits else logits
    if step.shift_logits:
        given, labels = wide[..., :-1, :].contiguous(), labels[..., 1:].contiguous()
    else:
        given, labels = wide, functional.pad(labels, (0, 1), value=-100)[..., 1:].contiguous()
    given, labels = given.view(-1, vocab_size), labels.view(-1)
    if step.loss == "full_inplace":
        losses: torch.Tensor = InPlaceCrossEntropy.apply(given, labels)
        return losses.sum() / 1.0
    return functional.cross_entropy(given, labels)


class InPlaceCrossEntropy(torch.autograd.Function):  # type: ignore[misc]
    """Cross entropy of each row, whose backward pass writes over the logits."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        """Losses of shape (rows,) in float32, and a log-sum-exp a row for the backward pass."""
        losses = torch.empty(logits.shape[0], dtype=torch.float32)
        ctx.save_for_backward(logits, torch.empty_like(losses), labels)
        return losses

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # noqa: ANN401
        """The logits' memory, which now holds their gradient."""
        logits, _, _ = ctx.saved_tensors
        return logits, None


def _chunked(head: nn.Linear, logits: torch.Tensor, labels: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    """A few rows of logits at a time, made again in the backward pass."""
    hidden = logits.flatten(0, 1)
    labels = functional.pad(labels, (0, 1), value=-100)[..., 1:].reshape(-1)
    parts = zip(hidden.split(CHUNK_TOKENS), labels.split(CHUNK_TOKENS), strict=True)
    losses = [checkpoint(_chunk_loss, part, head.weight, of_part, use_reentrant=False) for part, of_part in parts]
    return torch.stack(losses).sum()


def _chunk_loss(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(functional.linear(hidden, weight).float(), labels, reduction="sum")


def _liger(head: nn.Linear, logits: torch.Tensor, labels: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    hidden = logits.flatten(0, 1)
    if torch.is_autocast_enabled("cpu"):
        hidden = hidden.to(torch.get_autocast_dtype("cpu"))
    loss: torch.Tensor = FusedLinearCrossEntropy.apply(hidden, head.weight, labels)
    return loss


class FusedLinearCrossEntropy(torch.autograd.Function):  # type: ignore[misc]
    """Liger's loss: logits in chunks of rows, and the gradients already in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        """A scalar; `hidden` is (rows, hidden_size), `weight` (vocabulary, hidden_size)."""
        rows, width = hidden.shape
        parts = -(-weight.shape[0] // width)
        chunk = min(rows, 1 << (-(-rows // parts) - 1).bit_length())
        gradient = torch.zeros_like(hidden)
        weight_gradient = torch.zeros_like(weight) if weight.requires_grad else None
        losses = torch.zeros(rows, dtype=torch.float32)
        for part in hidden.split(chunk):
            # Triton turns logits into their gradient where they are.
            logits = part @ weight.t()
            product = logits @ weight
            if weight_gradient is not None:
                weight_gradient += torch.mm(logits.t(), part).to(weight.dtype)
            del logits, product
        ctx.save_for_backward(gradient, weight_gradient)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        """What the forward pass computed."""
        gradient, weight_gradient = ctx.saved_tensors
        return gradient, weight_gradient, None


def _keep_output(trainer: Trainer) -> None:
    """Hold the model's output, and so its logits, through the backward pass, as a loop that names it does."""
    compute_loss = trainer.compute_loss
    kept: list[object] = []

    def keeping(model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **options: Any) -> torch.Tensor:  # noqa: ANN401
        loss: torch.Tensor
        loss, outputs = compute_loss(model, inputs, return_outputs=True, **options)
        kept.append(outputs)
        return loss

    class Forget(TrainerCallback):  # type: ignore[misc]
        """Drops what was kept."""

        def on_pre_optimizer_step(self, *_: object, **__: object) -> None:
            """The backward pass is over."""
            kept.clear()

    trainer.compute_loss = keeping
    trainer.add_callback(Forget())
