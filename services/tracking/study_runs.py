"""The runs of a study in its experiment: which of them are its own, of which trial, and which trials have none yet."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.store import Store
from services.tracking.run_values import begin_of, end_of
from services.tracking.study_identity import StudyIdentity
from services.trial_record import Trial

_PAGE = 1000
# Trials that began within so many milliseconds of each other are looked for with one query. It returns what else began
# meanwhile, which is little; one query from the first to the last may return the whole study, if one trial took long.
_NEAR = 10_000


class EndedTrials:
    """The trials of a study that have ended, and which of them are not written yet.

    The end of a trial is final and IDs only rise: whoever has seen all trials up to an ID need look again only at those
    among them that had not ended. So each look reads what is new, however many trials there are.

    Args:
        store: Holds the trials.
        study: Name of the study.

    Attributes:
        unwritten: Trials to write, by ID, without their documents.
        written: IDs of trials that need not be written.
    """

    def __init__(self, store: Store, study: str) -> None:
        self._store, self._study = store, study
        self.forget()

    def forget(self) -> None:
        """Know of no trial, as before the first look."""
        self._last, self._open = -1, set[int]()
        self.unwritten: dict[int, Trial] = {}
        self.written: set[int] = set()

    def look(self) -> None:
        """Read what is new in the store."""
        for trial in self._store.brief_trials(self._study, after=self._last, among=self._open):
            self._last = max(self._last, trial.id)
            if trial.ended:
                self._open.discard(trial.id)
                self.unwritten[trial.id] = trial
            else:
                self._open.add(trial.id)

    def settle(self, trial: int) -> None:
        """Note that a trial has been written, or is not to be."""
        self.unwritten.pop(trial)
        self.written.add(trial)


@dataclass(frozen=True, slots=True)
class FoundRun:
    """The run of a trial, without its values: there may be a hundred thousand.

    Args:
        id: Its ID in MLflow.
        status: Of the run.
        deleted: Whether it was deleted.
        began: When it began, in milliseconds.
        lacks: Tags that it should have, and does not.
    """

    id: str
    status: str
    deleted: bool
    began: int
    lacks: tuple[tuple[str, str], ...]

    @property
    def rank(self) -> tuple[bool, bool, int]:
        """Orders runs of the same trial: those that are there and have ended first."""
        return self.deleted, self.status == "RUNNING", self.began


class StudyRuns:
    """Finds the runs of a study.

    A run is that of a trial if number, arm, seed and the moments at which it began and ended agree, to the millisecond,
    and if it names no other study. The moments tell apart what the number alone does not: trials of another store whose
    runs were written here by a release before there were identities, and trials that a restored backup has otherwise.

    Args:
        client: Of MLflow.
        identity: Of the study.
        began: When the study was created, in milliseconds: its own run begins then.
    """

    def __init__(self, client: Any, identity: StudyIdentity, *, began: int) -> None:
        self.experiment = ""
        self.began = began
        self._client = client
        self._identity = identity

    def recognizes(self, experiment: str) -> bool:
        """Whether an experiment without an identity is this study's: it holds its run, or nothing at all."""
        parents = list(self._search(experiment, "tags.`nas.trial` = 'study'"))
        if not parents:
            return next(self._search(experiment, ""), None) is None
        return any(self._is_parent(run) for run in parents)

    def parent(self, known: str = "") -> Any | None:
        """Return the run of the study, perhaps a deleted one; one that is there goes before one that was deleted.

        Args:
            known: ID of the run if it was found before: while it is there, no other is looked for.
        """
        if known and (run := self._run(known)) is not None:
            return run
        found = [run for run in self._search(self.experiment, "tags.`nas.trial` = 'study'") if self._is_parent(run)]
        return min(found, key=lambda run: _found(run, {}).rank, default=None)

    def of(
        self, trials: Mapping[int, Trial], *, tags: Callable[[Trial], Mapping[str, str]], everywhere: bool
    ) -> tuple[dict[int, FoundRun], int]:
        """Return the runs of trials that have ended, by the trial's ID, and how many runs are of another study.

        Args:
            trials: The trials by ID.
            tags: Returns those that the run of a trial should have.
            everywhere: Whether to look through all runs of the experiment, or only those that began with the trials.
        """
        queries = [""] if everywhere else _at_moments(begin_of(trial) for trial in trials.values())
        found: dict[int, FoundRun] = {}
        strays = 0
        for run in (run for query in queries for run in self._search(self.experiment, query)):
            number = run.data.tags.get("nas.trial")
            if number is None or number == "study":
                continue
            trial = trials.get(int(number)) if number.isdecimal() else None
            if trial is not None and self._is_of(run, trial):
                candidate = _found(run, tags(trial))
                if trial.id not in found or candidate.rank < found[trial.id].rank:
                    found[trial.id] = candidate
            elif trial is not None or not self._identity.is_named_in(run.data.tags):
                strays += run.info.lifecycle_stage != "deleted"
        return found, strays

    def _is_parent(self, run: Any) -> bool:
        tags = run.data.tags
        return self._identity.is_named_in(tags) or (
            not self._identity.is_of_another(tags) and run.info.start_time == self.began
        )

    def _is_of(self, run: Any, trial: Trial) -> bool:
        tags = run.data.tags
        return (
            not self._identity.is_of_another(tags)
            and (tags.get("nas.arm"), tags.get("nas.seed")) == (trial.arm, str(trial.seed))
            and run.info.start_time == begin_of(trial)
            and (run.info.end_time == end_of(trial) or not run.info.end_time)  # none: it was not written to its end
        )

    def _run(self, known: str) -> Any | None:
        """Return a run of the experiment by its ID, None if it was removed for good."""
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(known)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.experiment_id == self.experiment else None

    def _search(self, experiment: str, query: str) -> Iterator[Any]:
        from mlflow.entities import ViewType

        token = None
        while True:
            page = self._client.search_runs([experiment], query, ViewType.ALL, max_results=_PAGE, page_token=token)
            yield from page
            token = page.token
            if not token:
                return


def _found(run: Any, tags: Mapping[str, str]) -> FoundRun:
    lacks = tuple((key, value) for key, value in tags.items() if run.data.tags.get(key) != value)
    info = run.info
    return FoundRun(str(info.run_id), str(info.status), info.lifecycle_stage == "deleted", info.start_time, lacks)


def _at_moments(moments: Iterable[int]) -> Sequence[str]:
    """Return the queries that find all runs which began at these moments, in milliseconds."""
    spans: list[list[int]] = []
    for moment in sorted(moments):
        if spans and moment - spans[-1][1] <= _NEAR:
            spans[-1][1] = moment
        else:
            spans.append([moment, moment])
    return [f"attributes.start_time >= {first} and attributes.start_time <= {last}" for first, last in spans]
