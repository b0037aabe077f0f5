"""Runs as hypothesis draws them, over all knobs that a peer may have words for."""

from pathlib import Path

import yaml
from hypothesis import strategies as st
from pydantic import ValidationError

from planner.config.run_config import RunConfig
from planner.peers.document import parse_document
from planner.peers.export import sections_of
from planner.peers.peer import PEERS
from planner.peers.peer_file import PeerFile, read_peer_file
from profiles.gpu import GpuProfile
from profiles.gpu_catalog import find_gpu
from profiles.model_catalog import find_model

MODEL = "meta-llama/Llama-3.1-8B"
A100, T4 = find_gpu("a100-80gb"), find_gpu("t4")

PRECISIONS = {
    A100.name: (("bfloat16", "bf16"), ("bfloat16", "no"), ("float32", "bf16"), ("float32", "no")),
    T4.name: (("float16", "fp16"), ("float16", "no"), ("float32", "fp16"), ("float32", "no")),
}


@st.composite
def adapters(draw):
    return {
        "r": draw(st.sampled_from([1, 8, 64])),
        "lora_alpha": draw(st.sampled_from([8, 32])),
        "lora_dropout": draw(st.sampled_from([0.0, 0.05])),
        "target_modules": draw(st.sampled_from(["all-linear", ["q_proj", "v_proj"], ["down_proj"]])),
        "use_rslora": draw(st.booleans()),
        "use_dora": draw(st.booleans()),
        "init_lora_weights": draw(st.sampled_from([True, True, True, "gaussian", "olora", False])),
    }


UNSLOTHS_CHOICE = {
    "objective": "sft",
    "optim": "adamw_8bit",
    "attn_implementation": "sdpa",
    "loss": "fused",
    "padding_free": False,
    "checkpoint_every_n_layers": 1,
    "double_quant": True,
}
"""What Unsloth's command line does not let anyone choose."""


@st.composite
def run_configs(draw, peer: str) -> RunConfig | None:
    """A run, or None for knobs that contradict each other."""
    gpu = draw(st.sampled_from([A100, A100, T4]))
    dtype, mixed_precision = draw(st.sampled_from(PRECISIONS[gpu.name]))
    method = draw(st.sampled_from(["full", "lora", "qlora"]))
    objective = draw(st.sampled_from(["sft", "sft", "sft", "dpo", "ipo", "orpo", "kto", "reward"]))
    checkpoints = draw(st.booleans())
    knobs = {
        "model": MODEL,
        "gpu": gpu.name,
        "objective": objective,
        "method": method,
        "quantization": draw(st.sampled_from(["nf4", "fp4", "int8"])) if method == "qlora" else None,
        "double_quant": draw(st.booleans()),
        "dtype": dtype,
        "mixed_precision": mixed_precision,
        "lora": None if method == "full" else draw(adapters()),
        "data": draw(st.sampled_from([None, {"path": "a.jsonl"}, {"path": "a.jsonl", "eval_fraction": 0.1}])),
        "max_length": draw(st.sampled_from([256, 512, 4096])),
        "packing": draw(st.booleans()),
        "padding_free": draw(st.booleans()),
        "per_device_train_batch_size": draw(st.sampled_from([2, 3, 8])),
        "per_device_eval_batch_size": draw(st.sampled_from([1, 2, 8])),
        "gradient_accumulation_steps": draw(st.sampled_from([1, 4])),
        "gradient_checkpointing": checkpoints,
        "checkpoint_every_n_layers": draw(st.sampled_from([1, 2])) if checkpoints else 1,
        "checkpoint_offload": draw(st.booleans()) if checkpoints else False,
        "attn_implementation": draw(st.sampled_from(["sdpa", "eager", "flash_attention_2"])),
        "optim": draw(st.sampled_from(["adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "adafactor"])),
        "loss": draw(st.sampled_from(["full", "fused"])),
        "eval_steps": draw(st.sampled_from([None, 50])),
    }
    if peer == "unsloth":
        knobs |= UNSLOTHS_CHOICE
        objective = "sft"
        knobs["dtype"] = "bfloat16" if gpu is A100 else "float32" if method == "full" else "float16"
        knobs["mixed_precision"] = "bf16" if gpu is A100 else "fp16"
        knobs["quantization"] = "nf4" if method == "qlora" else None
        knobs["data"] = {"path": "a.jsonl"}
        if knobs["lora"]:
            knobs["lora"]["init_lora_weights"] = True
    if objective != "sft":
        knobs |= {"packing": False, "padding_free": False}
        knobs["loss"] = "full" if objective in ("orpo", "reward") else "fused"
    if objective in ("dpo", "ipo", "kto"):
        knobs["preference"] = {"beta": 0.2, "precompute_ref_log_probs": draw(st.booleans())}
    if method == "qlora" and knobs["quantization"] == "int8":
        knobs["lora"]["use_dora"] = False
    try:
        return RunConfig.model_validate(knobs)
    except ValidationError:
        return None


def read_back(config: RunConfig, peer_name: str, gpu: GpuProfile) -> PeerFile:
    """What `config` comes to after it was written for a peer and read again."""
    peer = PEERS[peer_name]
    text = yaml.safe_dump(sections_of(peer.write(config), peer.sections))
    return read_peer_file(parse_document(text, Path("f.yaml")), peer, MODEL, find_model(MODEL), gpu)
