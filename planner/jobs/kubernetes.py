"""A Job for Kubernetes, with what it needs beside it: the run file, and a name for machine 0."""

from textwrap import indent

from planner.jobs.job import Job

GRACE_SECONDS = 300
"""Time between Kubernetes' SIGTERM and the end of a pod: for the step at work and the checkpoint."""

RETRIES_PER_MACHINE = 10


def kubernetes_manifest(job: Job) -> str:
    """The manifests for `kubectl apply`: a ConfigMap, a headless Service and an indexed Job; no operator is needed."""
    return f"""# {job.title}
# Start with: kubectl apply -f THIS_FILE
# It asks for a PersistentVolumeClaim `fitune`, ReadWriteMany for several machines, with data and models; output_dir
# of the run file is a folder there.
{_run_file(job)}---
{_meeting(job)}---
{_machines(job)}{indent(_pod(job), "    ")}"""


def _run_file(job: Job) -> str:
    return f"""apiVersion: v1
kind: ConfigMap
metadata:
  name: {job.name}
data:
  run.yaml: |
{indent(job.run_file.rstrip(), "    ")}
"""


def _meeting(job: Job) -> str:
    return f"""# Gives each machine of the run a name, so that the others find machine 0.
apiVersion: v1
kind: Service
metadata:
  name: {job.name}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector:
    batch.kubernetes.io/job-name: {job.name}
"""


def _machines(job: Job) -> str:
    num_nodes = job.config.num_nodes
    return f"""apiVersion: batch/v1
kind: Job
metadata:
  name: {job.name}
spec:
  completionMode: Indexed
  completions: {num_nodes}
  parallelism: {num_nodes}
  backoffLimit: {RETRIES_PER_MACHINE * num_nodes}
  podFailurePolicy:
    rules:
      # 2: the run file or the data cannot be used; another try would not help.
      - action: FailJob
        onExitCodes:
          containerName: fitune
          operator: In
          values: [2]
      - action: Ignore
        onPodConditions:
          - type: DisruptionTarget
  template:
"""


def _pod(job: Job) -> str:
    config = job.config
    launch = job.launch("/fitune/run.yaml", "$JOB_COMPLETION_INDEX", f"{job.name}-0.{job.name}")
    limits = f'nvidia.com/gpu: "{config.num_gpus}"' if config.gpu else f'cpu: "{config.num_gpus}"'
    return f"""spec:
  subdomain: {job.name}
  restartPolicy: Never
  terminationGracePeriodSeconds: {GRACE_SECONDS}
  containers:
    - name: fitune
      # An image of your own with fitune[train] starts without the installation below.
      image: python:3.12
      workingDir: /work
      command: ["bash", "-c"]
      args:
        - |
          set -euo pipefail
          pip install --quiet 'fitune[train]'
          exec {launch}
      resources:
        limits:
          {limits}
      volumeMounts:
        - {{name: run-file, mountPath: /fitune}}
        - {{name: work, mountPath: /work}}
        # NCCL's processes of a machine meet in shared memory, of which a container has 64 MiB.
        - {{name: shared-memory, mountPath: /dev/shm}}
  volumes:
    - name: run-file
      configMap: {{name: {job.name}}}
    - name: work
      persistentVolumeClaim: {{claimName: fitune}}
    - name: shared-memory
      emptyDir: {{medium: Memory}}
"""
