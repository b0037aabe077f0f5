"""Starts a process for each card by the launcher of torch: `python -m trainer.process_per_card NUM_CARDS ARGUMENT...`.

The arguments are those of `python -m trainer`. What torch would say of a process that failed is held back, since that
process has said it.
"""

import logging
import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main


def start(num_cards: str, *arguments: str) -> int:
    """Run the processes to their end; 1 if one of them failed."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        main(["--standalone", "--nproc_per_node", num_cards, "--module", "trainer", *arguments])
    except ChildFailedError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(start(*sys.argv[1:]))
