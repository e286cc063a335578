"""torchrun that ends with the failed rank's message, not with a traceback of the launcher.

Usage: torchrun.py ARGUMENT ... (as torchrun's). Exit code 2 after a mistake of the user, 1 after
any other failure. SIGTERM, SIGINT and SIGHUP go to the ranks; the exit code is 0 where they have
left in time.
"""

import logging
import os
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.run import parse_args, run

from stem_torchrec.console.streams import lenient_streams
from stem_torchrec.errors import UserError, WorkerError
from stem_torchrec.launch.agent import LEFT_TO_TORCH, stopping_with_workers
from stem_torchrec.launch.failures import error_of
from stem_torchrec.launch.node_address import local_address, with_host


def main(arguments: Sequence[str]) -> int:
    options = parse_args(list(arguments))
    options.signals_to_handle = LEFT_TO_TORCH
    if options.rdzv_backend == "c10d" and not options.standalone:
        options.rdzv_conf = with_host(options.rdzv_conf, options.rdzv_endpoint)
        options.local_addr = local_address(options.local_addr, options.rdzv_endpoint)
    # Else workers that are started again find addresses of dead ones in the store.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    # The failed rank is reported below; the launcher's own log would only repeat it.
    logging.getLogger("torch.distributed.elastic.multiprocessing").setLevel(logging.CRITICAL)
    try:
        with stopping_with_workers() as passed_on:
            run(options)
    except ChildFailedError as error:
        if passed_on.before_the_first_step(error):
            return 0
        return report(*error.get_first_failure())
    except RendezvousError as error:
        print(f"error: the nodes do not meet at {options.rdzv_endpoint}: {error}", file=sys.stderr)
        return 1
    return 0


def report(rank: int, failure: ProcessFailure) -> int:
    """Print the message of the rank that failed first; the exit code to end with."""
    error = error_of(rank, failure)
    print(error if isinstance(error, WorkerError) else f"error: {error}", file=sys.stderr)
    return 2 if isinstance(error, UserError) else 1


if __name__ == "__main__":
    with lenient_streams():
        code = main(sys.argv[1:])
    sys.exit(code)
