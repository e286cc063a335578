"""What is asked of a run: which rows, which columns beside the probabilities."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from stem_torchrec.checkpoint import Choice
from stem_torchrec.config import Config
from stem_torchrec.data.schema import Schema
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.errors import UserError
from stem_torchrec.prepare.tables.raw.headers import find_files
from stem_torchrec.runs.schema import own_schema
from stem_torchrec.serving.inputs import InputFiles, PreparedFiles, RawInputs, prepared_split
from stem_torchrec.serving.predict import Progress, predict_files
from stem_torchrec.serving.run_encoder import encoder_of_run
from stem_torchrec.training.finished_run import open_run


@dataclass(frozen=True)
class PredictionRequest:
    """Rows to predict.

    Attributes:
        data: a prepared folder or a split of one; or raw files, or patterns of such.
        split: of a prepared folder.
        keep: columns that the predictions get beside the probabilities.
    """

    data: tuple[str, ...]
    split: str = "test"
    keep: tuple[str, ...] = ()

    def schema(self, config: Config) -> Schema:
        """The run's, compared with the data if that is prepared.

        Raises:
            UserError: the run has no checkpoint, a feature means something else, or a task is to be
                kept.
        """
        found = prepared_split(self.data, self.split)
        schema = own_schema(config, None if found is None else found[0])
        if taken := [name for name in self.keep if name in schema.task_names]:
            raise UserError(
                f"--keep: {taken[0]!r} is a task, whose column holds the probability; keep others"
            )
        return schema

    def files(self, config: Config, schema: Schema) -> InputFiles:
        """The files, opened.

        Raises:
            UserError: one is missing or has other columns, or the run has no encoder for raw ones.
        """
        if found := prepared_split(self.data, self.split):
            return PreparedFiles(*found, schema, self.keep)
        files = _found("--data", self.data)
        return RawInputs(files, encoder_of_run(config.run.dir, schema), self.keep)


def predict_request(
    config: Config,
    ranks: Ranks,
    choice: Choice,
    wanted: PredictionRequest,
    out: Path,
    progress: Progress,
) -> int:
    """Open the run and write the predictions (see ``predict_files``). Collective."""
    schema = ranks.on_first(lambda: wanted.schema(config))
    files = wanted.files(config, schema)
    session, step = open_run(config, ranks, choice, schema)
    request = {"run": str(config.run.dir), "step": step, "tasks": schema.task_names}
    return predict_files(session, files, out, request | asdict(wanted), progress)


def _found(option: str, sources: Sequence[str]) -> tuple[Path, ...]:
    try:
        return find_files(sources)
    except UserError as error:  # which names the option of ``prepare``
        raise UserError(str(error).replace("--source", option)) from None
