"""The runs of a study in its experiment: which of them are its own, and of which trial."""

from collections.abc import Iterable, Iterator
from typing import Any

from services.tracking.run_values import begin_of, end_of
from services.tracking.study_identity import StudyIdentity
from services.trial_record import Trial

_PAGE = 1000


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

    def parent(self) -> Any | None:
        """Return the run of the study, perhaps a deleted one; one that is there goes before one that was deleted."""
        found = [run for run in self._search(self.experiment, "tags.`nas.trial` = 'study'") if self._is_parent(run)]
        return min(found, key=_rank, default=None)

    def of(self, trials: Iterable[Trial]) -> tuple[dict[str, Any], int]:
        """Return the runs of trials that have ended, by the trial's ID, and how many runs are of another study."""
        by_id = {str(trial.id): trial for trial in trials}
        found: dict[str, Any] = {}
        strays = 0
        for run in self._search(self.experiment, ""):
            number = run.data.tags.get("nas.trial")
            if number is None or number == "study":
                continue
            trial = by_id.get(number)
            if trial is not None and self._is_of(run, trial):
                if number not in found or _rank(run) < _rank(found[number]):
                    found[number] = run
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

    def _search(self, experiment: str, query: str) -> Iterator[Any]:
        from mlflow.entities import ViewType

        token = None
        while True:
            page = self._client.search_runs([experiment], query, ViewType.ALL, max_results=_PAGE, page_token=token)
            yield from page
            token = page.token
            if not token:
                return


def _rank(run: Any) -> tuple[bool, bool, int]:
    """Order runs of the same trial: those that are there and have ended first."""
    return run.info.lifecycle_stage == "deleted", run.info.status == "RUNNING", run.info.start_time
