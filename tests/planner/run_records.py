"""Made-up runs: what the formulas predict, times a factor."""

from planner.config.run_config import LoraKnobs, RunConfig
from planner.memory.estimate import estimate
from planner.records.run_record import CPU, Environment, Measured, Result, RunRecord, StoredRun
from planner.speed.step_time import step_time
from planner.step.resolve import resolve_step
from profiles.gpu_catalog import find_gpu
from profiles.model_catalog import find_model

MODEL, T4 = find_model("7b"), find_gpu("t4")
LORA = RunConfig(model=MODEL.hf_id, gpu="T4", lora=LoraKnobs(), dtype="float16", mixed_precision="fp16", max_length=512)


def made_up_run(
    number=0, memory=1.0, speed=1.0, *, config=LORA, gpu=T4, status="completed", steps=10, tokens_share=1.0, **fields
):
    """A run that took `memory` times the predicted bytes at `speed` times the predicted pace."""
    step = resolve_step(config, MODEL, gpu)
    predicted = estimate(MODEL, step, gpu)
    pace = step_time(MODEL, step, gpu, config.gradient_accumulation_steps)
    sizes = ("allocated_bytes", "reserved_bytes", "process_bytes")
    record = RunRecord(
        time=f"2026-11-21T08:00:{number:02d}+00:00",
        config=config,
        predicted=None,
        measured=Measured(
            **{name: round(getattr(predicted, name) * memory) for name in sizes},
            tokens_per_second=pace.tokens_per_second * speed if pace else None,
            tokens_per_step=step.num_tokens * config.gradient_accumulation_steps * tokens_share,
        ),
        environment=Environment(
            gpu="Tesla T4" if gpu else None, driver="550", cuda="12.8", python="3.11", platform="Linux-x", packages={}
        ),
        result=Result(status=status, steps=steps, max_steps=10, loss=1.5, seconds=2.0),
    )
    return StoredRun(record, MODEL, gpu.name if gpu else CPU, **fields)
