"""One run on its ranks, read top to bottom: loop, evaluate, save, test."""

import logging
from typing import NamedTuple

from stem_torchrec import checkpoint
from stem_torchrec.distributed.optimizers import learning_rate_factor
from stem_torchrec.errors import SplitRefused, environment_failures
from stem_torchrec.runs.folder import (
    Existing,
    clear_run,
    continue_run,
    create_run,
    write_init,
)
from stem_torchrec.runs.records import Listener, Record, Recorder, read_records
from stem_torchrec.runs.restart import mark
from stem_torchrec.stopping.interruption import Interruption, Stopped
from stem_torchrec.training.course import Course, Epochs
from stem_torchrec.training.evaluating import evaluate
from stem_torchrec.training.patience import Patience, Plateau
from stem_torchrec.training.position import Position
from stem_torchrec.training.profile import Profile
from stem_torchrec.training.saving import (
    LastBalance,
    about_checkpoint,
    best_kept,
    failure_of,
    keep_last,
    note_metric,
    save_due,
)
from stem_torchrec.training.session import Session
from stem_torchrec.training.skipped import SkippedSteps
from stem_torchrec.training.throughput import Throughput
from stem_torchrec.training.train_record import train_metrics, train_record

_log = logging.getLogger(__name__)


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


class Trainer:
    """One run on these ranks: what it has, and the loop that uses it.

    Every rank makes the same calls.

    Args:
        session: the model with what trains it.
        listener: gets every record, on rank 0 alone.
        course: what is read and how it is judged; epochs of the train split if None.

    Attributes:
        position: how far the run has come.
        metrics: of the training stream.
        patience: how long the valid split has not improved.
        plateau: what follows from that for the learning rates.
        interruption: signals, and the watch over steps.
    """

    recorder: Recorder
    saver: checkpoint.Saver

    def __init__(self, session: Session, listener: Listener, course: Course | None = None) -> None:
        config, ranks = session.config, session.ranks
        self.course = course or Epochs(session)
        self.session, self.config, self.ranks = session, config, ranks
        self._listener = listener
        self.position = Position(*self.course.readers())
        self.metrics = train_metrics(session)
        self.throughput = Throughput(ranks.device, config.train.qps_warmup_steps)
        self.profile = Profile(config, ranks)
        self.patience = Patience(config)
        self.plateau = Plateau(config)
        self.skipped = SkippedSteps(
            config, session.schema.task_names, ranks, self.position, self.metrics
        )
        self.interruption = Interruption(
            ranks, grace_s=config.run.grace_s, limit_s=config.distributed.timeout_s
        )

    @property
    def parts(self) -> checkpoint.Parts:
        """What a checkpoint holds of the run, the same on all ranks or in shards."""
        session = self.session
        return {
            "model": session.model,
            "optimizers": session.optimizers,
            "position": self.position,
        }

    @property
    def own_parts(self) -> checkpoint.OwnParts:
        """What it holds of each rank."""
        parts: checkpoint.OwnParts = {
            "windows": self.metrics,
            "rng": checkpoint.RandomNumbers(self.ranks.device),
            "balance": LastBalance(self.session.fork),
        }
        if self.config.optim.decay == "plateau":  # checkpoints of other runs have no such part
            parts = {**parts, "plateau": self.plateau}
        return parts

    def begin(self, existing: Existing, initial: checkpoint.Initial | None) -> None:
        """Take from another run what is asked for, and make the run's folder."""
        config, session = self.config, self.session
        report = self._take(initial) if initial is not None else None

        def make() -> None:
            with environment_failures(config.run.dir):
                clear_run(config.run.dir, existing)
                mark(config.run.dir)
                create_run(config, session.schema, session.plan_report)

        self.ranks.on_first(make)
        if self.ranks.is_first and (doubt := self.course.doubt(self.position)) is not None:
            _log.warning("%s", doubt)
        if report is not None and self.ranks.is_first:
            write_init(config.run.dir, report)
            self._listener({"kind": "init", **report})

    def _take(self, initial: checkpoint.Initial) -> Record:
        """Weights of another run, or all that its training knows; what was taken."""
        session, position = self.session, self.position
        model, schema, ranks = session.model, session.schema, self.ranks
        if not initial.continues:
            return checkpoint.load_initial(model, self.config, schema, initial, ranks)
        report, before = checkpoint.load_continued(
            model, session.optimizers, self.config, schema, initial, ranks
        )
        position.steps_before, position.skipped_before = before.steps, before.skipped
        return report

    def go_on(self) -> None:
        """Load the newest checkpoint and bring the run's folder to its position."""
        config, session = self.config, self.session
        folder = checkpoint.newest_valid(config.run.dir, self.ranks)
        session.optimizers.make_state()
        checkpoint.load(folder, self.parts, self.ranks)
        checkpoint.load_own(folder, self.own_parts, self.ranks)
        checkpoint.tell_of_layout(folder, config.embedding, self.ranks)
        step = self.position.step
        self.ranks.on_first(lambda: continue_run(config, session.schema, session.plan_report, step))

    def run(self) -> Outcome:
        """From the position to the end: steps, test, last checkpoint."""
        config, ranks, position = self.config, self.ranks, self.position
        self.recorder = Recorder(
            config.run.dir, active=ranks.is_first, step=position.step, config=config
        )
        with self.interruption, self.recorder, self.profile:
            # Records first: a run that goes on from a checkpoint has those before it.
            folder, upload = config.run.dir / checkpoint.FOLDER, self.recorder.upload
            self.saver = checkpoint.Saver(config.checkpoint, folder, ranks, self._failed, upload)
            test, stopped = None, None
            try:
                self._fit()
            except Stopped:
                stopped = position.step
            unsaved = keep_last(self.session, position, self.saver)
            self.saver.close()
            best = best_kept(self.session)
            try:
                if stopped is None and self.course.tests and "test" in self.session.splits:
                    test = self._test(best)
            except Stopped:
                stopped = position.step
            self.recorder.complete = stopped is None
        failure = failure_of(unsaved, self.recorder.failure)
        qps = self.throughput.total() if stopped is None else None
        return Outcome(test, qps, stopped, best, failure)

    def _fit(self) -> None:
        """Steps until the epochs or ``max_steps`` are done, with records, evaluations, checkpoints.

        Raises:
            Stopped: a signal has ended it, with a checkpoint.
        """
        position, total_steps = self.position, self.position.total_steps(self.config)
        batches = position.batches(total_steps)
        records = self.ranks.on_first(lambda: read_records(self.config.run.dir))
        self.patience.start(records)
        for record in records:  # an evaluation may have come after its step's checkpoint
            self.plateau.judge(record)
        if self.course.owes(position, total_steps):
            note_metric(self.session, position, self._judge())
        self.session.recommender.train()
        self.throughput.resume()
        while position.step < total_steps and not self.patience.is_over:
            rates = self._set_rates(total_steps)
            self.profile.before(position.step + 1)
            self.interruption.beat()
            done = self.session.step(batches)
            self.throughput.count(position.advance())
            self.skipped.add(done)

            if position.step % self.config.train.log_every == 0 or position.step == total_steps:
                self.skipped.settle()
                self._publish(train_record(self, total_steps, rates))
            self._between_steps(total_steps)
        self.throughput.pause()

    def _set_rates(self, total_steps: int) -> dict[str, float]:
        """Tell optimizers and balancing which step comes; the learning rates it has."""
        session, position = self.session, self.position
        step = position.steps_before + position.step
        skipped = position.skipped_before + position.skipped
        steps_in_all = position.steps_before + total_steps
        factor = learning_rate_factor(self.config.optim, step, steps_in_all)
        if session.optimizers.need_gradients:  # the step has waited for the device already
            self.skipped.settle()
        session.optimizers.set_applied_steps(step - skipped)
        if session.fork is not None:
            session.fork.begin(step)
        return session.optimizers.set_learning_rates(factor * self.plateau.factor)

    def _between_steps(self, total_steps: int) -> None:
        """What is due after a step, off the clock, and the end if a signal asks for it.

        Raises:
            As ``_evaluate_and_save`` does.
        """
        position, course = self.position, self.course
        stop, last = self.interruption.agreed(), position.step == total_steps
        due = not stop and course.judges_after(position, total_steps)
        save = save_due(self.config.checkpoint, position.step, last, None)
        if stop or due or save or course.saves_after(position):
            self.skipped.settle()
            self.throughput.pause()
            self._evaluate_and_save(due, last, stop)
            self.throughput.resume()
        self.interruption.rest()

    def _evaluate_and_save(self, due: bool, last: bool, stop: bool) -> None:
        """Evaluate if it is due, and save a checkpoint if it is.

        Raises:
            Stopped: the ranks have agreed to stop, here or in the evaluation, and have saved.
            SplitRefused: what is due cannot be read any more; the ranks have saved.
        """
        evaluated, refused = None, None
        try:
            if due:
                evaluated = self._judge()
        except Stopped:
            stop = True
        except SplitRefused as error:  # on all ranks
            refused = error
        self.interruption.rest()
        enough = due and self.patience.is_over and not last
        if enough:
            self._publish(self.patience.record(self.position.step))
        ends = stop or last or enough or refused is not None
        save = save_due(self.config.checkpoint, self.position.step, last, evaluated)
        if ends or save or self.course.saves_after(self.position):
            self._save(evaluated, ends=ends)
        if refused is not None:
            self.saver.wait()
            raise refused
        if stop:
            raise Stopped

    def _judge(self) -> Record:
        record = self.course.judge(self.position, self.interruption)
        self._publish(record)
        self.patience.judge(record)
        return record

    def _test(self, best: int | None) -> Record:
        """Evaluate the test split with the last weights, or the best ones where they are meant.

        The last ones must have been saved: others take their place here.
        """
        step = self.position.step
        epoch: int | None = self.position.epoch
        if self.config.tests_best and best is not None and best != step:
            folder = checkpoint.chosen_valid(self.config.run.dir, best, self.ranks)
            checkpoint.load(folder, {"model": self.session.model}, self.ranks)
            step, epoch = best, self.ranks.on_first(lambda: checkpoint.epoch_of(folder))
        record = evaluate(self.session, "test", step, epoch, self.interruption)
        self._publish(record)
        return record

    def _save(self, evaluated: Record | None, *, ends: bool) -> None:
        """Save what the run has come to; ``evaluated`` is this step's eval record."""
        about = about_checkpoint(self.session, self.position, evaluated)
        about |= self.course.about(self.position)
        state, own = checkpoint.state_of(self.parts), checkpoint.own_state(self.own_parts)
        self.saver.save(checkpoint.Content(self.position.step, state, own, about), last=ends)

    def _failed(self, step: int, error: str) -> None:
        self._publish({"kind": "checkpoint", "step": step, "error": error})

    def _publish(self, record: Record) -> None:
        self.plateau.judge(record)
        self.recorder.write(record)
        if self.ranks.is_first:
            self._listener(record)
