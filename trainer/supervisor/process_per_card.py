"""Starts a process for each card of this machine: `python -m trainer.supervisor.process_per_card TORCHRUN_ARGUMENT...`.

It is torchrun, and says in a sentence what kept it from starting or which process was killed. What a process has said
of its own failure is not said again.
"""

import logging
import signal
import sys

from torch.distributed import DistNetworkError, DistStoreError
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.run import get_args_parser, run

from trainer.supervisor.interruption import SIGNALS
from trainer.supervisor.training_process import report

USUAL_REASONS = {
    signal.SIGKILL: " (most often by the system, for lack of memory)",
    signal.SIGABRT: " (by NCCL, when a process waits for another one in vain)",
    signal.SIGBUS: " (most often for lack of shared memory: see the size of /dev/shm)",
}

PASSED_ON = (signal.SIGTERM, signal.SIGINT)
"""What ends a process on request: the launcher's own, when another process has failed."""


def start(*arguments: str) -> int:
    """Run the processes to their end; 1 if one of them failed."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    parsed = get_args_parser().parse_args(arguments)
    # Torch would end the processes after 30 seconds when it hears one of the others.
    parsed.signals_to_handle = "SIGQUIT"
    try:
        run(parsed)
    except ChildFailedError as error:
        killed = [told for number, one in sorted(error.failures.items()) if (told := _killed(number, one))]
        if killed:
            report(lost=killed[0])
        return 1
    except (DistNetworkError, DistStoreError, RendezvousError) as error:
        report(exit_code=1)
        sys.stderr.write(_not_met(str(error), f"{parsed.master_addr}:{parsed.master_port}", parsed.nnodes))
        return 1
    return 0


def _killed(number: int, failure: ProcessFailure) -> str | None:
    """That the process was killed, in words; None if it ended by itself or on request."""
    if failure.exitcode >= 0 or -failure.exitcode in PASSED_ON:
        return None
    name = signal.Signals(-failure.exitcode).name
    return f"process {number} was killed by {name}{USUAL_REASONS.get(-failure.exitcode, '')}"


def _not_met(reason: str, place: str, num_nodes: str) -> str:
    """Why the processes did not find each other."""
    if "EADDRINUSE" in reason or "address already in use" in reason:
        return f"error: {place} is in use by another program\n\nhint: give another --master-port on all machines\n"
    return (
        f"error: the {num_nodes} machines did not meet at {place}: {' '.join(reason.split())[:200]}\n\n"
        "hint: look whether all were started, with the same --master-addr and --master-port, each with a --node-rank "
        "of its own, and whether a firewall is between them\n"
    )


def leave_signals_to_the_trainers() -> None:
    """Ignore what a scheduler sends to every process of a job: those that train need their time for a checkpoint."""
    for number in SIGNALS:
        # A handler, since what is ignored stays ignored in the processes that are started.
        signal.signal(number, lambda *_: None)


if __name__ == "__main__":
    leave_signals_to_the_trainers()
    sys.exit(start(*sys.argv[1:]))
