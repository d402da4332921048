"""The runs of arms in MLflow, one an arm: what its page lists first, with the trials of each arm below it."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from services.store import EpochRow
from services.tracking.overview.arm_values import ArmFinding, mean_curves, note_of, numbers_of
from services.tracking.study_identity import STUDY_TAG, StudyIdentity

ARM = "arm"  # of the tags nas.trial and nas.phase, where trials have their number and phase
NOTE = "mlflow.note.content"
_METRICS_MAX = 1000  # in one request


class ArmRuns:
    """Finds, creates and fills the runs of the arms of one study.

    They begin within the first milliseconds of the study, in the order of its file: in the order of time MLflow lists
    them so, below the run of the study and above all trials.

    Args:
        client: Of MLflow.
        identity: Of the study.
        began: When the study was created, in milliseconds.
        arms: Description of each arm, in the order of the study.
        tags: That every run gets when it is created.
        restore: Whether to restore runs that were deleted in MLflow; otherwise they stay deleted, and are not filled.
    """

    def __init__(
        self,
        client: Any,
        identity: StudyIdentity,
        *,
        began: int,
        arms: Mapping[str, str],
        tags: Mapping[str, str],
        restore: bool,
    ) -> None:
        self._client, self._identity, self._began = client, identity, began
        self._arms, self._tags, self._restore = dict(arms), dict(tags), restore
        self._experiment = ""
        self._runs: dict[str, Any] = {}

    def place(self, experiment: str, *, again: bool = False) -> None:
        """Find the runs of all arms, and create those that are missing.

        Args:
            experiment: ID of the experiment.
            again: Look even if it is known which there are.
        """
        if again or experiment != self._experiment:
            self._experiment, self._runs = experiment, self._found(experiment)
        for arm in self._arms:
            self.id_of(arm)

    def id_of(self, arm: str) -> str:
        """Return the ID of the run of an arm, which is created if need be: the parent of the runs of its trials."""
        if arm not in self._runs:
            place = list(self._arms).index(arm) if arm in self._arms else len(self._arms)
            tags = {
                **self._tags,
                **self._identity.tags,
                "nas.trial": ARM,
                "nas.phase": ARM,
                "nas.arm": arm,
                NOTE: note_of(arm, self._arms.get(arm, "")),
            }
            self._runs[arm] = self._client.create_run(
                self._experiment, self._began + 1 + place, run_name=arm, tags=tags
            )
        return str(self._runs[arm].info.run_id)

    def fill(
        self,
        arm: str,
        values: Mapping[str, Any],
        *,
        finding: ArmFinding,
        seeds: Sequence[Sequence[EpochRow]],
        ended: int,
    ) -> None:
        """Write the numbers, curves and verdict of an arm of a finished study; what is there already is not repeated.

        Args:
            arm: Name of the arm.
            values: Its part of ``comparison.json``.
            finding: What the study says of it.
            seeds: Epochs of its retrained trials, one sequence a seed.
            ended: When its last trial ended, in milliseconds.
        """
        run = self._client.get_run(self.id_of(arm))
        if run.info.lifecycle_stage == "deleted":
            return
        identifier, present = str(run.info.run_id), run.data
        self._log(identifier, numbers_of(values), list(mean_curves(seeds)), present=present.metrics, moment=ended)
        note = note_of(arm, self._arms.get(arm, ""), verdict=finding.verdict)
        wanted = {"nas.verdict": finding.verdict, "nas.role": str(values.get("role") or "")}
        if _is_ours(present.tags, arm, self._arms.get(arm, "")):
            wanted[NOTE] = note
        for key, value in wanted.items():
            if value and present.tags.get(key) != value:
                self._client.set_tag(identifier, key, value)
        if run.info.status == "RUNNING" or run.info.end_time != ended:
            self._client.set_terminated(identifier, "FINISHED", end_time=ended)

    def _log(
        self,
        run: str,
        numbers: Mapping[str, float],
        curves: Sequence[tuple[str, int, float]],
        *,
        present: Mapping[str, float],
        moment: int,
    ) -> None:
        from mlflow.entities import Metric

        # Of values at one step MLflow shows the latest, and of equal times the largest.
        now = max(moment, round(1000 * time.time()))
        metrics = [
            Metric(key, value, now if key in present else moment, 0)
            for key, value in numbers.items()
            if present.get(key) != value
        ]
        last = {name: value for name, _, value in curves}
        metrics += [
            Metric(name, value, now if name in present else moment, step)
            for name, step, value in curves
            if present.get(name) != last[name]
        ]
        for first in range(0, len(metrics), _METRICS_MAX):
            self._client.log_batch(run, metrics=metrics[first : first + _METRICS_MAX])

    def _found(self, experiment: str) -> dict[str, Any]:
        from mlflow.entities import ViewType

        query = f"tags.`nas.trial` = '{ARM}' and tags.`{STUDY_TAG}` = '{self._identity.uuid}'"
        found: dict[str, Any] = {}
        token = None
        while token != "":
            page = self._client.search_runs([experiment], query, ViewType.ALL, max_results=1000, page_token=token)
            for run in page:
                arm = run.data.tags.get("nas.arm", "")
                if arm not in found or _is_deleted(found[arm]):  # one that is there goes before one that was deleted
                    found[arm] = run
            token = page.token or ""
        for run in found.values() if self._restore else ():
            if _is_deleted(run):
                self._client.restore_run(run.info.run_id)
        return found


def _is_deleted(run: Any) -> bool:
    return bool(run.info.lifecycle_stage == "deleted")


def _is_ours(tags: Mapping[str, str], arm: str, description: str) -> bool:
    """Whether the note of a run is as it was written here: what people have written stays."""
    verdict = tags.get("nas.verdict", "")
    return tags.get(NOTE, "") in {"", note_of(arm, description), note_of(arm, description, verdict=verdict)}
