"""The further processes of a trial that several ranks train: Ray actors inside the placement group of the trial.

The worker that Tune runs is the first rank. It starts an actor for each of the others on a bundle of its own and ends
them with the trial. Ray ends them too when the worker dies, since it owns them.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nas_blockout.data import DataSettings, Splits, load
from nas_blockout.devices import keep_freed_memory
from nas_blockout.experiment import Experiment, Run
from nas_blockout.training import RankGroup, RanksEndedError
from services.cluster.tasks import Task
from services.cluster.worker_errors import describe_error

END_SECONDS = 30.0  # how long the others may take to notice that a trial has ended, before their processes are ended


class RankLostError(RuntimeError):
    """The process of another rank has died: the trial begins again from its checkpoint in new processes."""


class RankError(RuntimeError):
    """Another rank has failed; the message is its reason."""


class RankMember:
    """What the process of a further rank does; keeps the data in memory between trials."""

    def __init__(self) -> None:
        self._data: tuple[tuple[DataSettings, str | None], Splits] | None = None

    def prepare(self, task: Mapping[str, Any]) -> None:
        """Load the data of a task, so that no other rank waits for it later."""
        described = Task(**task)
        torch.set_num_threads(described.threads)
        keep_freed_memory()
        self._splits(Experiment.from_json(described.experiment).data, described.data_root)

    def train(self, task: Mapping[str, Any], rank: int, address: str, port: int) -> None:
        """Train a task with the other ranks until it ends, or until the first of them ends it.

        Args:
            task: As plain JSON types.
            rank: Number of this process, 1 or more.
            address: Host of the first rank.
            port: Of its store.
        """
        described = Task(**task)
        experiment = Experiment.from_json(described.experiment)
        splits = self._splits(experiment.data, described.data_root)
        ranks = RankGroup.connected(rank, described.ranks, address=address, port=port, device=described.device)
        try:
            placement = described.placement()
            for _ in Run(experiment, splits, device=described.device, placement=placement, ranks=ranks):
                pass
        except RanksEndedError:
            pass
        finally:
            ranks.close()

    def _splits(self, settings: DataSettings, data_root: str | None) -> Splits:
        key = settings, data_root
        if self._data is None or self._data[0] != key:
            self._data = key, load(settings, root=Path(data_root) if data_root else None)
        return self._data[1]


class RankActors:
    """The other ranks of a worker that Ray Tune runs.

    Args:
        cpus: Ray CPUs of each.
        gpus: Ray GPUs of each, 0 or 1.
    """

    def __init__(self, *, cpus: int, gpus: int) -> None:
        self._cpus, self._gpus = cpus, gpus
        self._actors: list[Any] = []
        self._running: list[Any] = []
        self._ranks: RankGroup | None = None

    def begin(self, task: Task) -> RankGroup:
        """Let the others begin a task; return what connects this process with them.

        Raises:
            RankError: One of them cannot, as for want of the data.
            RankLostError: One of them has died.
        """
        import ray

        self.leave()
        if not self._actors:
            self._actors = [self._started(rank) for rank in range(1, task.ranks)]
        self._await([actor.prepare.remote(task.to_json()) for actor in self._actors])
        address, port, store = RankGroup.served(ray.util.get_node_ip_address(), task.ranks)
        self._running = [
            actor.train.remote(task.to_json(), rank, address, port) for rank, actor in enumerate(self._actors, 1)
        ]
        self._ranks = RankGroup(0, task.ranks, store=store, device=task.device)
        return self._ranks

    def leave(self) -> None:
        """End the task on all ranks, if one is running; their processes stay for the next one."""
        import ray

        if self._ranks is None:
            return
        self._ranks.close()
        self._ranks = None
        _, late = ray.wait(self._running, num_returns=len(self._running), timeout=END_SECONDS)
        if late or self.failure() is not None:
            self.end()
        self._running = []

    def end(self) -> None:
        """End the processes of the others, whatever they do."""
        import ray

        if self._ranks is not None:
            self._ranks.abort()
            self._ranks = None
        for actor in self._actors:
            ray.kill(actor)
        self._actors, self._running = [], []

    def failure(self, *, wait_seconds: float = 0.0) -> Exception | None:
        """Return why another rank has ended before the trial did, None if none has.

        Args:
            wait_seconds: How long to wait for one to end: an error of this rank may come from it.
        """
        import ray

        ended, _ = ray.wait(self._running, timeout=wait_seconds) if self._running else ([], [])
        while ended:
            try:
                self._await(ended)
            except (RankError, RankLostError) as error:
                return error
            rest = [each for each in self._running if each not in ended]
            more, _ = ray.wait(rest, timeout=0) if rest else ([], [])
            if not more:
                return None
            ended += more
        return None

    def _started(self, rank: int) -> Any:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        logging.getLogger("ray").setLevel(logging.ERROR)
        group = ray.util.get_current_placement_group()
        assert group is not None, "Tune runs every trial in a placement group"
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
        options = {"num_cpus": self._cpus, "num_gpus": self._gpus, "scheduling_strategy": strategy}
        return ray.remote(RankMember).options(**options).remote()

    def _await(self, results: list[Any]) -> None:
        """Wait for results of the others; raise what went wrong there as an error of this module."""
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        for result in results:
            try:
                ray.get(result)
            except RayTaskError as error:
                cause = error.cause if isinstance(error.cause, Exception) else error
                raise RankError(f"another rank failed: {describe_error(cause)}") from None
            except RayActorError as error:
                raise RankLostError(f"the process of another rank has died: {describe_error(error)}") from None
