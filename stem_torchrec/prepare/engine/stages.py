"""A long work in stages: shown to whoever watches, and gone on with after an interruption."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, NamedTuple, Protocol

import duckdb

Watched = Callable[[], float]


class Stage(NamedTuple):
    """A part of the work.

    Attributes:
        run: does it, and the same when it is done a second time; its result is kept as JSON.
    """

    name: str
    run: Callable[[], Any]


class Watcher(Protocol):
    """Shows what goes on.

    ``with watcher.stage("count ids", done)`` encloses a stage; ``done`` gives its share, 0 to 100,
    below 0 if unknown, and may be called from another thread at any time within.
    """

    def stage(self, name: str, done: Watched) -> AbstractContextManager[None]: ...

    def note(self, text: str) -> None: ...


class Unseen:
    """Nobody watches."""

    @contextmanager
    def stage(self, name: str, done: Watched) -> Iterator[None]:
        yield

    def note(self, text: str) -> None:
        pass


class StageLog:
    """The stages that are done, recorded in the database that holds what they have made.

    Attributes:
        results: what each has returned, by its name, in the order in which they were done.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        connection.execute("CREATE TABLE IF NOT EXISTS stages_done (name VARCHAR, result VARCHAR)")
        done = connection.execute("SELECT name, result FROM stages_done ORDER BY rowid").fetchall()
        self.results: dict[str, Any] = {name: json.loads(result) for name, result in done}

    def run(self, stages: Sequence[Stage], watcher: Watcher, keep: Callable[[], None]) -> None:
        """Run the stages that are not done; ``keep`` is called whenever one is."""
        if self.results:
            watcher.note(f"goes on after: {', '.join(self.results)}")
        for stage in stages:
            if stage.name not in self.results:
                with watcher.stage(stage.name, self._connection.query_progress):
                    self._run(stage)
                keep()

    def _run(self, stage: Stage) -> None:
        """Run one and record it, both or neither."""
        self._connection.begin()
        try:
            result = stage.run()
            row = [stage.name, json.dumps(result)]
            self._connection.execute("INSERT INTO stages_done VALUES (?, ?)", row)
            self._connection.commit()
        except BaseException:
            with suppress(duckdb.Error):  # what failed may have ended the transaction itself
                self._connection.rollback()
            raise
        self.results[stage.name] = result
