"""A batch script for Slurm."""

from planner.jobs.job import Job

NOTICE_SECONDS = 300
"""Time between Slurm's signal and the end of the job: for the step at work and the checkpoint."""

CPUS_PER_CARD = 4
"""Cores for each process: one computes, and some read and tokenize data."""


def slurm_script(job: Job) -> str:
    """The script for sbatch. It comes again, and goes on, when its time is over or a machine fails."""
    config = job.config
    cards = f"#SBATCH --gpus-per-node={config.num_gpus}\n" if config.gpu else ""
    launch = job.launch('"$run_file"', "$SLURM_NODEID", "$master", "$port")
    return f"""#!/bin/bash
# {job.title}
# Submit with: sbatch THIS_FILE
#SBATCH --job-name={job.name}
#SBATCH --nodes={config.num_nodes}
#SBATCH --ntasks-per-node=1
{cards}#SBATCH --cpus-per-task={config.num_gpus * CPUS_PER_CARD}
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# What your cluster asks for besides:
##SBATCH --partition=NAME
##SBATCH --account=NAME
# A checkpoint is written before the time is over, and the job comes again.
#SBATCH --signal=USR1@{NOTICE_SECONDS}
#SBATCH --requeue
set -euo pipefail

# The folder of the submission is on a disk that all machines share, as are data, output_dir and the environment.
cd "$SLURM_SUBMIT_DIR"
source "${{FITUNE_VENV:-.venv}}/bin/activate"

run_file="$SLURM_SUBMIT_DIR/{job.name}-$SLURM_JOB_ID.yaml"
{job.here_document('"$run_file"')}
master=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
# Two jobs may share a machine.
port=$((20000 + SLURM_JOB_ID % 20000))
export run_file master port

code=0
# The shell becomes fitune, which is the one to hear of the signal.
srun bash -c 'exec {launch}' || code=$?

# 138: stopped by SIGUSR1, with a checkpoint.
if [ "$code" -eq 138 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""
