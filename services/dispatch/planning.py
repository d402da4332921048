"""What a decision about the queue stands on: what studies ask for, how long they will run, what the cluster has."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Protocol

from services.budget.limits import Unit, shares
from services.cluster.jobs import Node
from services.dispatch.fair_share import Demand, Entry, Plan, Policy, plan
from services.dispatch.owner_limits import OwnerLimits
from services.store import QueueSummary, SpentRow, Store, Waiting
from services.study_config.errors import StudyError
from services.study_config.resolution import stored_study
from services.study_config.schema import Budget

NODES_SECONDS = 3.0
PROGRESS_SECONDS = 10.0
LEAST_PROGRESS = 0.01
# An expected start that moves by less than this, or than a fifth of the time until then, is not written again.
SAME_SECONDS = 30.0
_MOST_KNOWN = 10_000


class HasNodes(Protocol):
    """A cluster, as far as planning needs it."""

    def nodes(self) -> Sequence[Node]:
        """Return its machines."""


class Planner:
    """Reads queue and cluster, and plans; remembers what does not change, so that a round costs little.

    Args:
        store: Holds queue and studies.
        cluster: Says what machines it has.
        policy: What the operator has set on who is next.
        limits: What the operator has set on what owners may use.
    """

    def __init__(self, store: Store, cluster: HasNodes, policy: Policy, limits: OwnerLimits) -> None:
        self._store, self._cluster, self._policy, self._limits = store, cluster, policy, limits
        self._demands: dict[tuple[str, str | None], Demand] = {}
        self._nodes: tuple[float, Sequence[Node]] | None = None
        self._progress: dict[str, tuple[float, float]] = {}  # by running study, when it was seen first, and how far
        self._left: dict[str, tuple[float, float | None]] = {}  # by running study, when asked, and the seconds left

    def plan(self, rows: Sequence[QueueSummary], *, now: datetime, held_back: Mapping[str, str]) -> Plan:
        """Return what to do with all studies that wait or run.

        Args:
            rows: The studies.
            now: Time of the store's clock.
            held_back: By study, why it may not start, whatever room there is.

        Raises:
            ClusterError: The cluster cannot be reached.
        """
        waits = any(row.state == "queued" for row in rows)
        running = {row.study for row in rows if row.state == "running"}
        self._progress = {study: seen for study, seen in self._progress.items() if study in running}
        self._left = {study: left for study, left in self._left.items() if study in running}
        entries = [
            Entry(row, self.demand(row), self._seconds_left(row.study) if waits and row.study in running else None)
            for row in rows
        ]
        over, stop = self._limits.exceeded(self._store, self._gpus, now=now)
        held_back = {**{row.study: over[row.owner] for row in rows if row.owner in over}, **held_back}
        planned = plan(entries, self._machines(), self._policy, now=now, held_back=held_back)
        ended = {row.study: stop[row.owner] for row in rows if row.owner in stop and row.study in running}
        return Plan(planned.starts, {**planned.yields, **ended}, planned.waiting)

    def demand(self, row: QueueSummary) -> Demand:
        """Return what a study asks for; a study that cannot be read asks for little, and fails when it is started."""
        key = (row.study, f"{row.config_hash} {row.queued_at}")  # `workers` may change when it is extended
        if key not in self._demands:
            if len(self._demands) >= _MOST_KNOWN:
                self._demands.clear()
            found = self._store.submitted_study(row.study)
            self._demands[key] = demand_of(found.document if found is not None else {})
        return self._demands[key]

    def _gpus(self, study: str) -> float:
        found = self._store.submitted_study(study)  # a deleted one, too: what it has used is used
        return self.demand(found).gpus if found is not None else 0.0

    def _machines(self) -> Sequence[Node]:
        if self._nodes is None or time.monotonic() - self._nodes[0] >= NODES_SECONDS:
            self._nodes = (time.monotonic(), self._cluster.nodes())
        return self._nodes[1]

    def _seconds_left(self, study: str) -> float | None:
        """Return how long a running study is expected to run on, from its progress since this worker has seen it."""
        asked, left = self._left.get(study, (None, None))
        if asked is not None and time.monotonic() - asked < PROGRESS_SECONDS:
            return left
        now, share = time.monotonic(), self._share(study)
        began, first = self._progress.setdefault(study, (now, share))
        done = share - first
        left = (1 - share) * (now - began) / done if done >= LEAST_PROGRESS else None
        self._left[study] = (now, left)
        return left

    def _share(self, study: str) -> float:
        status = self._store.study_status(study)
        return 0.0 if status is None else share_of_budget(status.row.document, status.spent)


def demand_of(document: Mapping[str, Any]) -> Demand:
    """Return what a resolved study asks for, the least that there is if this release cannot read it."""
    try:
        workers = stored_study(document, source="study").config.workers
    except StudyError:
        return Demand()
    return Demand(
        workers.max_concurrent_trials,
        workers.cpus,
        workers.gpus,
        workers.ranks_of_trial,
        workers.rank_placement == "several-nodes",
    )


def share_of_budget(document: Mapping[str, Any], spent: Sequence[SpentRow]) -> float:
    """Return the fraction of all budgets of a study that is spent, in [0, 1]; 0 if this release cannot read it."""
    with suppress(KeyError, TypeError, ValueError):
        budget, arms = Budget.model_validate(document["budget"]), list(document["arms"])
        return sum(_share_of_arm(budget, [row for row in spent if row.arm == arm]) for arm in arms) / len(arms)
    return 0.0


def _share_of_arm(budget: Budget, spent: Sequence[SpentRow]) -> float:
    used: dict[Unit, float] = {
        "sample_passes": sum(row.sample_passes for row in spent),
        "seconds": sum(row.seconds + row.suggest_seconds for row in spent),
        "trainings": sum(row.complete + row.failed + row.pruned for row in spent),
    }
    return min(1.0, max(shares(budget, used).values()))


def changed(row: QueueSummary, said: Waiting, *, now: datetime) -> bool:
    """Whether what is to be said of a study that waits differs from what is recorded; small changes do not count."""
    if (row.position, row.message, row.set_aside_at) != (said.position, said.message, said.set_aside_at):
        return True
    if row.expected_at is None or said.expected_at is None:
        return row.expected_at != said.expected_at
    moved = abs((said.expected_at - row.expected_at).total_seconds())
    return moved > max(SAME_SECONDS, (said.expected_at - now).total_seconds() / 5)
