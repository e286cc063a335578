"""One run, read top to bottom: build, loop, evaluate, save."""

from contextlib import ExitStack
from typing import NamedTuple

from stem_torchrec import checkpoint
from stem_torchrec.config import Config
from stem_torchrec.data.reader import ParquetReader
from stem_torchrec.distributed.interruption import Interruption, Stopped
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.environment import environment_failures
from stem_torchrec.errors import CheckpointError, SplitRefused
from stem_torchrec.folder_lock import locked
from stem_torchrec.metrics import TrainMetrics
from stem_torchrec.optim import learning_rate_factor
from stem_torchrec.records import Listener, Record, Recorder
from stem_torchrec.restart import existing_after_restart, holder, mark
from stem_torchrec.run_folder import (
    Existing,
    check_run,
    clear_run,
    continue_run,
    create_run,
    write_init,
)
from stem_torchrec.run_schema import schema_of_new, schema_of_run
from stem_torchrec.session import Session, build, open_split
from stem_torchrec.shared_folder import check_shared
from stem_torchrec.skipped import SkippedSteps
from stem_torchrec.throughput import Throughput
from stem_torchrec.training.evaluating import evaluate, evaluation_due, owes_evaluation
from stem_torchrec.training.position import Position, batches_from, total_train_steps
from stem_torchrec.training.saving import best_kept, content, keep_last, save_due, saver_of
from stem_torchrec.training.train_record import train_metrics, train_record


class Outcome(NamedTuple):
    """What a finished run leaves.

    Attributes:
        test: the eval record of the test split, or None where there is no such split.
        qps: samples per second of all ranks, or None if there was only warm-up.
        stopped: the step after which a signal ended it, or None if it is complete.
        best: the step of the checkpoint that ``checkpoint.keep_best`` keeps, or None.
        failure: what the run should have left and has not; to be raised once all is shown.
    """

    test: Record | None
    qps: float | None
    stopped: int | None = None
    best: int | None = None
    failure: Exception | None = None


def train(
    config: Config,
    ranks: Ranks,
    *,
    existing: Existing,
    listener: Listener,
    initial: checkpoint.Initial | None = None,
) -> Outcome:
    """Train, evaluate and save one run. Collective.

    Args:
        initial: another run whose weights are the first ones; not when resuming.
        existing: what to do with a run that the folder already holds.
        listener: gets every record, on rank 0 alone.

    Raises:
        UserError: the folder is not to be written, or another job is at work in it.
    """
    with ExitStack() as claim:
        existing = ranks.on_first(lambda: _claim(claim, config, existing))
        check_shared("run.dir", config.run.dir, ranks)
        return _train(config, ranks, existing, listener, initial)


def _claim(claim: ExitStack, config: Config, existing: Existing) -> Existing:
    """Hold the run's folder, if it may be written; what to do with the run in it."""
    check_run(config, existing_after_restart(config.run.dir, existing))
    claim.enter_context(locked("run.dir", config.run.dir, holder()))
    # The job that was at work there before may have ended only now.
    existing = existing_after_restart(config.run.dir, existing)
    check_run(config, existing)
    return existing


def _train(
    config: Config,
    ranks: Ranks,
    existing: Existing,
    listener: Listener,
    initial: checkpoint.Initial | None,
) -> Outcome:
    if existing == "resume":
        schema = schema_of_run(config, ranks)
    else:
        schema = schema_of_new(config, initial, ranks)
    session = build(config, ranks, schema)
    reader = open_split(session, "train", for_training=True)
    metrics = train_metrics(session)
    if existing == "resume":
        position = _go_on(session, reader, metrics)
    else:
        position = Position(reader.start())
        _begin(session, existing, initial, listener)

    interruption = Interruption(
        ranks, grace_s=config.run.grace_s, limit_s=config.distributed.timeout_s
    )
    session.pipeline.interruption = interruption
    recorder = Recorder(config.run.dir, active=ranks.is_first, step=position.step)
    with interruption, recorder:

        def publish(record: Record) -> None:
            recorder.write(record)
            if ranks.is_first:
                listener(record)

        saver = saver_of(session, publish, recorder)
        qps, test, stopped = None, None, None
        try:
            qps = _fit(session, reader, position, metrics, saver, publish)
            if "test" in session.splits:
                test = evaluate(session, "test", position.step, position.epoch)
                publish(test)
        except Stopped:
            stopped = position.step
        unsaved = keep_last(session, position, saver)
        saver.close()
        best = best_kept(session)
    return Outcome(test, qps, stopped, best, _failure(unsaved, recorder.failure))


def _failure(unsaved: str | None, records: Exception | None) -> Exception | None:
    """One error for both, the records' kind if it is theirs too."""
    if unsaved is None:
        return records
    if records is None:
        return CheckpointError(unsaved)
    return type(records)(f"{unsaved}; {records}")


def _begin(
    session: Session, existing: Existing, initial: checkpoint.Initial | None, listener: Listener
) -> None:
    """Take the first weights from another run if asked, and make the run's folder. Collective."""
    config, ranks, report = session.config, session.ranks, None
    if initial is not None:
        report = checkpoint.load_initial(session.model, config, session.schema, initial, ranks)

    def begin() -> None:
        with environment_failures(config.run.dir):
            clear_run(config.run.dir, existing)
            mark(config.run.dir)
            create_run(config, session.schema, session.plan_report)

    ranks.on_first(begin)
    if report is not None and ranks.is_first:
        write_init(config.run.dir, report)
        listener({"kind": "init", **report})


def _go_on(session: Session, reader: ParquetReader, metrics: TrainMetrics) -> Position:
    """Load the newest checkpoint and bring the run's folder to its position. Collective."""
    config, ranks = session.config, session.ranks
    folder = checkpoint.newest_valid(config.run.dir, ranks)
    saved = checkpoint.load(folder, session.model, session.optimizers, ranks)
    position = Position(reader.resumed(saved), saved["step"], saved["samples"], saved["skipped"])
    checkpoint.load_own(folder, metrics, session.fork, ranks)
    ranks.on_first(lambda: continue_run(config, session.schema, session.plan_report, position.step))
    return position


def _fit(
    session: Session,
    reader: ParquetReader,
    position: Position,
    metrics: TrainMetrics,
    saver: checkpoint.Saver,
    publish: Listener,
) -> float | None:
    """Steps until the epochs or ``max_steps`` are done, with records, evaluations, checkpoints.

    Returns:
        Samples per second of all ranks, warm-up, evaluations and checkpoints left out.

    Raises:
        Stopped: a signal has ended it, with a checkpoint.
    """
    config, interruption = session.config, session.pipeline.interruption
    assert interruption is not None
    total_steps = total_train_steps(config, reader, position)
    batches = batches_from(position, reader, total_steps)
    throughput = Throughput(session.ranks.device, config.train.qps_warmup_steps)
    skipped = SkippedSteps(config, session.schema.task_names, session.ranks, position.skipped)
    if owes_evaluation(session, position, total_steps):
        publish(evaluate(session, "valid", position.step, position.epoch))
    session.model.train()
    while position.step < total_steps:
        factor = learning_rate_factor(config.optim, position.step, total_steps)
        rates = session.optimizers.set_learning_rates(factor)
        session.optimizers.set_applied_steps(position.step - position.skipped)
        if session.fork is not None:
            session.fork.begin(position.step)
        interruption.beat()
        output = session.pipeline.step(batches)
        skipped.count(session.pipeline.skipped, position.step + 1)
        if session.pipeline.skipped is None:
            metrics.update(output)
        throughput.count(position.advance(reader))
        position.skipped = skipped.total

        if position.step % config.train.log_every == 0 or position.step == total_steps:
            publish(train_record(session, position, total_steps, metrics, throughput, rates))
        throughput.pause()
        _evaluate_and_save(session, position, total_steps, metrics, saver, publish)
        throughput.resume()
    return throughput.total()


def _evaluate_and_save(
    session: Session,
    position: Position,
    total_steps: int,
    metrics: TrainMetrics,
    saver: checkpoint.Saver,
    publish: Listener,
) -> None:
    """What is due between two steps, and the end if a signal asks for it. Collective.

    Raises:
        Stopped: the ranks have agreed to stop, here or in the evaluation, and have saved.
        SplitRefused: the valid split cannot be read any more; the ranks have saved.
    """
    interruption = session.pipeline.interruption
    assert interruption is not None
    stop, evaluated, refused = interruption.agreed(), None, None
    try:
        if not stop and evaluation_due(session, position, total_steps):
            evaluated = evaluate(session, "valid", position.step, position.epoch)
            publish(evaluated)
    except Stopped:
        stop = True
    except SplitRefused as error:  # on all ranks
        refused = error
    interruption.rest()
    last = position.step == total_steps
    ends = stop or last or refused is not None
    if ends or save_due(session.config.checkpoint, position.step, last, evaluated):
        _save(session, position, metrics, saver, evaluated, ends=ends)
    if refused is not None:
        saver.wait()
        raise refused
    if stop:
        raise Stopped


def _save(
    session: Session,
    position: Position,
    metrics: TrainMetrics,
    saver: checkpoint.Saver,
    evaluated: Record | None,
    *,
    ends: bool,
) -> None:
    saver.save(content(session, position, metrics, evaluated), last=ends)
