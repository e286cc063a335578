"""torchrun that ends with the failed rank's message, not with a traceback of the launcher.

Usage: torchrun.py ARGUMENT ... (as torchrun's). Exit code 2 after a mistake of the user, 1 after
any other failure.
"""

import logging
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.run import parse_args, run

USER_ERROR = 2


def main(arguments: Sequence[str]) -> int:
    options = parse_args(list(arguments))
    # The failed rank is reported below; the launcher's own log would only repeat it.
    logging.getLogger("torch.distributed.elastic.multiprocessing").setLevel(logging.CRITICAL)
    try:
        run(options)
    except ChildFailedError as error:
        return report(*error.get_first_failure())
    except RendezvousError as error:
        print(f"error: the nodes do not meet at {options.rdzv_endpoint}: {error}", file=sys.stderr)
        return 1
    return 0


def report(rank: int, failure: ProcessFailure) -> int:
    """Print what the rank that failed first left in its error file; its exit code otherwise."""
    message = failure.error_file_data["message"]
    if not isinstance(message, dict):
        if failure.exitcode != USER_ERROR:  # else the rank has said all there is to say
            print(f"rank {rank} failed (exit code {failure.exitcode})", file=sys.stderr)
        return USER_ERROR if failure.exitcode == USER_ERROR else 1
    kind, _, text = message["message"].partition(": ")
    if kind == "UserError":
        print(f"error: {text}", file=sys.stderr)
        return USER_ERROR
    print(message["extraInfo"]["py_callstack"], file=sys.stderr)
    print(f"rank {rank} failed (exit code {failure.exitcode}): {kind}: {text}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
