"""A shell script that starts torchrun on each machine, for those who supervise runs themselves."""

from planner.jobs.job import PORT, Job


def torchrun_script(job: Job) -> str:
    """The script. It starts once; what `fitune launch` does after a loss is left to whoever runs it."""
    config = job.config
    where = "--standalone"
    asked = usage = ""
    if config.num_nodes > 1:
        where = f'--nnodes {config.num_nodes} --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR"'
        where += f' --master-port "${{MASTER_PORT:-{PORT}}}"'
        asked = ': "${NODE_RANK:?the number of this machine, from 0}" "${MASTER_ADDR:?the address of machine 0}"\n'
        usage = "# On each machine, with its own number: NODE_RANK=0 MASTER_ADDR=node0 bash THIS_FILE\n"
    cards = (
        "export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True" if config.gpu else 'export CUDA_VISIBLE_DEVICES=""'
    )
    return f"""#!/usr/bin/env bash
# {job.title}
{usage}set -euo pipefail
{asked}
# An environment with fitune[train], the same on all machines.
source "${{FITUNE_VENV:-.venv}}/bin/activate"

{job.here_document(f"{job.name}.yaml")}
# Go on where a checkpoint is whole.
resume=""
if compgen -G "{config.output_dir}/checkpoint-*/files.json" > /dev/null; then resume=--resume; fi

{cards}
export TOKENIZERS_PARALLELISM=false HF_HUB_DISABLE_TELEMETRY=1
exec torchrun --nproc-per-node {config.num_gpus} {where} \\
  -m trainer {job.name}.yaml $resume
"""
