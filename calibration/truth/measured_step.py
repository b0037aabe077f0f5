"""The step that a measured run took, as far as its row and its versions say."""

from dataclasses import replace

from calibration.truth.measured_runs import MeasuredRun
from calibration.truth.peft_rows import LONGEST_BATCH_TOKENS, peft_experiments
from calibration.truth.version_traits import fields_by_version
from planner.config.run_config import Dtype
from planner.step.step_spec import Adapter, AttentionKernel, Sharding, StepSpec
from profiles.build_architecture import architecture
from profiles.errors import UnsupportedError
from profiles.gpu import GpuProfile
from profiles.gpu_catalog import find_gpu
from profiles.model import ModelProfile
from profiles.model_catalog import find_model

DTYPES: dict[str, Dtype] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
KERNELS: dict[str, AttentionKernel] = {
    "eager": "eager",
    "sdpa_efficient": "efficient",
    "sdpa_flash": "flash",
    "flash": "flash",
}
OPTIMIZERS = {"adamw": "adamw_torch", "adamw_foreach": "adamw_torch", "adamw_fused": "adamw_torch_fused"}
SHORT_NAMES = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}


def question(run: MeasuredRun) -> tuple[ModelProfile, StepSpec, GpuProfile]:
    """The model, step and card that `run` measured.

    Raises an InputError that says what of the run is not described or not stated.
    """
    if run.versions.startswith("ms-swift") and run.grade == "B":
        raise UnsupportedError("rows of real text below the stated length: reserved memory depends on how lengths vary")
    model = find_model(run.model)
    step = _in_method_comparison(run) if run.harness == "PEFT" else _step(run, model)
    return model, step if run.num_gpus == 1 else _shared(run, step), find_gpu(run.gpu)


def _shared(run: MeasuredRun, step: StepSpec) -> StepSpec:
    """The step of one of several cards: all of these harnesses used the first FSDP of torch.

    Source: fms-acceleration `scripts/benchmarks/accelerate.yaml` (full shard, BACKWARD_PRE, original parameters),
    fsdp_qlora `train.py`, where `ddp` is FSDP without shards. Adapters of quantized models are in the dtype of
    bnb_4bit_quant_storage, and those of fms-acceleration's fused kernels are left out of FSDP
    (`framework_plugin_fast_kernels.py`); both show in what is left at the end of the runs on 2 and on 4 cards.
    """
    quantized = step.quantization is not None
    sharding = Sharding(
        engine="fsdp1_no_shard" if run.parallel == "ddp" else "fsdp1",
        num_gpus=run.num_gpus,
        offload="parameters" if run.parallel == "fsdp_offload" else "none",
        replicates_adapter=quantized and step.kernels == "foak",
    )
    adapter = step.adapter
    if adapter and quantized and step.autocast:
        adapter = replace(adapter, dtype=step.autocast)
    return replace(step, sharding=sharding, adapter=adapter)


def _step(run: MeasuredRun, model: ModelProfile) -> StepSpec:
    stated = StepSpec(
        micro_batch=run.micro_batch,
        seq_len=run.seq_len,
        weight_dtype=DTYPES[run.weight_dtype],
        adapter=_lora(run, model),
        quantization=None if run.quantization == "none" else "nf4",
        double_quant=run.double_quant == "yes",
        kbit_upcast=run.kbit_upcast == "yes",
        autocast=None if run.autocast == "none" else DTYPES[run.autocast],
        attention=KERNELS[run.attention],
        expand_kv=run.attention == "sdpa_efficient",
        loss=run.loss,
        output_alive=run.output_alive == "yes",
        checkpointing=run.checkpointing == "full",
        optimizer=OPTIMIZERS[run.optimizer],
    )
    return replace(stated, **fields_by_version(run, model))


def _in_method_comparison(run: MeasuredRun) -> StepSpec:
    """A step of PEFT's method comparison with its longest batch; what it does is told in `truth/peft_experiments.toml`.

    The mask of a padded batch is none that torch's flash kernel takes, and Transformers repeats keys and values for it.
    """
    if run.metric != "reserved_p99":
        raise UnsupportedError("the peak of an evaluation that generates text; what a training step takes is described")
    experiment = peft_experiments().get(run.id)
    if experiment is not None and experiment.optimizer is not None:
        raise UnsupportedError(f"the optimizer {experiment.optimizer} of PEFT; the trainer has those of Transformers")
    return StepSpec(
        micro_batch=run.micro_batch,
        seq_len=LONGEST_BATCH_TOKENS,
        weight_dtype=DTYPES[run.weight_dtype],
        adapter=None if experiment is None else experiment.adapter,
        attention="efficient",
        expand_kv=True,
        masked=True,
        output_alive=True,
        checkpointing=False,
        optimizer=OPTIMIZERS[run.optimizer],
    )


def _lora(run: MeasuredRun, model: ModelProfile) -> Adapter | None:
    """The adapter; PEFT makes it float32 unless the row says otherwise. Targets that the model lacks have no effect."""
    if run.lora_r is None:
        return None
    stated = {SHORT_NAMES.get(name, name) for name in run.lora_targets.split()}
    names = {linear.name for linear, _ in architecture(model).linears()}
    return Adapter(
        r=run.lora_r,
        targets=tuple(sorted(names if "all-linear" in stated else names & stated)),
        dropout=run.lora_dropout or 0.0,
        dtype=DTYPES[run.adapter_dtype or "fp32"],
    )
