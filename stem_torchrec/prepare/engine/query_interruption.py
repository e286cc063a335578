"""End a running query at once when a signal comes.

DuckDB looks for Python's signals between the parts of a query that its first thread works on, which
has taken more than a minute.
"""

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb

from stem_torchrec.stopping.signals import SIGNALS

_AGAIN_S = 0.2


@contextmanager
def interrupted_by_signals(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """A stop signal ends the connection's query; their handlers are called after it.

    Only signals that Python handles; outside of the main thread, which is theirs, none.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received, wakeup = socket.socketpair()
    wakeup.setblocking(False)
    before = signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_interrupt, args=(received, connection))
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        wakeup.close()
        thread.join()
        received.close()


def _interrupt(received: socket.socket, connection: duckdb.DuckDBPyConnection) -> None:
    while number := received.recv(1):
        if number[0] in SIGNALS:
            break
    received.settimeout(_AGAIN_S)
    while number:
        # Again and again, for one that comes just before a query ends nothing.
        connection.interrupt()
        try:
            number = received.recv(1)
        except TimeoutError:
            continue
