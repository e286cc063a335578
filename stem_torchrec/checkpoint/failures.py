"""What went wrong in a save or a load, as one line."""

from torch.distributed.checkpoint.api import CheckpointException

from stem_torchrec.errors import CheckpointError


def message_of(failure: BaseException) -> str:
    """Every rank's reason where ``torch.distributed.checkpoint`` has gathered them."""
    if isinstance(failure, CheckpointException):
        reasons = failure.failures.items()
        return "; ".join(f"rank {rank}: {message_of(error)}" for rank, (error, _) in reasons)
    name = "" if isinstance(failure, CheckpointError) else f"{type(failure).__name__}: "
    return f"{name}{failure}"
