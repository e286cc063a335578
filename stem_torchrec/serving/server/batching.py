"""Requests that wait while another one is computed are computed together.

One thread computes, on all threads of torch: two computations at once would only slow each other.
"""

from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Thread
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stem_torchrec.serving.features import Inputs, joined
from stem_torchrec.serving.predictor import Predictor


class _Waiting(NamedTuple):
    predictor: Predictor
    inputs: Inputs
    logits: "Future[NDArray[np.float64]]"


class Batcher:
    """Computes what waits, together, up to ``max_rows``.

    Args:
        computed: is told the rows of each computation.
    """

    def __init__(self, max_rows: int, computed: Callable[[int], None]) -> None:
        self._max_rows = max_rows
        self._computed = computed
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    def submit(self, predictor: Predictor, inputs: Inputs) -> "Future[NDArray[np.float64]]":
        """The logits (B, T) of B rows, once they are computed."""
        waiting = _Waiting(predictor, inputs, Future())
        self._queue.put(waiting)
        return waiting.logits

    def close(self) -> None:
        """Compute what waits, and end."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        following: _Waiting | None = None
        while (first := following or self._queue.get()) is not None:
            together, following = self._gathered(first)
            _compute(together)
            self._computed(sum(len(waiting.inputs.dense) for waiting in together))

    def _gathered(self, first: _Waiting) -> tuple[list[_Waiting], _Waiting | None]:
        """What is computed with the first one, and what has come after them."""
        together, num_rows = [first], len(first.inputs.dense)
        while True:
            try:
                waiting = self._queue.get_nowait()
            except Empty:
                return together, None
            if waiting is None:
                self._queue.put(None)  # the end comes after this
                return together, None
            num_rows += len(waiting.inputs.dense)
            if waiting.predictor is not first.predictor or num_rows > self._max_rows:
                return together, waiting
            together.append(waiting)


def _compute(together: list[_Waiting]) -> None:
    together = [waiting for waiting in together if waiting.logits.set_running_or_notify_cancel()]
    if not together:
        return
    try:
        logits = together[0].predictor.logits(joined([waiting.inputs for waiting in together]))
    except Exception as error:
        for waiting in together:
            waiting.logits.set_exception(error)
        return
    start = 0
    for waiting in together:
        stop = start + len(waiting.inputs.dense)
        waiting.logits.set_result(logits[start:stop])
        start = stop
