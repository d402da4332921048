"""A cluster that exists only here, and what tests of workers do with it."""

from collections.abc import Sequence

from services.cluster import ClusterError
from services.cluster.jobs import Job, Node, job_id
from services.dispatch import Dispatcher, Policy
from services.dispatch.owner_limits import OwnerLimits
from services.dispatch.planning import Planner
from services.store import Store
from services.study_config.resolution import resolve_document
from services.study_config.resolved_study import Study

DOCUMENT = {
    "schema_version": 2,
    "name": "example",
    "data": {"name": "digits", "train_samples": 100},
    "backbone": {"name": "convnet", "channels": [8], "hidden": [16]},
    "training": {"epochs": 2},
    "budget": {"sample_passes": 2680},
    "arms": {"dense": {}},
}
NAMES = ("one", "two", "three")


def study_named(name: str, **changes: object) -> Study:
    return resolve_document({**DOCUMENT, "name": name, **changes}, source="test")


STUDIES = {name: study_named(name) for name in NAMES}


def enqueue(store: Store, name: str = "one") -> None:
    study = STUDIES[name]
    store.enqueue(name, document=study.to_json(), config_hash=study.hash, owner="me")


class Grid:
    """A cluster: jobs by name, drivers that write to the store as real ones do, a head that may die."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.jobs: dict[str, Job] = {}
        self.studies: dict[str, Study] = {}
        self.submitted: list[str] = []
        self.options: dict[str, tuple[str, ...]] = {}
        self.away = False
        self.small = False
        self.cpus, self.gpus = 64.0, 0.0
        self.refuses = ""
        self.dies_after_submission = False

    def submit(self, study: Study, *, attempt: int = 0, options: Sequence[str] = ()) -> Job:
        self._reach()
        name = job_id(study, attempt)
        if name in self.jobs:
            return self.jobs[name]
        if study.name == self.refuses:
            raise ClusterError("of all things")
        if self.small:
            raise ClusterError("one trial needs 1 CPU on one node, the cluster has no nodes")
        self.jobs[name] = Job(name, "pending")
        self.studies[name] = study
        self.submitted.append(name)
        self.options[name] = tuple(options)
        if self.dies_after_submission:
            raise KeyboardInterrupt
        return self.jobs[name]

    def job(self, id: str) -> Job | None:
        self._reach()
        return self.jobs.get(id)

    def stop(self, id: str) -> None:
        self._reach()
        if self.jobs[id].living:
            self.end(id, "stopped", None)

    def capacity(self) -> dict[str, float]:
        self._reach()
        return {"CPU": 0.0}

    def nodes(self) -> tuple[Node, ...]:
        self._reach()
        return () if self.small else (Node(self.cpus, self.gpus),)

    def living(self, study: str) -> list[str]:
        return [name for name, job in self.jobs.items() if job.living and self.studies[name].name == study]

    def drive(self, name: str) -> None:
        """Begin, as a driver does that Ray has started."""
        study = self.studies[name]
        row = self.store.create_study(study.name, config=study.to_json(), config_hash=study.hash, arms=list(study.arms))
        if row.state in ("failed", "cancelled"):
            self.store.reopen_study(study.name, reason="again")
        self.store.claim_study(study.name, name)
        self.jobs[name] = Job(name, "running")

    def end(self, name: str, state: str, code: int | None, message: str = "") -> None:
        """End a job in order: a driver that runs lets go of its study, and finishes it if it ended well."""
        if self.jobs[name].state == "running":
            if code in (0, 4):
                self.store.finish_study(self.studies[name].name, "complete")
            else:
                self.store.release_study(self.studies[name].name, name)
        self.jobs[name] = Job(name, state, message, exit_code=code)

    def die(self) -> None:
        """Forget all jobs, as a head does that is started anew; its drivers died with it, and are seen to be gone."""
        for name, job in self.jobs.items():
            if job.state == "running":
                self.store.release_study(self.studies[name].name, name)
        self.jobs.clear()

    def _reach(self) -> None:
        if self.away:
            raise ClusterError("Ray's dashboard cannot be reached")


def worker(store: Store, grid: Grid, name: str = "a", **changes: object) -> Dispatcher:
    policy, limits = changes.pop("policy", Policy()), changes.pop("limits", OwnerLimits())
    planner = Planner(store, grid, policy, limits)  # type: ignore[arg-type]
    return Dispatcher(store, grid, worker=name, planner=planner, **{"log": lambda text: None, **changes})


def driven(store: Store) -> tuple[Grid, Dispatcher, str]:
    """A cluster whose driver runs study one, the worker that submitted it, and the name of the job."""
    grid = Grid(store)
    dispatcher = worker(store, grid)
    enqueue(store)
    dispatcher.round()
    (job,) = grid.submitted
    grid.drive(job)
    return grid, dispatcher, job


def state(store: Store, name: str = "one") -> tuple[str, str]:
    row = store.queued_study(name)
    assert row is not None
    return row.state, row.message
