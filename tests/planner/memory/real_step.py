"""One real training step on a CPU, its live tensors counted."""

import warnings
from pathlib import Path

import torch
from peft import get_peft_model
from torch import nn
from transformers import BitsAndBytesConfig
from trl.trainer.utils import add_fused_lm_head

from planner.step.step_spec import StepSpec
from profiles.model import ModelProfile
from tests.profiles.transformers_models import built_model
from trainer.loop.live_bytes import LiveBytes
from trainer.model.adapter import step_adapter_config

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def measured_peak(model: ModelProfile, step: StepSpec, folder: Path) -> int:
    """The peak of live tensor bytes over two steps of `model` with random weights."""
    with warnings.catch_warnings():
        # Libraries that warn of each other's next versions are not what is tested here.
        warnings.simplefilter("ignore")
        return _measured_peak(model, step, folder)


def _measured_peak(model: ModelProfile, step: StepSpec, folder: Path) -> int:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = _network(model, step, folder)
    optimizer = torch.optim.AdamW((p for p in net.parameters() if p.requires_grad), fused=True)
    tokens = torch.randint(0, model.vocab_size, (step.micro_batch, step.seq_len))
    labels = tokens[:, : step.target_len].contiguous() if step.target_len else tokens
    live = LiveBytes()
    live.watch([*net.parameters(), *net.buffers()], "load")
    extra = {"fused_lm_head": True} if step.loss == "fused" else {}
    with live:
        for _ in range(2):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=step.autocast is not None):
                loss = net(input_ids=tokens, labels=labels, use_cache=False, **extra).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return live.peak


def _network(model: ModelProfile, step: StepSpec, folder: Path) -> nn.Module:
    """The model as the trainer would hand it to TRL: quantized, adapted, checkpointed as `step` says."""
    attention = "eager" if step.attention == "eager" else "sdpa"
    net = built_model(model, dtype=DTYPES[step.weight_dtype], attn_implementation=attention)
    if model.is_encoder_decoder and not model.tie_word_embeddings:
        # The class ties what the checkpoint does not.
        head = net.get_output_embeddings()
        head.weight = nn.Parameter(torch.randn_like(head.weight))
    if step.quantization:
        net.save_pretrained(folder)
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=step.quantization,
            bnb_4bit_use_double_quant=step.double_quant,
            bnb_4bit_compute_dtype=DTYPES[step.compute_dtype],
        )
        net = type(net).from_pretrained(
            folder, dtype=DTYPES[step.weight_dtype], quantization_config=quantization, attn_implementation=attention
        )
    if step.loss == "fused":
        add_fused_lm_head(net, outputs=("log_probs", "entropy", "is_top1"))
    if step.adapter:
        net = get_peft_model(net, step_adapter_config(step.adapter, net))
    net.train()
    if step.checkpointing:
        if step.adapter:
            net.enable_input_require_grads()
        net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return net
