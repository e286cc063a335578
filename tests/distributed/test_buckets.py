"""Gradient buckets are formed before the first step, which changes nothing else."""

from tests.distributed.test_checkpoint import batches, config_with, rows_of_steps
from tests.steps import assert_close, run_steps, start, state_of


def step_and_rebuild(ranks, config):
    """Weights and gradients before a step, and whether DDP forms other buckets after it."""
    session = start(config, ranks)
    (module,) = (m for m in session.model.modules() if hasattr(m, "reducer"))
    gradients = [weight.grad for weight in module.parameters()]
    before = state_of(session)
    run_steps(session, batches(ranks, rows_of_steps()[:1]))
    return before, gradients, module.reducer._rebuild_buckets()


def test_the_first_step_changes_no_bucket(tmp_path, pair, alone):
    config = config_with(tmp_path, "table_wise", "sgd")
    before, gradients, rebuilt = pair.run(step_and_rebuild, config)[0]
    assert not rebuilt
    assert all(gradient is None for gradient in gradients)
    assert_close(before.dense, state_of(start(config, alone)).dense, 0.0)
