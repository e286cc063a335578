"""Torch's elastic agent, which leaves stopping to the workers.

By itself it would end the workers at a signal and then fail; here they leave by themselves, and the
job ends as they did.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.launcher import api

from stem_torchrec.launch.failures import (
    all_failures,
    comes_again,
    error_of,
    killed_by_signals,
)
from stem_torchrec.launch.node_address import give_up_lost_peers
from stem_torchrec.stopping.parent_watch import ends_its_children
from stem_torchrec.stopping.passing_on import PassedOn, passing_on_signals
from stem_torchrec.storage.lock.holder import share_job_name

LEFT_TO_TORCH = "SIGQUIT"
"""For ``LaunchConfig.signals_to_handle`` and torchrun's ``--signals-to-handle``."""


@contextmanager
def stopping_with_workers() -> Iterator[PassedOn]:
    """Around a launch with ``signals_to_handle=LEFT_TO_TORCH``, in the main thread.

    Its workers end with this process; a mistake of the user is not started again.
    """
    with passing_on_signals() as passed_on, ends_its_children():
        agent, api.LocalElasticAgent = api.LocalElasticAgent, _agent_class(passed_on)
        try:
            yield passed_on
        finally:
            api.LocalElasticAgent = agent


def _agent_class(passed_on: PassedOn) -> type[LocalElasticAgent]:
    class Agent(LocalElasticAgent):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            passed_on.at_first.append(self._do_not_restart)
            handler = self._worker_group.spec.rdzv_handler
            store = getattr(handler, "_store", None)
            share_job_name(store, handler.get_run_id())
            if (port := getattr(store, "port", None)) is not None:
                give_up_lost_peers(port)

        def _do_not_restart(self) -> None:
            self._remaining_restarts = 0

        def _start_workers(self, *arguments: Any, **options: Any) -> Any:
            started = super()._start_workers(*arguments, **options)
            passed_on.workers_have_started()
            return started

        def _monitor_workers(self, group: Any) -> Any:
            context = self._pcontext
            killed = killed_by_signals(context)
            result = super()._monitor_workers(group)
            if result.is_failed():
                found = {failure.local_rank: failure for failure in result.failures.values()}
                result.failures = {
                    group.workers[rank].global_rank: failure
                    for rank, failure in all_failures(context, found, killed).items()
                }
                first = next(iter(result.failures.items()))
                if comes_again(error_of(*first)):
                    self._do_not_restart()
            return result

    return Agent
