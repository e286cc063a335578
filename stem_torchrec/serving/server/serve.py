"""A server from its start to its end: a port of its own, and open requests answered at SIGTERM."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn

from stem_torchrec.errors import UserError
from stem_torchrec.serving.server.app import Server
from stem_torchrec.serving.server.current import CurrentModel
from stem_torchrec.serving.server.figures import Figures
from stem_torchrec.serving.server.limits import Limits

_WAITING = 2048


class _Uvicorn(uvicorn.Server):
    """Ends with code 0 after a signal: its work is done then."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():
            yield
            self._captured_signals.clear()  # else they are raised once more


def serve(
    folder: Path, host: str, port: int, limits: Limits, started: Callable[[str], None]
) -> None:
    """Serve an export until a signal comes.

    Args:
        port: 0 for any that is free.
        started: is told the address.

    Raises:
        UserError: the folder is no export, or the port is in use or not allowed.
    """
    figures = Figures()

    def reloaded(ok: bool) -> None:
        figures.reloads.labels("taken up" if ok else "refused").inc()

    with _bound(host, port) as listening:
        current = CurrentModel(folder, reloaded)
        server = Server(current, limits, figures)
        config = uvicorn.Config(
            server.app(),
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=int(limits.grace_s),
        )
        name, number = current.predictor.about.name, listening.getsockname()[1]
        started(f"{name} at http://{host}:{number} (version {current.predictor.version})")
        try:
            _Uvicorn(config).run(sockets=[listening])
        finally:
            server.close()


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Of a socket without its protocol asyncio does not know that answers are to be sent at once.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(_WAITING)
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--port: {port} on {host!r} cannot be used: {reason}") from None
    return listening
