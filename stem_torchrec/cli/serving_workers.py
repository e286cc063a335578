"""What each rank runs for ``predict`` and ``export``; DuckDB, which no other worker needs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stem_torchrec.checkpoint import Choice
from stem_torchrec.config import Config
from stem_torchrec.console import PredictionConsole
from stem_torchrec.console.streams import lenient_streams
from stem_torchrec.distributed.ranks import Ranks, start_ranks, stop_ranks
from stem_torchrec.errors import environment_failures
from stem_torchrec.launch.notices import hide_dependency_notices
from stem_torchrec.serving.export import ExportRequest, finish, write_from_ranks
from stem_torchrec.serving.model import About
from stem_torchrec.serving.request import PredictionRequest, predict_request


@lenient_streams()
@environment_failures()
def predict_files_worker(
    config: Config, choice: Choice, wanted: PredictionRequest, out: Path
) -> int | None:
    """Predict files; the rows on rank 0, None elsewhere."""
    with _joined(config) as ranks:
        if not ranks.is_first:
            predict_request(config, ranks, choice, wanted, out, _ignore_progress)
            return None
        with PredictionConsole() as console:
            return predict_request(config, ranks, choice, wanted, out, console.show)


@lenient_streams()
@environment_failures()
def export_worker(config: Config, choice: Choice, request: ExportRequest) -> About | None:
    """Export a run; what the export says of itself on rank 0, None elsewhere."""
    with _joined(config) as ranks:
        exported, is_first = write_from_ranks(config, ranks, choice, request), ranks.is_first
    return finish(config, request, exported) if is_first else None


@contextmanager
def _joined(config: Config) -> Iterator[Ranks]:
    """This process as a rank of a job, which it leaves also after an error."""
    hide_dependency_notices()
    ranks = start_ranks(config.distributed)
    try:
        yield ranks
    finally:
        stop_ranks()


def _ignore_progress(done: int, total: int | None) -> None:
    """Ranks but the first show nothing."""
