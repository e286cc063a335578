"""What a server takes on at most."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """
    Attributes:
        body_bytes: of one request.
        rows: of one request.
        open_requests: at once; further ones are turned away.
        time_s: from a request to its answer.
        batch_rows: of requests that are computed together.
        grace_s: for open requests when the server is to end.
    """

    body_bytes: int = 8 << 20
    rows: int = 8192
    open_requests: int = 256
    time_s: float = 10.0
    batch_rows: int = 4096
    grace_s: float = 30.0
