"""What each rank runs for ``predict`` and ``export``; DuckDB, which no other worker needs."""

from contextlib import nullcontext
from pathlib import Path

from stem_torchrec.checkpoint import Choice
from stem_torchrec.config import Config
from stem_torchrec.console import PredictionConsole
from stem_torchrec.console.streams import lenient_streams
from stem_torchrec.distributed.ranks import start_ranks, stop_ranks
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
    hide_dependency_notices()
    ranks = start_ranks(config.distributed)
    with PredictionConsole() if ranks.is_first else nullcontext() as console:
        progress = console.show if console is not None else _ignore_progress
        rows = predict_request(config, ranks, choice, wanted, out, progress)
    stop_ranks()
    return rows if ranks.is_first else None


@lenient_streams()
@environment_failures()
def export_worker(config: Config, choice: Choice, request: ExportRequest) -> About | None:
    """Export a run; what the export says of itself on rank 0, None elsewhere."""
    hide_dependency_notices()
    ranks = start_ranks(config.distributed)
    exported = write_from_ranks(config, ranks, choice, request)
    stop_ranks()
    return finish(config, request, exported) if ranks.is_first else None


def _ignore_progress(done: int, total: int | None) -> None:
    """Ranks but the first show nothing."""
